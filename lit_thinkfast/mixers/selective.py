"""The Mamba-1 recurrence, a decay for each channel and state entry: chunks side by side, and one step. Pure torch.

Such decays do not factor into matrix products. What is saved is the loop: all chunks of a stretch of tokens advance
together, first from zero, to know what each hands on, then from their true starts. Only the inputs and those starts are
kept for the backward pass, which computes the states again. Twin: ``reference.reference_selective_scan``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lit_thinkfast.mixers.documents import document_starts
from lit_thinkfast.mixers.scan import in_blocks

_ELEMENTS_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 22}  # state entries one operation works on: enough to hide its launch
_SHORTEST_STRETCH = 64  # tokens
_ELEMENTS_KEPT = 1 << 23  # state entries that the backward pass computes again, and keeps, at a time


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence of :func:`lit_thinkfast.mixers.reference.reference_selective_scan` in chunks.

    Kept for the backward pass are the inputs, and less than a state for every ten tokens.

    Args:
        x: (b, t, d).
        dt: (b, t, d), step after softplus; zero leaves the state as it is.
        A: (d, n), negative.
        B: (b, t, g, n); d / g channels in sequence share a row.
        C: (b, t, g, n).
        D: (d,), or ``None``.
        seq_idx: (b, t); the state restarts from zero where it changes.
        initial_state: (b, d, n), the state before the first token.

    Returns:
        y (b, t, d) and the last state (b, d, n).
    """
    batch, time, channels = x.shape
    groups, size = B.shape[2:]
    rows = max(1, _ELEMENTS_KEPT // (min(time, _SHORTEST_STRETCH) * channels * size))
    if rows < batch:  # rows have nothing to do with each other; a few at a time can go on for longer
        options = {"D": D, "seq_idx": seq_idx, "initial_state": initial_state}
        parts = [
            selective_scan(
                x[at], dt[at], A, B[at], C[at], **{n: v if v is None or n == "D" else v[at] for n, v in options.items()}
            )
            for at in (slice(start, start + rows) for start in range(0, batch, rows))
        ]
        ys, states = zip(*parts, strict=True)
        return torch.cat(ys), torch.cat(states)
    shape = (groups, channels // groups)
    u, step = (x * dt).unflatten(-1, shape), dt.unflatten(-1, shape)
    rates = A.unflatten(0, shape)
    state = x.new_zeros(batch, channels, size) if initial_state is None else initial_state.to(x.dtype)
    state = state.unflatten(1, shape)
    starts = None if seq_idx is None else document_starts(seq_idx)

    entries = batch * channels * size
    side_by_side = max(1, min(_ELEMENTS_AT_ONCE.get(x.device.type, 1 << 16) // entries, math.isqrt(time)))
    stretch = max(1, _ELEMENTS_KEPT // entries)
    outputs = []
    for start, end, chunks in _stretches(time, stretch, side_by_side):
        cut = [part[:, start:end] for part in (u, step, B, C)]
        restart = None if starts is None else starts[:, start:end]
        y, state = _Scan.apply(*cut, rates, state, restart, chunks)
        outputs.append(y)
    y = torch.cat(outputs, dim=1).flatten(2) if len(outputs) > 1 else outputs[0].flatten(2)
    return (y if D is None else torch.addcmul(y, x, D)), state.flatten(1, 2)


def selective_step(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, D: Tensor | None
) -> Tensor:
    """Bring ``state`` (b, d, n) forward by one token, in place, and return y (b, d).

    Args:
        state: Overwritten.
        x: (b, d).
        dt: (b, d), after softplus.
        A: (d, n).
        B: (b, g, n).
        C: (b, g, n).
        D: (d,), or ``None``.
    """
    shape = (B.shape[1], -1)
    rates = A.unflatten(0, shape)

    def advance(state: Tensor, dt: Tensor, u: Tensor, B: Tensor, C: Tensor) -> Tensor:
        state.mul_((dt[..., None] * rates).exp_()).addcmul_(u[..., None], B[:, :, None])
        return (state * C[:, :, None]).sum(-1)

    parts = (part.unflatten(1, shape) for part in (state, dt, x * dt))
    y = in_blocks(advance, *parts, B, C).flatten(1)
    return y if D is None else torch.addcmul(y, x, D)


def _stretches(time: int, stretch: int, chunks: int) -> Iterator[tuple[int, int, int]]:
    """Cut ``time`` tokens into (start, end, chunks): every length is a multiple of its number of chunks."""
    start = 0
    while start < time:
        length = min(stretch, time - start)
        beside = min(chunks, length)
        length -= length % beside
        yield start, start + length, beside
        start += length


class _Scan(torch.autograd.Function):
    """A stretch of t = m l tokens, in m chunks of l.

    Shapes: u, dt (b, t, g, k); B, C (b, t, g, n); A (g, k, n); state (b, g, k, n); restart (b, t) bool or ``None``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        dt: Tensor,
        B: Tensor,
        C: Tensor,
        A: Tensor,
        state: Tensor,
        restart: Tensor | None,
        chunks: int,
    ) -> tuple[Tensor, Tensor]:
        parts = _Chunked(u, dt, B, C, A, restart, chunks)
        starts = parts.chunk_starts(state)
        h = starts.clone()
        y = torch.empty_like(parts.u)
        for i in range(parts.length):
            parts.advance(h, i)
            y[:, :, i] = (h * parts.C[:, :, i, :, None]).sum(-1)
        ctx.save_for_backward(u, dt, B, C, A, starts, restart)
        ctx.chunks = chunks
        return y.flatten(1, 2), h[:, -1].clone()

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        u, dt, B, C, A, starts, restart = ctx.saved_tensors
        parts = _Chunked(u, dt, B, C, A, restart, ctx.chunks)
        length = parts.length
        decays = [parts.decay(i) for i in range(length)]
        states = []
        h = starts
        for i, decay in enumerate(decays):
            h = torch.addcmul(h * decay, parts.u[:, :, i, ..., None], parts.B[:, :, i, :, None])
            states.append(h)
        gy = grad_y.unflatten(1, (ctx.chunks, length))

        # What comes back to the end of each chunk from those behind it.
        ends = torch.empty_like(starts)
        back = torch.zeros_like(starts)
        if ctx.chunks > 1:
            for i in reversed(range(length)):
                back.addcmul_(gy[:, :, i, ..., None], parts.C[:, :, i, :, None])
                back.mul_(decays[i])
        whole = parts.whole_decay() if ctx.chunks > 1 else None
        carried = grad_last
        for m in reversed(range(ctx.chunks)):
            ends[:, m] = carried
            if whole is not None:
                carried = torch.addcmul(back[:, m], carried, whole[:, m])

        gu, gdt = torch.empty_like(parts.u), torch.empty_like(parts.dt)
        gB, gC = torch.empty_like(parts.B), torch.empty_like(parts.C)
        gA = torch.zeros_like(starts)
        gh = ends
        for i in reversed(range(length)):
            h = states.pop()
            gy_i, u_i, B_i = gy[:, :, i, ..., None], parts.u[:, :, i, ..., None], parts.B[:, :, i, :, None]
            gC[:, :, i] = (h * gy_i).sum(-2)
            gh.addcmul_(gy_i, parts.C[:, :, i, :, None])
            gB[:, :, i] = (gh * u_i).sum(-2)
            gu[:, :, i] = (gh * B_i).sum(-1)
            by_decay = torch.addcmul(h, u_i, B_i, value=-1).mul_(gh)  # the gradient of dt A: gh times the decayed state
            gdt[:, :, i] = (by_decay * A).sum(-1)
            gA.addcmul_(by_decay, parts.dt[:, :, i, ..., None])
            gh.mul_(decays.pop())
        flat = [part.flatten(1, 2) for part in (gu, gdt, gB, gC)]
        return *flat, gA.sum((0, 1)), gh[:, 0], None, None


class _Chunked:
    """The inputs of a stretch cut into chunks, (b, m, l, ...), and the recurrence of all chunks together."""

    def __init__(
        self, u: Tensor, dt: Tensor, B: Tensor, C: Tensor, A: Tensor, restart: Tensor | None, chunks: int
    ) -> None:
        self.length = u.shape[1] // chunks
        self.u, self.dt, self.B, self.C = (part.unflatten(1, (chunks, self.length)) for part in (u, dt, B, C))
        self.A = A
        self.keep = None if restart is None else (~restart).to(u.dtype).unflatten(1, (chunks, self.length))
        self.chunks = chunks

    def decay(self, i: int) -> Tensor:
        """By how much the i-th token of each chunk decays, all where a document starts: (b, m, g, k, n)."""
        decay: Tensor = (self.dt[:, :, i, ..., None] * self.A).exp_()
        return decay if self.keep is None else decay.mul_(self.keep[:, :, i, None, None, None])

    def advance(self, h: Tensor, i: int) -> Tensor:
        """Bring h (b, m, g, k, n) over the i-th token of each chunk, in place."""
        return h.mul_(self.decay(i)).addcmul_(self.u[:, :, i, ..., None], self.B[:, :, i, :, None])

    def whole_decay(self) -> Tensor:
        """By how much each chunk decays what comes in: (b, m, g, k, n)."""
        whole: Tensor = (self.dt.sum(2)[..., None] * self.A).exp_()
        return whole if self.keep is None else whole.mul_(self.keep.amin(2)[..., None, None, None])

    def chunk_starts(self, state: Tensor) -> Tensor:
        """Return the states before each chunk, (b, m, g, k, n), the first of them ``state``."""
        starts = state.new_empty(state.shape[0], self.chunks, *state.shape[1:])
        starts[:, 0] = state
        if self.chunks == 1:
            return starts
        handed_on = torch.zeros_like(starts)
        for i in range(self.length):
            self.advance(handed_on, i)
        whole = self.whole_decay()
        for m in range(1, self.chunks):
            starts[:, m] = torch.addcmul(handed_on[:, m - 1], starts[:, m - 1], whole[:, m - 1])
        return starts
