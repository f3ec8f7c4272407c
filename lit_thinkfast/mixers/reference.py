"""The recurrence and the convolution as loops over time: slow, plain, and what every other path is tested against.

Symbols, here and in ``scan.py``: b batch, t time, h heads, p head width, n state size; ``dt`` is the step after
softplus, ``A < 0`` the decay rate of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
    batch, time, heads, width = x.shape
    state = x.new_zeros(batch, heads, width, B.shape[-1]) if initial_state is None else initial_state
    outputs = []
    for t in range(time):
        if seq_idx is not None and t > 0:
            same = seq_idx[:, t] == seq_idx[:, t - 1]
            state = torch.where(same[:, None, None, None], state, torch.zeros_like(state))
        decay = torch.exp(dt[:, t] * A)[..., None, None]
        state = decay * state + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None, :]
        y = (state * C[:, t, :, None, :]).sum(-1)
        outputs.append(y if D is None else y + D[:, None] * x[:, t])
    return torch.stack(outputs, dim=1), state


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
