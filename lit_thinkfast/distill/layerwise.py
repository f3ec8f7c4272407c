"""Losses that compare student and teacher layer by layer: the first two stages of MOHAWK, and their relatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from lit_thinkfast.distill.chunked import labelled_documents
from lit_thinkfast.distill.frobenius import frobenius_distance
from lit_thinkfast.distill.losses import DistillLoss, given
from lit_thinkfast.distill.signals import Layers, Signals
from lit_thinkfast.mixers import ATTENTION

if TYPE_CHECKING:
    from lit_thinkfast.records import PackedBatch


class _LayerLoss(DistillLoss):
    """Means over the tokens of documents that have at least one label: prompts count, padding does not."""

    needs = frozenset({"layers"})
    teacher_needs = frozenset({"hidden_states", "layers"})

    def tokens(self, batch: PackedBatch) -> Tensor:
        return labelled_documents(batch).sum()


class MatrixOrientation(_LayerLoss):
    r"""Distance of each head's mixing matrix from the teacher's attention matrix: MOHAWK stage 1 (arXiv:2408.10189).

    For every layer that has a mixer, on the teacher's input of that layer, the un-squared Frobenius norm
    :math:`\|M - A\|_F` over all tokens, mean over rows and heads, summed over layers (equation 3). Documents are
    isolated in both; rows of padding do not count. Matrices are compared ``query_block`` rows at a time, so memory is
    O(t) a layer beyond one block.

    In layers with a mixer, gradients reach the input norm, the convolution, and of the input projection what makes B, C
    and the decay: train those alone, without weight decay, which would shrink the other rows of a fused projection.

    Args:
        heads: ``each`` compares head by head; ``mean`` the means over heads, for students with another number of them.
        query_block: Rows at a time.

    Raises:
        ValueError: No layer has a mixer, one has no matrix, or heads differ; from :meth:`setup` or the first batch.
    """

    def __init__(self, *, heads: Literal["each", "mean"] = "each", query_block: int = 128) -> None:
        super().__init__()
        if heads not in ("each", "mean"):
            raise ValueError(f"heads {heads!r} is neither 'each' nor 'mean'")
        if query_block < 1:
            raise ValueError(f"query_block must be at least 1, got {query_block}")
        self.over_heads, self.query_block = heads == "mean", query_block

    def tokens(self, batch: PackedBatch) -> Tensor:
        """Return the rows of the batch, over which the mean is here."""
        return torch.tensor(len(batch["labels"]), device=batch["labels"].device)

    def forward(self, student: Signals, teacher: Signals | None, batch: PackedBatch) -> Tensor:
        ours, theirs, inputs = _aligned(student, teacher, self)
        keep = labelled_documents(batch)
        total = inputs[0].new_zeros((), dtype=torch.float32)
        for i in _mixer_layers(ours, self):
            with torch.no_grad():
                target = theirs.matrix(i, inputs[i])
            found = ours.matrix(i, inputs[i])
            if not self.over_heads and found.shape != target.shape:
                raise ValueError(_other_heads(i, found.shape[1], target.shape[1]))
            distance = frobenius_distance(
                found, target, keep=keep, over_heads=self.over_heads, query_block=self.query_block
            )
            total = total + distance.mean()
        return total


class MixerOutputLoss(_LayerLoss):
    """Distance of what each mixer adds from what the teacher's attention adds, before the residual.

    For every layer that has a mixer, on the teacher's input of that layer: L2 norm over the width, not squared, mean
    over tokens, summed over layers. For any mixer and any number of heads: the cheap first stage of RADLADS
    (arXiv:2505.03005) and others, in the place of :class:`MatrixOrientation`.

    Args:
        layers: Indices of layers to compare, from 0, negative from the end. By default all that have a mixer.

    Raises:
        ValueError: A layer does not exist, or none has a mixer; at the first batch.
    """

    def __init__(self, *, layers: Sequence[int] | None = None) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, student: Signals, teacher: Signals | None, batch: PackedBatch) -> Tensor:
        ours, theirs, inputs = _aligned(student, teacher, self)
        keep = labelled_documents(batch)
        total = inputs[0].new_zeros((), dtype=torch.float32)
        for i in _mixer_layers(ours, self) if self.layers is None else _chosen(self.layers, len(ours)):
            with torch.no_grad():
                target = theirs.mixed(i, inputs[i])
            total = total + _mean_distance(ours.mixed(i, inputs[i]), target, keep)
        return total


class HiddenStateLoss(_LayerLoss):
    """Distance of each layer's output from the teacher's: L2 norm over the width, not squared, in fp32.

    Mean over tokens, summed over layers; the last layer is compared before the final norm. With ``teacher_forced`` the
    stage 2 of MOHAWK (arXiv:2408.10189, equation 4): each layer runs on the teacher's input of that layer. Without, the
    student runs on its own hidden states, so that errors add up on the way as they do in use.

    Alone it gives the final norm, an untied head, the embeddings of a teacher-forced student, and layers that are not
    compared no gradient: leave them out of ``trainable``, or use the strategy ``ddp_find_unused_parameters_true``.

    Args:
        layers: Indices of layers to compare, from 0, negative from the end. All of them by default.
        teacher_forced: Run layers on the teacher's hidden states.
        gap: Layers that run one after another, teacher-forced, before the last of them is compared. Without ``layers``,
            every so many layers are compared, counted from the last.

    Raises:
        ValueError: ``gap`` below 1, or without ``teacher_forced``; shapes that differ, at the first batch.
    """

    def __init__(self, *, layers: Sequence[int] | None = None, teacher_forced: bool = False, gap: int = 1) -> None:
        super().__init__()
        if gap < 1:
            raise ValueError(f"gap must be at least 1, got {gap}")
        if gap > 1 and not teacher_forced:
            raise ValueError("gap is for teacher-forced layers; set teacher_forced, or name the layers to compare")
        self.layers, self.teacher_forced, self.gap = layers, teacher_forced, gap
        if not teacher_forced:
            self.needs = frozenset({"logits", "hidden_states"})
        self.teacher_needs = frozenset({"hidden_states"})

    def forward(self, student: Signals, teacher: Signals | None, batch: PackedBatch) -> Tensor:
        theirs = given(teacher, self).hidden_states
        ours = student.layers if self.teacher_forced else student.hidden_states
        if ours is None or theirs is None:
            raise ValueError("HiddenStateLoss needs the hidden states of student and teacher")
        num_layers = len(ours) if self.teacher_forced else len(ours) - 1
        width = theirs[-1].shape[-1] if isinstance(ours, Layers) else ours[-1].shape[-1]
        if num_layers != len(theirs) - 1 or width != theirs[-1].shape[-1]:
            raise ValueError(
                f"HiddenStateLoss needs equal shapes: the student has {num_layers} layers of width {width}, the "
                f"teacher {len(theirs) - 1} of {theirs[-1].shape[-1]}; use a KL loss instead"
            )
        keep = labelled_documents(batch)
        total = theirs[-1].new_zeros((), dtype=torch.float32)
        last = range(num_layers - 1, -1, -self.gap)
        for layer in last if self.layers is None else _chosen(self.layers, num_layers):
            if isinstance(ours, Layers):
                start = max(0, layer + 1 - self.gap)
                output = _at_least_fp32(theirs[start])  # the residual stream, also under autocast
                for i in range(start, layer + 1):
                    output = ours.block(i, output)
            else:
                output = ours[layer + 1]
            total = total + _mean_distance(output, theirs[layer + 1], keep)
        return total


def _aligned(student: Signals, teacher: Signals | None, loss: DistillLoss) -> tuple[Layers, Layers, list[Tensor]]:
    """Return the layers of both sides and the teacher's input of each.

    Raises:
        ValueError: There is no teacher, one that cannot be run layer by layer, or the numbers of layers differ.
    """
    teacher, name = given(teacher, loss), type(loss).__name__
    if student.layers is None or teacher.layers is None or teacher.hidden_states is None:
        raise ValueError(f"{name} compares layers, which this teacher does not give; use HFTeacher, or a KL loss")
    if len(student.layers) != len(teacher.layers):
        raise ValueError(
            f"{name} compares layer with layer: the student has {len(student.layers)}, the teacher "
            f"{len(teacher.layers)}; use a KL loss instead"
        )
    return student.layers, teacher.layers, list(teacher.hidden_states[:-1])


def _mixer_layers(layers: Layers, loss: DistillLoss) -> list[int]:
    found = [i for i, kind in enumerate(layers.kinds) if kind != ATTENTION]
    if not found:
        raise ValueError(f"{type(loss).__name__} has nothing to compare: all layers of the student are attention")
    return found


def _chosen(layers: Sequence[int], num_layers: int) -> list[int]:
    for layer in layers:
        if not -num_layers <= layer < num_layers:
            raise ValueError(f"layer {layer} does not exist: the student has layers 0 to {num_layers - 1}")
    return [layer % num_layers for layer in layers]


def _mean_distance(ours: Tensor, theirs: Tensor, keep: Tensor) -> Tensor:
    """Mean over kept tokens of the L2 norm over the width of (b, t, d)."""
    distance: Tensor = torch.linalg.vector_norm(_at_least_fp32(ours) - theirs, dim=-1)
    return distance.masked_fill(~keep, 0).sum() / keep.sum().clamp(min=1)


def _other_heads(layer: int, ours: int, theirs: int) -> str:
    return (
        f"layer {layer} mixes with {ours} heads and the teacher's attention with {theirs}: matrices cannot be compared "
        f"head by head. Three ways out: convert with mixer_options.num_heads {theirs}; compare means over heads with "
        "heads: mean; or skip this stage and begin with HiddenStateLoss"
    )


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
