"""Losses of distillation, as objects that a config can name.

Every token loss is a mean over the *labelled* tokens of the micro-batch: the prediction made at position t - 1
counts when ``labels[t] != -100``. Gradient accumulation and data-parallel ranks then average micro-batches with equal
weight, so that with uneven masks a token weighs more in a micro-batch that has few of them. All values are in nats.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from lit_thinkfast.distill import chunked
from lit_thinkfast.distill.signals import Signals

if TYPE_CHECKING:
    from lit_thinkfast.records import PackedBatch


class DistillLoss(nn.Module, ABC):
    """What is compared between student and teacher.

    A subclass states in ``needs`` which signals it reads (``logits``, ``hidden_states``), in ``needs_teacher`` whether
    a teacher must run, and returns a scalar from ``forward``.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    needs_teacher: ClassVar[bool] = True

    @abstractmethod
    def forward(self, student: Signals, teacher: Signals | None, batch: PackedBatch) -> Tensor:
        """Return the unweighted loss, a scalar."""


class CrossEntropy(DistillLoss):
    """Next-token cross-entropy against the labels, mean over labelled tokens; needs no teacher.

    Args:
        chunk_tokens: Tokens whose logits are held at a time.
    """

    needs_teacher = False

    def __init__(self, *, chunk_tokens: int = 1024) -> None:
        super().__init__()
        self.chunk_tokens = _at_least_one(chunk_tokens)

    def forward(self, student: Signals, teacher: Signals | None, batch: PackedBatch) -> Tensor:
        index, targets = chunked.labelled_rows(batch)
        return chunked.mean_over_rows(
            _rows(student.last_hidden, index),
            student.head,
            lambda logits, rows: chunked.cross_entropy_rows(logits, targets[rows]),
            chunk_tokens=self.chunk_tokens,
        )


class _Divergence(DistillLoss):
    """A divergence between the two next-token distributions, mean over labelled tokens.

    The teacher may be of another width; its vocabulary must be the student's.
    """

    def __init__(self, *, temperature: float = 1.0, chunk_tokens: int = 1024) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.temperature = temperature
        self.chunk_tokens = _at_least_one(chunk_tokens)

    @abstractmethod
    def divergence(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return each row's value ``(c,)`` and its gradient in the student's logits ``(c, v)``; inputs are logits."""

    def forward(self, student: Signals, teacher: Signals | None, batch: PackedBatch) -> Tensor:
        return token_divergence(student, _given(teacher, self), batch, self.divergence, chunk_tokens=self.chunk_tokens)


class ForwardKL(_Divergence):
    """KL(teacher || student) times the squared temperature: covers every mode of the teacher.

    Args:
        temperature: Divides the logits of both sides.
        chunk_tokens: Tokens whose logits are held at a time.
    """

    def divergence(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        return chunked.forward_kl_rows(student, teacher, self.temperature)


class ReverseKL(_Divergence):
    """KL(student || teacher) times the squared temperature: seeks the teacher's modes; M1's choice (arXiv:2504.10449).

    Args:
        temperature: Divides the logits of both sides.
        chunk_tokens: Tokens whose logits are held at a time.
    """

    def divergence(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        return chunked.reverse_kl_rows(student, teacher, self.temperature)


class JensenShannon(_Divergence):
    """Generalised Jensen-Shannon divergence (arXiv:2306.13649, equation 1) times the squared temperature.

    Args:
        beta: Weight of the teacher in the mixture, strictly between 0 and 1.
        temperature: Divides the logits of both sides.
        chunk_tokens: Tokens whose logits are held at a time.
    """

    def __init__(self, *, beta: float = 0.5, temperature: float = 1.0, chunk_tokens: int = 1024) -> None:
        super().__init__(temperature=temperature, chunk_tokens=chunk_tokens)
        if not 0 < beta < 1:
            raise ValueError(
                f"beta must lie strictly between 0 and 1, got {beta}; the ends are ForwardKL and ReverseKL"
            )
        self.beta = beta

    def divergence(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        return chunked.jensen_shannon_rows(student, teacher, self.temperature, self.beta)


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
        ours, theirs = student.hidden_states, _given(teacher, self).hidden_states
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


def token_divergence(
    student: Signals,
    teacher: Signals,
    batch: PackedBatch,
    rows_divergence: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    *,
    chunk_tokens: int = 1024,
) -> Tensor:
    """Mean over labelled tokens of a divergence of logits; the gradient goes to the student only."""
    index, _ = chunked.labelled_rows(batch)
    theirs = _rows(teacher.last_hidden, index)
    return chunked.mean_over_rows(
        _rows(student.last_hidden, index),
        student.head,
        lambda logits, rows: rows_divergence(logits, chunked.head_logits(theirs[rows], teacher.head)),
        chunk_tokens=chunk_tokens,
    )


@torch.no_grad()
def top1_agreement(student: Signals, teacher: Signals, batch: PackedBatch, *, chunk_tokens: int = 1024) -> Tensor:
    """Share of labelled tokens at which student and teacher put most probability on the same token, a scalar."""

    def agrees(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        return (student.argmax(-1) == teacher.argmax(-1)).to(student.dtype), student

    return token_divergence(student, teacher, batch, agrees, chunk_tokens=chunk_tokens)


def labelled_documents(batch: PackedBatch) -> Tensor:
    """Boolean ``(b, t)``: tokens of documents with at least one label; what remains is padding."""
    labelled, document = batch["labels"] != -100, batch["seq_idx"].long()
    any_label = torch.zeros_like(labelled, dtype=torch.int8).scatter_reduce(
        1, document, labelled.to(torch.int8), reduce="amax"
    )
    return any_label.gather(1, document).bool()


def _rows(hidden: Tensor, index: Tensor) -> Tensor:
    return hidden.reshape(-1, hidden.shape[-1]).index_select(0, index)


def _given(teacher: Signals | None, loss: DistillLoss) -> Signals:
    if teacher is None:
        raise ValueError(f"{type(loss).__name__} needs a teacher; name one or use CrossEntropy")
    return teacher


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _at_least_one(chunk_tokens: int) -> int:
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    return chunk_tokens
