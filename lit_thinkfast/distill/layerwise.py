"""Losses that compare student and teacher layer by layer: the first two stages of MOHAWK, and their relatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_thinkfast.distill.losses import DistillLoss, given
from lit_thinkfast.distill.signals import Signals

if TYPE_CHECKING:
    from lit_thinkfast.records import PackedBatch


class HiddenStateLoss(DistillLoss):
    """Distance of each layer's output from the teacher's: L2 norm over the width, not squared, in fp32.

    Mean over the tokens of documents that have at least one label (prompts count, padding does not), summed over
    layers. The student runs on its own hidden states; the last layer is compared before the final norm. MOHAWK stage 2
    (arXiv:2408.10189) without teacher forcing. Alone it gives the final norm, an untied head and layers that are not
    compared no gradient: leave them out of ``trainable``, or use the strategy ``ddp_find_unused_parameters_true``.

    Args:
        layers: Indices of layers to compare, from 0, negative from the end. All of them by default.
    """

    needs = frozenset({"logits", "hidden_states"})

    def __init__(self, *, layers: Sequence[int] | None = None) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, student: Signals, teacher: Signals | None, batch: PackedBatch) -> Tensor:
        ours, theirs = student.hidden_states, given(teacher, self).hidden_states
        if ours is None or theirs is None:
            raise ValueError("HiddenStateLoss needs the hidden states of student and teacher")
        if len(ours) != len(theirs) or ours[-1].shape[-1] != theirs[-1].shape[-1]:
            raise ValueError(
                f"HiddenStateLoss needs equal shapes: the student has {len(ours) - 1} layers of width "
                f"{ours[-1].shape[-1]}, the teacher {len(theirs) - 1} of {theirs[-1].shape[-1]}; use a KL loss instead"
            )
        mask = labelled_documents(batch)
        count = mask.sum().clamp(min=1)
        total = ours[-1].new_zeros((), dtype=torch.float32)
        for layer in self._chosen(len(ours) - 1):
            distance = torch.linalg.vector_norm(_at_least_fp32(ours[layer + 1]) - theirs[layer + 1], dim=-1)
            total = total + distance.masked_fill(~mask, 0).sum() / count
        return total

    def _chosen(self, num_layers: int) -> list[int]:
        chosen = range(num_layers) if self.layers is None else self.layers
        for layer in chosen:
            if not -num_layers <= layer < num_layers:
                raise ValueError(f"layer {layer} does not exist: the student has layers 0 to {num_layers - 1}")
        return [layer % num_layers for layer in chosen]


def labelled_documents(batch: PackedBatch) -> Tensor:
    """Boolean ``(b, t)``: tokens of documents with at least one label; what remains is padding."""
    labelled, document = batch["labels"] != -100, batch["seq_idx"].long()
    any_label = torch.zeros_like(labelled, dtype=torch.int8).scatter_reduce(
        1, document, labelled.to(torch.int8), reduce="amax"
    )
    return any_label.gather(1, document).bool()


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
