"""How much better one model is than another in the same time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lit_thinkfast.analysis.budget import Measured
from lit_thinkfast.analysis.resampled import resampled
from lit_thinkfast.metrics.statistics import interval
from lit_thinkfast.records import Rule

_ROUNDING = 1 - 1e-9


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
        ValueError: The two were not measured on the same problems, or one has no engine seconds.
    """
    if first.problem_ids != second.problem_ids:
        raise ValueError(
            f"{first.model} and {second.model} were not measured on the same problems; measure them together"
        )
    one, other = (resampled(m, rule, resamples=resamples, seed=seed) for m in (first, second))
    if seconds < max(one.seconds[0, 0], other.seconds[0, 0]) * _ROUNDING:
        return Difference(first.model, second.model, rule, seconds, float("nan"), float("nan"), float("nan"))
    budget = np.array([[seconds]])
    draws = one.at(budget) - other.at(budget)
    low, high = interval(draws[1:])
    return Difference(first.model, second.model, rule, seconds, float(draws[0, 0]), float(low[0]), float(high[0]))
