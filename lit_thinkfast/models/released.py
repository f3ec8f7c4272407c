"""Checkpoints that other projects released: recognised, found on the hub or in its local cache, and read as students.

Each format is a module with ``from_foreign`` and ``to_foreign``; here are the files. Weights may be safetensors or
PyTorch's own (read without running code from them), in one file or in shards with an index.
"""

from __future__ import annotations

import json
import logging
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import cached_file

from lit_thinkfast.models import llamba, mamba_in_llama
from lit_thinkfast.models.configuration import HybridConfig
from lit_thinkfast.models.folders import check_free, save_folder
from lit_thinkfast.models.formats import ForeignModel
from lit_thinkfast.models.loading import load_tokenizer, locate
from lit_thinkfast.models.mamba_in_llama import RopeScaling
from lit_thinkfast.models.modeling import HybridForCausalLM
from lit_thinkfast.reading import told_in_one_line

log = logging.getLogger(__name__)

FORMATS = (llamba.NAME, mamba_in_llama.NAME)
"""Names of the formats that are recognised."""

_JSON = ("*.json", "*.jinja", "*.model")
_SAFETENSORS, _PICKLED = "model*.safetensors", "pytorch_model*.bin"


def format_of(where: str) -> str | None:
    """Return the format of a folder or hub id, or ``None`` if it is another, or cannot be told from here."""
    config = _read_json(where, "config.json")
    if config is None:
        return None
    if llamba.is_llamba(config):
        return llamba.NAME
    is_base = config.get("model_type") in mamba_in_llama.BASES
    return mamba_in_llama.NAME if is_base and _read_json(where, mamba_in_llama.FILE) is not None else None


def load_released(
    path_or_id: str | os.PathLike[str],
    *,
    source: str | None = None,
    dtype: torch.dtype | None = None,
    rope_scaling: RopeScaling = "none",
) -> HybridForCausalLM:
    """Load a released checkpoint as a student, quirks included.

    Args:
        path_or_id: Folder, or hub id, which is downloaded into the local cache unless it is there.
        source: The format, one of ``FORMATS``, if it must be that; whichever it is by default.
        dtype: Type of the weights, that of the file's embedding if ``None``; decay parameters stay in float32 at least.
        rope_scaling: As in :func:`lit_thinkfast.models.mamba_in_llama.from_foreign`.

    Returns:
        The model in evaluation mode.

    Raises:
        FileNotFoundError: No such folder, model or file.
        ValueError: Unknown format, another than ``source``, or files that contradict each other.
    """
    if source is not None and source not in FORMATS:
        raise ValueError(f"unknown format {source!r}; known: {', '.join(FORMATS)}")
    where, options = locate(path_or_id)
    found = None if options else format_of(where)
    if found is None or source not in (None, found):
        raise ValueError(_another(path_or_id, where, source, found))
    if found == llamba.NAME and rope_scaling != "none":
        raise ValueError(f"{path_or_id}: a Llamba has no attention whose rope_scaling could be kept; leave it out")
    folder = Path(where) if Path(where).is_dir() else _download(path_or_id, where)
    with told_in_one_line(path_or_id):
        foreign = read_foreign(folder)
        if found == llamba.NAME:
            config, weights = llamba.from_foreign(foreign)
        else:
            config, weights = mamba_in_llama.from_foreign(foreign, rope_scaling=rope_scaling)
        _tell_rope(path_or_id, config, foreign)
    embedding = weights.get("model.embed_tokens.weight")
    own = torch.float32 if embedding is None else embedding.dtype  # one that lacks is told by name below
    model = _build(path_or_id, config, weights, own if dtype is None else dtype)
    if (folder / "generation_config.json").is_file():
        with told_in_one_line(path_or_id):
            model.generation_config = GenerationConfig.from_pretrained(str(folder))
    model.name_or_path = os.fspath(path_or_id)
    return model


def convert_released(
    path_or_id: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    source: str,
    tokenizer: str | os.PathLike[str] | None = None,
    rope_scaling: RopeScaling = "none",
) -> HybridForCausalLM:
    """Save a released checkpoint as a student's folder, in the type of its file, with a tokenizer.

    Args:
        path_or_id: As in :func:`load_released`.
        out: Folder to write. It appears whole or not at all; one that is there and not empty is not touched.
        source: As in :func:`load_released`.
        tokenizer: Folder or hub id to take it from; ``path_or_id`` itself by default.
        rope_scaling: As in :func:`load_released`.

    Returns:
        The student. Where its files name no end of text, it is the tokenizer's.

    Raises:
        FileExistsError: ``out`` is a file or a folder with something in it.
        FileNotFoundError: As :func:`load_released`, or there is no tokenizer.
        ValueError: As :func:`load_released`.
    """
    check_free(out)
    student = load_released(path_or_id, source=source, rope_scaling=rope_scaling)
    chosen = load_tokenizer(path_or_id if tokenizer is None else tokenizer)
    for owner in (student.config, student.generation_config):
        if owner is not None and owner.eos_token_id is None:
            owner.eos_token_id = chosen.eos_token_id
    save_folder(student, out, tokenizer=chosen)
    return student


def missing_tokenizer(where: str) -> str:
    """Return what to do about a released checkpoint without a tokenizer, or an empty string if it is none."""
    if format_of(where) != llamba.NAME:
        return ""
    base = llamba.TOKENIZERS.get((_read_json(where, "config.json") or {}).get("d_model", 0))
    whose = f"that of {base}" if base else "that of the model it was distilled from"
    return f"a Llamba comes without one; give {whose}, as in convert --from llamba --tokenizer {base or 'FOLDER'}"


def read_foreign(folder: Path) -> ForeignModel:
    """Read a folder as it is: configuration, ``mamba_config.json`` if there is one, and all weights.

    Raises:
        FileNotFoundError: No weights.
        ValueError: A file is not what its name says.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    more = folder / mamba_in_llama.FILE
    files = {more.name: json.loads(more.read_text(encoding="utf-8"))} if more.is_file() else {}
    return ForeignModel(config=config, weights=_read_weights(folder), files=files)


def _read_weights(folder: Path) -> dict[str, Tensor]:
    for single, pattern in (("model.safetensors", _SAFETENSORS), ("pytorch_model.bin", _PICKLED)):
        index = folder / f"{single}.index.json"
        if index.is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        else:
            names = sorted(path.name for path in folder.glob(pattern))
        weights: dict[str, Tensor] = {}
        for name in names:
            weights |= _read_file(folder / name)
        if weights:
            return weights
    raise FileNotFoundError(f"no weights: neither {_SAFETENSORS} nor {_PICKLED}")


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} is missing, which the index names")
    if path.suffix == ".safetensors":
        read: dict[str, Tensor] = load_file(path)
        return read
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    return weights


def _download(path_or_id: str | os.PathLike[str], repo: str) -> Path:
    """Return the folder of a hub id in the local cache, filled; pickled weights only where there are no others."""
    from huggingface_hub import snapshot_download

    with told_in_one_line(path_or_id):
        folder = Path(snapshot_download(repo, allow_patterns=[*_JSON, _SAFETENSORS]))
        if not any(folder.glob(_SAFETENSORS)):
            folder = Path(snapshot_download(repo, allow_patterns=[*_JSON, _PICKLED]))
    return folder


def _read_json(where: str, name: str) -> dict[str, Any] | None:
    """Return a JSON file of a folder or hub id, or ``None`` if it cannot be had or holds no object."""
    path = cached_file(
        where,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return None
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _another(path_or_id: str | os.PathLike[str], where: str, source: str | None, found: str | None) -> str:
    if found is not None:
        return f"{path_or_id} holds files of the format {found}, not {source}; use --from {found}"
    family = (_read_json(where, "config.json") or {}).get("model_type")
    what = f"a model of family {family!r}" if family else "no config.json"
    wanted = source or " or ".join(FORMATS)
    return f"{path_or_id} holds {what}, and no released checkpoint of the format {wanted}; convert it without --from"


def _tell_rope(path_or_id: str | os.PathLike[str], config: HybridConfig, foreign: ForeignModel) -> None:
    """Say once that scaling which stands in a file is left out."""
    scaling = foreign.config.get("rope_scaling")
    if config.attention_layers and scaling and (config.rope_parameters or {}).get("rope_type") == "default":
        log.info(
            "%s: the rope_scaling of its config.json is left out, as by the published program; rope_scaling='keep' "
            "follows the file",
            path_or_id,
        )


def _build(
    path_or_id: str | os.PathLike[str], config: HybridConfig, weights: dict[str, Tensor], dtype: torch.dtype
) -> HybridForCausalLM:
    """Return the model with these weights, all of them and no others.

    Raises:
        ValueError: Weights are missing, of another shape, or without a place.
    """
    with told_in_one_line(path_or_id):
        model, info = HybridForCausalLM.from_pretrained(
            None,
            config=config,
            state_dict=weights,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told below, by name
        )
    for problem, names in (
        ("missing", info["missing_keys"]),
        ("of another shape", {name for name, *_ in info["mismatched_keys"]}),
        ("without a place", info["unexpected_keys"]),
    ):
        if names:
            raise ValueError(
                f"{path_or_id}: weights {problem}: {len(names)}, first {min(names)} (in our words); its configuration "
                "is of another model, or files are missing"
            )
    return model.eval()  # type: ignore[no-any-return]
