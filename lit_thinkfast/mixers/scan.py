"""The recurrence of heads with one decay each: in chunks for training and prefill, one step for decoding. Pure torch.

``h_t = exp(log_decay_t) h_{t-1} + x_t B_t^T``, ``y_t = h_t C_t``: Mamba-2 is the case of ``dt x`` and ``dt A``,
discrete Mamba-2 that of a decay of its own. Within a chunk the recurrence is a masked matrix product, between chunks a
short loop over states (the SSD algorithm, arXiv:2405.21060, sec. 6). Decays are kept as logarithms until the last
moment and masked *before* the exponential, so nothing overflows. Symbols as in ``reference.py``, which holds the twins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_thinkfast.mixers.documents import document_starts
from lit_thinkfast.mixers.heads import widen

_STATE_ENTRIES_AT_ONCE = 1 << 20  # 4 MiB; beyond, a step was up to five times slower


class _PassStates(torch.autograd.Function):
    """From each chunk's own contribution to the state at the start of each chunk: ``s_{i+1} = decay_i s_i + new_i``."""

    @staticmethod
    def forward(ctx: Any, new: Tensor, decay: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
        starts = torch.empty_like(new)
        state = initial
        for i in range(new.shape[1]):
            starts[:, i] = state
            state = torch.addcmul(new[:, i], starts[:, i], decay[:, i, :, None, None])
        ctx.save_for_backward(starts, decay)
        return starts, state

    @staticmethod
    def backward(ctx: Any, grad_starts: Tensor, grad_last: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        starts, decay = ctx.saved_tensors
        grad_new = torch.empty_like(starts)
        grad = grad_last
        for i in reversed(range(starts.shape[1])):
            grad_new[:, i] = grad
            grad = torch.addcmul(grad_starts[:, i], grad, decay[:, i, :, None, None])
        grad_decay = torch.einsum("...np,...np->...", grad_new, starts)
        return grad_new, grad_decay, grad


def decay_scan(
    x: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    seq_idx: Tensor | None = None,
    initial_state: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence of :func:`lit_thinkfast.mixers.reference.reference_decay_scan` in chunks.

    Costs O(t (chunk_size + n) p) a head, and temporaries of b t h chunk_size elements. Any length t will do. It runs in
    float32 at least, under any autocast: decays close to one do not survive bfloat16.

    Args:
        x: (b, t, h, p).
        log_decay: (b, t, h), finite, at most zero; zero keeps the state.
        B: (b, t, h, n).
        C: (b, t, h, n).
        seq_idx: (b, t); the state restarts from zero where it changes.
        initial_state: (b, h, p, n), the state before the first token.
        chunk_size: Tokens a chunk.

    Returns:
        y (b, t, h, p), in the type of x, and the last state (b, h, p, n), in float32 at least.
    """
    dtype = x.dtype
    with torch.autocast(x.device.type, enabled=False):
        y, last = _decay_scan(
            widen(x), widen(log_decay), widen(B), widen(C), seq_idx, initial_state, chunk_size=chunk_size
        )
    return y.to(dtype), last


def _decay_scan(
    x: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    seq_idx: Tensor | None,
    initial_state: Tensor | None,
    *,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    batch, time, heads, width = x.shape
    size = B.shape[-1]
    chunk = min(chunk_size, time)
    missing = -time % chunk

    def split(value: Tensor) -> Tensor:
        """(b, t, h, k) -> (b, chunks, h, chunk, k), contiguous, so that the products below are plain batched ones."""
        value = pad(value, (0, 0, 0, 0, 0, missing)) if missing else value
        chunks: Tensor = value.unflatten(1, (-1, chunk))
        return chunks.transpose(2, 3).contiguous()

    xs, Bs, Cs = split(x), split(B), split(C)
    cumulative, rest = _precise_cumsum(split(log_decay[..., None])[..., 0])

    causal = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).tril()
    to_end = (cumulative[..., -1:] - cumulative) + (rest[..., -1:] - rest)
    from_start, whole = cumulative, cumulative[..., -1]
    if seq_idx is not None:
        document = document_starts(seq_idx).cumsum(1)
        document = torch.cat([document, document[:, -1:].expand(-1, missing)], dim=1)
        document = document.unflatten(1, (-1, chunk))[:, :, None]  # (b, chunks, 1, chunk)
        before = torch.cat([torch.zeros_like(document[:, :1, :, -1]), document[:, :-1, :, -1]], dim=1)[..., None]
        causal = causal & (document[..., :, None] == document[..., None, :])
        never = -torch.inf
        to_end = to_end.masked_fill(document != document[..., -1:], never)
        from_start = from_start.masked_fill(document != before, never)
        whole = whole.masked_fill(document[..., -1] != before[..., 0], never)

    decay = _differences(cumulative, rest).masked_fill_(~causal, -torch.inf).exp_()
    y = (Cs @ Bs.mT * decay) @ xs
    new = (Bs * to_end.exp()[..., None]).mT @ xs  # (b, chunks, h, n, p)
    first = new.new_zeros(batch, heads, size, width) if initial_state is None else initial_state.to(new.dtype).mT
    starts, last = _PassStates.apply(new, whole.exp(), first)
    y = y + (Cs * from_start.exp()[..., None]) @ starts
    y = y.transpose(2, 3).reshape(batch, -1, heads, width)[:, :time]
    return y, last.mT


def _precise_cumsum(log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """Return cumulative sums along the last axis, and what rounding took from them.

    Differences of the rounded sums alone would lose a weak decay that comes after strong ones.
    """
    exact = log_decay.double().cumsum(-1)
    rounded = exact.to(log_decay.dtype)
    return rounded, (exact - rounded).detach().to(log_decay.dtype)


def _differences(cumulative: Tensor, rest: Tensor) -> Tensor:
    """(..., t) -> (..., t, t): the sum of what lies between two places, as exact as the type allows."""
    rough = cumulative[..., :, None] - cumulative[..., None, :]
    return rough.add_(rest[..., :, None]).sub_(rest[..., None, :])


def decay_matrix(log_decay: Tensor, B: Tensor, C: Tensor, *, seq_idx: Tensor | None = None) -> Tensor:
    """Return the matrix of the recurrence: ``y[:, l, h] = sum_s M[:, h, l, s] x[:, s, h]`` from a state of zeros.

    ``M[l, s] = (C_l . B_s) exp(sum_{s < k <= l} log_decay_k)`` for ``s <= l`` within one document, else 0.

    Args:
        log_decay: (b, t, h).
        B: (b, t, h, n).
        C: (b, t, h, n).
        seq_idx: (b, t) documents.

    Returns:
        (b, h, t, t).
    """
    time = log_decay.shape[1]
    cumulative, rest = _precise_cumsum(log_decay.transpose(1, 2))
    seen = torch.ones(time, time, dtype=torch.bool, device=B.device).tril()
    if seq_idx is not None:
        document = document_starts(seq_idx).cumsum(1)[:, None]
        seen = seen & (document[..., :, None] == document[..., None, :])
    decay = _differences(cumulative, rest).masked_fill(~seen, -torch.inf).exp()
    return torch.einsum("blhn,bshn->bhls", C, B) * decay


def decay_step(state: Tensor, x: Tensor, log_decay: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Bring ``state`` (b, h, p, n) forward by one token, in place, and return y (b, h, p).

    The decay is one number a head: it is applied as such, never expanded to the size of the state.

    Args:
        state: Overwritten.
        x: (b, h, p).
        log_decay: (b, h).
        B: (b, h, n).
        C: (b, h, n).
    """

    def advance(state: Tensor, decay: Tensor, x: Tensor, B: Tensor, C: Tensor) -> Tensor:
        state.mul_(decay[..., None, None]).addcmul_(x[..., None], B[..., None, :])
        return (state * C[..., None, :]).sum(-1)  # on a CPU twice as fast as so many small matrix-vector products

    return in_blocks(advance, state, torch.exp(log_decay), x, B, C)


def in_blocks(advance: Callable[..., Tensor], state: Tensor, *inputs: Tensor) -> Tensor:
    """Call ``advance(state, *inputs)`` for as many rows at a time as the caches of a CPU hold, elsewhere for all."""
    rows = _STATE_ENTRIES_AT_ONCE * len(state) // max(1, state.numel())
    if rows >= len(state) or state.device.type != "cpu":
        return advance(state, *inputs)
    blocks = zip(*(part.split(max(1, rows)) for part in (state, *inputs)), strict=True)
    return torch.cat([advance(*block) for block in blocks])


def chunked_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_state: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Run the Mamba-2 recurrence, :func:`lit_thinkfast.mixers.reference.reference_scan`, in chunks.

    Args:
        x: (b, t, h, p).
        dt: (b, t, h), step after softplus; zero leaves the state as it is.
        A: (h,), negative.
        B: (b, t, h, n).
        C: (b, t, h, n).
        D: (h,), or ``None``.
        seq_idx: (b, t); the state restarts from zero where it changes.
        initial_state: (b, h, p, n), the state before the first token.
        chunk_size: Tokens a chunk.

    Returns:
        y (b, t, h, p) and the last state (b, h, p, n).
    """
    y, last = decay_scan(
        x * dt[..., None], dt * A, B, C, seq_idx=seq_idx, initial_state=initial_state, chunk_size=chunk_size
    )
    return (y if D is None else torch.addcmul(y, x, D[:, None])), last


def scan_step(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, D: Tensor | None) -> Tensor:
    """Bring the Mamba-2 ``state`` (b, h, p, n) forward by one token, in place, and return y (b, h, p).

    Args:
        state: Overwritten.
        x: (b, h, p).
        dt: (b, h), after softplus.
        A: (h,).
        B: (b, h, n).
        C: (b, h, n).
        D: (h,), or ``None``.
    """
    y = decay_step(state, x * dt[..., None], dt * A, B, C)
    return y if D is None else torch.addcmul(y, x, D[:, None])
