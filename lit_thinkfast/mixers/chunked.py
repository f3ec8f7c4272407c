"""The chunked form of a recurrence with one decay a head, forward and backward, a few chunks at a time.

Within a chunk the recurrence is a masked matrix product, between chunks a short loop over states (the SSD algorithm,
arXiv:2405.21060, sec. 6). Only the inputs and the state at each chunk's start are kept for the backward pass, which
forms the products again; at any time a few chunks are in work, no more than a CPU's caches hold. Decays are kept as
logarithms until the last moment and masked *before* the exponential, so nothing overflows.

Shapes: b batch, c chunks, h heads, l places in a chunk, p head width, n state size; a state is (b, h, n, p) here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_ENTRIES_AT_ONCE = 1 << 17  # of the (l, l) products in work together on a CPU: half a MiB each


class ChunkedScan(torch.autograd.Function):
    """``h_t = exp(log_decay_t) h_{t-1} + B_t x_t^T``, ``y_t = h_t^T C_t`` over whole chunks.

    Inputs: x (b, t, h, p), log_decay (b, t, h), B and C (b, t, h, n), the first state (b, h, n, p), the number of each
    token's document, counting up from 0 in each row, (b, t) or ``None``, and the chunk's length, a divisor of t.
    Outputs: y (b, t, h, p) and the last state.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        log_decay: Tensor,
        B: Tensor,
        C: Tensor,
        state: Tensor,
        document: Tensor | None,
        length: int,
    ) -> tuple[Tensor, Tensor]:
        batch, time, heads, width = x.shape
        starts = x.new_empty(batch, time // length, heads, B.shape[-1], width)
        y = torch.empty_like(x)
        for chunks in _blocks(x, length):
            part = _Block(x, log_decay, B, C, document, length, chunks)
            new = (part.B * part.to_end).mT @ part.x
            for i in range(new.shape[1]):
                starts[:, chunks.start + i] = state
                state = torch.addcmul(new[:, i], state, part.whole[:, i])
            out = part.M @ part.x
            out += (part.C * part.from_start) @ starts[:, chunks]
            _put(y, out, length, chunks)
        ctx.save_for_backward(x, log_decay, B, C, starts, document)
        ctx.length = length
        return y, state

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, log_decay, B, C, starts, document = ctx.saved_tensors
        length = ctx.length
        grads = [torch.empty_like(value) for value in (x, log_decay, B, C)]
        for chunks in reversed(_blocks(x, length)):
            part = _Block(x, log_decay, B, C, document, length, chunks)
            gy, before = _take(grad_y, length, chunks), starts[:, chunks]
            # the state before each chunk, through what its tokens read of it and through the next chunk's state
            read = (part.C * part.from_start).mT @ gy
            g_new, g_whole = torch.empty_like(read), torch.empty_like(part.whole)
            for i in reversed(range(read.shape[1])):
                g_new[:, i] = grad_state
                g_whole[:, i] = (grad_state * before[:, i]).sum((-2, -1), keepdim=True) * part.whole[:, i]
                grad_state = torch.addcmul(read[:, i], grad_state, part.whole[:, i])

            g_read = (gy @ before.mT) * part.from_start
            g_written = (part.x @ g_new.mT) * part.to_end
            gM = gy @ part.x.mT
            g_logs = gM * part.M  # what the logarithm of each decay within the chunk gets
            gG = gM.mul_(part.decay)
            g_from, g_to = (g_read * part.C).sum(-1), (g_written * part.B).sum(-1)
            g_sums = g_logs.sum(-1) - g_logs.sum(-2) + g_from - g_to
            g_sums[..., -1] += g_to.sum(-1) + g_whole[..., 0, 0]

            _put(grads[0], (part.M.mT @ gy).add_((part.B * part.to_end) @ g_new), length, chunks)
            _put(grads[1], g_sums.flip(-1).cumsum(-1).flip(-1)[..., None], length, chunks)
            _put(grads[2], g_written.add_(gG.mT @ part.C), length, chunks)
            _put(grads[3], g_read.add_(gG @ part.B), length, chunks)
        return *grads, grad_state, None, None


class _Block:
    """What a few neighbouring chunks are made of, (b, c, h, l, ...), and the decays within and across them.

    Attributes:
        decay: (b, c, h, l, l), by how much what enters at one place has decayed at another, zero where it is not seen.
        M: (b, c, h, l, l), ``C B^T`` times that.
        from_start: (b, c, h, l, 1), decay of the state before the chunk at each place.
        to_end: (b, c, h, l, 1), decay of what enters at each place until the end of the chunk.
        whole: (b, c, h, 1, 1), decay over the chunk.
    """

    def __init__(
        self, x: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, document: Tensor | None, length: int, chunks: slice
    ) -> None:
        self.x, self.B, self.C = (_take(value, length, chunks) for value in (x, B, C))
        sums, rest = precise_cumsum(_take(log_decay, length, chunks))
        seen = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        to_end = (sums[..., -1:] - sums) + (rest[..., -1:] - rest)
        from_start, whole = sums, sums[..., -1]
        if document is not None:
            own = document.unflatten(1, (-1, length))[:, chunks, None]  # (b, c, 1, l)
            first = chunks.start * length
            before = torch.cat([document[:, max(first - 1, 0) : max(first, 1)], own[:, :-1, 0, -1]], dim=1)[:, :, None]
            seen = seen & (own[..., :, None] == own[..., None, :])
            never = -torch.inf
            to_end = to_end.masked_fill(own != own[..., -1:], never)
            from_start = from_start.masked_fill(own != before[..., None], never)
            whole = whole.masked_fill(own[..., -1] != before, never)
        self.decay = differences(sums, rest).masked_fill_(~seen, -torch.inf).exp_()
        self.M = (self.C @ self.B.mT).mul_(self.decay)
        self.from_start, self.to_end = from_start.exp()[..., None], to_end.exp()[..., None]
        self.whole = whole.exp()[..., None, None]


def precise_cumsum(log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """Return cumulative sums along the last axis, and what rounding took from them.

    Differences of the rounded sums alone would lose a weak decay that comes after strong ones.
    """
    exact = log_decay.double().cumsum(-1)
    rounded = exact.to(log_decay.dtype)
    return rounded, (exact - rounded).detach().to(log_decay.dtype)


def differences(sums: Tensor, rest: Tensor) -> Tensor:
    """(..., t) -> (..., t, t): the sum of what lies between two places, as exact as the type allows."""
    rough = sums[..., :, None] - sums[..., None, :]
    return rough.add_(rest[..., :, None]).sub_(rest[..., None, :])


def _blocks(x: Tensor, length: int) -> list[slice]:
    """Cut the chunks into neighbours that are worked on together."""
    batch, time, heads = x.shape[:3]
    count = time // length
    together = count if x.device.type != "cpu" else max(1, _ENTRIES_AT_ONCE // (batch * heads * length * length))
    return [slice(start, min(start + together, count)) for start in range(0, count, together)]


def _take(value: Tensor, length: int, chunks: slice) -> Tensor:
    """(b, t, h, ...) -> (b, c, h, l, ...), contiguous, so that the products are plain batched ones."""
    parts: Tensor = value.unflatten(1, (-1, length))[:, chunks]
    return parts.transpose(2, 3).contiguous()


def _put(target: Tensor, block: Tensor, length: int, chunks: slice) -> None:
    """Write a block (b, c, h, l, ...) to its place in (b, t, h, ...)."""
    target.view(*target.shape[:1], -1, length, target.shape[2], *block.shape[4:])[:, chunks] = block.transpose(2, 3)
