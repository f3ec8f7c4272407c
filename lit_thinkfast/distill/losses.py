"""Losses of distillation on next-token distributions, as objects that a config can name. All values are in nats.

By default a loss is a mean over the *labelled* tokens of the micro-batch: the prediction made at position t - 1 counts
when ``labels[t] != -100``. Published code averages over other positions, or divides by other numbers; ``positions``
and ``reduction`` do as it does, where its numbers are to be met:

=========================  ======================  =============
code                       positions               reduction
=========================  ======================  =============
ours                       ``labels``              ``token_mean``
M1                         ``unshifted_labels``    ``token_mean``
MOHAWK                     ``all``                 ``token_mean``
MambaInLlama               ``all``                 ``batchmean``
=========================  ======================  =============
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from lit_thinkfast.distill import chunked
from lit_thinkfast.distill.chunked import Positions, RowDivergence
from lit_thinkfast.distill.signals import Signals

if TYPE_CHECKING:
    from lit_thinkfast.records import PackedBatch

Reduction = Literal["token_mean", "batchmean"]


class DistillLoss(nn.Module, ABC):
    """What is compared between student and teacher.

    A subclass states in ``needs`` which signals it reads (``logits``, ``hidden_states``), in ``needs_teacher`` whether
    a teacher must run, and returns a scalar from ``forward``. Both may also be set on the object.
    """

    needs: frozenset[str] = frozenset({"logits"})
    needs_teacher: bool = True
    teacher_needs: frozenset[str] | None = None
    """Signals read of the teacher, where they are others than those of the student."""

    def asks(self) -> frozenset[str]:
        """Return the signals that are read of the teacher."""
        return self.needs if self.teacher_needs is None else self.teacher_needs

    def setup(self, student: Any, tokenizer: Any) -> None:
        """Get to know the student, and the tokenizer of the data if it has one; once, before the strategy wraps.

        The place to refuse what cannot work, and to fit parameters of one's own to the student's width.
        """

    def tokens(self, batch: PackedBatch) -> Tensor:
        """Return how many tokens of the batch the loss averages over, a scalar: the labelled ones by default."""
        return (batch["labels"][:, 1:] != -100).sum()

    def save_with(self, folder: Path) -> None:
        """Write into the folder of an exported student what belongs to it; nothing by default."""

    @abstractmethod
    def forward(self, student: Signals, teacher: Signals | None, batch: PackedBatch) -> Tensor:
        """Return the unweighted loss, a scalar."""


class _TokenLoss(DistillLoss):
    """A loss of single predictions, and over which of them it is a mean."""

    def __init__(
        self,
        *,
        positions: Positions = "labels",
        reduction: Reduction = "token_mean",
        chunk_tokens: int | None = None,
    ) -> None:
        super().__init__()
        for value, known in ((positions, get_args(Positions)), (reduction, get_args(Reduction))):
            if value not in known:
                raise ValueError(f"{value!r} is not one of {', '.join(known)}")
        if chunk_tokens is not None and chunk_tokens < 1:
            raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
        self.positions, self.reduction, self.chunk_tokens = positions, reduction, chunk_tokens

    def tokens(self, batch: PackedBatch) -> Tensor:
        """Return what the sum over predictions is divided by, a scalar: their number, or that of rows."""
        labels = batch["labels"]
        if self.reduction == "batchmean":
            return torch.tensor(len(labels), device=labels.device)
        if self.positions == "labels":
            return super().tokens(batch)
        return torch.tensor(len(self._scored(batch)[0]), device=labels.device)

    def _scored(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        return chunked.scored_rows(batch, self.positions)

    def _reduced(self, student: Signals, batch: PackedBatch, index: Tensor, row_loss: chunked.RowLoss) -> Tensor:
        hidden, head = student.final()
        return chunked.mean_over_rows(
            _rows(hidden, index),
            head,
            row_loss,
            divisor=len(batch["labels"]) if self.reduction == "batchmean" else None,
            chunk_tokens=self.chunk_tokens,
        )


class CrossEntropy(_TokenLoss):
    """Next-token cross-entropy against the labels; needs no teacher.

    With other ``positions`` than labels the target is the next token of the document, and a prediction that has none
    does not count.

    Args:
        positions: See the module's text.
        reduction: See the module's text.
        chunk_tokens: Tokens whose logits are held at a time; by default 32 to 128 on a CPU, 1024 elsewhere.
    """

    needs_teacher = False

    def forward(self, student: Signals, teacher: Signals | None, batch: PackedBatch) -> Tensor:
        index, targets = self._scored(batch)
        return self._reduced(
            student, batch, index, lambda logits, rows: chunked.cross_entropy_rows(logits, targets[rows])
        )

    def _scored(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        index, targets = super()._scored(batch)
        has_target = targets != chunked.IGNORE
        return index[has_target], targets[has_target]


class _Divergence(_TokenLoss):
    """A divergence between the two next-token distributions.

    The teacher may be of another width; its vocabulary must be the student's.
    """

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        positions: Positions = "labels",
        reduction: Reduction = "token_mean",
        chunk_tokens: int | None = None,
    ) -> None:
        super().__init__(positions=positions, reduction=reduction, chunk_tokens=chunk_tokens)
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.temperature = temperature

    @abstractmethod
    def divergence(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return each row's value ``(c,)`` and its gradient in the student's logits ``(c, v)``.

        Both inputs are logits ``(c, v)``, whose memory may be written to.
        """

    def forward(self, student: Signals, teacher: Signals | None, batch: PackedBatch) -> Tensor:
        index, _ = self._scored(batch)
        return self._reduced(student, batch, index, _against(given(teacher, self), index, self.divergence))


class ForwardKL(_Divergence):
    """KL(teacher || student) times the squared temperature: covers every mode of the teacher.

    Args:
        temperature: Divides the logits of both sides.
        positions: See the module's text.
        reduction: See the module's text.
        chunk_tokens: Tokens whose logits are held at a time; by default 32 to 128 on a CPU, 1024 elsewhere.
    """

    def divergence(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        return chunked.forward_kl_rows(student, teacher, self.temperature)


class ReverseKL(_Divergence):
    """KL(student || teacher) times the squared temperature: seeks the teacher's modes; M1's choice (arXiv:2504.10449).

    Args:
        temperature: Divides the logits of both sides.
        positions: See the module's text.
        reduction: See the module's text.
        chunk_tokens: Tokens whose logits are held at a time; by default 32 to 128 on a CPU, 1024 elsewhere.
    """

    def divergence(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        return chunked.reverse_kl_rows(student, teacher, self.temperature)


class JensenShannon(_Divergence):
    """Generalised Jensen-Shannon divergence (arXiv:2306.13649, equation 1) times the squared temperature.

    Args:
        beta: Weight of the teacher in the mixture, strictly between 0 and 1.
        temperature: Divides the logits of both sides.
        positions: See the module's text.
        reduction: See the module's text.
        chunk_tokens: Tokens whose logits are held at a time; by default 32 to 128 on a CPU, 1024 elsewhere.
    """

    def __init__(
        self,
        *,
        beta: float = 0.5,
        temperature: float = 1.0,
        positions: Positions = "labels",
        reduction: Reduction = "token_mean",
        chunk_tokens: int | None = None,
    ) -> None:
        super().__init__(temperature=temperature, positions=positions, reduction=reduction, chunk_tokens=chunk_tokens)
        self.beta = _inside("beta", beta, ends="ForwardKL and ReverseKL")

    def divergence(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        return chunked.jensen_shannon_rows(student, teacher, self.temperature, self.beta)


class SkewKL(_Divergence):
    """KL(teacher || alpha teacher + (1 - alpha) student) times the squared temperature: DistiLLM (arXiv:2402.03898).

    Where the student gives nearly nothing to a token that the teacher likes, the value stays below -log(alpha) and the
    gradient bounded, unlike those of the forward KL.

    Args:
        alpha: Weight of the teacher in the mixture, strictly between 0 and 1.
        temperature: Divides the logits of both sides.
        positions: See the module's text.
        reduction: See the module's text.
        chunk_tokens: Tokens whose logits are held at a time; by default 32 to 128 on a CPU, 1024 elsewhere.
    """

    def __init__(
        self,
        *,
        alpha: float = 0.1,
        temperature: float = 1.0,
        positions: Positions = "labels",
        reduction: Reduction = "token_mean",
        chunk_tokens: int | None = None,
    ) -> None:
        super().__init__(temperature=temperature, positions=positions, reduction=reduction, chunk_tokens=chunk_tokens)
        self.alpha = _inside("alpha", alpha, ends="ForwardKL and no loss")

    def divergence(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        return chunked.skew_kl_rows(student, teacher, self.temperature, self.alpha)


class TopKKL(_TokenLoss):
    """KL(teacher || student) of the teacher's k likeliest tokens, all others lumped into one: a bound below ForwardKL.

    The only divergence that works with a :class:`~lit_thinkfast.distill.cached.CachedTeacher`. It has no temperature: a
    lump cannot be cooled without its parts.

    Args:
        k: Tokens of the teacher; a cached one must have kept as many.
        positions: See the module's text.
        reduction: See the module's text.
        chunk_tokens: Tokens whose logits are held at a time; by default 32 to 128 on a CPU, 1024 elsewhere.

    Raises:
        ValueError: The teacher has fewer than ``k`` tokens; at the first batch.
    """

    def __init__(
        self,
        *,
        k: int,
        positions: Positions = "labels",
        reduction: Reduction = "token_mean",
        chunk_tokens: int | None = None,
    ) -> None:
        super().__init__(positions=positions, reduction=reduction, chunk_tokens=chunk_tokens)
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        self.k = k

    def forward(self, student: Signals, teacher: Signals | None, batch: PackedBatch) -> Tensor:
        index, _ = self._scored(batch)
        teacher = given(teacher, self)
        if teacher.top is None:
            self._check(teacher.final()[1].shape[0], "its vocabulary has")
            return self._reduced(student, batch, index, _against(teacher, index, self._from_logits))
        self._check(teacher.top.index.shape[-1], "CachedTeacher keeps")
        ids, log_probs = (_rows(x, index)[:, : self.k] for x in (teacher.top.index, teacher.top.log_probs))

        def row_loss(logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
            known = log_probs[rows].to(logits.dtype)
            # a whole vocabulary leaves nothing, whatever rounding says
            rest = (1 - known.exp().sum(-1)).clamp_(min=0) if self.k < logits.shape[1] else known.new_zeros(len(known))
            return chunked.top_k_kl_rows(logits, ids[rows], known, rest)

        return self._reduced(student, batch, index, row_loss)

    def _from_logits(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        log_probs, ids, rest = chunked.top_k_of(teacher, self.k)
        return chunked.top_k_kl_rows(student, ids, log_probs, rest)

    def _check(self, kept: int, who: str) -> None:
        if self.k > kept:
            raise ValueError(f"TopKKL wants the teacher's {self.k} likeliest tokens and {who} {kept}; set k to {kept}")


def token_divergence(
    student: Signals,
    teacher: Signals,
    batch: PackedBatch,
    rows_divergence: RowDivergence,
    *,
    chunk_tokens: int | None = None,
) -> Tensor:
    """Mean over labelled tokens of a divergence of logits; the gradient goes to the student only."""
    index, _ = chunked.labelled_rows(batch)
    hidden, head = student.final()
    return chunked.mean_over_rows(
        _rows(hidden, index), head, _against(teacher, index, rows_divergence), chunk_tokens=chunk_tokens
    )


@torch.no_grad()
def held_out_measures(student: Signals, teacher: Signals, batch: PackedBatch) -> dict[str, Tensor]:
    """Return how near a student is to its teacher, as means over labelled tokens.

    Returns:
        ``kl``, the forward KL at temperature 1; of a teacher of cached tokens ``kl_top_k`` instead, a bound below it;
        and ``top1_agreement``, at how many tokens the likeliest one is the same for both, from 0 to 1.
    """
    if teacher.top is not None:
        loss = TopKKL(k=teacher.top.index.shape[-1])
        return {"kl_top_k": loss(student, teacher, batch), "top1_agreement": top1_agreement(student, teacher, batch)}
    agree = []

    def kl(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
        agree.append((ours.argmax(-1) == theirs.argmax(-1)).sum())  # first: the logits are overwritten
        return chunked.forward_kl_rows(ours, theirs)

    value = token_divergence(student, teacher, batch, kl)
    count = (batch["labels"][:, 1:] != chunked.IGNORE).sum().clamp(min=1)
    return {"kl": value, "top1_agreement": sum(agree, value.new_zeros(())) / count}


@torch.no_grad()
def top1_agreement(
    student: Signals, teacher: Signals, batch: PackedBatch, *, chunk_tokens: int | None = None
) -> Tensor:
    """Share of labelled tokens at which student and teacher put most probability on the same token, a scalar."""

    def agrees(student: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
        return (student.argmax(-1) == best).to(student.dtype), student

    if teacher.top is None:
        return token_divergence(
            student, teacher, batch, lambda ours, theirs: agrees(ours, theirs.argmax(-1)), chunk_tokens=chunk_tokens
        )
    index, _ = chunked.labelled_rows(batch)
    best = _rows(teacher.top.index, index)[:, 0]
    hidden, head = student.final()
    return chunked.mean_over_rows(
        _rows(hidden, index), head, lambda logits, rows: agrees(logits, best[rows]), chunk_tokens=chunk_tokens
    )


def given(teacher: Signals | None, loss: DistillLoss) -> Signals:
    """Return the teacher's signals, or raise ``ValueError`` if there are none."""
    if teacher is None:
        raise ValueError(f"{type(loss).__name__} needs a teacher; name one or use CrossEntropy")
    return teacher


def _against(teacher: Signals, index: Tensor, divergence: RowDivergence) -> chunked.RowLoss:
    """Return the row loss that compares with the logits of a dense teacher at ``index``."""
    hidden, head = (chunked.as_autocast(x) for x in teacher.final())
    return chunked.against(_rows(hidden, index), head, divergence)


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """Rows at ``index`` of a ``(b, t, d)`` tensor laid end to end."""
    return values.reshape(-1, values.shape[-1]).index_select(0, index)


def _inside(name: str, weight: float, *, ends: str) -> float:
    if not 0 < weight < 1:
        raise ValueError(f"{name} must lie strictly between 0 and 1, got {weight}; the ends are {ends}")
    return weight
