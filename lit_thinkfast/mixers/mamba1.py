"""Mamba-1 in the place of attention, as in the hybrids of MambaInLlama and M1 that were distilled for mathematics.

Rows of the fused input projection: ``z | x | B | C | dt``, with x from V, B from K, C from Q (arXiv:2408.15237,
Algorithm 1; arXiv:2504.10449). The state has only ``d_state`` entries a channel: a head's q.k is never formed whole,
each slice of ``d_state`` channels sees the slice of q and k that is paired with it. B and C are not convolved, nothing
is normalised after the scan. What is fixed against the published code: see ``ssm.py``; two of its quirks remain as
options, since released weights were trained with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

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
from lit_thinkfast.mixers.kernels import find_selective_scan, find_selective_step
from lit_thinkfast.mixers.skinny import skinny_linear
from lit_thinkfast.mixers.ssm import Projected, StateSpaceMixer, check_at_least, check_range

_SMALLEST_STEP = 1e-4  # dt_init_floor of mamba-ssm


class Mamba1Mixer(StateSpaceMixer):
    """Mamba-1 with grouped B and C, as wide as the attention it replaces.

    Args:
        config: A decoder configuration with ``hidden_size``, ``num_attention_heads``, ``num_key_value_heads``,
            ``head_dim``, ``base_model_type`` and ``attention_bias``.
        layer_idx: Place in the decoder, and in a cache.
        d_state: State entries a channel, n; channels share B and C in groups of n. It must divide the head width.
        d_conv: Width of the causal convolution over x.
        dt_rank: Rank of the step's projection, a sixteenth of the hidden size, rounded up, by default.
        gqa_expand: How x and B are repeated for grouped-query teachers. ``"head"`` repeats whole heads, so that each
            slice of C meets the slice of B that its query met. ``"reference"`` repeats slices one by one, as the
            published code does: the right head, but for most slices not the right part of it. Released weights need it.
        dt_bias_mult: How often the step's bias is added. The published code adds it twice; released weights need 2.
        repeat_kv_before_conv: Convolve x after its repetition, with a kernel for every channel, or before.
        dt_min: Smallest initial step.
        dt_max: Largest initial step; steps start log-uniform between the two.
        bias: Have the projections biases? By default where those of the attention have, from which they start.

    Raises:
        ValueError: An option is out of range, or ``d_state`` does not divide the head width.
    """

    full_precision = ("A_log", "D", "dt_bias")
    free_options = ("dt_min", "dt_max")

    def __init__(
        self,
        config: Any,
        layer_idx: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        dt_rank: int | None = None,
        gqa_expand: Literal["head", "reference"] = "head",
        dt_bias_mult: Literal[1, 2] = 1,
        repeat_kv_before_conv: bool = True,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        bias: bool | None = None,
    ) -> None:
        super().__init__(config, layer_idx)
        check_at_least(1, d_state=d_state, dt_rank=dt_rank)
        check_at_least(2, " taps", d_conv=d_conv)
        check_range(dt_min=dt_min, dt_max=dt_max)
        self.num_heads, self.num_kv_heads, self.head_dim = head_shape(config)
        if self.head_dim % d_state:
            divisor = math.gcd(self.head_dim, d_state)
            raise ValueError(f"d_state {d_state} does not divide the head width {self.head_dim}; use {divisor}")
        self.inner = self.num_heads * self.head_dim
        self.kv_inner = self.num_kv_heads * self.head_dim
        self.d_state = d_state
        self.dt_rank = dt_rank or math.ceil(config.hidden_size / 16)
        self.gqa_expand = gqa_expand
        self.dt_bias_mult = dt_bias_mult
        self.repeat_kv_before_conv = repeat_kv_before_conv
        self.dt_range = (dt_min, dt_max)

        biases = (attention_input_bias(config), attention_output_bias(config)) if bias is None else (bias, bias)
        self.in_proj = nn.Linear(config.hidden_size, sum(self._splits()), bias=biases[0])
        channels = self.inner if repeat_kv_before_conv else self.kv_inner
        self.conv1d = CausalConv1d(channels, kernel_size=d_conv, kernel=self.kernel)
        self.dt_proj = nn.Linear(self.dt_rank, self.inner, bias=False)
        self.dt_bias = nn.Parameter(torch.empty(self.inner, dtype=at_least_fp32()))
        self.A_log = nn.Parameter(torch.empty(self.inner, d_state, dtype=at_least_fp32()))
        self.D = nn.Parameter(torch.empty(self.inner, dtype=at_least_fp32()))
        self.out_proj = nn.Linear(self.inner, config.hidden_size, bias=biases[1])
        self.reset_parameters()

    def _splits(self) -> list[int]:
        """Row counts of ``in_proj``: z, x, B, C, dt."""
        return [self.inner, self.kv_inner, self.kv_inner, self.inner, self.dt_rank]

    @classmethod
    def state_shapes(cls, config: Any, options: Mapping[str, Any]) -> StateShapes:
        heads, kv_heads, width = head_shape(config)
        channels = (heads if options.get("repeat_kv_before_conv", True) else kv_heads) * width
        return StateShapes(
            conv=(channels, options.get("d_conv", 4) - 1), state=(heads * width, options.get("d_state", 16))
        )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        reset_linear(self.in_proj)
        reset_linear(self.out_proj)
        self.conv1d.reset_parameters()
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        low, high = (max(value, _SMALLEST_STEP) for value in self.dt_range)
        reset_step_bias(self.dt_bias, low=low, high=high)
        nn.init.ones_(self.D)
        if not getattr(self.A_log, "_is_hf_initialized", False):
            rates = torch.arange(1, self.d_state + 1, dtype=self.A_log.dtype, device=self.A_log.device)  # S4D-real
            self.A_log.copy_(rates.log().expand_as(self.A_log))

    @torch.no_grad()
    def init_from_attention(self, attention: nn.Module) -> None:
        x = self.inner
        B = x + self.kv_inner
        rows = {"v_proj": (x, None), "k_proj": (B, None), "q_proj": (B + self.kv_inner, None)}
        copy_projections(attention, self.in_proj, rows)
        copy_output(attention, self.out_proj)

    def project(self, hidden_states: Tensor) -> Projected:
        z, x, B, C, dt = skinny_linear(self.in_proj, hidden_states).split(self._splits(), dim=-1)
        steps = skinny_linear(self.dt_proj, dt)
        return Projected(z, self._repeat(x) if self.repeat_kv_before_conv else x, (B, C, steps))

    def scan(
        self, conv_out: Tensor, rest: tuple[Tensor, ...], *, mask: Tensor | None, seq_idx: Tensor | None,
        state: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        x, dt, A, B, C = self._recurrence(conv_out, rest, mask)
        run = find_selective_scan(x.device, self.kernel, x.dtype, fresh=seq_idx is None and state is None)
        return run(x, dt, A, B, C, D=widen(self.D), seq_idx=seq_idx, initial_state=state)

    def scan_token(self, conv_out: Tensor, rest: tuple[Tensor, ...], state: Tensor) -> Tensor:
        run = find_selective_step(state.device, self.kernel, state.dtype)
        return run(state, *self._recurrence(conv_out, rest, None), D=widen(self.D))

    def _recurrence(
        self, conv_out: Tensor, rest: tuple[Tensor, ...], mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return x and dt (..., inner), A (inner, n), B and C (..., inner / n, n)."""
        x = conv_out if self.repeat_kv_before_conv else self._repeat(conv_out)
        B, C, steps = rest
        B, C = (widen(part).unflatten(-1, (-1, self.d_state)) for part in (self._repeat(B), C))
        dt = functional.softplus(widen(steps) + self.dt_bias_mult * widen(self.dt_bias))
        if mask is not None:
            dt = dt * mask.to(dt.dtype)
        return x, dt, -torch.exp(widen(self.A_log)), B, C

    def _repeat(self, value: Tensor) -> Tensor:
        """(..., kv_inner) -> (..., inner): whole heads, or slices of ``d_state``, each so many times in a row."""
        repeats = self.num_heads // self.num_kv_heads
        if repeats == 1:
            return value
        width = self.head_dim if self.gqa_expand == "head" else self.d_state
        repeated: Tensor = value.unflatten(-1, (-1, width)).repeat_interleave(repeats, dim=-2)
        return repeated.flatten(-2)
