"""The matrices with which heads mix tokens, of attention and of recurrences, a few rows at a time.

A head maps its values x to y = M x, with M lower triangular and zero between documents. For t tokens M has t^2 entries
a head, but rows of it can be formed from O(t) numbers whenever they are wanted. That is how the first stage of MOHAWK
(arXiv:2408.10189, section 3) compares a student's matrices with its teacher's without ever holding one.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lit_thinkfast.mixers.chunked import precise_cumsum
from lit_thinkfast.mixers.documents import document_starts
from lit_thinkfast.mixers.heads import widen


class MixingMatrix(Protocol):
    """The matrices of all heads of one layer."""

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors that the matrices are made of, each (b, h, ...)."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows of the batch b, heads h, tokens t."""

    def replaced(self, parts: tuple[Tensor, ...]) -> MixingMatrix:
        """Return the matrices made of other tensors."""

    def rows(self, start: int, stop: int) -> Tensor:
        """Return (b, h, stop - start, stop), in float32 at least: these rows, and columns up to the last of them."""


class DecayMatrix(NamedTuple):
    """``M[l, s] = (C_l . B_s) exp(sum_{s < k <= l} log_decay_k) weight_s`` within a document, plus D on the diagonal.

    Attributes:
        sums: (b, h, t), cumulative log-decays.
        rest: (b, h, t), what rounding took from them.
        B: (b, h, t, n).
        C: (b, h, t, n).
        weight: (b, h, t), of the columns.
        D: (b, h, 1).
        document: (b, t) numbers of documents, or ``None`` if each row is one.
    """

    sums: Tensor
    rest: Tensor
    B: Tensor
    C: Tensor
    weight: Tensor
    D: Tensor
    document: Tensor | None

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return self.sums, self.B, self.C, self.weight, self.D

    @property
    def shape(self) -> tuple[int, int, int]:
        batch, heads, time = self.sums.shape
        return batch, heads, time

    def replaced(self, parts: tuple[Tensor, ...]) -> DecayMatrix:
        sums, B, C, weight, D = parts
        return DecayMatrix(sums, self.rest, B, C, weight, D, self.document)

    def rows(self, start: int, stop: int) -> Tensor:
        unseen = _unseen(start, stop, self.document, self.sums.device)
        decay = self.sums[..., start:stop, None] - self.sums[..., None, :stop]
        decay = decay.add_(self.rest[..., start:stop, None]).sub_(self.rest[..., None, :stop])
        decay = decay.masked_fill_(unseen, -torch.inf).exp_()
        weighted = self.B[..., :stop, :] * self.weight[..., :stop, None]  # smaller than columns of the matrix
        rows = (self.C[..., start:stop, :] @ weighted.mT) * decay
        rows.diagonal(start, -2, -1).add_(self.D)
        return rows


class AttentionMatrix(NamedTuple):
    """Softmax attention's weights.

    Attributes:
        query: (b, h, t, p).
        key: (b, kv_heads, t, p).
        document: (b, t) numbers of documents, or ``None`` if each row is one.
        window: Tokens that a query sees, itself included; all before it if ``None``.
        scale: Factor on the scores.
    """

    query: Tensor
    key: Tensor
    document: Tensor | None
    window: int | None
    scale: float

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return self.query, self.key.repeat_interleave(self.query.shape[1] // self.key.shape[1], dim=1)

    @property
    def shape(self) -> tuple[int, int, int]:
        batch, heads, time, _ = self.query.shape
        return batch, heads, time

    def replaced(self, parts: tuple[Tensor, ...]) -> AttentionMatrix:
        query, key = parts
        return AttentionMatrix(query, key, self.document, self.window, self.scale)

    def rows(self, start: int, stop: int) -> Tensor:
        batch, heads, _, width = self.query.shape
        grouped = widen(self.query[:, :, start:stop]).reshape(batch, self.key.shape[1], -1, width) * self.scale
        scores = (grouped @ widen(self.key[:, :, :stop]).mT).view(batch, heads, stop - start, stop)
        unseen = _unseen(start, stop, self.document, scores.device, self.window)
        return scores.masked_fill(unseen, -torch.inf).softmax(-1)


def decay_matrix(
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor,
    weight: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> DecayMatrix:
    """Return the matrix of a recurrence: ``y[:, l, h] = sum_s M[:, h, l, s] x[:, s, h]`` from a state of zeros.

    Args:
        log_decay: (b, t, h).
        B: (b, t, h, n).
        C: (b, t, h, n).
        D: (h,).
        weight: (b, t, h), what x is multiplied by before it enters the state; one if ``None``.
        seq_idx: (b, t) documents.
    """
    sums, rest = precise_cumsum(widen(log_decay).transpose(1, 2))
    weight = torch.ones_like(log_decay) if weight is None else weight
    return DecayMatrix(
        sums=sums,
        rest=rest,
        B=widen(B).transpose(1, 2),
        C=widen(C).transpose(1, 2),
        weight=widen(weight).transpose(1, 2),
        D=widen(D)[:, None].repeat(len(B), 1, 1),  # a copy: memory of sharded weights is freed after a layer's call
        document=None if seq_idx is None else document_starts(seq_idx).cumsum(1),
    )


def _unseen(start: int, stop: int, document: Tensor | None, device: torch.device, window: int | None = None) -> Tensor:
    """Return (1 or b, 1, stop - start, stop) bool: true where a row must not see a column."""
    row = torch.arange(start, stop, device=device)[:, None]
    column = torch.arange(stop, device=device)
    unseen = column > row
    if window is not None:
        unseen = unseen | (column <= row - window)
    unseen = unseen[None]
    if document is not None:
        unseen = unseen | (document[:, start:stop, None] != document[:, None, :stop])
    return unseen[:, None]
