r"""From samples to curves over time.

For each model and each k, how good is the answer chosen from k samples, and how long do k samples take?

The time of k samples of a problem is k times the mean engine time of one of its samples, as measured in the run; the
mean over problems is the budget. Engine time is throughput time: samples were made in batches, and each carries its
share, so the batch size of the run belongs to every statement. Reward-model time is added where it was measured and
where the rule needs it. Values come from the estimators in :mod:`lit_thinkfast.metrics.functional`: expectations over
random k-subsets of the samples, not the outcome of the first k.

Intervals are percentile bootstraps over problems. Every model sees the same resamples, so that differences between
models are paired (problems that are hard for all cancel out).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from lit_thinkfast.metrics.tables import Grid, verdict_grid
from lit_thinkfast.records import BudgetPoint, Rule

Array = np.ndarray[Any, np.dtype[np.float64]]

RULES: tuple[Rule, ...] = ("coverage", "majority", "weighted_best_of_n", "best_of_n")
SCORED: frozenset[str] = frozenset({"weighted_best_of_n", "best_of_n"})
_ROUNDING = 1 - 1e-9


@dataclass(frozen=True)
class Measured:
    """Per-problem values of one model, the stuff of all curves and intervals.

    Attributes:
        model: Name of the model.
        problem_ids: The problems, in the order of the rows below; the same for all models measured together.
        ks: Samples a problem, increasing.
        sample_seconds: ``(problems,)`` mean engine seconds of one sample.
        scoring_seconds: Reward-model seconds of one sample.
        values: Rule -> ``(problems, len(ks))``; NaN where a problem has fewer than k samples.
    """

    model: str
    problem_ids: tuple[str, ...]
    ks: tuple[int, ...]
    sample_seconds: Array
    scoring_seconds: float
    values: Mapping[Rule, Array]

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
    on_step: Callable[[str, Rule], None] | None = None,
) -> dict[str, Measured]:
    """Evaluate every rule at every k on the problems that all runs share.

    Args:
        runs: Name of the model -> its run.
        ks: Samples a problem. Default: :func:`default_ks` of the smallest number of samples that every model has.
        rules: Default: all; the two that need scores only if every run has them.
        on_step: Called when one model is through one rule.

    Raises:
        ValueError: No run, no common problem, or a k that no problem of some model has samples for.
    """
    if not runs:
        raise ValueError("nothing to analyse; give at least one run")
    shared = [p for p in next(iter(runs.values())).by_problem if all(p in run.by_problem for run in runs.values())]
    if not shared:
        raise ValueError(f"the models {', '.join(runs)} have no problem in common; evaluate them on the same set")
    if rules is None:
        scored = all(run.has_scores for run in runs.values())
        rules = [rule for rule in RULES if scored or rule not in SCORED]
    if ks is None:
        ks = default_ks(min(max(len(run.by_problem[p]) for p in shared) for run in runs.values()))
    if not ks or min(ks) < 1:
        raise ValueError(f"ks {list(ks)} must be numbers of samples from 1")
    grid = tuple(sorted(set(ks)))
    return {name: _measure_one(name, run, shared, grid, rules, on_step) for name, run in runs.items()}


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
    """Return the curves with their bootstrap intervals, ordered by model, rule and k."""
    points = []
    for name, m in measured.items():
        weights = resample_weights(len(m.problem_ids), resamples=resamples, seed=seed)
        for rule, values in m.values.items():
            means = weighted_means(values, np.ones((1, len(values))))[0]
            low, high = interval(weighted_means(values, weights), level=level)
            second = float(m.seconds_for_one(rule).mean())
            for i, k in enumerate(m.ks):
                behind = int(np.isfinite(values[:, i]).sum())
                points.append(
                    BudgetPoint(name, rule, k, k * second, float(means[i]), float(low[i]), float(high[i]), behind)
                )
    return points


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better one model is than another in the same time, ``first - second`` in shares (0.1 = 10 points).

    NaN where one of them has not finished a sample by then.
    """

    first: str
    second: str
    rule: Rule
    seconds: float
    difference: float
    low: float
    high: float

    @property
    def resolved(self) -> bool:
        """Whether the 95 % interval leaves out zero."""
        return self.low > 0 or self.high < 0


def compare(
    first: Measured, second: Measured, *, rule: Rule, seconds: float, resamples: int = 2000, seed: int = 0
) -> Difference:
    """Compare two models at one time budget, with a paired bootstrap over problems that resamples times as well.

    Raises:
        ValueError: The two were not measured on the same problems.
    """
    if first.problem_ids != second.problem_ids:
        raise ValueError(
            f"{first.model} and {second.model} were not measured on the same problems; measure them together"
        )
    weights = resample_weights(len(first.problem_ids), resamples=resamples, seed=seed)
    every = np.ones((1, len(first.problem_ids)))
    (k1, v1), (k2, v2) = (_within(m, rule, seconds, every) for m in (first, second))
    estimate = float(v1[0] - v2[0])
    draws = _within(first, rule, seconds, weights)[1] - _within(second, rule, seconds, weights)[1]
    if k1[0] < first.ks[0] * _ROUNDING or k2[0] < second.ks[0] * _ROUNDING:
        return Difference(first.model, second.model, rule, seconds, float("nan"), float("nan"), float("nan"))
    low, high = interval(draws[:, None])
    return Difference(first.model, second.model, rule, seconds, estimate, float(low[0]), float(high[0]))


def resample_weights(num_problems: int, *, resamples: int, seed: int) -> Array:
    """Return ``(resamples, problems)``: how often each problem is drawn when as many are drawn with replacement."""
    rng = np.random.default_rng(seed)
    shares = np.full(num_problems, 1.0 / num_problems)
    return rng.multinomial(num_problems, shares, size=resamples).astype(np.float64)


def weighted_means(values: Array, weights: Array) -> Array:
    """Return ``(resamples, ...)`` means over problems of ``(problems, ...)`` values, NaN left out."""
    known = np.isfinite(values)
    total, size = weights @ np.where(known, values, 0.0), weights @ known.astype(np.float64)
    return cast(Array, np.divide(total, size, out=np.full_like(total, np.nan), where=size > 0))


def interval(draws: Array, *, level: float = 0.95) -> tuple[Array, Array]:
    """Return the ends of the central interval over ``(resamples, n)`` draws, each ``(n,)``; NaN draws are left out."""
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def _within(m: Measured, rule: Rule, seconds: float, weights: Array) -> tuple[Array, Array]:
    """Return ``(resamples,)`` k that the budget pays for and values there: linear between measured k, never falling.

    Between two measured k the value is that of giving some problems the smaller and the rest the larger number of
    samples. It is held beyond the last k, and before the first: a bootstrap mean of times differs a little from the
    mean, so a model may just miss its first sample in a draw.
    """
    k = seconds / weighted_means(m.seconds_for_one(rule), weights)
    values = np.maximum.accumulate(np.nan_to_num(weighted_means(m.values[rule], weights), nan=-1.0), axis=1)
    ks = np.asarray(m.ks, dtype=np.float64)
    right = (
        np.clip(np.searchsorted(ks, k, side="right"), 1, len(ks) - 1) if len(ks) > 1 else np.zeros(len(k), dtype=int)
    )
    left = np.maximum(right - 1, 0)
    span = np.where(right > left, ks[right] - ks[left], 1.0)
    share = np.clip((k - ks[left]) / span, 0.0, 1.0)
    rows = np.arange(len(k))
    found = values[rows, left] * (1 - share) + values[rows, right] * share
    return k, found


def _measure_one(
    name: str,
    run: ModelRun,
    problems: Sequence[str],
    ks: tuple[int, ...],
    rules: Sequence[Rule],
    on_step: Callable[[str, Rule], None] | None,
) -> Measured:
    most = max(len(run.by_problem[p]) for p in problems)
    if ks[-1] > most:
        raise ValueError(
            f"k = {ks[-1]} is larger than the {most} samples a problem that {name} has; use {most} or less"
        )
    grid = verdict_grid(v for p in problems for _, v in run.by_problem[p])
    if SCORED & set(rules) and not grid.scored:
        missing = sum(v.score is None for v in run.verdicts)
        raise ValueError(f"{name}: {missing} verdicts have no reward score, which weighted and best-of-N need")
    seconds = np.array([np.mean([c.seconds for c, _ in run.by_problem[p]]) for p in problems])
    if not seconds.sum() > 0:
        raise ValueError(f"{name}: no completion carries engine seconds, so there is no time budget to map to")
    values = {}
    for rule in rules:
        values[rule] = np.stack([_estimate(rule, grid, k) for k in ks], axis=1)
        if on_step is not None:
            on_step(name, rule)
    return Measured(name, tuple(problems), ks, seconds, run.scoring_seconds_per_sample, values)


def _estimate(rule: Rule, grid: Grid, k: int) -> Array:
    correct, answers, scores = grid.correct, grid.answers, grid.scores
    if rule == "coverage":
        found = coverage(correct, k, reduction="none")
    elif rule == "majority":
        found = majority_vote_accuracy(correct, answers, k, reduction="none")
    elif rule == "weighted_best_of_n":
        found = weighted_best_of_n_accuracy(correct, answers, scores, k, reduction="none")
    else:
        found = best_of_n_accuracy(correct, scores, k, reduction="none")
    return cast(Array, found.numpy())
