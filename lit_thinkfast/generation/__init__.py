"""Sampling many chains of thought under a clock: config, engine, sampler, journal, benchmark.

The room's names are imported when they are first asked for, so that ``SamplingConfig`` alone costs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_thinkfast.generation.benchmark import DecodePoint, benchmark_decode, benchmark_to_file
    from lit_thinkfast.generation.config import SamplingConfig
    from lit_thinkfast.generation.progress import Progress
    from lit_thinkfast.generation.run import generate_to_file
    from lit_thinkfast.generation.sampler import Sampler
    from lit_thinkfast.generation.sampling import BaseSampler
    from lit_thinkfast.generation.vllm import VLLMSampler

_HOMES = {
    "BaseSampler": "sampling",
    "DecodePoint": "benchmark",
    "Progress": "progress",
    "Sampler": "sampler",
    "SamplingConfig": "config",
    "VLLMSampler": "vllm",
    "benchmark_decode": "benchmark",
    "benchmark_to_file": "benchmark",
    "generate_to_file": "run",
}

__all__ = [
    "BaseSampler",
    "DecodePoint",
    "Progress",
    "Sampler",
    "SamplingConfig",
    "VLLMSampler",
    "benchmark_decode",
    "benchmark_to_file",
    "generate_to_file",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
