"""Curves over time under resampled problems: the ground of every interval along the time axis.

When problems are drawn anew, values *and* times change: a draw may hold more of the long problems. So a draw of a
curve is the mean value at each k, and the mean seconds of a sample, over the drawn problems. All models see the same
draws, so whatever is made of several curves (a difference, a crossing, a ratio) is paired.

Row 0 of everything here is the curve of the problems as they are, the rows below are the draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lit_thinkfast.analysis.budget import Array, Measured, problem_weights
from lit_thinkfast.metrics.statistics import weighted_means
from lit_thinkfast.records import Rule

EQUAL = 1e-12
"""Values this close are equal: the order in which floats are added must not decide who leads."""


@dataclass(frozen=True)
class Resampled:
    """A model's curve for one rule, and its bootstrap draws: linear between measured k.

    Between two measured k the value is that of giving some problems the smaller and the rest the larger number of
    samples. Values are those at k, which may fall, and not the best up to k: which k was best is seen in the same
    samples, so a maximum over k is too high, the more so the more k a model has within its budget.

    The last value is held beyond the last k, and the first before the first: a draw's mean of times differs a little
    from the mean, so a model may just miss its first sample in a draw.

    Attributes:
        model: Name of the model.
        ks: ``(k,)`` samples a problem.
        second: ``(1 + draws,)`` seconds of one sample.
        values: ``(1 + draws, k)`` values.
        num_problems: Problems that are resampled.
    """

    model: str
    ks: Array
    second: Array
    values: Array
    num_problems: int

    @property
    def seconds(self) -> Array:
        """``(1 + draws, k)`` seconds at which each k is reached."""
        return self.second[:, None] * self.ks

    def at(self, seconds: Array) -> Array:
        """Return ``(1 + draws, m)`` values at ``(1 + draws or 1, m)`` budgets."""
        k = seconds / self.second[:, None]
        if len(self.ks) == 1:
            return np.broadcast_to(self.values, k.shape)
        right = np.clip(np.searchsorted(self.ks, k, side="right"), 1, len(self.ks) - 1)
        share = np.clip((k - self.ks[right - 1]) / (self.ks[right] - self.ks[right - 1]), 0.0, 1.0)
        below = np.take_along_axis(self.values, right - 1, axis=1)
        above = np.take_along_axis(self.values, right, axis=1)
        return np.asarray(below * (1 - share) + above * share)

    def first_reaching(self, value: float) -> Array:
        """Return ``(1 + draws,)`` seconds at which the curve first reaches ``value``; infinity where it never does."""
        return first_reaching(self.ks, self.values, value) * self.second

    def mean_over_log_time(self, start: float, end: float) -> Array:
        r"""Return ``(1 + draws,)`` means of the value over the logarithm of time.

        Exact for pieces :math:`a + b t`: :math:`\int (a + b t)\,d\ln t = a \ln(t_2 / t_1) + b (t_2 - t_1)`.
        """
        ends = np.full((len(self.second), 1), start), np.full((len(self.second), 1), end)
        t = np.concatenate([ends[0], np.clip(self.seconds, start, end), ends[1]], axis=1)
        v = self.at(t)
        width = np.diff(t, axis=1)
        slope = np.divide(np.diff(v, axis=1), width, out=np.zeros_like(width), where=width > 0)
        pieces = (v[:, :-1] - slope * t[:, :-1]) * np.diff(np.log(t), axis=1) + slope * width
        return np.asarray(pieces.sum(axis=1) / np.log(end / start))


def first_reaching(x: Array, values: Array, value: float) -> Array:
    """Return ``(rows,)`` places at which curves first reach ``value``; infinity where they never do.

    Args:
        x: ``(n,)`` places of the knots, rising.
        values: ``(rows, n)`` values there; curves are straight in between.
        value: To reach.
    """
    enough = values >= value - EQUAL
    right = enough.argmax(axis=1)
    left = np.maximum(right - 1, 0)
    rows = np.arange(len(right))
    low, high = values[rows, left], values[rows, right]
    share = np.where(high > low, (value - low) / np.where(high > low, high - low, 1.0), 1.0)
    place = np.where(right > left, x[left] + np.clip(share, 0, 1) * (x[right] - x[left]), x[0])
    return np.where(enough.any(axis=1), place, np.inf)


def resampled(m: Measured, rule: Rule, *, resamples: int, seed: int) -> Resampled:
    """Return the curve of one rule and its draws. Equal seeds and problems give equal draws for every model.

    Raises:
        ValueError: The model has no engine seconds.
    """
    if not m.timed:
        raise ValueError(
            f"{m.model}: some or all of its completions carry no engine seconds, so there is no time budget to map to"
        )
    number = len(m.problem_ids)
    weights = problem_weights(number, resamples, seed)
    values, second = (weighted_means(of, weights) for of in (m.values[rule], m.seconds_for_one(rule)))
    return Resampled(m.model, np.array(m.ks, dtype=np.float64), second, values, number)


def all_resampled(measured: Mapping[str, Measured], rule: Rule, *, resamples: int, seed: int) -> list[Resampled]:
    """Return :func:`resampled` of every model."""
    return [resampled(m, rule, resamples=resamples, seed=seed) for m in measured.values()]


def central(draws: Array, *, level: float = 0.95) -> tuple[float, float]:
    """Return the ends of the central interval of ``(draws,)`` seconds, some of which may be infinite.

    The ends are draws, not points between two draws, and are chosen outwards: where more than 2.5 % of the draws never
    get there, the upper end is infinity. NaN draws are left out.
    """
    known = draws[~np.isnan(draws)]
    if not len(known):
        return float("nan"), float("nan")
    low = np.quantile(known, (1 - level) / 2, method="lower")
    high = np.quantile(known, (1 + level) / 2, method="higher")
    return float(low), float(high)
