"""Heads of reward models: what turns a decoder's last hidden state into log-odds, read from files by name.

A head is a function ``(n, d) -> (n,)`` in float32. The weights of a head with a file of its own, or inside the file of
a published model whose class transformers lacks, are taken by name; no code of the model's repository is run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_thinkfast.reading import told_in_one_line

if TYPE_CHECKING:
    from torch import Tensor

Head = Callable[["Tensor"], "Tensor"]

HEAD_FILE = "reward_head.safetensors"
"""Holds ``weight`` ``(1, d)`` and ``bias`` ``(1,)``, the state of an ``nn.Linear(d, 1)``."""


def sign_head(model: Any, plus: int, minus: int) -> Head:
    """Return the head that predicts one of two tokens: the difference of their logits."""

    def log_odds(hidden: Tensor) -> Tensor:
        logits = logits_of(model, hidden, [plus, minus])
        return logits[:, 0] - logits[:, 1]

    return log_odds


def linear_head(weight: Tensor, bias: Tensor | None) -> Head:
    """Return the head of one linear unit, of weight ``(1, d)``."""
    import torch

    return lambda hidden: torch.nn.functional.linear(hidden.float(), weight, bias)[:, 0]


def hidden_layer_head(inner: Sequence[Tensor], outer: Sequence[Tensor]) -> Head:
    """Return the head of one hidden layer with ReLU; of two outputs, the second counts for and the first against.

    Args:
        inner: Weight ``(d, d)`` and bias ``(d,)``.
        outer: Weight ``(outputs, d)`` and bias ``(outputs,)``, outputs being 1 or 2.
    """
    import torch

    def log_odds(hidden: Tensor) -> Tensor:
        made = torch.nn.functional.linear(torch.nn.functional.linear(hidden.float(), *inner).relu(), *outer)
        return made[:, -1] - made[:, 0] if made.shape[1] == 2 else made[:, 0]

    return log_odds


def logits_of(model: Any, hidden: Tensor, rows: Any) -> Tensor:
    """Return the logits of some vocabulary rows, a list or a slice, in float32: ``(..., d)`` -> ``(..., rows)``."""
    import torch

    head = model.get_output_embeddings()
    bias = None if head.bias is None else head.bias[rows].float()
    return torch.nn.functional.linear(hidden.float(), head.weight[rows].float(), bias)


def read_backbone(path: str, *, dtype: Any, beside: Sequence[str]) -> Any:
    """Read the decoder of a model whose head is read apart, with a class of transformers.

    Args:
        path: Folder or hub id.
        dtype: Of the weights.
        beside: Beginnings of the names of weights that are no part of the decoder.

    Raises:
        FileNotFoundError: A file is missing or damaged.
        ValueError: Weights are missing, or there are others that are not known here.
    """
    from transformers import AutoModel

    with told_in_one_line(path):
        model, info = AutoModel.from_pretrained(
            path, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False
        )
    spare = {name for name in info["unexpected_keys"] if not name.startswith(tuple(beside))}
    for problem, names in (
        ("missing", info["missing_keys"]),
        ("of another shape", {name for name, *_ in info["mismatched_keys"]}),
        ("not in the model", spare),
    ):
        if names:
            raise ValueError(
                f"{path}: weights {problem}: {len(names)}, first {min(names)}; it is no whole {type(model).__name__} "
                f"with {', '.join(beside)} beside it"
            )
    return model


def read_head(path: str | os.PathLike[str], width: int) -> tuple[Tensor, Tensor]:
    """Return weight ``(1, width)`` and bias ``(1,)``, float32, of the reward head in a folder or under a hub id.

    Raises:
        FileNotFoundError: There is none, or its file is damaged.
        ValueError: It is of another width.
    """
    from safetensors.torch import load_file

    with told_in_one_line(path):
        values = load_file(_file(path, HEAD_FILE))
    shapes = {name: tuple(value.shape) for name, value in values.items()}
    if shapes != {"weight": (1, width), "bias": (1,)}:
        raise ValueError(
            f"{os.fspath(path)}: {HEAD_FILE} holds {shapes}, not a weight of shape (1, {width}) and a bias of (1,); "
            "it is the head of another model"
        )
    return values["weight"].float(), values["bias"].float()


def read_tensors(path: str | os.PathLike[str], shapes: Mapping[str, tuple[int, ...]]) -> list[Tensor]:
    """Return weights of a model's file, or of the parts that its index names, in float32 and the order asked for.

    Raises:
        FileNotFoundError: There are no safetensors files, or they are damaged.
        ValueError: A weight is not there or has another shape.
    """
    from safetensors import safe_open
    from transformers.utils import cached_file

    with told_in_one_line(path):
        index = cached_file(os.fspath(path), _INDEX, _raise_exceptions_for_missing_entries=False)
        parts = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"] if index else {}
        tensors = {}
        for name in shapes:
            with safe_open(_file(path, parts.get(name, "model.safetensors")), framework="pt") as file:
                if name in file.keys():  # noqa: SIM118  it is no dictionary
                    tensors[name] = file.get_tensor(name)
    for name, shape in shapes.items():
        if name not in tensors or tuple(tensors[name].shape) != shape:
            found = f"is of shape {tuple(tensors[name].shape)}" if name in tensors else "is not there"
            raise ValueError(f"{os.fspath(path)}: the weight {name} of shape {shape} {found}; it is another model")
    return [tensors[name].float() for name in shapes]


_INDEX = "model.safetensors.index.json"


def _file(path: str | os.PathLike[str], name: str) -> Path:
    """Return where a file of a folder or a hub id lies."""
    from transformers.utils import cached_file

    if os.path.basename(name) != name:
        raise ValueError(f"{_INDEX} names the file {name!r}, which lies elsewhere")
    if os.path.isdir(path):
        return Path(path) / name
    return Path(cached_file(os.fspath(path), name) or name)
