"""The recurrence of heads with one decay each: in chunks for training and prefill, one step for decoding. Pure torch.

``h_t = exp(log_decay_t) h_{t-1} + x_t B_t^T``, ``y_t = h_t C_t``: Mamba-2 is the case of ``dt x`` and ``dt A``,
discrete Mamba-2 that of a decay of its own. Symbols as in ``reference.py``, which holds the twins.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_thinkfast.mixers.chunked import ChunkedScan
from lit_thinkfast.mixers.documents import document_starts
from lit_thinkfast.mixers.heads import widen

_STATE_ENTRIES_AT_ONCE = 1 << 18  # 1 MiB: what is updated is still in a cache of the CPU when it is read


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

    Costs O(t (chunk_size + n) p) a head; keeps a state a chunk for the backward pass. Any length t will do. It runs in
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
    batch, time, heads, width = x.shape
    chunk = min(chunk_size, time)
    missing = -time % chunk

    def fill(value: Tensor) -> Tensor:
        """Widen, and bring to whole chunks with tokens that leave the state as it is."""
        value = widen(value)
        return pad(value, [0, 0] * (value.ndim - 2) + [0, missing]) if missing else value

    with torch.autocast(x.device.type, enabled=False):
        parts = [fill(value) for value in (x, log_decay, B, C)]
        shape = (batch, heads, B.shape[-1], width)
        first = parts[0].new_zeros(shape) if initial_state is None else initial_state.to(parts[0].dtype).mT
        document = None
        if seq_idx is not None:
            document = document_starts(seq_idx).cumsum(1)
            document = torch.cat([document, document[:, -1:].expand(-1, missing)], dim=1)
        y, last = ChunkedScan.apply(*parts, first, document, chunk)
    return y[:, :time].to(x.dtype), last.mT


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
        return torch.matmul(C[..., None, :], state.mT)[..., 0, :]  # on a CPU faster than with the state first

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
