"""Mamba-2 in the place of attention, one recurrent head for one attention head, initialised from the attention weights.

The block of MambaInLlama (arXiv:2408.15237, Algorithm 1, with its Mamba-2 layout): the fused input projection has rows
``z | x | B | C | dt``; x starts as V, B as K, C as Q, the output projection as O. Grouped key/value heads are repeated
whole. There is no position encoding. Fixed against the published code: convolution and state restart at documents,
prefill and decoding share one recurrence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_thinkfast.mixers import kernels
from lit_thinkfast.mixers.base import Mixer, States, StateShapes, attention_output_bias, read_states, write_states
from lit_thinkfast.mixers.conv import CausalConv1d
from lit_thinkfast.mixers.scan import chunked_scan, scan_step

if TYPE_CHECKING:
    from transformers import Cache


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


class Mamba2Mixer(Mixer):
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

    Raises:
        ValueError: An option is out of range.
    """

    full_precision = ("A_log", "D", "dt_bias")

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
    ) -> None:
        super().__init__()
        if d_conv < 2:
            raise ValueError(f"d_conv {d_conv} is too small; the convolution needs at least 2 taps")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size {chunk_size} must be at least 1")
        if not 0 < dt_min <= dt_max:
            raise ValueError(f"need 0 < dt_min <= dt_max, got {dt_min} and {dt_max}")
        if not 0 < a_min <= a_max:
            raise ValueError(f"need 0 < a_min <= a_max, got {a_min} and {a_max}")
        self.layer_idx = layer_idx
        self.num_heads, self.num_kv_heads, self.head_dim = _head_shape(config)
        self.inner = self.num_heads * self.head_dim
        self.kv_inner = self.num_kv_heads * self.head_dim
        self.chunk_size = chunk_size or (32 if self.head_dim <= 32 else 64)
        self.dt_range = (dt_min, dt_max)
        self.a_range = (a_min, a_max)

        rows = sum(self._splits())
        self.in_proj = nn.Linear(config.hidden_size, rows, bias=False)
        self.conv1d = CausalConv1d(self.inner + 2 * self.kv_inner, kernel_size=d_conv)
        self.dt_bias = nn.Parameter(torch.empty(self.num_heads, dtype=_at_least_fp32()))
        self.A_log = nn.Parameter(torch.empty(self.num_heads, dtype=_at_least_fp32()))
        self.D = nn.Parameter(torch.empty(self.num_heads, dtype=_at_least_fp32()))
        self.norm = GatedHeadNorm(self.num_heads, head_dim=self.head_dim, eps=config.rms_norm_eps)
        self.out_proj = nn.Linear(self.inner, config.hidden_size, bias=attention_output_bias(config))
        self.reset_parameters()

    def _splits(self) -> list[int]:
        """Row counts of ``in_proj``: z, xBC, dt."""
        return [self.inner, self.inner + 2 * self.kv_inner, self.num_heads]

    @classmethod
    def state_shapes(cls, config: Any, options: Mapping[str, Any]) -> StateShapes:
        heads, kv_heads, width = _head_shape(config)
        return StateShapes(
            conv=((heads + 2 * kv_heads) * width, options.get("d_conv", 4) - 1), state=(heads, width, width)
        )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for linear in (self.in_proj, self.out_proj):
            nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        self.conv1d.reset_parameters()
        nn.init.ones_(self.norm.weight)
        nn.init.ones_(self.D)
        nn.init.uniform_(self.A_log, *self.a_range)
        nn.init.uniform_(self.dt_bias, math.log(self.dt_range[0]), math.log(self.dt_range[1]))
        if not getattr(self.A_log, "_is_hf_initialized", False):
            self.A_log.log_()
        if not getattr(self.dt_bias, "_is_hf_initialized", False):
            steps = self.dt_bias.exp()
            self.dt_bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # the inverse of softplus

    @torch.no_grad()
    def init_from_attention(self, attention: nn.Module) -> None:
        parts: dict[str, Tensor] = {name: getattr(attention, name).weight for name in ("v_proj", "k_proj", "q_proj")}
        row = self.inner
        for weight in parts.values():
            self.in_proj.weight[row : row + weight.shape[0]] = weight
            row += weight.shape[0]
        output: nn.Linear = attention.o_proj  # type: ignore[assignment]
        self.out_proj.load_state_dict(output.state_dict())

    def forward(
        self,
        hidden_states: Tensor,
        *,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        seq_idx: Tensor | None = None,
    ) -> Tensor:
        states = read_states(past_key_values, self.layer_idx)
        one = hidden_states.shape[1] == 1 and attention_mask is None
        if states is not None and one and not torch.is_grad_enabled():
            out = self._step(hidden_states[:, 0], states)[:, None]
        else:
            out, states = self._sequence(hidden_states, states, attention_mask, seq_idx, past_key_values is not None)
        if past_key_values is not None and states is not None:
            write_states(past_key_values, self.layer_idx, states, num_tokens=hidden_states.shape[1])
        return out

    def _sequence(
        self,
        hidden_states: Tensor,
        states: States | None,
        attention_mask: Tensor | None,
        seq_idx: Tensor | None,
        remember: bool,
    ) -> tuple[Tensor, States | None]:
        """Mix many tokens. Returns (b, t, d) and, if they are to be remembered, the states after the last token."""
        z, xBC, dt = self.in_proj(hidden_states).split(self._splits(), dim=-1)
        if attention_mask is not None:
            xBC = xBC * attention_mask[..., None].to(xBC.dtype)
        before = None if states is None else states.conv
        conv_out = functional.silu(self.conv1d(xBC, seq_idx=seq_idx, initial_state=before))

        # The recurrence runs in float32 (or float64) under any autocast: decays close to one do not survive bfloat16.
        with torch.autocast(hidden_states.device.type, enabled=False):
            x, B, C = self._heads(conv_out)
            dt = functional.softplus(_widen(dt) + _widen(self.dt_bias))
            if attention_mask is not None:
                dt = dt * attention_mask[..., None].to(dt.dtype)
            scan = kernels.fused_scan(x.device) or chunked_scan
            y, state = scan(
                x,
                dt,
                -torch.exp(_widen(self.A_log)),
                B,
                C,
                D=_widen(self.D),
                seq_idx=seq_idx,
                initial_state=None if states is None else states.state,
                chunk_size=self.chunk_size,
            )
            y = self.norm(y.flatten(-2), z)
        out = self.out_proj(y.to(hidden_states.dtype))
        if not remember:
            return out, None
        lengths = None if attention_mask is None else _lengths(attention_mask)
        return out, States(self.conv1d.last_inputs(xBC, initial_state=before, lengths=lengths), state)

    def _step(self, hidden_states: Tensor, states: States) -> Tensor:
        """Mix one token (b, d) -> (b, d), bringing ``states`` forward in place."""
        z, xBC, dt = self.in_proj(hidden_states).split(self._splits(), dim=-1)
        conv_out = functional.silu(self.conv1d.step(xBC, states.conv))
        with torch.autocast(hidden_states.device.type, enabled=False):
            x, B, C = self._heads(conv_out)
            dt = functional.softplus(_widen(dt) + _widen(self.dt_bias))
            y = scan_step(states.state, x, dt, -torch.exp(_widen(self.A_log)), B, C, D=_widen(self.D))
            y = self.norm(y.flatten(-2), z)
        out: Tensor = self.out_proj(y.to(hidden_states.dtype))
        return out

    def _heads(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., channels) -> x, B, C of (..., h, head_dim); grouped heads are repeated whole."""
        x, B, C = _widen(xBC).split([self.kv_inner, self.kv_inner, self.inner], dim=-1)
        x, B, C = (part.unflatten(-1, (-1, self.head_dim)) for part in (x, B, C))
        repeats = self.num_heads // self.num_kv_heads
        if repeats > 1:
            x, B = x.repeat_interleave(repeats, dim=-2), B.repeat_interleave(repeats, dim=-2)
        return x, B, C


def _head_shape(config: Any) -> tuple[int, int, int]:
    """Return heads, key/value heads and head width of a decoder configuration."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads, getattr(config, "num_key_value_heads", None) or heads, width


def _at_least_fp32() -> torch.dtype:
    return torch.promote_types(torch.get_default_dtype(), torch.float32)


def _widen(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _lengths(attention_mask: Tensor) -> Tensor:
    """Return (b,): position after the last real token of each row, 0 if it has none."""
    positions = torch.arange(1, attention_mask.shape[1] + 1, device=attention_mask.device)
    return (positions * (attention_mask != 0)).amax(1)
