"""Depthwise causal convolution that never looks across a document boundary, and its one-token step.

Written as k shifted multiply-adds in (b, t, c) layout: no transpose, no padding copy, and a document boundary costs
only the few rows behind it. Twin: ``reference.reference_conv``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lit_thinkfast.mixers.documents import document_starts
from lit_thinkfast.mixers.kernels import find_conv, find_conv_step, in_float64
from lit_thinkfast.mixers.reference import reference_conv

Rows = tuple[Tensor, Tensor]


def _crossing_rows(seq_idx: Tensor, kernel: int) -> list[Rows]:
    """For each lag 1..kernel-1, the (batch, time) indices of tokens whose lag-th predecessor is another document's."""
    starts = document_starts(seq_idx)
    crossing = torch.zeros_like(starts)
    rows: list[Rows] = []
    for lag in range(1, kernel):
        crossing = crossing.clone()
        crossing[:, lag - 1 :] |= starts[:, : starts.shape[1] - lag + 1]
        batch, time = (crossing).nonzero(as_tuple=True)
        keep = time >= lag
        rows.append((batch[keep], time[keep]))
    return rows


class _CausalConv(torch.autograd.Function):
    """``y[:, t] = bias + sum_j taps[k-1-j] * x[:, t-j]`` with the pairs in ``rows[j-1]`` left out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, bias: Tensor, rows: list[Rows] | None) -> Tensor:
        kernel, time = taps.shape[0], x.shape[1]
        y = torch.addcmul(bias, x, taps[-1])
        for lag in range(1, min(kernel, time)):
            spared = rows[lag - 1] if rows is not None else None
            before = y[spared] if spared is not None else None
            y[:, lag:].addcmul_(x[:, :-lag], taps[kernel - 1 - lag])
            if spared is not None and before is not None:
                y[spared] = before
        ctx.save_for_backward(x, taps)
        ctx.rows = rows
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        x, taps = ctx.saved_tensors
        kernel, time = taps.shape[0], x.shape[1]
        grad_x = grad * taps[-1]
        grad_taps = torch.zeros_like(taps)
        grad_taps[-1] = (grad * x).sum((0, 1))
        for lag in range(1, min(kernel, time)):
            product = grad[:, lag:] * x[:, :-lag]
            target = grad_x[:, :-lag]
            if ctx.rows is None:
                target.addcmul_(grad[:, lag:], taps[kernel - 1 - lag])
            else:
                batch, late = ctx.rows[lag - 1]
                early = late - lag
                product[batch, early] = 0.0
                before = target[batch, early]
                target.addcmul_(grad[:, lag:], taps[kernel - 1 - lag])
                target[batch, early] = before
            grad_taps[kernel - 1 - lag] = product.sum((0, 1))
        return grad_x, grad_taps, grad.sum((0, 1)), None


class CausalConv1d(nn.Module):
    """Depthwise causal convolution with memory. Parameters are laid out as in ``nn.Conv1d`` with ``groups=channels``.

    Args:
        channels: c.
        kernel_size: k, at least 2.
        kernel: Which operator runs, one of ``kernels.KERNELS``.
    """

    def __init__(self, channels: int, *, kernel_size: int, kernel: str = "auto") -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.kernel = kernel
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel_size))
        self.bias = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias from U(-1/sqrt(k), 1/sqrt(k)), torch's own default for a depthwise convolution."""
        bound = self.kernel_size**-0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    @torch.no_grad()
    def init_identity(self) -> None:
        """Let every input pass as it is."""
        nn.init.zeros_(self.weight)
        nn.init.ones_(self.weight[:, :, -1])
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, *, seq_idx: Tensor | None = None, initial_state: Tensor | None = None) -> Tensor:
        """Convolve along time.

        Args:
            x: (b, t, c).
            seq_idx: (b, t) document of each token, or ``None`` for one document a row.
            initial_state: (b, c, k - 1), the inputs before the first, of the same document.

        Returns:
            (b, t, c).
        """
        if self.kernel == "reference":
            loop = in_float64(reference_conv)
            return loop(x, self.weight[:, 0], self.bias, seq_idx=seq_idx, initial_state=initial_state)  # type: ignore[no-any-return]
        if initial_state is None and (fused := find_conv(x, self.kernel_size, self.kernel)) is not None:
            return fused(x, self.weight[:, 0], self.bias, seq_idx=seq_idx)
        past = 0
        if initial_state is not None:
            past = self.kernel_size - 1
            x = torch.cat([initial_state.transpose(1, 2).to(x.dtype), x], dim=1)
            if seq_idx is not None:
                seq_idx = torch.cat([seq_idx[:, :1].expand(-1, past), seq_idx], dim=1)
        rows = None if seq_idx is None else _crossing_rows(seq_idx, self.kernel_size)
        taps = self.weight[:, 0].t().contiguous().to(x.dtype)
        y: Tensor = _CausalConv.apply(x, taps, self.bias.to(x.dtype), rows)
        return y[:, past:]

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        """Convolve one token and bring ``state`` (b, c, k - 1) forward in place. ``x`` and the result are (b, c)."""
        if (fused := find_conv_step(x, self.kernel_size, self.kernel)) is not None:
            return fused(x, state, self.weight[:, 0], self.bias)
        past = state.mT  # (b, k - 1, c), as a preallocated cache stores it
        taps = self.weight[:, 0].t().contiguous().to(x.dtype)
        x = x.contiguous()
        y = torch.addcmul(self.bias.to(x.dtype), x, taps[-1])
        for lag in range(1, self.kernel_size):
            y.addcmul_(past[:, -lag].to(x.dtype), taps[-1 - lag])
        for later in range(1, self.kernel_size - 1):  # one by one: a copy within a tensor must not overlap itself
            past[:, later - 1] = past[:, later]
        past[:, -1] = x
        return y

    def last_inputs(self, x: Tensor, *, initial_state: Tensor | None, lengths: Tensor | None) -> Tensor:
        """Return the k - 1 inputs that the next token will need, (b, c, k - 1).

        Args:
            x: (b, t, c), the inputs so far.
            initial_state: Those before them, or ``None`` for zeros.
            lengths: (b,), position after the last real token where rows are padded on the right, else ``None``.
        """
        past = self.kernel_size - 1
        shape = (x.shape[0], past, x.shape[2])
        before = x.new_zeros(shape) if initial_state is None else initial_state.transpose(1, 2).to(x.dtype)
        if lengths is None:
            window = torch.cat([before, x[:, -past:]], dim=1)[:, -past:]
        else:
            index = lengths[:, None] + torch.arange(past, device=x.device)
            window = torch.cat([before, x], dim=1).gather(1, index[..., None].expand(shape))
        return window.transpose(1, 2)
