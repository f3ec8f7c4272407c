"""The recurrences and the convolution as loops over time: slow, plain, and what every other path is tested against.

Symbols, here and in ``scan.py`` and ``selective.py``: b batch, t time, h heads, p head width, n state size, d channels,
g groups of channels; ``dt`` is the step after softplus, ``A < 0`` a decay rate.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reference_decay_scan(
    x: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    seq_idx: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run ``h_t = exp(log_decay_t) h_{t-1} + x_t B_t^T``, ``y_t = h_t C_t``, one token at a time.

    Args:
        x: (b, t, h, p).
        log_decay: (b, t, h), at most zero.
        B: (b, t, h, n).
        C: (b, t, h, n).
        seq_idx: (b, t); the state restarts from zero where it changes.
        initial_state: (b, h, p, n), the state before the first token, zeros if ``None``.

    Returns:
        y (b, t, h, p) and the last state (b, h, p, n).
    """
    batch, time, heads, width = x.shape
    state = x.new_zeros(batch, heads, width, B.shape[-1]) if initial_state is None else initial_state
    outputs = []
    for t in range(time):
        state = _restart(state, seq_idx, t)
        state = torch.exp(log_decay[:, t])[..., None, None] * state + x[:, t, ..., None] * B[:, t, :, None, :]
        outputs.append((state * C[:, t, :, None, :]).sum(-1))
    return torch.stack(outputs, dim=1), state


def reference_scan(
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
    """Run the Mamba-2 recurrence one token at a time.

    ``h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T`` and ``y_t = h_t C_t + D x_t`` (arXiv:2405.21060, eq. 1 and sec. 6).

    Args:
        x: (b, t, h, p).
        dt: (b, t, h), not negative; zero leaves the state as it is.
        A: (h,), negative.
        B: (b, t, h, n).
        C: (b, t, h, n).
        D: (h,), or ``None`` for no direct term.
        seq_idx: (b, t); the state restarts from zero where it changes.
        initial_state: (b, h, p, n), the state before the first token, zeros if ``None``.

    Returns:
        y (b, t, h, p) and the last state (b, h, p, n).
    """
    y, state = reference_decay_scan(x * dt[..., None], dt * A, B, C, seq_idx=seq_idx, initial_state=initial_state)
    return (y if D is None else y + D[:, None] * x), state


def reference_selective_scan(
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
    """Run the Mamba-1 recurrence one token at a time; channel i reads row i // (d / g) of B and C.

    ``h_t[i] = exp(dt_t[i] A[i]) h_{t-1}[i] + dt_t[i] x_t[i] B_t[g]`` and ``y_t[i] = h_t[i] . C_t[g] + D[i] x_t[i]``
    (arXiv:2312.00752, eq. 2 and sec. 3.2).

    Args:
        x: (b, t, d).
        dt: (b, t, d), not negative; zero leaves the state as it is.
        A: (d, n), negative.
        B: (b, t, g, n).
        C: (b, t, g, n).
        D: (d,), or ``None`` for no direct term.
        seq_idx: (b, t); the state restarts from zero where it changes.
        initial_state: (b, d, n), the state before the first token, zeros if ``None``.

    Returns:
        y (b, t, d) and the last state (b, d, n).
    """
    batch, time, channels = x.shape
    repeats = channels // B.shape[2]
    state = x.new_zeros(batch, channels, A.shape[1]) if initial_state is None else initial_state
    outputs = []
    for t in range(time):
        state = _restart(state, seq_idx, t)
        B_t, C_t = (part[:, t].repeat_interleave(repeats, dim=1) for part in (B, C))
        state = torch.exp(dt[:, t, :, None] * A) * state + (dt[:, t] * x[:, t])[..., None] * B_t
        y = (state * C_t).sum(-1)
        outputs.append(y if D is None else y + D * x[:, t])
    return torch.stack(outputs, dim=1), state


def _restart(state: Tensor, seq_idx: Tensor | None, t: int) -> Tensor:
    """Return zeros for the rows in which token ``t`` begins another document."""
    if seq_idx is None or t == 0:
        return state
    same = seq_idx[:, t] == seq_idx[:, t - 1]
    return torch.where(same.view(-1, *[1] * (state.ndim - 1)), state, torch.zeros_like(state))


def reference_conv(
    x: Tensor, weight: Tensor, bias: Tensor, *, seq_idx: Tensor | None = None, initial_state: Tensor | None = None
) -> Tensor:
    """Depthwise causal convolution by its definition: ``y[t] = bias + sum_j weight[k-1-j] x[t-j]`` within a document.

    Args:
        x: (b, t, c).
        weight: (c, k), the last column meets the present token.
        bias: (c,).
        seq_idx: (b, t); inputs of another document count as zero.
        initial_state: (b, c, k - 1), the inputs before the first one, oldest first; zeros if ``None``.

    Returns:
        (b, t, c).
    """
    batch, time, channels = x.shape
    kernel = weight.shape[1]
    past = x.new_zeros(batch, channels, kernel - 1) if initial_state is None else initial_state
    outputs = []
    for t in range(time):
        y = bias.expand(batch, channels)
        for j in range(kernel):
            source = x[:, t - j] if t >= j else past[:, :, kernel - 1 + t - j]
            if seq_idx is not None and t >= j:
                inside = (seq_idx[:, t - j : t + 1] == seq_idx[:, t : t + 1]).all(dim=1)
                source = torch.where(inside[:, None], source, torch.zeros_like(source))
            elif seq_idx is not None:
                inside = (seq_idx[:, : t + 1] == seq_idx[:, :1]).all(dim=1)
                source = torch.where(inside[:, None], source, torch.zeros_like(source))
            y = y + weight[:, kernel - 1 - j] * source
        outputs.append(y)
    return torch.stack(outputs, dim=1)
