"""What this machine can do right now, measured beside every timed run.

A time is only comparable with another if the machine was the same and as busy. Short matrix products and a short copy,
before and after, make that visible: see :func:`calibrate`, :func:`drift` and :func:`disturbance`. The same rates are
the limits of the roofline (:mod:`lit_thinkfast.generation.roofline`): a run is held against what its own machine did.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch

from lit_thinkfast.generation.clock import Stopwatch

DRIFT_LIMIT = 0.15
"""Two calibrations that differ by more than this share say that the machine was disturbed in between."""

_SKINNY = (1, 16)
# Fewer rounds make a poor median; more than a third of a second is felt by whoever waits for a short run.
_LEAST_ROUNDS, _MOST_ROUNDS, _SECONDS = 3, 9, 0.3
PACKAGES = ("lit-thinkfast", "torch", "transformers", "tokenizers")


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What is multiplied and copied.

    Attributes:
        peak: Side of the square matrices.
        weight: Outputs and inputs of the weight that few rows are multiplied with. The copy before its turn has driven
            it out of the caches.
        copy_mib: MiB copied.
    """

    peak: int
    weight: tuple[int, int]
    copy_mib: int


_ON_CPU = _Sizes(512, (4096, 2048), 64)
# An accelerator is done with those sooner than it is told to begin; these take it a tenth of a millisecond or more.
_ON_ACCELERATOR = _Sizes(4096, (16384, 8192), 256)


def calibrate(device: torch.device | str = "cpu", *, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """Measure the device for about 0.3 s.

    Args:
        device: Which.
        dtype: Of the numbers; a run gives that of its model.

    Returns:
        ``gemm_gflops``: product of two square matrices (512 x 512 on a CPU), in 1e9 operations a second: the peak.
        ``gemm_m1_gflops``, ``gemm_m16_gflops``: product of a weight (4096 x 2048 on a CPU) with 1 and 16 rows.
        ``copy_gb_per_second``: copy (of 64 MiB on a CPU), bytes read plus bytes written, in 1e9 a second.
        ``load_average``: of the last minute, before anything was measured, where the system tells.
        Rates are medians of three to nine rounds in which all of them take turns.
    """
    device = torch.device(device)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # before this adds to it
    found = _rates(device, dtype)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # gigabytes that whoever asks wants for a model
    if load is not None:
        found["load_average"] = round(load, 2)
    return found


def _rates(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    work = _work(device, dtype)
    watch = Stopwatch(device)
    laps: dict[str, list[float]] = {name: [] for name in work}
    for round_ in range(_MOST_ROUNDS + 1):
        for name, (_, run) in work.items():
            watch.skip()
            run()
            lap = watch.lap()
            if round_:  # the first is the warm-up
                laps[name].append(lap)
        if round_ >= _LEAST_ROUNDS and watch.elapsed > _SECONDS:
            break
    return {name: round(amount / statistics.median(laps[name]) / 1e9, 2) for name, (amount, _) in work.items()}


def _work(device: torch.device, dtype: torch.dtype) -> dict[str, tuple[float, Callable[[], Any]]]:
    """Return what is timed, by the name of its rate: operations or bytes, and the function."""
    sizes = _ON_CPU if device.type == "cpu" else _ON_ACCELERATOR
    outputs, inputs = sizes.weight
    matrix = torch.ones(sizes.peak, sizes.peak, device=device, dtype=dtype)
    product = torch.empty_like(matrix)
    weight = torch.ones(outputs, inputs, device=device, dtype=dtype)
    source = torch.ones(sizes.copy_mib * 2**20 // dtype.itemsize, device=device, dtype=dtype)
    target = torch.zeros_like(source)

    def skinny(rows: int) -> Callable[[], Any]:
        x = torch.ones(rows, inputs, device=device, dtype=dtype)
        out = torch.empty(rows, outputs, device=device, dtype=dtype)
        return lambda: torch.mm(x, weight.t(), out=out)

    return {
        "gemm_gflops": (2.0 * sizes.peak**3, lambda: torch.mm(matrix, matrix, out=product)),
        **{f"gemm_m{rows}_gflops": (2.0 * rows * outputs * inputs, skinny(rows)) for rows in _SKINNY},
        "copy_gb_per_second": (2.0 * source.nbytes, lambda: target.copy_(source)),
    }


def drift(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """Return the largest relative difference of a speed between two calibrations, over the speeds that both have.

    >>> drift({"gemm_gflops": 10.0, "copy_gb_per_second": 4.0}, {"gemm_gflops": 8.0, "copy_gb_per_second": 4.0})
    0.2
    """
    shared = [name for name in before if name in after and name.endswith(("_gflops", "_per_second"))]
    return max((round(abs(after[n] - before[n]) / max(after[n], before[n]), 4) for n in shared), default=0.0)


def disturbed(before: Mapping[str, float] | None, after: Mapping[str, float] | None) -> bool:
    """Return whether two calibrations differ by more than :data:`DRIFT_LIMIT`; without two of them nobody can say."""
    return before is not None and after is not None and drift(before, after) > DRIFT_LIMIT


def disturbance(amount: float) -> str:
    """Return the note that belongs on every table and figure of a run, by its drift; empty where it was not disturbed.

    >>> disturbance(0.21)
    'disturbed: the speed of the machine changed by 21 % during the run (limit 15 %)'
    >>> disturbance(0.1)
    ''
    """
    if amount <= DRIFT_LIMIT:
        return ""
    return (
        f"disturbed: the speed of the machine changed by {100 * amount:.0f} % during the run "
        f"(limit {100 * DRIFT_LIMIT:.0f} %)"
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
