r"""Curves over a real deadline: what one run had answered by each moment of its own clock.

:mod:`lit_thinkfast.analysis.budget` says what k samples cost on average. Here nothing is averaged over subsets: at
engine time T of the run the samples with ``finished_seconds`` up to T exist, each problem is answered with all of its
own, and a problem without one is unsolved. One run answers for every shorter budget, since a shorter run would have
done the same things in the same order. The axis is the engine's time over the number of problems,

.. math:: \frac{D(T) + n(T) \cdot r}{P}

with D the seconds of all processes up to T (T itself where there was one), n(T) the samples that exist, r the reward
model's seconds a sample (for the rules that need scores, where it was measured), and P all problems of the run.

By a deadline short completions are finished more often than long ones, and the value is that of this run rather than an
expectation over samples; intervals are over problems, with the clock as it was. It is a fair question only to a run
that gave its problems turns: one that finished the first problem before it began the second had answered half of them
with all samples at half time, and the rest not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_thinkfast.analysis.budget import RULES, SCORED, Array, problem_weights
from lit_thinkfast.analysis.runs import ModelRun, find
from lit_thinkfast.metrics.statistics import share_intervals
from lit_thinkfast.metrics.tables import first_equal
from lit_thinkfast.metrics.voting import vote
from lit_thinkfast.records import BudgetPoint, Completion, Rule, Verdict

Ints = np.ndarray[Any, np.dtype[np.int64]]

OUT_OF_TURN = 0.1
"""Share of samples begun out of turn from which on a run was not sampled in rounds. One problem after the other has a
quarter or more; rounds have but those that a killed session had to draw again."""


@dataclass(frozen=True)
class Replay:
    """What a run had answered by each of a series of deadlines.

    Attributes:
        model: Name of the model.
        problem_ids: The rows below.
        seconds: Rule -> ``(deadlines,)`` engine seconds a problem, rising.
        most: Rule -> ``(deadlines,)`` samples of the problem that has most.
        values: Rule -> ``(problems, deadlines)`` credit; 0 where a problem has no sample yet.
    """

    model: str
    problem_ids: tuple[str, ...]
    seconds: Mapping[Rule, Array]
    most: Mapping[Rule, Ints]
    values: Mapping[Rule, Array]


def deadline_points(
    runs: Mapping[str, ModelRun],
    *,
    rules: Sequence[Rule] | None = None,
    steps: int = 40,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[list[BudgetPoint], dict[str, str]]:
    """Return the curves over a deadline with their intervals, and for each model without one the reason.

    Args:
        runs: Name of the model -> its run.
        rules: Default: all; the two that need scores only of runs that have them.
        steps: Deadlines of a curve, evenly spaced in log time.
        resamples: Bootstrap resamples of problems, the same for all models.
        seed: Of the bootstrap.

    Raises:
        ValueError: No problem was asked in all runs.
    """
    problems = common_problems(runs)
    points: list[BudgetPoint] = []
    reasons: dict[str, str] = {}
    for name, run in runs.items():
        if reason := why_not(run):
            reasons[name] = reason
            continue
        chosen = [r for r in rules or RULES if run.has_scores or r not in SCORED]
        made = replay(name, run, problems, chosen, steps=steps)
        weights = problem_weights(len(problems), resamples, seed)
        for rule, values in made.values.items():
            columns = zip(made.most[rule], made.seconds[rule], *share_intervals(values, weights[1:]), strict=True)
            points += [
                BudgetPoint(name, rule, int(k), float(t), float(mean), float(low), float(high), len(problems))
                for k, t, mean, low, high in columns
            ]
    return points, reasons


def common_problems(runs: Mapping[str, ModelRun]) -> list[str]:
    """Return the problems that every run was asked, also those of which it finished no sample.

    Raises:
        ValueError: There is none.
    """
    removed = {p for run in runs.values() for p in run.removed_problems}
    asked = [set(run.asked) for run in runs.values()]
    found = [p for p in next(iter(runs.values())).asked if p not in removed and all(p in each for each in asked)]
    if not found:
        raise ValueError(f"the models {', '.join(runs)} have no problem in common; evaluate them on the same set")
    return found


def why_not(run: ModelRun) -> str:
    """Return why a run has no curve over a deadline, or an empty string where it has one."""
    missing = sum(c.finished_seconds is None for c in run.completions)
    if missing:
        return f"{missing} of its completions do not say when they were finished (finished_seconds)"
    if untimed := sum(not c.finished_seconds for c in run.completions):
        every = untimed == len(run.completions)
        return f"{'its' if every else f'{untimed} of its'} completions carry no engine seconds"
    if not sampled_in_rounds(run):
        return "it was not sampled in rounds, so at a deadline some problems have many samples and some none"
    return ""


def sampled_in_rounds(run: ModelRun) -> bool:
    """Whether problems took turns, in rounds of 1, 1, 2, 4, 8, ... samples: the order in which samples were begun says.

    A sample is out of turn if one of a later round had been begun, where there are three rounds or more one of two
    rounds later: of processes that sample together one may be a round ahead of another. Where completions have no
    latency, and so no beginning, the metadata must name a time budget.
    """
    if not any(c.latency_seconds for c in run.completions):
        return find(run.meta, "time_budget_seconds") is not None
    # samples begun together are one difference of floats each: without rounding, its noise would order them
    begun = sorted((round((c.finished_seconds or 0.0) - c.latency_seconds, 6), c.sample) for c in run.completions)
    rounds = np.array([sample.bit_length() for _, sample in begun])
    ahead = 1 if rounds.max() > 1 else 0
    return bool((rounds < np.maximum.accumulate(rounds) - ahead).mean() < OUT_OF_TURN)


def device_seconds(run: ModelRun, clock: Array) -> Array:
    """Return the seconds of all processes up to times ``clock`` of the run: their number times the clock.

    The metadata's sessions say which processes worked when; without them there was one.
    """
    found = find(run.meta, "sessions")
    total = np.zeros_like(clock)
    for session in found if isinstance(found, list) else []:
        if isinstance(session, Mapping):
            before, used = session.get("engine_seconds_before"), session.get("engine_seconds")
            if isinstance(before, int | float) and isinstance(used, int | float):
                total += np.clip(clock - before, 0.0, used)
    return np.maximum(clock, total)


def replay(
    model: str,
    run: ModelRun,
    problems: Sequence[str],
    rules: Sequence[Rule],
    *,
    steps: int = 40,
    deadlines: Sequence[float] | None = None,
) -> Replay:
    """Return what ``run`` had answered by each deadline.

    Args:
        model: Its name.
        run: Completions with ``finished_seconds``.
        problems: Ids of the rows.
        rules: Those that need scores only if the run has them.
        steps: Number of deadlines, evenly spaced in log time from the first finished sample to the last; at most.
        deadlines: Seconds a problem, rising, in place of the spaced ones.
    """
    order = sorted(
        (pair for pairs in run.by_problem.values() for pair in pairs),
        key=lambda pair: (pair[0].finished_seconds or 0.0, pair[0].problem_id, pair[0].sample),
    )
    clock = np.array([c.finished_seconds for c, _ in order], dtype=np.float64)
    engine = device_seconds(run, clock)
    places: dict[str, list[int]] = {p: [] for p in problems}
    for place, (c, _) in enumerate(order):
        if c.problem_id in places:
            places[c.problem_id].append(place)
    seconds: dict[Rule, Array] = {}
    most: dict[Rule, Ints] = {}
    values: dict[Rule, Array] = {}
    for rule in rules:
        scoring = run.scoring_seconds_per_sample if rule in SCORED else 0.0
        cost = (engine + scoring * np.arange(1, len(order) + 1)) / len(run.asked)
        at = _spaced(cost, steps) if deadlines is None else np.array(deadlines, dtype=np.float64)
        done = np.searchsorted(cost, at, side="right")
        held = np.array([np.searchsorted(mine, done) for mine in places.values()])  # (problems, deadlines)
        rows = []
        for mine, counts in zip(places.values(), held, strict=True):
            sizes, which = np.unique(counts, return_inverse=True)
            rows.append(_credits(rule, [order[i] for i in mine], sizes)[which])
        seconds[rule], most[rule], values[rule] = at, held.max(axis=0).astype(np.int64), np.array(rows)
    return Replay(model, tuple(problems), seconds, most, values)


def _spaced(cost: Array, steps: int) -> Array:
    """Return deadlines from the first to the last of the given costs; fewer where these are close, one if all equal."""
    first, last = float(cost[cost > 0][0]), float(cost[-1])
    return np.unique(np.clip(np.geomspace(first, last, steps), first, last))


def _credits(rule: Rule, samples: Sequence[tuple[Completion, Verdict]], sizes: Ints) -> Array:
    """Return the credit of the answer chosen from the first ``sizes`` samples, 0 from none; ties share the credit."""
    verdicts = [v for _, v in samples]
    right = np.array([v.correct for v in verdicts], dtype=np.float64)
    if rule == "coverage":
        return np.array([float(right[:n].any()) for n in sizes])
    if rule == "best_of_n":
        known = all(v.log_odds is not None for v in verdicts)
        scores = np.array([v.log_odds if known else v.score for v in verdicts], dtype=np.float64)
        return _each(sizes, lambda n: float(right[:n][scores[:n] == scores[:n].max()].mean()))
    answers = np.array(first_equal([v.canonical for v in verdicts], range(len(verdicts))), dtype=np.int64)
    weights = np.array([v.score if rule == "weighted_best_of_n" else 1.0 for v in verdicts], dtype=np.float64)
    return _each(sizes, lambda n: float(vote(right, answers, weights, np.arange(n)[None], ties="split")[0]))


def _each(sizes: Ints, credit: Callable[[int], float]) -> Array:
    return np.array([credit(int(n)) if n else 0.0 for n in sizes])
