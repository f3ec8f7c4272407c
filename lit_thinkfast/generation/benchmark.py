"""Decode speed and memory of several models against batch size, measured fairly.

The protocol of figure 2 of arXiv:2502.20339: a prompt of fixed length, a fixed number of generated tokens, no end
tokens, prefill not counted; the batch size is swept. The models take turns within a round, so that a machine that slows
down slows all of them, and medians of several rounds are reported with their range. All run through the engine of
:mod:`lit_thinkfast.generation.engine`.

A batch that does not fit the memory is decoded in parts, one after the other, as the paper did with its 2 x 256. Beside
every measured time stands the least that the machine allows (:mod:`lit_thinkfast.generation.roofline`, with the rates
that it had in the same run), and with it the share of a speed-up that is the architecture's.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict, Unpack

import torch

from lit_thinkfast.generation.calibration import DRIFT_LIMIT, calibrate, describe_machine, drift
from lit_thinkfast.generation.clock import Stopwatch
from lit_thinkfast.generation.config import Backend, SamplingConfig
from lit_thinkfast.generation.engine import DecodeTimes, time_decode
from lit_thinkfast.generation.memory import plan_rows, split
from lit_thinkfast.generation.points import DecodeBenchmark, DecodePoint, read_points
from lit_thinkfast.generation.roofline import DecodeCosts, Machine, decode_costs, decode_seconds

if TYPE_CHECKING:
    from lit_thinkfast.models.modeling import HybridForCausalLM

__all__ = [
    "BATCH_SIZES",
    "DecodeBenchmark",
    "DecodePoint",
    "benchmark_decode",
    "benchmark_to_file",
    "read_points",
    "run_decode",
    "weight_bytes",
]

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Those of the paper's figure."""
_WARMUP_TOKENS = 3
_FREE_SHARE = 0.95  # of the free memory of a card; the rest is for what its allocator leaves between tensors


class DecodeOptions(TypedDict, total=False):
    """Options of :func:`run_decode`."""

    prompt_tokens: int
    generate_tokens: int
    batch_sizes: Sequence[int]
    rounds: int
    temperature: float
    seed: int
    memory_budget_bytes: int | None
    prefill_chunk: int
    backend: Backend
    baselines: Mapping[str, str] | None
    on_run: Callable[[int, int, str], None] | None


def benchmark_decode(models: Mapping[str, HybridForCausalLM], **options: Unpack[DecodeOptions]) -> list[DecodePoint]:
    """Time the models against each other; see :func:`run_decode`, whose points these are."""
    return run_decode(models, **options).points


def benchmark_to_file(
    models: Mapping[str, HybridForCausalLM], out: str | os.PathLike[str], **options: Unpack[DecodeOptions]
) -> list[DecodePoint]:
    """Run :func:`run_decode`, write what it gives to ``out`` as JSON, and return its points.

    The document has the keys ``points``, ``settings``, ``machine``, and ``calibration`` before and after with their
    ``drift``: where that is large, the machine was ``disturbed`` and the points are not worth much.
    """
    run = run_decode(models, **options)
    run.write(out)
    return run.points


def run_decode(
    models: Mapping[str, HybridForCausalLM],
    *,
    prompt_tokens: int = 512,
    generate_tokens: int = 512,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    rounds: int = 5,
    temperature: float = 0.8,
    seed: int = 0,
    memory_budget_bytes: int | None = None,
    prefill_chunk: int = 512,
    backend: Backend = "auto",
    baselines: Mapping[str, str] | None = None,
    on_run: Callable[[int, int, str], None] | None = None,
) -> DecodeBenchmark:
    """Time the models against each other.

    Args:
        models: By name, in evaluation mode. The device is theirs.
        prompt_tokens: Length of the random prompt, the same tokens for every model and row.
        generate_tokens: Tokens generated for each sequence.
        batch_sizes: Sequences decoded together.
        rounds: Repetitions.
        temperature: Of the sampling, which is part of the time.
        seed: Of prompts and sampling.
        memory_budget_bytes: Weights, caches and work of a run must fit here: a batch that does not is decoded in the
            fewest equal parts that do. ``None``: no limit on a CPU, what is free on a card.
        prefill_chunk: Tokens of the prompt encoded at a time.
        backend: See :class:`SamplingConfig`.
        baselines: For each model the one that it is held against; the first for all if not given.
        on_run: Called after each timed run with (runs done, runs in all, model name).

    Returns:
        One point for each model and batch size, models in the order given, with settings, machine and calibration.

    Raises:
        ValueError: No models, a number out of range, a context beyond a model's positions, a baseline that is not
            among the models, or a single sequence that does not fit the memory.
    """
    _check(models, prompt_tokens, generate_tokens, batch_sizes, rounds)
    baselines = dict(baselines or dict.fromkeys(models, next(iter(models))))
    if wrong := sorted({baselines.get(name, "") for name in models} - set(models)):
        raise ValueError(f"baseline {wrong[0]!r} is not among the models; give each model one of {', '.join(models)}")
    vocabulary = min(model.config.vocab_size for model in models.values())
    prompt = torch.randint(vocabulary, (prompt_tokens,), generator=torch.Generator().manual_seed(seed)).tolist()
    config = SamplingConfig(
        max_new_tokens=generate_tokens,
        temperature=temperature,
        seed=seed,
        prefill_chunk=prefill_chunk,
        backend=backend,
        num_samples=1,
    )
    first = next(iter(models.values()))
    before = calibrate(first.device, dtype=first.dtype)
    limits = {name: _row_limit(name, model, prompt, config, memory_budget_bytes) for name, model in models.items()}
    turns = [
        _Turns(name, model, size, prompt, config, limit=limits[name])
        for name, model in models.items()
        for size in batch_sizes
    ]
    done = 0
    for size in batch_sizes:
        for _ in range(rounds):
            for turn in turns:
                if turn.size == size:
                    turn.take()
                    done += 1
                    if on_run is not None:
                        on_run(done, rounds * len(turns), turn.name)
    after = calibrate(first.device, dtype=first.dtype)

    rates = {name: max(before[name], after[name]) for name in before}
    machine = Machine.calibrated(rates, dtype=first.dtype)
    settings = {
        "prompt_tokens": prompt_tokens,
        "generate_tokens": generate_tokens,
        "batch_sizes": list(batch_sizes),
        "rounds": rounds,
        "temperature": temperature,
        "seed": seed,
        "memory_budget_bytes": memory_budget_bytes,
        "prefill_chunk": prefill_chunk,
        "backend": backend,
        "dtype": {name: _type_name(model.dtype) for name, model in models.items()},
        "layer_mixers": {name: list(model.config.layer_mixers or []) for name, model in models.items()},
    }
    changed = drift(before, after)
    calibration = {
        "before": before,
        "after": after,
        "drift": changed,
        "disturbed": changed > DRIFT_LIMIT,
        "dtype": _type_name(first.dtype),
        "roofline": dataclasses.asdict(machine),
    }
    by_key = {(turn.name, turn.size): turn for turn in turns}
    # the rates are those of one type
    costs = {n: decode_costs(m.config, dtype=m.dtype) for n, m in models.items() if m.dtype == first.dtype}
    predicted = {key: turn.predicted(costs[turn.name], machine) for key, turn in by_key.items() if turn.name in costs}
    points = [
        _point(turn, by_key[baselines[turn.name], turn.size], predicted=predicted, drift=changed) for turn in turns
    ]
    return DecodeBenchmark(settings, describe_machine(first.device), calibration, points)


def weight_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of a model's weights; tied weights count once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


@dataclass(frozen=True, slots=True)
class _Round:
    """One turn: the times of the parts of a batch, and the seconds that passed from its begin to its end."""

    parts: list[DecodeTimes]
    wall_seconds: float

    @property
    def decode_seconds(self) -> float:
        return sum(part.decode_seconds for part in self.parts)

    @property
    def prefill_seconds(self) -> float:
        return sum(part.prefill_seconds for part in self.parts)

    @property
    def overhead_share(self) -> float:
        return sum(part.overhead_seconds for part in self.parts) / self.decode_seconds


class _Turns:
    """The turns of one model at one batch size."""

    def __init__(
        self,
        name: str,
        model: HybridForCausalLM,
        size: int,
        prompt: list[int],
        config: SamplingConfig,
        *,
        limit: int | None,
    ) -> None:
        self.name, self.model, self.size = name, model, size
        self.prompt, self.config = prompt, config
        self.rounds: list[_Round] = []
        self.peak_bytes: int | None = None
        self.parts = split(size, limit or size)
        self.planned_splits = len(self.parts)

    def take(self) -> None:
        """Take one turn, in smaller parts if memory runs out."""
        while (round_ := self._try()) is None:
            largest = max(self.parts)
            if largest == 1:
                raise ValueError(
                    f"{self.name}: memory ran out for a single sequence of {len(self.prompt)} + "
                    f"{self.config.max_new_tokens} tokens; shorten it, or use a device with more"
                )
            self.parts = split(self.size, largest // 2)
            self.rounds.clear()  # they were of other parts
            gc.collect()
            if self.model.device.type == "cuda":
                torch.cuda.empty_cache()
        self.rounds.append(round_)

    def _try(self) -> _Round | None:
        """Run all parts; ``None`` if memory ran out."""
        device = self.model.device
        on_cuda = device.type == "cuda"
        held = torch.cuda.memory_allocated(device) if on_cuda else 0
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(device)
        # What is compiled or captured is made for the lengths that occur, so the warm-up has to go through all of them.
        eager = self.config.backend == "eager" or (self.config.backend == "auto" and not on_cuda)
        warmup = _WARMUP_TOKENS if eager else self.config.max_new_tokens
        watch = Stopwatch(device)
        try:
            parts = [
                time_decode(self.model, self.prompt, rows=rows, config=self.config, warmup=warmup)
                for rows in self.parts
            ]
        except torch.OutOfMemoryError:
            return None
        if on_cuda:
            peak = torch.cuda.max_memory_allocated(device) - held + weight_bytes(self.model)
            self.peak_bytes = max(self.peak_bytes or 0, peak)
        return _Round(parts, watch.lap())

    def predicted(self, costs: DecodeCosts, machine: Machine) -> float:
        """Return the least seconds that the machine allows for all parts."""
        steps, before = self.config.max_new_tokens, len(self.prompt) - 1
        return sum(
            decode_seconds(costs, batch=rows, prompt=before, steps=steps, machine=machine) for rows in self.parts
        )


def _check(
    models: Mapping[str, HybridForCausalLM],
    prompt_tokens: int,
    generate_tokens: int,
    batch_sizes: Sequence[int],
    rounds: int,
) -> None:
    if not models:
        raise ValueError("there are no models to benchmark; give at least one")
    if prompt_tokens < 1 or generate_tokens < 1 or rounds < 1 or not batch_sizes or min(batch_sizes) < 1:
        raise ValueError(
            f"prompt_tokens {prompt_tokens}, generate_tokens {generate_tokens}, rounds {rounds} and batch_sizes "
            f"{list(batch_sizes)} must be at least 1"
        )
    if len(set(batch_sizes)) < len(batch_sizes):
        raise ValueError(f"batch_sizes {list(batch_sizes)} name a size twice; name each once")
    for name, model in models.items():
        limit = model.config.max_position_embeddings
        if model.config.attention_layers and prompt_tokens + generate_tokens > limit:
            raise ValueError(
                f"{name}: prompt_tokens {prompt_tokens} + generate_tokens {generate_tokens} exceed its {limit} "
                f"positions; use {limit} in all or fewer"
            )


def _row_limit(
    name: str, model: HybridForCausalLM, prompt: list[int], config: SamplingConfig, budget: float | None
) -> int | None:
    """Return how many rows of a model fit the memory, or ``None`` for any number."""
    budget = _free_bytes(model) if budget is None else budget
    if budget is None:
        return None
    try:
        return plan_rows(
            model,
            length=len(prompt) - 1 + config.max_new_tokens,
            prompt=len(prompt) - 1,
            budget_bytes=budget,
            prefill_chunk=config.prefill_chunk,
        )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _free_bytes(model: HybridForCausalLM) -> float | None:
    """Return the memory that a model on a card can have, its weights included; ``None`` elsewhere, where all share."""
    device = model.device
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return _FREE_SHARE * (free + idle) + weight_bytes(model)


def _point(turns: _Turns, base: _Turns, *, predicted: Mapping[tuple[str, int], float], drift: float) -> DecodePoint:
    seconds = [round_.decode_seconds for round_ in turns.rounds]
    median = statistics.median(seconds)
    together = min(len(seconds), len(base.rounds))
    ratios = [b.decode_seconds / own for b, own in zip(base.rounds[-together:], seconds[-together:], strict=True)]
    own, other = (predicted.get((t.name, t.size)) for t in (turns, base))
    warmups = [r.wall_seconds - r.decode_seconds - r.prefill_seconds for r in turns.rounds]
    return DecodePoint(
        model=turns.name,
        batch_size=turns.size,
        prompt_tokens=len(turns.prompt),
        generate_tokens=turns.config.max_new_tokens,
        seconds=median,
        seconds_low=min(seconds),
        seconds_high=max(seconds),
        prefill_seconds=statistics.median(r.prefill_seconds for r in turns.rounds),
        tokens_per_second=turns.size * turns.config.max_new_tokens / median,
        cache_bytes=max(part.cache_bytes for part in turns.rounds[0].parts),
        weight_bytes=weight_bytes(turns.model),
        splits=len(turns.parts),
        rounds=len(turns.rounds),
        baseline=base.name,
        speedup=statistics.median(ratios),
        speedup_low=min(ratios),
        speedup_high=max(ratios),
        predicted_seconds=own,
        predicted_speedup=other / own if own is not None and other is not None else None,
        overhead_share=statistics.median(r.overhead_share for r in turns.rounds),
        warmup_seconds=statistics.median(warmups),
        peak_bytes=turns.peak_bytes,
        planned_splits=turns.planned_splits,
        drift=drift,
    )


def _type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
