r"""From samples to curves over time.

For each model and each k, how good is the answer chosen from k samples, and how long do k samples take?

This is the first of two definitions of a time budget; :mod:`lit_thinkfast.analysis.deadline` has the second.

The time of k samples of a problem is k times the mean engine time of one of its samples, as measured in the run; the
mean over problems is the budget. Engine time is throughput time: samples were made in batches, and each carries its
share, so the batch size of the run belongs to every statement. Reward-model time is added where it was measured and
where the rule needs it. Values come from the estimators in :mod:`lit_thinkfast.metrics.functional`: expectations over
random k-subsets of the samples, not the outcome of the first k.

All models and all k are measured on one set of problems: those that have samples for the largest k in every run. A
curve that lost problems on its way would rise because they are the hard ones, and a model would win by not finishing
them.

Intervals are percentile bootstraps over problems. Every model sees the same resamples, so that differences between
models are paired (problems that are hard for all cancel out).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from lit_thinkfast.analysis.runs import ModelRun
from lit_thinkfast.metrics.functional import (
    best_of_n_accuracy,
    coverage,
    majority_vote_accuracy,
    weighted_best_of_n_accuracy,
)
from lit_thinkfast.metrics.statistics import resample_weights, share_intervals
from lit_thinkfast.metrics.tables import Grid, verdict_grid
from lit_thinkfast.records import BudgetPoint, Rule

Array = np.ndarray[Any, np.dtype[np.float64]]

RULES: tuple[Rule, ...] = ("coverage", "majority", "weighted_best_of_n", "best_of_n")
_ENOUGH = 0.9
SCORED: frozenset[str] = frozenset({"weighted_best_of_n", "best_of_n"})


@dataclass(frozen=True)
class Measured:
    """Per-problem values of one model, the stuff of all curves and intervals.

    Attributes:
        model: Name of the model.
        problem_ids: The problems, in the order of the rows below; the same for all models measured together.
        ks: Samples a problem, increasing; every problem has samples for all of them.
        sample_seconds: ``(problems,)`` mean engine seconds of one sample; all NaN where those of some sample were not
            measured.
        scoring_seconds: Reward-model seconds of one sample.
        values: Rule -> ``(problems, len(ks))`` shares.
    """

    model: str
    problem_ids: tuple[str, ...]
    ks: tuple[int, ...]
    sample_seconds: Array
    scoring_seconds: float
    values: Mapping[Rule, Array]

    @property
    def timed(self) -> bool:
        """Whether all completions carry engine seconds. Without them there are values at k, but no curve over time."""
        return bool(np.isfinite(self.sample_seconds).all())

    def seconds_for_one(self, rule: Rule) -> Array:
        """Return ``(problems,)`` seconds of one sample, its score included where ``rule`` needs one."""
        return self.sample_seconds + (self.scoring_seconds if rule in SCORED else 0.0)


def budget_points(
    runs: Mapping[str, ModelRun],
    *,
    ks: Sequence[int] | None = None,
    rules: Sequence[Rule] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> list[BudgetPoint]:
    """Return one point for each model, rule and k: :func:`measure` followed by :func:`measured_points`."""
    return measured_points(measure(runs, ks=ks, rules=rules), resamples=resamples, seed=seed)


def measure(
    runs: Mapping[str, ModelRun],
    *,
    ks: Sequence[int] | None = None,
    rules: Sequence[Rule] | None = None,
    problems: Sequence[str] | None = None,
    on_step: Callable[[str, Rule], None] | None = None,
) -> dict[str, Measured]:
    """Evaluate every rule at every k on the problems that have samples for the largest k in all runs.

    Args:
        runs: Name of the model -> its run.
        ks: Samples a problem. Default: :func:`default_ks` of :func:`common_k`.
        rules: Default: all; the two that need scores only if every run has them.
        problems: Ids of those to look at; default: :func:`shared_problems`.
        on_step: Called when one model is through one rule.

    Raises:
        ValueError: No run, no common problem, or a k that no common problem has samples for in all runs.
    """
    shared = shared_problems(runs) if problems is None else list(problems)
    if rules is None:
        scored = all(run.has_scores for run in runs.values())
        rules = [rule for rule in RULES if scored or rule not in SCORED]
    if ks is None:
        ks = default_ks(common_k(runs, shared))
    if not ks or min(ks) < 1:
        raise ValueError(f"ks {list(ks)} must be numbers of samples from 1")
    grid = tuple(sorted(set(ks)))
    chosen = _with_samples(runs, shared, grid[-1])
    return {name: _measure_one(name, run, chosen, grid, rules, on_step) for name, run in runs.items()}


def shared_problems(runs: Mapping[str, ModelRun]) -> list[str]:
    """Return the problems of which every run has a sample.

    Raises:
        ValueError: No run, or no such problem.
    """
    if not runs:
        raise ValueError("nothing to analyse; give at least one run")
    shared = [p for p in next(iter(runs.values())).by_problem if all(p in run.by_problem for run in runs.values())]
    if not shared:
        raise ValueError(f"the models {', '.join(runs)} have no problem in common; evaluate them on the same set")
    return shared


def common_k(runs: Mapping[str, ModelRun], problems: Sequence[str]) -> int:
    """Return the largest number of samples that nine of ten problems have in every run.

    A run that a deadline has cut has twice as many samples of some problems as of others. Those that have fewer are
    left out, so a k that few have would say little: it is measured on other problems (easy ones, with short solutions).
    """
    counts = sorted((_fewest(runs, p) for p in problems), reverse=True)
    return counts[math.ceil(_ENOUGH * len(counts)) - 1]


def _fewest(runs: Mapping[str, ModelRun], problem: str) -> int:
    return min(len(run.by_problem[problem]) for run in runs.values())


def _with_samples(runs: Mapping[str, ModelRun], problems: Sequence[str], k: int) -> list[str]:
    """Return the problems that have k samples in every run.

    Raises:
        ValueError: There is none.
    """
    chosen = [p for p in problems if _fewest(runs, p) >= k]
    if chosen:
        return chosen
    for name, run in runs.items():
        if k > (most := max(len(run.by_problem[p]) for p in problems)):
            raise ValueError(f"k = {k} is larger than the {most} samples a problem that {name} has; use {most} or less")
    most = max(_fewest(runs, p) for p in problems)
    raise ValueError(f"no problem has {k} samples in all of {', '.join(runs)}; use ks of {most} or less")


def default_ks(most: int) -> list[int]:
    """Return half-octave steps up to ``most``.

    >>> default_ks(20)
    [1, 2, 3, 4, 6, 8, 12, 16, 20]
    """
    steps = sorted({1 << i for i in range(32)} | {3 << i for i in range(32)})
    return [k for k in steps if k < most] + [most]


def measured_points(
    measured: Mapping[str, Measured], *, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> list[BudgetPoint]:
    """Return the curves with their bootstrap intervals, ordered by model, rule and k.

    ``seconds`` is NaN for a model without engine seconds, the interval where there is but one problem.
    """
    points = []
    for name, m in measured.items():
        number = len(m.problem_ids)
        weights = problem_weights(number, resamples, seed)
        for rule, values in m.values.items():
            second = float(m.seconds_for_one(rule).mean())
            columns = zip(m.ks, *share_intervals(values, weights[1:], level=level), strict=True)
            points += [
                BudgetPoint(name, rule, k, k * second, float(mean), float(low), float(high), number)
                for k, mean, low, high in columns
            ]
    return points


@functools.lru_cache(maxsize=2)
def problem_weights(num_problems: int, resamples: int, seed: int) -> Array:
    """Return ``(1 + resamples, problems)``: every problem once, then how often each draw of the bootstrap has it."""
    draws = resample_weights(num_problems, resamples=resamples, seed=seed)
    weights = np.concatenate([np.ones((1, num_problems)), draws])
    weights.setflags(write=False)  # it is shared
    return weights


def priced(points: Iterable[BudgetPoint], prices: Mapping[str, float]) -> list[BudgetPoint]:
    """Return the points with dollars in the place of seconds: fronts and curves of these are over money.

    Args:
        points: Over seconds.
        prices: Model -> price of an hour of what it ran on; points of other models are left out.
    """
    return [dataclasses.replace(p, seconds=p.seconds / 3600 * prices[p.model]) for p in points if p.model in prices]


def checked_prices(prices: Mapping[str, float] | float | None, models: Iterable[str]) -> dict[str, float]:
    """Return the price of an hour for each model; nothing where none is given.

    Raises:
        ValueError: A price is not above 0, a model lacks one, or one is for a model that is not there.
    """
    if prices is None:
        return {}
    models = list(models)
    given = dict(prices) if isinstance(prices, Mapping) else dict.fromkeys(models, prices)
    for name in (*given, *models):
        if name not in models:
            raise ValueError(f"there is a price for {name!r}, which is not among the models {', '.join(models)}")
        if name not in given:
            raise ValueError(f"there is no price for {name!r}; give one for each model or one for all")
        if not (math.isfinite(given[name]) and given[name] > 0):
            raise ValueError(f"the price {given[name]} of {name!r} is not above 0; give dollars an hour")
    return {name: float(given[name]) for name in models}


def _measure_one(
    name: str,
    run: ModelRun,
    problems: Sequence[str],
    ks: tuple[int, ...],
    rules: Sequence[Rule],
    on_step: Callable[[str, Rule], None] | None,
) -> Measured:
    grid = verdict_grid(v for p in problems for _, v in run.by_problem[p])
    if SCORED & set(rules) and not grid.scored:
        missing = sum(v.score is None for v in run.verdicts)
        raise ValueError(f"{name}: {missing} verdicts have no reward score, which weighted and best-of-N need")
    seconds = np.array([np.mean([c.seconds for c, _ in run.by_problem[p]]) for p in problems])
    if run.num_untimed:  # another engine wrote some or all of them; a mean over the rest would be that of other samples
        seconds = np.full(len(problems), np.nan)
    values = {}
    for rule in rules:
        values[rule] = _estimate(rule, grid, ks)
        if on_step is not None:
            on_step(name, rule)
    return Measured(name, tuple(problems), ks, seconds, run.scoring_seconds_per_sample, values)


def _estimate(rule: Rule, grid: Grid, ks: tuple[int, ...]) -> Array:
    correct, answers, scores = grid.correct, grid.answers, grid.scores
    if rule == "coverage":
        found = coverage(correct, ks, reduction="none")
    elif rule == "majority":
        found = majority_vote_accuracy(correct, answers, ks, reduction="none")
    elif rule == "weighted_best_of_n":
        found = weighted_best_of_n_accuracy(correct, answers, scores, ks, reduction="none")
    else:
        found = best_of_n_accuracy(correct, grid.ranks, ks, reduction="none")
    return cast(Array, found.numpy())
