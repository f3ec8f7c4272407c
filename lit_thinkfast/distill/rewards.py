r"""Losses that make a reward model of a student: a binary cross-entropy where a step or a whole solution is labelled.

What is right is labelled ``+`` and what is wrong ``-`` (:func:`lit_thinkfast.data.prompts.encode_example`): after each
line for a process reward model (arXiv:2305.20050), after the last line alone for an outcome reward model
(arXiv:2110.14168). From the log-odds :math:`l` at the line's newline the loss is :math:`-\log\sigma(l)` where it is
right and :math:`-\log\sigma(-l)` where it is wrong. The log-odds are those that scoring reads
(:class:`~lit_thinkfast.verification.ProcessRewardModel`, :class:`~lit_thinkfast.verification.HeadRewardModel`), in fp32
as there.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_thinkfast.data.prompts import sign_ids
from lit_thinkfast.distill.chunked import labelled_rows
from lit_thinkfast.distill.losses import DistillLoss
from lit_thinkfast.distill.sharding import is_sharded
from lit_thinkfast.distill.signals import Signals
from lit_thinkfast.verification.head import HEAD_FILE, read_head
from lit_thinkfast.verification.reward import Judge, Scope

if TYPE_CHECKING:
    from lit_thinkfast.records import PackedBatch


class RewardLoss(DistillLoss):
    """Trains the two sign tokens as judges: log-odds are the logit of ``+`` minus that of ``-``.

    Mean over labelled positions; a batch without any has loss 0. Needs no teacher. Against plain cross-entropy on the
    same labels, the rest of the vocabulary is left alone: only the ratio of the two signs counts, as in scoring.

    Args:
        outcome: The labels are outcomes, one a solution. Exported with the model, so that it is read there alone.
        positive_weight: Weight of what is right, against 1 of what is wrong, where one is much rarer. It moves the
            log-odds by its logarithm.

    Raises:
        ValueError: A weight that is not above 0; at setup, no tokenizer or one that splits a sign; at a batch, labels
            that are no signs, or several for one outcome.
    """

    needs_teacher = False
    judge: Judge = "signs"

    def __init__(self, *, outcome: bool = False, positive_weight: float = 1.0) -> None:
        super().__init__()
        if not positive_weight > 0:
            raise ValueError(f"positive_weight must be positive, got {positive_weight}")
        self.scope: Scope = "outcome" if outcome else "process"
        self.positive_weight = positive_weight
        self.signs: tuple[int, int] | None = None
        """Ids of ``+`` and ``-``, once known."""

    def setup(self, student: Any, tokenizer: Any) -> None:
        """Look up the ids of the signs."""
        if tokenizer is None:
            raise ValueError(
                f"{type(self).__name__} finds the ids of + and - in the tokenizer of the data, and there is none; "
                "use MathDataModule, or a data module with an attribute tokenizer"
            )
        self.signs = sign_ids(tokenizer)

    def forward(self, student: Signals, teacher: Signals | None, batch: PackedBatch) -> Tensor:
        index, targets = labelled_rows(batch)
        right = self._right(targets)
        if self.scope == "outcome":
            _check_one_each(batch, index)
        hidden, head = student.final()
        rows = hidden.reshape(-1, hidden.shape[-1]).index_select(0, index)
        with torch.autocast(rows.device.type, enabled=False):
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            log_odds = self.log_odds(rows, head)
            losses = functional.binary_cross_entropy_with_logits(
                log_odds, right.to(rows.dtype), pos_weight=rows.new_tensor(self.positive_weight), reduction="sum"
            )
        return losses / max(len(index), 1)

    def log_odds(self, hidden: Tensor, head: Tensor) -> Tensor:
        """Return the log-odds ``(n,)`` of last hidden states ``(n, d)``, given the output embedding ``(v, d)``."""
        logits = functional.linear(hidden, head[list(self._signs())].to(hidden.dtype))
        return logits[:, 0] - logits[:, 1]

    def save_with(self, folder: str | os.PathLike[str]) -> None:
        """Note in the config of an exported student how it judges, and what."""
        file = Path(folder) / "config.json"
        values = json.loads(file.read_text(encoding="utf-8"))
        values |= {"reward_judge": self.judge, "reward_scope": self.scope}
        file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def _signs(self) -> tuple[int, int]:
        if self.signs is None:
            raise ValueError(f"{type(self).__name__} does not know the ids of + and - yet; call setup with a tokenizer")
        return self.signs

    def _right(self, targets: Tensor) -> Tensor:
        """Return which targets are ``+``, of those that must all be signs."""
        plus, minus = self._signs()
        right = targets == plus
        if not (right | (targets == minus)).all():
            raise ValueError(
                f"{type(self).__name__} takes labels of steps or outcomes alone, and the corpus gives plain texts; "
                "set its step_labels_column or outcome_column"
            )
        return right


class HeadRewardLoss(RewardLoss):
    """Trains a linear unit on the last hidden state as judge: what it gives are the log-odds.

    The unit starts at zero and is trained along with the student, at the same rate. It is exported beside the model as
    ``reward_head.safetensors``. An output head that is not tied gets no gradient: leave it out of ``trainable``.

    Args:
        outcome: As in :class:`RewardLoss`.
        positive_weight: As in :class:`RewardLoss`.
        start: Folder or hub id of a model that has such a unit, to go on with it.

    Raises:
        FileNotFoundError: At setup, nothing to start from.
        ValueError: As in :class:`RewardLoss`; at setup, a student whose weights are spread over ranks.
    """

    judge = "head"

    def __init__(self, *, outcome: bool = False, positive_weight: float = 1.0, start: str | None = None) -> None:
        super().__init__(outcome=outcome, positive_weight=positive_weight)
        self.start = start
        self.head: nn.Linear | None = None

    def setup(self, student: Any, tokenizer: Any) -> None:
        """Look up the ids of the signs, and make the unit as wide as the student."""
        super().setup(student, tokenizer)
        if is_sharded(student):
            raise ValueError("HeadRewardLoss has a unit that cannot be sharded; use the strategy ddp, or RewardLoss")
        if self.head is not None:
            return
        width = student.config.hidden_size
        weight, bias = (torch.zeros(1, width), torch.zeros(1)) if self.start is None else read_head(self.start, width)
        head = nn.utils.skip_init(nn.Linear, width, 1)  # whose values would cost random numbers
        head.load_state_dict({"weight": weight, "bias": bias})
        self.head = head

    def log_odds(self, hidden: Tensor, head: Tensor) -> Tensor:
        """Return the log-odds ``(n,)`` of last hidden states ``(n, d)``; the output embedding is not read."""
        assert self.head is not None
        return functional.linear(hidden, self.head.weight.to(hidden.dtype), self.head.bias.to(hidden.dtype))[:, 0]

    def save_with(self, folder: str | os.PathLike[str]) -> None:
        """Write the unit into the folder of an exported student, and note in its config how it judges, and what."""
        from safetensors.torch import save_file

        assert self.head is not None
        values = {name: value.detach().float().cpu().contiguous() for name, value in self.head.state_dict().items()}
        save_file(values, Path(folder) / HEAD_FILE, metadata={"format": "pt"})
        super().save_with(folder)


def _check_one_each(batch: PackedBatch, index: Tensor) -> None:
    """Refuse batches in which a document has several labels."""
    rows = torch.div(index, batch["labels"].shape[1], rounding_mode="floor")
    documents = torch.stack([rows, batch["seq_idx"].reshape(-1)[index].long()])
    if documents.unique(dim=1).shape[1] < len(index):
        raise ValueError(
            "outcome is set and a document has several labels; name an outcome_column instead of a step_labels_column, "
            "or leave outcome out"
        )
