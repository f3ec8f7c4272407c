"""Reward models with a head of their own: one linear unit on the last hidden state, in a file beside the model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_thinkfast.reading import told_in_one_line
from lit_thinkfast.verification.reward import LineRewardModel

if TYPE_CHECKING:
    from torch import Tensor

HEAD_FILE = "reward_head.safetensors"
"""Holds ``weight`` ``(1, d)`` and ``bias`` ``(1,)``, the state of an ``nn.Linear(d, 1)``."""


class HeadRewardModel(LineRewardModel):
    """Judges each line of a solution by one linear unit on the last hidden state at its newline.

    What the unit gives are the log-odds, as :class:`~lit_thinkfast.distill.rewards.HeadRewardLoss` trains them. The
    folder is that of a causal language model, which any program reads, with ``reward_head.safetensors`` beside it.

    Args:
        path: Hugging Face folder or hub id of model, head and tokenizer. Loaded at the first score.
        aggregation: From steps to solution.
        batch_size: Completions scored together; they are sorted by length first.
        device: Where the model runs.
        dtype: Of the model's weights: ``float32``, ``bfloat16`` or ``float16``. The head is float32 in any case.

    Raises:
        ValueError: Unknown aggregation or dtype, or a batch size below 1.
    """

    judges = "head"

    _head: tuple[Tensor, Tensor] | None = None

    def load(self) -> None:
        super().load()
        if self._head is None:
            assert self._loaded is not None
            width = self._loaded[0].get_output_embeddings().weight.shape[1]
            weight, bias = read_head(self.path, width)
            self._head = weight.to(self.device), bias.to(self.device)

    def log_odds(self, model: Any, tokenizer: Any, hidden: Tensor) -> Tensor:
        import torch

        assert self._head is not None
        return torch.nn.functional.linear(hidden.float(), *self._head)[:, 0]


def read_head(path: str | os.PathLike[str], width: int) -> tuple[Tensor, Tensor]:
    """Return weight ``(1, width)`` and bias ``(1,)``, float32, of the reward head in a folder or under a hub id.

    Raises:
        FileNotFoundError: There is none, or its file is damaged.
        ValueError: It is of another width.
    """
    from safetensors.torch import load_file
    from transformers.utils import cached_file

    with told_in_one_line(path):
        file = Path(path) / HEAD_FILE
        if not os.path.isdir(path):
            file = Path(cached_file(os.fspath(path), HEAD_FILE) or file)
        values = load_file(file)
    shapes = {name: tuple(value.shape) for name, value in values.items()}
    if shapes != {"weight": (1, width), "bias": (1,)}:
        raise ValueError(
            f"{os.fspath(path)}: {HEAD_FILE} holds {shapes}, not a weight of shape (1, {width}) and a bias of (1,); "
            "it is the head of another model"
        )
    return values["weight"].float(), values["bias"].float()
