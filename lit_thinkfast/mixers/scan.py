"""The Mamba-2 recurrence in chunks, for training and prefill, and one step in place, for decoding. Pure torch.

Within a chunk the recurrence is a masked matrix product, between chunks a short loop over states (the SSD algorithm,
arXiv:2405.21060, sec. 6). Decays are kept as logarithms until the last moment and masked *before* the exponential, so
nothing overflows. Shapes and symbols as in ``reference.py``, which holds the twin of each function.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_thinkfast.mixers.conv import document_starts


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
    """Run the recurrence of :func:`lit_thinkfast.mixers.reference.reference_scan` in chunks.

    Costs O(t (chunk_size + n) p) a head, and temporaries of b t h chunk_size elements. Any length t will do.

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
    batch, time, heads, width = x.shape
    size = B.shape[-1]
    chunk = min(chunk_size, time)
    missing = -time % chunk

    def split(value: Tensor) -> Tensor:
        """(b, t, h, k) -> (b, chunks, h, chunk, k), contiguous, so that the products below are plain batched ones."""
        value = pad(value, (0, 0, 0, 0, 0, missing)) if missing else value
        chunks: Tensor = value.unflatten(1, (-1, chunk))
        return chunks.transpose(2, 3).contiguous()

    xs, Bs, Cs = split(x * dt[..., None]), split(B), split(C)
    log_decay = split((dt * A)[..., None])[..., 0].cumsum(-1)

    causal = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).tril()
    to_end = log_decay[..., -1:] - log_decay
    from_start, whole = log_decay, log_decay[..., -1]
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

    decay = (log_decay[..., :, None] - log_decay[..., None, :]).masked_fill_(~causal, -torch.inf).exp_()
    y = (Cs @ Bs.mT * decay) @ xs
    new = (Bs * to_end.exp()[..., None]).mT @ xs  # (b, chunks, h, n, p)
    first = new.new_zeros(batch, heads, size, width) if initial_state is None else initial_state.to(new.dtype).mT
    starts, last = _PassStates.apply(new, whole.exp(), first)
    y = y + (Cs * from_start.exp()[..., None]) @ starts
    y = y.transpose(2, 3).reshape(batch, -1, heads, width)[:, :time]
    if D is not None:
        y = torch.addcmul(y, x, D[:, None])
    return y, last.mT


def scan_step(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, D: Tensor | None) -> Tensor:
    """Bring ``state`` (b, h, p, n) forward by one token, in place, and return y (b, h, p).

    The decay is one number a head: it is applied as such, never expanded to the size of the state.

    Args:
        state: Overwritten.
        x: (b, h, p).
        dt: (b, h), after softplus.
        A: (h,).
        B: (b, h, n).
        C: (b, h, n).
        D: (h,), or ``None``.
    """
    decay = torch.exp(dt * A)
    state.mul_(decay[..., None, None])
    state.addcmul_((x * dt[..., None])[..., None], B[..., None, :])
    y = (state * C[..., None, :]).sum(-1)  # on a CPU twice as fast as so many small matrix-vector products
    return y if D is None else torch.addcmul(y, x, D[:, None])
