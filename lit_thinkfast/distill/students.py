"""Hugging Face folders in and out: the model that is trained, loaded or fresh from its config, and its export."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")
MODEL_FILES = (
    *WEIGHT_FILES,
    *TOKENIZER_FILES,
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.*",
    "additional_chat_templates",
)
"""What a saved model consists of, and an export replaces; anything else in its folder stays."""


def build_student(path: str, *, seed: int = 0) -> Any:
    """Return the model of a folder or hub id in fp32, in training mode.

    A stock model of a known family comes as a student whose layers all have attention: the same weights and names, on
    the same code as every student. A folder with a ``config.json`` and no weights gives a freshly initialised model;
    the caller's random state is left as it was. Weights are fp32 whatever the file's precision, because the optimiser
    needs fp32 master weights.

    Raises:
        FileNotFoundError: Nothing is there, or no model.
        ValueError: Not a causal language model of a known family.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from lit_thinkfast.models import HybridForCausalLM, convert
    from lit_thinkfast.models.loading import load_stock
    from lit_thinkfast.reading import told_in_one_line

    if (Path(path) / "config.json").is_file() and not has_weights(path):
        with torch.random.fork_rng(devices=[]), told_in_one_line(path):
            torch.default_generator.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), dtype=torch.float32)
    else:
        with _quiet():
            model = load_stock(path, dtype=torch.float32)
    if not isinstance(model, HybridForCausalLM):
        model = convert(model, mixer="attention")
    return model.train()


def has_weights(path: str) -> bool:
    """Whether the folder holds weights that ``from_pretrained`` would read."""
    return any(next(Path(path).glob(pattern), None) is not None for pattern in WEIGHT_FILES)


def export_folder(
    model: Any,
    path: str | Path,
    *,
    tokenizer_from: str | None = None,
    beside: Iterable[Callable[[Path], None]] = (),
) -> Path:
    """Write a Hugging Face folder with weights, generation config and, where there is one, the tokenizer.

    A student whose layers all have attention is written as the stock class of its family. The folder appears whole or
    not at all; the model of a folder that is already there is replaced as a whole, and whatever else lies there stays.

    Args:
        model: A transformers model.
        path: The folder.
        tokenizer_from: Folder or hub id whose tokenizer and chat template are copied.
        beside: Called with the folder, before it appears, to write more into it.

    Raises:
        ValueError: ``path`` holds something that is not a model folder, which is then left alone.
    """
    from lit_thinkfast.models.convert import to_stock

    target = Path(path).absolute()
    check_export_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    replaced = target.with_name(f".{target.name}.{os.getpid()}.replaced")
    try:
        with _quiet():
            (to_stock(model) if only_attention(model) else model).save_pretrained(partial)
        if tokenizer_from is not None:
            from transformers import AutoTokenizer

            AutoTokenizer.from_pretrained(tokenizer_from).save_pretrained(partial)
        for save in beside:
            save(partial)
        if target.exists():
            target.rename(replaced)
        partial.rename(target)
    except BaseException:  # an interrupt must not cost the model that was there either
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if replaced.exists():
        _carry_over(replaced, target)
        shutil.rmtree(replaced, ignore_errors=True)
    return target


def only_attention(model: Any) -> bool:
    """Whether ``model`` is one of ours without any recurrent layer."""
    from lit_thinkfast.models import HybridForCausalLM

    return isinstance(model, HybridForCausalLM) and set(model.config.layer_mixers or []) == {"attention"}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from drawing its own bar into ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def check_export_target(path: str | Path) -> None:
    """Refuse a path that holds something, and no model.

    Raises:
        ValueError: It is a file, or a folder with contents but no ``config.json``.
    """
    path = Path(path)
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / "config.json").is_file()):
        raise ValueError(f"{path} exists and is not a model folder; export to a new folder, or remove it first")


def _carry_over(source: Path, target: Path) -> None:
    """Move over what is no part of a model, such as notes or checkpoints that somebody put there."""
    for entry in source.iterdir():
        if not any(entry.match(pattern) for pattern in MODEL_FILES) and not (target / entry.name).exists():
            entry.rename(target / entry.name)


def has_tokenizer(path: str) -> bool:
    """Whether a local folder brings its tokenizer; a hub id is taken to."""
    folder = Path(path)
    return not folder.is_dir() or any((folder / name).is_file() for name in TOKENIZER_FILES)
