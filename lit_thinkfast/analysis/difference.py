"""How much better one model is than another in the same time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lit_thinkfast.analysis.budget import Array, Measured
from lit_thinkfast.analysis.resampled import resampled
from lit_thinkfast.metrics.statistics import difference_interval, paired_permutation_test
from lit_thinkfast.records import Rule

PERMUTATIONS = 2000
"""Swaps tried at most by the test behind a star."""
STANDS_OUT = "leaves out zero and whose permutation test gives p below 0.05"
"""What a star says, in words."""
_ROUNDING = 1 - 1e-9


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better one model is than another in the same time, ``first - second`` in shares (0.1 = 10 points).

    NaN where one of them has not finished a sample by then; the interval also where there is but one problem.

    Attributes:
        first: A model.
        second: The model it is compared with.
        rule: How the answer is selected.
        seconds: The budget, engine seconds a problem.
        difference: ``first - second``.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p_value: Two-sided, of a permutation test which swaps the two models on random problems.
    """

    first: str
    second: str
    rule: Rule
    seconds: float
    difference: float
    low: float
    high: float
    p_value: float

    @property
    def resolved(self) -> bool:
        """Whether the 95 % interval leaves out zero and the permutation test agrees (p below 0.05).

        Of few problems the bootstrap is too sure: it draws none that it has not seen. The test is right for any number.
        """
        return stands_out(self.low, self.high, self.p_value)


def stands_out(low: float, high: float, p_value: float) -> bool:
    """Whether an interval leaves out zero and a test of the same problems agrees."""
    return (low > 0 or high < 0) and p_value < 0.05


def compare(
    first: Measured,
    second: Measured,
    *,
    rule: Rule,
    seconds: float,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """Compare two models at one time budget, with a paired bootstrap over problems that resamples times as well.

    The p-value takes the times of the samples as they are.

    Args:
        first: A model.
        second: Another, measured on the same problems.
        rule: How the answer is selected.
        seconds: The budget, engine seconds a problem.
        resamples: Bootstrap resamples of problems.
        seed: Of the bootstrap and of the test.

    Raises:
        ValueError: The two were not measured on the same problems, or one has no engine seconds.
    """
    draws = difference_draws(first, second, rule=rule, seconds=seconds, resamples=resamples, seed=seed)
    names = (first.model, second.model)
    if draws is None:
        return Difference(*names, rule, seconds, *[float("nan")] * 4)
    a, b = (values_within(m, rule, seconds) for m in (first, second))
    p_value = paired_permutation_test(a, b, permutations=PERMUTATIONS, seed=seed)
    return Difference(*names, rule, seconds, float(draws[0]), *difference_interval(a - b, draws[1:]), p_value)


def difference_draws(
    first: Measured, second: Measured, *, rule: Rule, seconds: float, resamples: int, seed: int
) -> Array | None:
    """Return ``(1 + resamples,)`` differences, that of the problems as they are first; ``None`` before both answer.

    Raises:
        ValueError: As :func:`compare`.
    """
    if first.problem_ids != second.problem_ids:
        raise ValueError(
            f"{first.model} and {second.model} were not measured on the same problems; measure them together"
        )
    one, other = (resampled(m, rule, resamples=resamples, seed=seed) for m in (first, second))
    if seconds < max(one.seconds[0, 0], other.seconds[0, 0]) * _ROUNDING:
        return None
    budget = np.array([[seconds]])
    return np.asarray(one.at(budget) - other.at(budget))[:, 0]


def values_within(m: Measured, rule: Rule, seconds: float) -> Array:
    """Return ``(problems,)`` values within a budget, whose mean is on the curve of the model: straight between ks."""
    k = samples_within(m, rule, seconds)
    right = min(int(np.searchsorted(m.ks, k, side="right")), len(m.ks) - 1)
    left = max(right - 1, 0)
    share = float(np.interp(k, [m.ks[left], m.ks[right]], [0.0, 1.0])) if right > left else 0.0
    below, above = m.values[rule][:, left], m.values[rule][:, right]
    return np.asarray(below * (1 - share) + above * share)


def samples_within(m: Measured, rule: Rule, seconds: float) -> float:
    """Return the samples a problem within a budget, at most as many as there are; they need not be whole numbers."""
    return min(seconds / float(m.seconds_for_one(rule).mean()), float(m.ks[-1]))
