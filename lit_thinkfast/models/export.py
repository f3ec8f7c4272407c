"""A student as a folder that other programs load: the weights rearranged, nothing lost, and the proof beside them.

A format is a function from a student to a :class:`~lit_thinkfast.models.formats.ForeignModel` and a line in
``TARGETS``. Written with it are the logits of the student on a fixed prompt, which :func:`verify_export` recomputes
from the folder: before it gets its name, and whenever a user asks.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import logging
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from lit_thinkfast.models.folders import appears_whole, check_free
from lit_thinkfast.models.formats import ForeignModel
from lit_thinkfast.models.granite import card_notes, wrong_behind_padding, wrong_in_vllm
from lit_thinkfast.models.loading import load_model
from lit_thinkfast.models.modeling import HybridForCausalLM
from lit_thinkfast.reading import first_line, read_causal_lm, told_in_one_line

log = logging.getLogger(__name__)

# Not a safetensors file: vLLM takes every *.safetensors of a folder for weights.
EXPECTED = "expected_logits.npz"
TOLERANCE = 1e-4
"""Largest relative error of an export. In float32, SmolLM2 with fresh mixers has 5e-6 from the order of sums alone, and
3e-3 with nothing wrong but its decays rounded to bfloat16."""
_PROMPT_TOKENS = 272  # more than one chunk of the stock classes, which is 256, and no multiple of it
_POSITIONS = 4


class Target(NamedTuple):
    """A format to export to.

    Attributes:
        make: ``"module:function"`` of the function from a student to a :class:`ForeignModel`, imported when it is used.
        description: Of the folder, for its card: "This is ...".
        stock: Does transformers load it without further code? Else this package does.
    """

    make: str
    description: str
    stock: bool = True


TARGETS: dict[str, Target] = {
    "granite_hybrid": Target(
        "lit_thinkfast.models.granite:to_granite_hybrid",
        "a `GraniteMoeHybridForCausalLM` without experts: attention and Mamba-2 over gated MLPs",
    ),
    "bamba": Target(
        "lit_thinkfast.models.granite:to_bamba", "a `BambaForCausalLM`: attention and Mamba-2 over gated MLPs"
    ),
    "llama_cpp": Target(
        "lit_thinkfast.models.llama_cpp:to_llama_cpp",
        "a `BambaForCausalLM`, as bamba, that llama.cpp converts too: its Mamba layers have twice the hidden size",
    ),
    "llamba": Target(
        "lit_thinkfast.models.llamba:to_foreign", "a Llamba: discrete Mamba-2 over gated MLPs", stock=False
    ),
    "mamba_in_llama": Target(
        "lit_thinkfast.models.mamba_in_llama:to_foreign", "a checkpoint as MambaInLlama and M1 have them", stock=False
    ),
}
"""The formats that a student can be exported to."""


def export_model(
    model: HybridForCausalLM, tokenizer: Any, path: str | os.PathLike[str], *, to: str = "granite_hybrid"
) -> float:
    """Write a student in the format of another project, with tokenizer, card and expected logits, and verify it.

    Args:
        model: The student; it is not changed.
        tokenizer: Saved beside it, with its chat template; ``None`` for none.
        path: Folder to write. It appears whole and verified, or not at all.
        to: The format, a name in ``TARGETS``.

    Returns:
        Largest relative error of the written model against the student, as :func:`verify_export` gives it.

    Raises:
        FileExistsError: ``path`` is a file or a folder with something in it.
        ValueError: Unknown format, a model that is no student, or one that the format cannot hold without loss or
            whose logits are not finite.
    """
    if to not in TARGETS:
        raise ValueError(f"unknown export format {to!r}; known: {', '.join(TARGETS)}")
    if not isinstance(model, HybridForCausalLM):
        raise ValueError(f"a {type(model).__name__} is not a student; convert it, or save it as it is")
    check_free(path)
    foreign = _maker(TARGETS[to])(model)
    marks = {name: value for name in ("reward_judge", "reward_scope") if (value := getattr(model.config, name, None))}
    if marks.get("reward_judge") == "head":
        raise ValueError("a reward model with a head of its own has no place for it elsewhere; export without --to")
    foreign = replace(foreign, config=foreign.config | marks)  # it remains a reward model
    prompt = prompt_tokens(model.config.vocab_size)
    expected = _logits(_in_float32(model), prompt)
    if not expected.isfinite().all():
        raise ValueError("the student's logits are not finite, so that an export could not be verified; train it again")
    with appears_whole(path) as folder:
        _write(foreign, folder)
        np.savez_compressed(
            folder / EXPECTED,
            input_ids=prompt.numpy(),
            logits=expected.numpy(),
            tolerance=np.float64(TOLERANCE),
            target=np.str_(to),
        )
        if model.generation_config is not None:
            model.generation_config.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        error = _verify(folder, name=path)
        (folder / "README.md").write_text(_card(model, foreign, to, error), encoding="utf-8")
    if TARGETS[to].stock and (wrong := wrong_behind_padding(model)):
        log.warning("%s: do not pad batches on the left: %s", os.fspath(path), wrong)
    if to == "granite_hybrid" and (wrong := wrong_in_vllm(model)):
        log.warning("%s: do not serve it with vLLM: %s", os.fspath(path), wrong)
    return error


def verify_export(path: str | os.PathLike[str]) -> float:
    """Recompute the expected logits of an exported folder with the class that its users have, in float32 on the CPU.

    Args:
        path: The folder.

    Returns:
        Largest absolute difference of a logit, divided by the largest absolute expected one.

    Raises:
        FileNotFoundError: No such folder, or a file in it is missing or damaged.
        ValueError: The error is above the tolerance that the folder was written with, it was not written by
            :func:`export_model`, or configuration and weights do not fit each other.
    """
    if not Path(path).is_dir():
        raise FileNotFoundError(f"no folder at {os.fspath(path)}")
    return _verify(Path(path), name=path)


def prompt_tokens(vocab_size: int) -> Tensor:
    """Return the fixed prompt, (1, t) token ids all over a vocabulary."""
    return (torch.arange(_PROMPT_TOKENS) * 7919 + 13).remainder(vocab_size)[None]


def _verify(folder: Path, *, name: str | os.PathLike[str]) -> float:
    """Verify a folder that is called ``name`` in messages; see :func:`verify_export`."""
    path, file = os.fspath(name), folder / EXPECTED
    if not file.is_file():
        raise ValueError(f"{path} has no {EXPECTED} to compare with; export it again")
    try:
        with np.load(file, allow_pickle=False) as stored:
            prompt, expected = torch.from_numpy(stored["input_ids"]), torch.from_numpy(stored["logits"])
            tolerance, target = float(stored["tolerance"]), str(stored["target"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as damage:
        raise ValueError(f"{EXPECTED} in {path} is damaged ({first_line(damage)}); export it again") from None
    if target not in TARGETS:
        raise ValueError(f"{path} was exported as {target!r}, which is not known here; known: {', '.join(TARGETS)}")
    model: PreTrainedModel
    if TARGETS[target].stock:
        model = read_causal_lm(path, str(folder), dtype=torch.float32, trust_remote_code=False)
        if not type(model).__module__.startswith("transformers."):
            raise ValueError(f"{path} loads as {type(model).__name__}, which is not a class of transformers")
    else:
        model = load_model(folder, dtype=torch.float32)
    with told_in_one_line(path):
        found = _logits(model.eval(), prompt)
    if found.shape != expected.shape:
        shapes = f"{tuple(found.shape)}, expected were {tuple(expected.shape)}"
        raise ValueError(f"{path} gives logits of shape {shapes}; its config.json is of another model")
    error = float((found - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny))
    if not error <= tolerance:  # also where it is no number
        raise ValueError(
            f"{path} does not give the logits of the exported student: relative error {error:.1e}, tolerance "
            f"{tolerance:.0e}; its files are changed, or transformers {transformers.__version__} computes another model"
        )
    return error


def _maker(target: Target) -> Callable[[HybridForCausalLM], ForeignModel]:
    module, function = target.make.split(":")
    made: Callable[[HybridForCausalLM], ForeignModel] = getattr(importlib.import_module(module), function)
    return made


@torch.no_grad()
def _logits(model: Any, prompt: Tensor) -> Tensor:
    """Return float32 logits (positions, v) at the last positions of a prompt (1, t)."""
    with _plain_torch(model):
        logits: Tensor = model(prompt, use_cache=False, logits_to_keep=_POSITIONS).logits[0]
    return logits.float()


def _in_float32(model: HybridForCausalLM) -> HybridForCausalLM:
    """Return the model in float32 on the CPU; what is that already is shared. It is what a loaded export should be.

    The RoPE frequencies are made anew: a model that was cast to bfloat16 has rounded them, and a loaded one has not.
    """
    with torch.device("meta"):
        twin = HybridForCausalLM(copy.deepcopy(model.config))
    twin.load_state_dict({name: value.cpu().float() for name, value in model.state_dict().items()}, assign=True)
    if model.lm_head.weight is model.model.embed_tokens.weight:
        twin.lm_head.weight = twin.model.embed_tokens.weight
    twin.model.rotary_emb = LlamaRotaryEmbedding(config=twin.config)
    twin.eval()
    return twin


@contextmanager
def _plain_torch(model: PreTrainedModel) -> Iterator[None]:
    """Let a stock class compute with torch alone.

    Where mamba-ssm is installed, transformers calls its CUDA kernels on any device, and they would round to TF32.
    """
    module = sys.modules[type(model).__module__]
    wrapped = {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and hasattr(value, "__wrapped__") and value.__module__ == module.__name__
    }
    try:
        for name, value in wrapped.items():
            setattr(module, name, inspect.unwrap(value))
        yield
    finally:
        for name, value in wrapped.items():
            setattr(module, name, value)


def _write(foreign: ForeignModel, folder: Path) -> None:
    save_torch_state_dict(foreign.weights, folder)
    for name, values in ({"config.json": foreign.config} | foreign.files).items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _card(model: HybridForCausalLM, foreign: ForeignModel, to: str, error: float) -> str:
    """Return the model card: what it is, how to load and verify it, and what to mind."""
    target, base = TARGETS[to], _hub_id(model.name_or_path)
    library = "transformers" if target.stock else "lit-thinkfast"
    front = [f"library_name: {library}", "pipeline_tag: text-generation"]
    if base:
        front.append(f"base_model: {base}")
    mixers = model.config.layer_mixers or []
    layers = ", ".join(f"{mixers.count(name)} {name}" for name in sorted(set(mixers)))
    call = "AutoModelForCausalLM.from_pretrained" if target.stock else "load_model"
    imported = (
        "from transformers import AutoModelForCausalLM"
        if target.stock
        else "from lit_thinkfast.models import load_model"
    )
    notes = card_notes(model, foreign.config, to=to) if target.stock else []
    return "\n".join(
        [
            "---",
            *front,
            "---",
            "",
            f"# A lit-thinkfast student as `{to}`",
            "",
            f"This is {target.description}. It was made of a student of `lit-thinkfast` ({layers} layers, of the "
            f"family {model.config.base_model_type}) by rearranging its weights; nothing was approximated.",
            "",
            "## Load it",
            "",
            "```python",
            imported,
            "",
            f'model = {call}("this/folder")',
            "```",
            "",
            "## Verify it",
            "",
            f"`{EXPECTED}` holds a fixed prompt of {_PROMPT_TOKENS} tokens and the logits of the student at its last "
            f"{_POSITIONS} positions, in float32. This folder was loaded and checked against them before it was "
            f"finished: largest error {error:.1e}, relative to the largest logit; {TOLERANCE:.0e} is tolerated. Check "
            "again, in Python with `lit_thinkfast.verify_export`, or:",
            "",
            "```shell",
            "lit-thinkfast export --verify this/folder",
            "```",
            *(["", "## Mind", ""] if notes else []),
            *(f"- {note}" for note in notes),
            "",
        ]
    )


def _hub_id(name: str) -> str | None:
    """Return a name if it is that of a model on the hub, and not of a folder here."""
    return name if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) and not Path(name).exists() else None
