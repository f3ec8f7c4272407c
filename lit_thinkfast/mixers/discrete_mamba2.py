"""Discrete Mamba-2 in the place of attention: the mixer of Phi-Mamba and Llamba, the students of MOHAWK.

``h_t = alpha_t h_{t-1} + B_t x_t^T`` with ``alpha_t = sigmoid(-a_t)`` for each head, ``y_t = C_t h_t + D x_t`` and
``out_proj(y * silu(z + z_bias))`` (arXiv:2408.10189, sec. 4; arXiv:2502.14458). Against Mamba-2: the decay is projected
from the input, there is neither A nor a step, the convolution has no activation, nothing is normalised. Rows of the
fused input projection: ``x | B | C | z | a``.

The published code runs this on the kernel of Mamba-2 with x divided by the step, which overflows where a step vanishes.
Here the logarithm of the decay, ``-softplus(a)``, is passed on as it is.
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
    widen,
)
from lit_thinkfast.mixers.kernels import find_decay_scan
from lit_thinkfast.mixers.matrices import DecayMatrix, decay_matrix
from lit_thinkfast.mixers.scan import decay_step
from lit_thinkfast.mixers.skinny import skinny_linear
from lit_thinkfast.mixers.ssm import Projected, StateSpaceMixer, check_at_least

OPEN_GATE = 1.278464542761  # silu of it is one
_OUTPUT_SHRINK = math.sqrt(24)  # of the published initialisation, which divides by it whatever the model's depth


class DiscreteMamba2Mixer(StateSpaceMixer):
    """Mamba-2 whose decay is an input, with any number of heads.

    Args:
        config: A decoder configuration with ``hidden_size``, ``num_attention_heads``, ``num_key_value_heads``,
            ``head_dim``, ``base_model_type`` and ``attention_bias``.
        layer_idx: Place in the decoder, and in a cache.
        num_heads: Value heads h, which share the width of the attention equally; as many as it has by default.
        num_qk_heads: Heads of B and C: as many as value heads (multi-head) by default, or a divisor of them (one is
            multi-value).
        d_state: State size n of a head; by default the head width of the attention.
        d_conv: Width of the causal convolution over x, B and C.
        activation: What follows the convolution.
        chunk_size: Tokens a chunk in training and prefill; by default chosen from the head width.
        bias: Has the input projection a bias, in the place of ``z_bias``? By default where those of the attention have.

    Raises:
        ValueError: An option is out of range, or heads do not divide the width.
    """

    full_precision = ("D",)
    free_options = ("chunk_size",)

    def __init__(
        self,
        config: Any,
        layer_idx: int,
        *,
        num_heads: int | None = None,
        num_qk_heads: int | None = None,
        d_state: int | None = None,
        d_conv: int = 4,
        activation: Literal["identity", "silu"] = "identity",
        chunk_size: int | None = None,
        bias: bool | None = None,
    ) -> None:
        super().__init__(config, layer_idx)
        check_at_least(1, num_heads=num_heads, num_qk_heads=num_qk_heads, d_state=d_state, chunk_size=chunk_size)
        check_at_least(2, " taps", d_conv=d_conv)
        heads, kv_heads, width = head_shape(config)
        self.inner = heads * width
        self.num_heads = num_heads or heads
        self.num_qk_heads = num_qk_heads or self.num_heads
        self.d_state = d_state or width
        if self.inner % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide the mixer's width {self.inner}")
        if self.num_heads % self.num_qk_heads:
            raise ValueError(f"num_qk_heads {self.num_qk_heads} does not divide num_heads {self.num_heads}")
        self.head_dim = self.inner // self.num_heads
        self.qk_inner = self.num_qk_heads * self.d_state
        self.chunk_size = chunk_size or (32 if self.head_dim <= 32 else 64)
        self.activate = activation == "silu"

        with_bias = attention_input_bias(config) if bias is None else bias
        self.in_proj = nn.Linear(config.hidden_size, sum(self._splits()), bias=with_bias)
        self.z_bias = None if with_bias else nn.Parameter(torch.empty(self.inner))
        self.conv1d = CausalConv1d(self.inner + 2 * self.qk_inner, kernel_size=d_conv, kernel=self.kernel)
        self.D = nn.Parameter(torch.empty(self.num_heads, dtype=at_least_fp32()))
        output_bias = attention_output_bias(config) if bias is None else False
        self.out_proj = nn.Linear(self.inner, config.hidden_size, bias=output_bias)
        self._attention_heads = (heads, kv_heads, width)
        self.reset_parameters()

    def _splits(self) -> list[int]:
        """Row counts of ``in_proj``: xBC, z, a."""
        return [self.inner + 2 * self.qk_inner, self.inner, self.num_heads]

    @classmethod
    def state_shapes(cls, config: Any, options: Mapping[str, Any]) -> StateShapes:
        heads, _, width = head_shape(config)
        own_heads = options.get("num_heads") or heads
        size = options.get("d_state") or width
        qk_inner = (options.get("num_qk_heads") or own_heads) * size
        channels = heads * width + 2 * qk_inner
        return StateShapes(
            conv=(channels, options.get("d_conv", 4) - 1), state=(own_heads, heads * width // own_heads, size)
        )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        reset_linear(self.in_proj)
        reset_linear(self.out_proj)
        self.conv1d.reset_parameters()
        nn.init.ones_(self.D)
        if self.z_bias is not None:
            nn.init.zeros_(self.z_bias)

    @torch.no_grad()
    def init_mohawk(self) -> None:
        """Start as MOHAWK does before its first stage: gate open, convolution the identity, D one.

        Raises:
            ValueError: The input projection has a bias in the place of ``z_bias``: what is published then is the random
                start.
        """
        if self.z_bias is None:
            raise ValueError("a neutral start needs z_bias; set the option bias to false, or use init 'random'")
        self._neutral()
        self.out_proj.weight.div_(_OUTPUT_SHRINK)

    @torch.no_grad()
    def init_from_attention(self, attention: nn.Module) -> None:
        """Take x from V, B from K and C from Q, grouped heads repeated whole; the rest starts neutrally.

        Raises:
            ValueError: Heads or state size are not those of the attention.
        """
        heads, kv_heads, width = self._attention_heads
        if (self.num_heads, self.num_qk_heads, self.d_state) != (heads, heads, width):
            raise ValueError(
                f"heads of attention ({heads} of width {width}) have no place in {self.num_heads} heads with "
                f"{self.num_qk_heads} of state size {self.d_state}; leave out num_heads, num_qk_heads and d_state, or "
                "use init 'mohawk'"
            )
        self._neutral()
        repeated = torch.arange(kv_heads * width).view(kv_heads, width)
        repeated = repeated.repeat_interleave(heads // kv_heads, dim=0).flatten()
        B = self.inner
        rows = {"v_proj": (0, repeated), "k_proj": (B, repeated), "q_proj": (B + self.qk_inner, None)}
        copy_projections(attention, self.in_proj, rows)
        copy_output(attention, self.out_proj)

    def _neutral(self) -> None:
        """Open the gate and let the convolution pass everything, whatever the input."""
        start = self._splits()[0]
        self.in_proj.weight[start : start + self.inner].zero_()
        if self.z_bias is not None:
            self.z_bias.fill_(OPEN_GATE)
        else:
            self.in_proj.bias[start : start + self.inner].fill_(OPEN_GATE)
        self.conv1d.init_identity()

    def project(self, hidden_states: Tensor) -> Projected:
        xBC, z, a = skinny_linear(self.in_proj, hidden_states).split(self._splits(), dim=-1)
        return Projected(z, xBC, (a,))

    def scan(
        self, conv_out: Tensor, rest: tuple[Tensor, ...], *, mask: Tensor | None, seq_idx: Tensor | None,
        state: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        x, log_decay, B, C = self._recurrence(conv_out, rest, mask)
        run = find_decay_scan(x.device, self.kernel)
        y, last = run(x, log_decay, B, C, seq_idx=seq_idx, initial_state=state, chunk_size=self.chunk_size)
        return torch.addcmul(y, x, widen(self.D)[:, None]).flatten(-2), last

    def scan_token(self, conv_out: Tensor, rest: tuple[Tensor, ...], state: Tensor) -> Tensor:
        x, log_decay, B, C = self._recurrence(conv_out, rest, None)
        y = decay_step(state, x, log_decay, B, C)
        return torch.addcmul(y, x, widen(self.D)[:, None]).flatten(-2)

    def gate(self, y: Tensor, z: Tensor) -> Tensor:
        return super().gate(y, z if self.z_bias is None else z + self.z_bias.to(z.dtype))

    def mixing_matrix(
        self, hidden_states: Tensor, *, attention_mask: Tensor | None = None, seq_idx: Tensor | None = None
    ) -> DecayMatrix:
        """Return what maps the convolved x of each head to y, before the gate, D on its diagonal."""
        inputs = self.conv_outputs(hidden_states, attention_mask, seq_idx)
        with torch.autocast(hidden_states.device.type, enabled=False):
            _, log_decay, B, C = self._recurrence(*inputs)
            mask = inputs[2]
            weight = None if mask is None else mask.to(log_decay.dtype).expand_as(log_decay)
            return decay_matrix(log_decay, B, C, D=self.D, weight=weight, seq_idx=seq_idx)

    def _recurrence(
        self, conv_out: Tensor, rest: tuple[Tensor, ...], mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return x (..., h, p), the log of the decay (..., h), and B and C (..., h, n)."""
        x, B, C = conv_out.split([self.inner, self.qk_inner, self.qk_inner], dim=-1)
        x = x.unflatten(-1, (-1, self.head_dim))
        B, C = (part.unflatten(-1, (-1, self.d_state)) for part in (B, C))
        repeats = self.num_heads // self.num_qk_heads
        if repeats > 1:
            B, C = B.repeat_interleave(repeats, dim=-2), C.repeat_interleave(repeats, dim=-2)
        log_decay = -functional.softplus(widen(rest[0]))
        if mask is not None:
            x, log_decay = x * mask[..., None].to(x.dtype), log_decay * mask.to(log_decay.dtype)
        return x, log_decay, B, C
