"""Decode speed and memory of several models against batch size, measured fairly.

The protocol of figure 2 of arXiv:2502.20339: a prompt of fixed length, a fixed number of generated tokens, no end
tokens, prefill not counted; the batch size is swept. The models take turns within a round, so that a machine that
slows down slows all of them, and medians of several rounds are reported with their range. All run through the engine
of :mod:`lit_thinkfast.generation.engine`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lit_thinkfast.generation.calibration import calibrate, describe_machine, drift
from lit_thinkfast.generation.engine import BatchResult, RowKeys, decode_batch
from lit_thinkfast.generation.journal import write_json
from lit_thinkfast.records import RecordError, from_dict

if TYPE_CHECKING:
    from lit_thinkfast.models.modeling import HybridForCausalLM

_WARMUP_TOKENS = 3


@dataclass(frozen=True, slots=True)
class DecodePoint:
    """Cost of decoding one batch with one model.

    Attributes:
        model: Name of the model.
        batch_size: Sequences asked for.
        prompt_tokens: Length of each prompt.
        generate_tokens: Tokens generated for each sequence.
        seconds: To generate them for the whole batch, prefill excluded; median over rounds.
        seconds_low: Fastest round.
        seconds_high: Slowest round.
        prefill_seconds: To encode the prompts; median over rounds.
        tokens_per_second: ``batch_size * (generate_tokens - 1) / seconds``: the first token comes from the prefill.
        cache_bytes: Size of the cache of the rows that decode together.
        weight_bytes: Size of the weights.
        splits: Parts of the batch decoded one after the other, so that weights and cache fit the memory budget.
        rounds: Repetitions behind the medians.
    """

    model: str
    batch_size: int
    prompt_tokens: int
    generate_tokens: int
    seconds: float
    seconds_low: float
    seconds_high: float
    prefill_seconds: float
    tokens_per_second: float
    cache_bytes: int
    weight_bytes: int
    splits: int
    rounds: int

    @property
    def memory_bytes(self) -> int:
        """Weights and cache."""
        return self.weight_bytes + self.cache_bytes


def benchmark_decode(
    models: Mapping[str, HybridForCausalLM],
    *,
    prompt_tokens: int = 512,
    generate_tokens: int = 512,
    batch_sizes: Sequence[int] = (1, 8, 32, 128),
    rounds: int = 5,
    temperature: float = 0.8,
    seed: int = 0,
    memory_budget_bytes: int | None = None,
    on_run: Callable[[int, int, str], None] | None = None,
) -> list[DecodePoint]:
    """Time the models against each other.

    Args:
        models: By name. The device is theirs.
        prompt_tokens: Length of the random prompts, the same tokens for every model.
        generate_tokens: Tokens generated for each sequence, at least 2.
        batch_sizes: Sequences decoded together.
        rounds: Repetitions.
        temperature: Of the sampling, which is part of the time.
        seed: Of prompts and sampling.
        memory_budget_bytes: Weights and cache of a run must fit here: a batch that does not is decoded in the
            smallest number of equal parts that do. ``None``: no limit.
        on_run: Called after each timed run with (runs done, runs in all, model name).

    Returns:
        One point for each model and batch size, models in the order given.

    Raises:
        ValueError: No models, a number out of range, a context beyond a model's positions, or a single sequence that
            does not fit the memory budget.
    """
    if not models:
        raise ValueError("there are no models to benchmark; give at least one")
    if prompt_tokens < 1 or generate_tokens < 2 or rounds < 1 or not batch_sizes or min(batch_sizes) < 1:
        raise ValueError(
            f"prompt_tokens {prompt_tokens}, generate_tokens {generate_tokens}, rounds {rounds} and batch_sizes "
            f"{list(batch_sizes)} must be at least 1, generate_tokens at least 2"
        )
    for name, model in models.items():
        limit = getattr(model.config, "max_position_embeddings", None)
        if limit is not None and prompt_tokens + generate_tokens > limit:
            raise ValueError(
                f"{name}: prompt_tokens {prompt_tokens} + generate_tokens {generate_tokens} exceed its {limit} "
                f"positions; use {limit} in all or fewer"
            )
    vocabulary = min(model.config.vocab_size for model in models.values())
    prompt = torch.randint(vocabulary, (prompt_tokens,), generator=torch.Generator().manual_seed(seed)).tolist()
    plans = {
        (name, size): _split(model, size, prompt_tokens + generate_tokens, memory_budget_bytes, name)
        for name, model in models.items()
        for size in batch_sizes
    }
    found: dict[tuple[str, int], list[list[BatchResult]]] = {plan: [] for plan in plans}
    done = 0
    for size in batch_sizes:
        for round_ in range(rounds + 1):
            for name, model in models.items():
                tokens = generate_tokens if round_ else _WARMUP_TOKENS  # round 0 warms up
                parts = [
                    _run(
                        model,
                        prompt,
                        rows=rows,
                        tokens=min(tokens, generate_tokens),
                        temperature=temperature,
                        seed=seed,
                    )
                    for rows in plans[name, size]
                ]
                if round_ == 0:
                    continue
                found[name, size].append(parts)
                done += 1
                if on_run is not None:
                    on_run(done, rounds * len(plans), name)
    return [
        _point(models[name], found[name, size], name=name, size=size, prompt=prompt_tokens, generate=generate_tokens)
        for name, size in plans
    ]


def benchmark_to_file(
    models: Mapping[str, HybridForCausalLM],
    out: str | os.PathLike[str],
    *,
    prompt_tokens: int = 512,
    generate_tokens: int = 512,
    batch_sizes: Sequence[int] = (1, 8, 32, 128),
    rounds: int = 5,
    temperature: float = 0.8,
    seed: int = 0,
    memory_budget_bytes: int | None = None,
    on_run: Callable[[int, int, str], None] | None = None,
) -> list[DecodePoint]:
    """Run :func:`benchmark_decode` and write its points to ``out`` as JSON.

    The document has the keys ``points``, ``settings``, ``machine``, and ``calibration`` before and after with their
    ``drift``: where that is large, the machine was disturbed and the points are not worth much.
    """
    settings: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "generate_tokens": generate_tokens,
        "batch_sizes": list(batch_sizes),
        "rounds": rounds,
        "temperature": temperature,
        "seed": seed,
        "memory_budget_bytes": memory_budget_bytes,
    }
    device = next((model.device for model in models.values()), torch.device("cpu"))
    before = calibrate(device)
    points = benchmark_decode(models, on_run=on_run, **settings)
    after = calibrate(device)
    document = {
        "settings": settings | {"dtype": {name: str(m.dtype).removeprefix("torch.") for name, m in models.items()}},
        "machine": describe_machine(device),
        "calibration": {"before": before, "after": after, "drift": drift(before, after)},
        "points": [dataclasses.asdict(point) for point in points],
    }
    write_json(document, out)
    return points


def read_points(path: str | os.PathLike[str]) -> list[DecodePoint]:
    """Read the points of a file that :func:`benchmark_to_file` wrote.

    Raises:
        FileNotFoundError: No such file.
        RecordError: Not such a file.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecordError(f"{path}: not JSON ({error})") from None
    if not isinstance(document, dict) or not isinstance(document.get("points"), list):
        raise RecordError(f"{path}: has no list of points; it is not a result of the benchmark")
    return [
        from_dict(DecodePoint, values, f"{path}: point {number}") for number, values in enumerate(document["points"])
    ]


def rows_bytes(model: HybridForCausalLM, *, length: int) -> int:
    """Return the bytes of cache that one sequence of ``length`` tokens needs."""
    from lit_thinkfast.models.cache import HybridCache

    cache = HybridCache(model.config, 1, length, device="meta", dtype=model.dtype)
    return int(cache.nbytes)


def _split(model: HybridForCausalLM, size: int, length: int, budget: int | None, name: str) -> list[int]:
    """Return the sizes of the fewest equal parts of a batch that fit the budget."""
    if budget is None:
        return [size]
    room = (budget - weight_bytes(model)) // rows_bytes(model, length=length)
    if room < 1:
        raise ValueError(
            f"{name}: weights of {weight_bytes(model)} bytes and the cache of one sequence of {length} tokens exceed "
            f"the memory budget of {budget} bytes; raise it or shorten the sequence"
        )
    parts = math.ceil(size / room)
    return [size // parts + (index < size % parts) for index in range(parts)]


def weight_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of a model's weights; tied weights count once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _run(
    model: HybridForCausalLM, prompt: list[int], *, rows: int, tokens: int, temperature: float, seed: int
) -> BatchResult:
    keys = RowKeys(problems=torch.zeros(rows, dtype=torch.int64), samples=torch.arange(rows), seed=seed)
    return decode_batch(
        model,
        [prompt],
        copies=[rows],
        keys=keys,
        temperature=temperature,
        max_new_tokens=tokens,
    )


def _point(
    model: HybridForCausalLM, runs: list[list[BatchResult]], *, name: str, size: int, prompt: int, generate: int
) -> DecodePoint:
    seconds = [sum(part.decode_seconds for part in parts) for parts in runs]
    median = statistics.median(seconds)
    return DecodePoint(
        model=name,
        batch_size=size,
        prompt_tokens=prompt,
        generate_tokens=generate,
        seconds=median,
        seconds_low=min(seconds),
        seconds_high=max(seconds),
        prefill_seconds=statistics.median(sum(part.prefill_seconds for part in parts) for parts in runs),
        tokens_per_second=size * (generate - 1) / median,
        cache_bytes=max(part.cache_bytes for part in runs[0]),
        weight_bytes=weight_bytes(model),
        splits=len(runs[0]),
        rounds=len(runs),
    )
