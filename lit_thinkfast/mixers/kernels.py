"""Which operator runs: fused CUDA kernels, ours in torch, or the reference loops.

``kernel`` is ``"auto"`` (fused where tensors are on CUDA and the package imports, else torch), ``"torch"`` or
``"reference"`` (loops over time in float64). On a CPU no fused kernel is ever chosen, whatever is installed: an import
that succeeds says nothing about the device that a tensor is on. What was chosen on CUDA is logged once.
"""

from __future__ import annotations

import functools
import itertools
import logging
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_thinkfast.mixers.documents import document_starts
from lit_thinkfast.mixers.reference import (
    reference_decay_scan,
    reference_scan,
    reference_selective_scan,
)
from lit_thinkfast.mixers.scan import chunked_scan, decay_scan, scan_step
from lit_thinkfast.mixers.selective import selective_scan, selective_step

logger = logging.getLogger(__name__)

KERNELS = ("auto", "torch", "reference")
Scan = Callable[..., tuple[Tensor, Tensor]]


def check_kernel(kernel: str) -> str:
    """Return ``kernel`` if it is one of ``KERNELS``.

    Raises:
        ValueError: It is not.
    """
    if kernel not in KERNELS:
        raise ValueError(f"unknown kernel {kernel!r}; use one of {', '.join(KERNELS)}")
    return kernel


def find_conv(x: Tensor, kernel_size: int, kernel: str) -> Callable[..., Tensor] | None:
    """Return ``conv(x (b t c), weight (c k), bias (c), seq_idx=)`` in the place of ours, or ``None`` to take ours.

    The fused one has at most four taps, and reads eight channels at once. It starts from zeros.
    """
    if not _fused(x.device, kernel, x.dtype) or kernel_size > 4 or x.shape[-1] % 8:
        return None
    found = _load("causal_conv1d", "causal_conv1d_fn")
    return None if found is None else functools.partial(_conv, found)


def find_conv_step(x: Tensor, kernel_size: int, kernel: str) -> Callable[..., Tensor] | None:
    """Return ``step(x (b c), state (b c k-1), weight (c k), bias (c))``, in place, or ``None`` to take ours."""
    if not _fused(x.device, kernel, x.dtype) or kernel_size > 4:
        return None
    found = _load("causal_conv1d", "causal_conv1d_update")
    if found is None:
        return None

    def step(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        own = state.to(x.dtype)  # the kernel wants one type; a cache may be in another, as under autocast
        y: Tensor = found(x.contiguous(), own, weight.to(x.dtype), bias.to(x.dtype))
        if own is not state:
            state.copy_(own)
        return y

    return step


def find_decay_scan(device: torch.device, kernel: str) -> Scan:
    """Return :func:`decay_scan` or its reference: no kernel of mamba-ssm takes a decay of its own undivided."""
    return in_float64(reference_decay_scan) if kernel == "reference" else decay_scan


def find_scan(device: torch.device, kernel: str, dtype: torch.dtype = torch.float32) -> Scan:
    """Return a function with the signature of :func:`chunked_scan`."""
    if kernel == "reference":
        return in_float64(reference_scan)
    if not _fused(device, kernel, dtype):
        return chunked_scan
    found = _load("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined")
    return chunked_scan if found is None else functools.partial(_scan, found)


def find_selective_scan(device: torch.device, kernel: str, dtype: torch.dtype = torch.float32, *, fresh: bool) -> Scan:
    """Return a function with the signature of :func:`selective_scan`.

    Args:
        device: Of the tensors.
        kernel: One of ``KERNELS``.
        dtype: Of the tensors.
        fresh: One document a row, from a state of zeros: all that the fused kernel knows. It gives the last state no
            gradient.
    """
    if kernel == "reference":
        return in_float64(reference_selective_scan)
    if not _fused(device, kernel, dtype):
        return selective_scan
    if not fresh:
        _say_once("packed rows and initial states of mamba1 are not for the fused scan; the slower torch path runs")
        return selective_scan
    module = "mamba_ssm.ops.selective_scan_interface"
    found = _load(module, "selective_scan_fn")
    if found is not None and getattr(sys.modules.get(module), "selective_scan_cuda", None) is None:
        # The function is there also where mamba-ssm was built without the extension that it calls.
        _say_once("mamba-ssm was built without selective_scan_cuda; mamba1 runs in torch, which is slower")
        found = None
    return selective_scan if found is None else functools.partial(_selective_scan, found)


def find_scan_step(device: torch.device, kernel: str, dtype: torch.dtype = torch.float32) -> Callable[..., Tensor]:
    """Return a function with the signature of :func:`scan_step`."""
    if not _fused(device, kernel, dtype):
        return scan_step
    found = _load("mamba_ssm.ops.triton.selective_state_update", "selective_state_update")
    return scan_step if found is None else functools.partial(_scan_step, found)


def find_selective_step(device: torch.device, kernel: str, dtype: torch.dtype = torch.float32) -> Callable[..., Tensor]:
    """Return a function with the signature of :func:`selective_step`."""
    if not _fused(device, kernel, dtype):
        return selective_step
    found = _load("mamba_ssm.ops.triton.selective_state_update", "selective_state_update")
    return selective_step if found is None else functools.partial(_selective_step, found)


def find_varlen_attention(device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor] | None:
    """Return ``attention(q (n h p), k, v (n kv_heads p), lengths=, scale=, dropout=)`` over n tokens of documents.

    ``None`` off CUDA, for types other than the two of 16 bits, and where flash-attn is not installed.
    """
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return None
    found = _load("flash_attn", "flash_attn_varlen_func")
    return None if found is None else functools.partial(_varlen_attention, found)


def find_cached_attention(device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor] | None:
    """Return ``attention(q (b h p), k, v (b kv_heads p), keys (b t kv_heads p), values, lengths=, scale=, window=)``.

    It stores k and v behind the first ``lengths`` of keys and values, in place, and attends to both. Found where
    :func:`find_varlen_attention` finds something.
    """
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return None
    found = _load("flash_attn", "flash_attn_with_kvcache")
    return None if found is None else functools.partial(_cached_attention, found)


def _fused(device: torch.device, kernel: str, dtype: torch.dtype) -> bool:
    return device.type == "cuda" and kernel == "auto" and dtype != torch.float64  # which they refuse, or round


@functools.cache
def _load(module: str, name: str) -> Callable[..., Any] | None:
    try:
        found: Callable[..., Any] = getattr(__import__(module, fromlist=[name]), name)
    except Exception as error:
        logger.warning("%s.%s is not usable (%s); the slower torch path runs instead", module, name, error)
        return None
    logger.info("%s.%s runs on CUDA", module, name)
    return found


@functools.cache
def _say_once(message: str) -> None:
    logger.warning(message)


def in_float64(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run a reference in float64, and give its results in the type of the first argument."""

    def wide(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    def run(first: Tensor, *rest: Any, chunk_size: int | None = None, **options: Any) -> Any:
        out = function(wide(first), *map(wide, rest), **{name: wide(value) for name, value in options.items()})
        return out.to(first.dtype) if isinstance(out, Tensor) else tuple(part.to(first.dtype) for part in out)

    return run


def _conv(kernel: Callable[..., Any], x: Tensor, weight: Tensor, bias: Tensor, *, seq_idx: Tensor | None) -> Tensor:
    if x.stride(1) % 8 or x.stride(0) % 8:
        # The kernel reads eight channels at once; rows cut from a wider projection may begin anywhere.
        x = x.contiguous()
    documents = _documents(seq_idx)
    y: Tensor = kernel(x.transpose(1, 2), weight.to(x.dtype), bias.to(x.dtype), seq_idx=documents)
    return y.transpose(1, 2)


def _scan(
    kernel: Callable[..., Any],
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
    y, state = kernel(
        x,
        dt,
        A,
        B,
        C,
        chunk_size=max(chunk_size, 256),
        D=D,
        seq_idx=_documents(seq_idx),
        initial_states=initial_state,
        return_final_states=True,
    )
    return y, state


def _selective_scan(
    kernel: Callable[..., Any],
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
    rows = [part.transpose(1, 2).contiguous() for part in (x, dt)]
    grouped = [part.permute(0, 2, 3, 1).contiguous() for part in (B, C)]
    y, state = kernel(rows[0], rows[1], A, grouped[0], grouped[1], D=D, return_last_state=True)
    return y.transpose(1, 2), state


def _scan_step(
    kernel: Callable[..., Any],
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None,
) -> Tensor:
    # Strides of zero where a value is one for a whole head tell the kernel so. It fails without D or without a bias.
    heads, width = state.shape[1:3]
    zero = x.new_zeros(1, 1).expand(heads, width)
    y: Tensor = kernel(
        state,
        x,
        dt[..., None].expand_as(x),
        A[:, None, None].expand(state.shape[1:]),
        B,
        C,
        D=zero if D is None else D[:, None].expand(heads, width),
        dt_bias=zero,
    )
    return y


def _selective_step(
    kernel: Callable[..., Any],
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None,
) -> Tensor:
    # The kernel shares B and C among the channels of a head: a group is a head, its channels are the head's width.
    shape = (B.shape[1], -1)
    zero = x.new_zeros(A.shape[:1]).unflatten(0, shape)  # it fails without D or without a bias
    y: Tensor = kernel(
        state.unflatten(1, shape),
        x.unflatten(1, shape),
        dt.unflatten(1, shape),
        A.unflatten(0, shape),
        B,
        C,
        D=zero if D is None else D.unflatten(0, shape),
        dt_bias=zero,
    )
    return y.flatten(1)


def _varlen_attention(
    kernel: Callable[..., Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    lengths: list[int],
    scale: float,
    dropout: float,
) -> Tensor:
    edges = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=query.device)
    longest = max(lengths)
    out: Tensor = kernel(
        query,
        key,
        value,
        cu_seqlens_q=edges,
        cu_seqlens_k=edges,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        dropout_p=dropout,
        softmax_scale=scale,
        causal=True,
    )
    return out


def _cached_attention(
    kernel: Callable[..., Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    lengths: Tensor,
    scale: float,
    window: int | None,
) -> Tensor:
    out: Tensor = kernel(
        query[:, None],
        keys,
        values,
        k=key[:, None],
        v=value[:, None],
        cache_seqlens=lengths.to(torch.int32),
        softmax_scale=scale,
        causal=True,
        window_size=(-1, -1) if window is None else (window - 1, 0),
    )
    return out[:, 0]


def _documents(seq_idx: Tensor | None) -> Tensor | None:
    """Number documents 0, 1, 2, ... in each row.

    The kernels compare numbers, wherever they stand, give an initial state to document 0 only and take negative ones
    for padding; ours restart where the number changes.
    """
    return None if seq_idx is None else document_starts(seq_idx).cumsum(1, dtype=torch.int32)
