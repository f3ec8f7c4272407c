"""Mamba-2 in the place of attention, one recurrent head for one attention head, initialised from the attention weights.

The block of MambaInLlama (arXiv:2408.15237, Algorithm 1, with its Mamba-2 layout): the fused input projection has rows
``z | x | B | C | dt``; x starts as V, B as K, C as Q, the output projection as O. Grouped key/value heads are repeated
whole. There is no position encoding. What is fixed against the published code: see ``ssm.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_thinkfast.mixers.base import StateShapes
from lit_thinkfast.mixers.conv import CausalConv1d
from lit_thinkfast.mixers.heads import (
    at_least_fp32,
    attention_input_bias,
    attention_output_bias,
    copy_output,
    copy_projections,
    head_shape,
    reset_linear,
    reset_step_bias,
    widen,
)
from lit_thinkfast.mixers.kernels import find_scan, find_scan_step
from lit_thinkfast.mixers.matrices import DecayMatrix, decay_matrix
from lit_thinkfast.mixers.skinny import skinny_linear
from lit_thinkfast.mixers.ssm import Projected, StateSpaceMixer, check_at_least, check_range


class GatedHeadNorm(nn.Module):
    """``RMSNorm(y * silu(z))`` over each head on its own.

    Args:
        num_heads: h.
        head_dim: p.
        eps: Added to the mean square.
    """

    def __init__(self, num_heads: int, *, head_dim: int, eps: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_heads * head_dim))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """Gate and normalise ``y`` (..., h p) by ``z`` of the same shape, in float32 at least."""
        gated = (y * functional.silu(z.to(y.dtype))).unflatten(-1, (-1, self.head_dim))
        normed = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + self.eps)
        out: Tensor = normed.flatten(-2) * self.weight
        return out


class Mamba2Mixer(StateSpaceMixer):
    """Mamba-2 with the heads, head width and state size of the attention it replaces.

    Args:
        config: A decoder configuration with ``hidden_size``, ``num_attention_heads``, ``num_key_value_heads``,
            ``head_dim``, ``rms_norm_eps``, ``base_model_type`` and ``attention_bias``.
        layer_idx: Place in the decoder, and in a cache.
        d_conv: Width of the causal convolution over x, B and C.
        chunk_size: Tokens a chunk in training and prefill; by default chosen from the head width.
        dt_min: Smallest initial step.
        dt_max: Largest initial step. Steps start log-uniform between the two, as in mamba-ssm: a student whose steps
            start large forgets its prompt.
        a_min: Smallest initial decay rate.
        a_max: Largest initial decay rate; rates start uniform between the two.
        bias: Have the projections biases? By default where those of the attention have, from which they start.

    Raises:
        ValueError: An option is out of range.
    """

    full_precision = ("A_log", "D", "dt_bias")
    free_options = ("chunk_size", "dt_min", "dt_max", "a_min", "a_max")

    def __init__(
        self,
        config: Any,
        layer_idx: int,
        *,
        d_conv: int = 4,
        chunk_size: int | None = None,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        a_min: float = 1.0,
        a_max: float = 16.0,
        bias: bool | None = None,
    ) -> None:
        super().__init__(config, layer_idx)
        check_at_least(2, " taps", d_conv=d_conv)
        check_at_least(1, chunk_size=chunk_size)
        check_range(dt_min=dt_min, dt_max=dt_max)
        check_range(a_min=a_min, a_max=a_max)
        self.num_heads, self.num_kv_heads, self.head_dim = head_shape(config)
        self.inner = self.num_heads * self.head_dim
        self.kv_inner = self.num_kv_heads * self.head_dim
        self.chunk_size = chunk_size or (32 if self.head_dim <= 32 else 64)
        self.dt_range = (dt_min, dt_max)
        self.a_range = (a_min, a_max)

        biases = (attention_input_bias(config), attention_output_bias(config)) if bias is None else (bias, bias)
        self.in_proj = nn.Linear(config.hidden_size, sum(self._splits()), bias=biases[0])
        self.conv1d = CausalConv1d(self.inner + 2 * self.kv_inner, kernel_size=d_conv, kernel=self.kernel)
        self.dt_bias = nn.Parameter(torch.empty(self.num_heads, dtype=at_least_fp32()))
        self.A_log = nn.Parameter(torch.empty(self.num_heads, dtype=at_least_fp32()))
        self.D = nn.Parameter(torch.empty(self.num_heads, dtype=at_least_fp32()))
        self.norm = GatedHeadNorm(self.num_heads, head_dim=self.head_dim, eps=config.rms_norm_eps)
        self.out_proj = nn.Linear(self.inner, config.hidden_size, bias=biases[1])
        self.reset_parameters()

    def _splits(self) -> list[int]:
        """Row counts of ``in_proj``: z, xBC, dt."""
        return [self.inner, self.inner + 2 * self.kv_inner, self.num_heads]

    @classmethod
    def state_shapes(cls, config: Any, options: Mapping[str, Any]) -> StateShapes:
        heads, kv_heads, width = head_shape(config)
        return StateShapes(
            conv=((heads + 2 * kv_heads) * width, options.get("d_conv", 4) - 1), state=(heads, width, width)
        )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        reset_linear(self.in_proj)
        reset_linear(self.out_proj)
        self.conv1d.reset_parameters()
        nn.init.ones_(self.norm.weight)
        nn.init.ones_(self.D)
        nn.init.uniform_(self.A_log, *self.a_range)
        reset_step_bias(self.dt_bias, low=self.dt_range[0], high=self.dt_range[1])
        if not getattr(self.A_log, "_is_hf_initialized", False):
            self.A_log.log_()

    @torch.no_grad()
    def init_from_attention(self, attention: nn.Module) -> None:
        x = self.inner
        B = x + self.kv_inner
        rows = {"v_proj": (x, None), "k_proj": (B, None), "q_proj": (B + self.kv_inner, None)}
        copy_projections(attention, self.in_proj, rows)
        copy_output(attention, self.out_proj)

    def project(self, hidden_states: Tensor) -> Projected:
        z, xBC, dt = skinny_linear(self.in_proj, hidden_states).split(self._splits(), dim=-1)
        return Projected(z, xBC, (dt,))

    def scan(
        self, conv_out: Tensor, rest: tuple[Tensor, ...], *, mask: Tensor | None, seq_idx: Tensor | None,
        state: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        x, dt, A, B, C = self._recurrence(conv_out, rest, mask)
        run = find_scan(x.device, self.kernel, x.dtype)
        y, last = run(x, dt, A, B, C, D=widen(self.D), seq_idx=seq_idx, initial_state=state, chunk_size=self.chunk_size)
        return y.flatten(-2), last

    def scan_token(self, conv_out: Tensor, rest: tuple[Tensor, ...], state: Tensor) -> Tensor:
        run = find_scan_step(state.device, self.kernel, state.dtype)
        return run(state, *self._recurrence(conv_out, rest, None), D=widen(self.D)).flatten(-2)

    def gate(self, y: Tensor, z: Tensor) -> Tensor:
        out: Tensor = self.norm(y, z)
        return out

    def mixing_matrix(
        self, hidden_states: Tensor, *, attention_mask: Tensor | None = None, seq_idx: Tensor | None = None
    ) -> DecayMatrix:
        """Return what maps the convolved x of each head to y, before gate and norm, D on its diagonal."""
        inputs = self.conv_outputs(hidden_states, attention_mask, seq_idx)
        with torch.autocast(hidden_states.device.type, enabled=False):
            _, dt, A, B, C = self._recurrence(*inputs)
            return decay_matrix(dt * A, B, C, D=self.D, weight=dt, seq_idx=seq_idx)

    def _recurrence(
        self, conv_out: Tensor, rest: tuple[Tensor, ...], mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return x, dt, A, B, C with x, B and C (..., h, head_dim); grouped heads are repeated whole."""
        xB, C = conv_out.split([2 * self.kv_inner, self.inner], dim=-1)
        xB, C = xB.unflatten(-1, (2, self.num_kv_heads, self.head_dim)), C.unflatten(-1, (-1, self.head_dim))
        repeats = self.num_heads // self.num_kv_heads
        x, B = (xB if repeats == 1 else xB.repeat_interleave(repeats, dim=-2)).unbind(-3)
        dt = functional.softplus(widen(rest[0]) + widen(self.dt_bias))
        if mask is not None:
            dt = dt * mask.to(dt.dtype)
        return x, dt, -torch.exp(widen(self.A_log)), B, C
