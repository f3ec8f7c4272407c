"""A small made-up evaluation with models of known skill and cost."""

import dataclasses
import heapq
from collections.abc import Callable

import numpy as np
import pytest

from lit_thinkfast.analysis import ModelRun
from lit_thinkfast.generation.benchmark import DecodePoint
from lit_thinkfast.generation.sampling import in_rounds, one_after_the_other
from lit_thinkfast.records import Completion, Problem, Verdict

MakeRun = Callable[..., ModelRun]


def make_run(
    *,
    name: str = "model",
    seconds: float = 1.0,
    skill: float = 0.5,
    problems: int = 12,
    samples: int = 8,
    scored: bool = True,
    seed: int = 0,
    text: str = "one step\nanother\n\\boxed{1}",
    layers: tuple[str, ...] = ("attention", "mamba2"),
) -> ModelRun:
    rng = np.random.default_rng(seed)
    completions, verdicts = [], []
    for p in range(problems):
        chance = min(max(skill + 0.4 * (p / problems - 0.5), 0.02), 0.98)
        for s in range(samples):
            right = bool(rng.random() < chance)
            answer = "right" if right else f"wrong {rng.integers(3)}"
            cost = float(seconds * rng.uniform(0.9, 1.1))
            completions.append(Completion(f"p{p}", s, text, 5, 20, "stop", cost, cost, model=name))
            score = float(np.clip(rng.normal(0.7 if right else 0.4, 0.2), 0, 1)) if scored else None
            steps = (1.5, 0.2, -0.4) if scored else None
            outcome = "correct" if right else "incorrect"
            verdicts.append(
                Verdict(f"p{p}", s, outcome, answer, answer, "exact", score, steps, "prm" if scored else "")
            )
    meta = {"num_parameters": 1_234_567, "layer_mixers": list(layers), "device_name": "a processor", "threads": 2}
    return ModelRun(completions, verdicts, meta=meta)


def put_on_clock(run: ModelRun, *, slots: int = 4, budget: float | None = None, rounds: bool = True) -> ModelRun:
    """Replay a run on an engine of ``slots`` rows, which are refilled at once; what is unfinished by ``budget`` is lost.

    A sample occupies its row for ``slots`` times its share, so that the shares add up to the engine's time.
    """
    written = {(c.problem_id, c.sample): c for c in run.completions}
    verdicts = {(v.problem_id, v.sample): v for v in run.verdicts}
    asked = [Problem(p, f"Question of {p}?", "right", level=1 + i % 3) for i, p in enumerate(run.by_problem)]
    most = max(c.sample for c in run.completions) + 1
    plan = in_rounds(asked, most) if rounds else one_after_the_other(asked, most)
    free = [0.0] * slots
    completions = []
    for problem, samples in plan:
        for sample in samples:
            c = written[problem.id, sample]
            begun = heapq.heappop(free)
            ended = begun + slots * c.seconds
            heapq.heappush(free, ended)
            if budget is None or ended <= budget:
                completions.append(dataclasses.replace(c, latency_seconds=ended - begun, finished_seconds=ended))
    completions.sort(key=lambda c: c.finished_seconds or 0.0)
    return dataclasses.replace(
        run,
        completions=completions,
        verdicts=[verdicts[c.problem_id, c.sample] for c in completions],
        problems={p.id: p for p in asked},
        meta={**run.meta, "prompts": {p.id: "hash" for p in asked}},
    )


@pytest.fixture
def clocked() -> Callable[..., ModelRun]:
    return put_on_clock


@pytest.fixture
def run_maker() -> MakeRun:
    return make_run


@pytest.fixture
def runs() -> dict[str, ModelRun]:
    return {
        "teacher": make_run(name="teacher", seconds=1.0, skill=0.6, layers=("attention",) * 2),
        "student": make_run(name="student", seconds=0.3, skill=0.5, seed=1),
    }


@pytest.fixture
def problems() -> list[Problem]:
    return [Problem(f"p{i}", f"Question number {i}?", "1") for i in range(12)]


@pytest.fixture
def benchmark_points() -> list[DecodePoint]:
    points = []
    for model, slope in (("teacher", 0.3), ("student", 0.1)):
        for batch in (1, 4, 16):
            t = 0.5 + slope * batch
            points.append(
                DecodePoint(
                    model=model,
                    batch_size=batch,
                    prompt_tokens=16,
                    generate_tokens=8,
                    seconds=t,
                    seconds_low=0.9 * t,
                    seconds_high=1.2 * t,
                    prefill_seconds=0.1,
                    tokens_per_second=batch * 7 / t,
                    cache_bytes=int(1000 * slope * batch),
                    weight_bytes=5000,
                    splits=1,
                    rounds=3,
                )
            )
    return points
