"""Fused CUDA kernels of mamba-ssm and causal-conv1d, used only for CUDA tensors and only where they import.

Everything here returns ``None`` on a CPU, whatever is installed: an import that succeeds says nothing about the device
that a tensor is on.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


@functools.cache
def _load(module: str, name: str) -> Callable[..., Any] | None:
    try:
        found: Callable[..., Any] = getattr(__import__(module, fromlist=[name]), name)
    except Exception as error:
        logger.warning("%s.%s is not usable (%s); the slower torch path runs instead", module, name, error)
        return None
    return found


def fused_conv(
    device: torch.device, kernel_size: int
) -> Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor] | None:
    """Return ``conv(x (b t c), weight (c k), bias (c), seq_idx (b t))``, or ``None`` off CUDA and beyond four taps."""
    if device.type != "cuda" or kernel_size > 4 or (kernel := _load("causal_conv1d", "causal_conv1d_fn")) is None:
        return None

    def conv(x: Tensor, weight: Tensor, bias: Tensor, seq_idx: Tensor | None) -> Tensor:
        documents = None if seq_idx is None else seq_idx.to(torch.int32).contiguous()
        if x.stride(1) % 8 or x.stride(0) % 8:
            # The kernel reads eight channels at once; rows cut from a wider projection may begin anywhere.
            x = x.contiguous()
        y: Tensor = kernel(x.transpose(1, 2), weight.to(x.dtype), bias.to(x.dtype), seq_idx=documents)
        return y.transpose(1, 2)

    return conv


def fused_scan(device: torch.device) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """Return a function with the signature of :func:`lit_thinkfast.mixers.scan.chunked_scan`, or ``None`` off CUDA."""
    if device.type != "cuda":
        return None
    kernel = _load("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined")
    if kernel is None:
        return None

    def scan(
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        *,
        D: Tensor | None = None,
        seq_idx: Tensor | None = None,
        initial_state: Tensor | None = None,
        chunk_size: int = 256,
    ) -> tuple[Tensor, Tensor]:
        documents = None if seq_idx is None else seq_idx.to(torch.int32).contiguous()
        y, state = kernel(
            x,
            dt,
            A,
            B,
            C,
            chunk_size=max(chunk_size, 256),
            D=D,
            seq_idx=documents,
            initial_states=initial_state,
            return_final_states=True,
        )
        return y, state

    return scan
