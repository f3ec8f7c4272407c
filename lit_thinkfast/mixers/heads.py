"""Small things that recurrent mixers share: head shapes, wide types, padding, biases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def head_shape(config: Any) -> tuple[int, int, int]:
    """Return heads, key/value heads and head width of a decoder configuration."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads, getattr(config, "num_key_value_heads", None) or heads, width


def attention_output_bias(config: Any) -> bool:
    """Does the attention of this decoder have a bias on its output projection?

    Other families than these two may carry ``attention_bias`` in their file, but their stock classes ignore it there.
    """
    return config.base_model_type in ("llama", "qwen3") and bool(config.attention_bias)


def attention_input_bias(config: Any) -> bool:
    """Does the attention of this decoder have biases on its query, key and value projections?"""
    return config.base_model_type == "qwen2" or attention_output_bias(config)


def at_least_fp32() -> torch.dtype:
    """Return the default type, or float32 if that is smaller: the type of decays when a mixer is made."""
    return torch.promote_types(torch.get_default_dtype(), torch.float32)


def widen(value: Tensor) -> Tensor:
    """Bring a tensor to float32, or leave it in float64."""
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value


def real_lengths(attention_mask: Tensor) -> Tensor:
    """Return (b,): position after the last real token of each row, 0 if it has none."""
    positions = torch.arange(1, attention_mask.shape[1] + 1, device=attention_mask.device)
    return (positions * (attention_mask != 0)).amax(1)


def reset_linear(linear: nn.Linear) -> None:
    """Draw a weight from torch's own default, U(-1/sqrt(d), 1/sqrt(d)), and set a bias to zero."""
    nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def reset_step_bias(bias: nn.Parameter, *, low: float, high: float) -> None:
    """Draw biases whose softplus, the step, is log-uniform between two values (arXiv:2312.00752, sec. 3.6)."""
    nn.init.uniform_(bias, math.log(low), math.log(high))
    if not getattr(bias, "_is_hf_initialized", False):  # set by transformers on what it has read from a file
        steps = bias.exp()
        bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # the inverse of softplus


def copy_projections(attention: nn.Module, target: nn.Linear, rows: Mapping[str, tuple[int, Tensor | None]]) -> None:
    """Copy ``{q,k,v}_proj`` into rows of a fused projection, and their biases where both sides have one.

    Args:
        attention: Has the projections.
        target: The fused projection.
        rows: For each name, the first row, and which of the source's rows to take (all, in order, if ``None``).
    """
    for name, (start, chosen) in rows.items():
        source: nn.Linear = getattr(attention, name)
        for part in ("weight", "bias"):
            theirs, own = getattr(source, part), getattr(target, part)
            if theirs is None or own is None:
                continue
            theirs = theirs if chosen is None else theirs[chosen]
            own[start : start + len(theirs)] = theirs


def copy_output(attention: nn.Module, target: nn.Linear) -> None:
    """Copy ``o_proj``; a bias that only the target has becomes zero."""
    source: nn.Linear = attention.o_proj  # type: ignore[assignment]
    target.weight.copy_(source.weight)
    if target.bias is not None:
        if source.bias is None:
            target.bias.zero_()
        else:
            target.bias.copy_(source.bias)
