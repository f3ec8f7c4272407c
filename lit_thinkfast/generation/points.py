"""What the decode benchmark gives: its points, and the JSON document that holds them and all that decided them."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_thinkfast.generation.calibration import DRIFT_LIMIT
from lit_thinkfast.generation.describe import git_state, now
from lit_thinkfast.generation.journal import write_json
from lit_thinkfast.records import RecordError, from_dict


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
        prefill_seconds: To encode the prompt, once a part, and give its cache to all rows; median over rounds.
        tokens_per_second: Tokens of the whole batch over ``seconds``.
        cache_bytes: Size of the cache of the rows that decode together.
        weight_bytes: Size of the weights.
        splits: Parts of the batch decoded one after the other, so that they fit the memory.
        rounds: Repetitions behind the medians.
        baseline: Model that it is held against.
        speedup: Seconds of the baseline over its own, median over rounds in which both took their turn.
        speedup_low: In the worst round.
        speedup_high: In the best round.
        predicted_seconds: The least that the machine allows, by the roofline.
        predicted_speedup: The same, of the baseline over its own.
        overhead_share: Part of ``seconds`` outside the model's own step; median over rounds.
        warmup_seconds: What a round took besides, unrecorded: memory, and first steps; median over rounds.
        peak_bytes: On CUDA, the most memory that the device had given out to this model.
        planned_splits: Parts that the planner asked for: fewer than ``splits`` where memory ran out all the same.
        drift: Of the machine's speed during the run.
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
    baseline: str = ""
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    predicted_seconds: float | None = None
    predicted_speedup: float | None = None
    overhead_share: float | None = None
    warmup_seconds: float | None = None
    peak_bytes: int | None = None
    planned_splits: int | None = None
    drift: float = 0.0

    @property
    def memory_bytes(self) -> int:
        """Weights and cache."""
        return self.weight_bytes + self.cache_bytes

    @property
    def fraction(self) -> float | None:
        """Share of the roofline that was reached."""
        return None if self.predicted_seconds is None else self.predicted_seconds / self.seconds

    @property
    def disturbed(self) -> bool:
        """Whether the machine's speed changed too much during the run for its times to be trusted."""
        return self.drift > DRIFT_LIMIT


@dataclass(frozen=True, slots=True)
class DecodeBenchmark:
    """A run of the benchmark: its points and all that decided them, as plain JSON values."""

    settings: dict[str, Any]
    machine: dict[str, Any]
    calibration: dict[str, Any]
    points: list[DecodePoint]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write everything as one JSON document, with the time and the commit that it was made at."""
        parts = {name: getattr(self, name) for name in ("settings", "machine", "calibration")}
        session = {"finished": now(), "git": git_state()}
        points = [dataclasses.asdict(point) for point in self.points]
        write_json(parts | {"sessions": [session], "points": points}, path)


def read_points(path: str | os.PathLike[str]) -> list[DecodePoint]:
    """Read the points of a file that :func:`benchmark.benchmark_to_file` wrote, now or in an earlier version.

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
    points = [
        from_dict(DecodePoint, values, f"{path}: point {number}") for number, values in enumerate(document["points"])
    ]
    calibration = document.get("calibration")
    known = calibration.get("drift") if isinstance(calibration, dict) else None
    if not isinstance(known, (int, float)):
        return points
    return [dataclasses.replace(point, drift=point.drift or float(known)) for point in points]
