"""Losses of distillation, as objects that a config can name.

Every token loss is a mean over the *labelled* tokens of the micro-batch: the prediction made at position t - 1
counts when ``labels[t] != -100``. Gradient accumulation and data-parallel ranks then average micro-batches with equal
weight, so that with uneven masks a token weighs more in a micro-batch that has few of them. All values are in nats.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_thinkfast.distill import chunked
from lit_thinkfast.distill.signals import Signals

if TYPE_CHECKING:
    from lit_thinkfast.records import PackedBatch


class DistillLoss(nn.Module, ABC):
    """What is compared between student and teacher.

    A subclass states in ``needs`` which signals it reads (``logits``, ``hidden_states``), in ``needs_teacher`` whether
    a teacher must run, and returns a scalar from ``forward``. Both may also be set on the object.
    """

    needs: frozenset[str] = frozenset({"logits"})
    needs_teacher: bool = True

    def setup(self, student: Any, tokenizer: Any) -> None:
        """Get to know the student, and the tokenizer of the data if it has one; once, before the strategy wraps.

        The place to refuse what cannot work, and to fit parameters of one's own to the student's width.
        """

    def tokens(self, batch: PackedBatch) -> Tensor:
        """Return how many tokens of the batch the loss averages over, a scalar: the labelled ones by default."""
        return (batch["labels"][:, 1:] != -100).sum()

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
        hidden, head = student.final()
        return chunked.mean_over_rows(
            _rows(hidden, index),
            head,
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
        return token_divergence(student, given(teacher, self), batch, self.divergence, chunk_tokens=self.chunk_tokens)


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
    (ours, head), (theirs, their_head) = student.final(), teacher.final()
    theirs = _rows(theirs, index)
    return chunked.mean_over_rows(
        _rows(ours, index),
        head,
        lambda logits, rows: rows_divergence(logits, chunked.head_logits(theirs[rows], their_head)),
        chunk_tokens=chunk_tokens,
    )


@torch.no_grad()
def top1_agreement(student: Signals, teacher: Signals, batch: PackedBatch, *, chunk_tokens: int = 1024) -> Tensor:
    """Share of labelled tokens at which student and teacher put most probability on the same token, a scalar."""

    def agrees(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        return (student.argmax(-1) == teacher.argmax(-1)).to(student.dtype), student

    return token_divergence(student, teacher, batch, agrees, chunk_tokens=chunk_tokens)


def _rows(hidden: Tensor, index: Tensor) -> Tensor:
    return hidden.reshape(-1, hidden.shape[-1]).index_select(0, index)


def given(teacher: Signals | None, loss: DistillLoss) -> Signals:
    """Return the teacher's signals, or raise ``ValueError`` if there are none."""
    if teacher is None:
        raise ValueError(f"{type(loss).__name__} needs a teacher; name one or use CrossEntropy")
    return teacher


def _at_least_one(chunk_tokens: int) -> int:
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    return chunk_tokens
