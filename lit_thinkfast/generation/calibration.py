"""What this machine can do right now, measured beside every timed run.

A time is only comparable with another if the machine was the same and as busy. A short matrix product and a short copy,
before and after, make that visible: see :func:`calibrate` and :func:`drift`.
"""

from __future__ import annotations

import os
import platform
import statistics
from importlib import metadata
from typing import Any

import torch

from lit_thinkfast.generation.clock import Stopwatch

_COPY_MIB = 64
_GEMM = 512
_REPEATS = 5
PACKAGES = ("lit-thinkfast", "torch", "transformers", "tokenizers")


def calibrate(device: torch.device | str = "cpu") -> dict[str, float]:
    """Measure the device for about a tenth of a second on a CPU.

    Returns:
        ``gemm_gflops``: float32 product of two 512 x 512 matrices, in 1e9 operations a second.
        ``copy_gb_per_second``: copy of 64 MiB, bytes read plus bytes written, in 1e9 a second.
        ``load_average``: of the last minute, where the system tells.
        The first two are medians of five.
    """
    matrix = torch.ones(_GEMM, _GEMM, device=device)
    product = torch.empty_like(matrix)
    source = torch.ones(_COPY_MIB * 2**18, device=device)
    target = torch.zeros_like(source)
    watch = Stopwatch(device)
    gemm, copy = [], []
    for round_ in range(_REPEATS + 1):
        watch.skip()
        torch.mm(matrix, matrix, out=product)
        first = watch.lap()
        target.copy_(source)
        second = watch.lap()
        if round_:  # the first is the warm-up
            gemm.append(first)
            copy.append(second)
    found = {
        "gemm_gflops": round(2 * _GEMM**3 / statistics.median(gemm) / 1e9, 2),
        "copy_gb_per_second": round(2 * source.numel() * 4 / statistics.median(copy) / 1e9, 2),
    }
    if hasattr(os, "getloadavg"):
        found["load_average"] = round(os.getloadavg()[0], 2)
    return found


def drift(before: dict[str, float], after: dict[str, float]) -> float:
    """Return the largest relative difference of the two speeds between two calibrations.

    >>> drift({"gemm_gflops": 10.0, "copy_gb_per_second": 4.0}, {"gemm_gflops": 8.0, "copy_gb_per_second": 4.0})
    0.2
    """
    return max(
        round(abs(after[name] - before[name]) / max(after[name], before[name]), 4)
        for name in ("gemm_gflops", "copy_gb_per_second")
    )


def describe_machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return what decides speed and last bits: device, threads, versions. No host or user names."""
    device = torch.device(device)
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
