"""How sure a mean over problems is, and whether two models differ: resampling over problems, in numpy.

Problems are the unit: the samples of a problem belong together, so a bootstrap draws whole problems (a cluster
bootstrap), and two models that answered the same problems are compared problem by problem (what is hard for both
cancels out). Values are what the estimators return with ``reduction="none"``, shares between 0 and 1; NaN marks a
problem without a value, which resampling leaves out. What the choice of problems leaves uncertain contains the noise of
the samples drawn.

Resampling cannot vary what is the same for every problem, and would be sure of it however few they are. Of one problem
there is no interval, and where all have the same value Wilson's bound takes over (:func:`widened`).
"""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any, NamedTuple, cast

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]

EQUAL = 1e-9
"""Values of a problem this close are equal: they are sums of many terms, added in some order."""
_CELLS = 8_000_000
"""Numbers held at once while signs are flipped."""


class Interval(NamedTuple):
    """A mean over problems with the ends of its central bootstrap interval, each of the values' trailing shape."""

    mean: Array | float
    low: Array | float
    high: Array | float


class PairedDifference(NamedTuple):
    """A mean difference ``a - b`` over the problems that both have, with its bootstrap interval and p-value.

    Attributes:
        difference: Mean over problems.
        low: Lower end of the central interval; NaN for a single problem.
        high: Upper end.
        p_value: Two-sided; twice the share of resamples on the far side of zero, but never below what coins allow:
            :math:`2 / 2^m` where m problems tell the two apart.
        problems: Problems behind it.
    """

    difference: float
    low: float
    high: float
    p_value: float
    problems: int


def bootstrap_interval(values: Array, *, resamples: int = 2000, seed: int = 0, level: float = 0.95) -> Interval:
    """Return the means over problems of ``(problems, ...)`` shares with percentile bootstrap intervals.

    Args:
        values: ``(problems, ...)`` from 0 to 1, for example a curve over k for each problem; NaN is left out.
        resamples: Bootstrap draws, shared by all columns.
        seed: Of the draws. Equal seeds give equal draws, so curves of one set of problems are comparable.
        level: Share of the draws inside.

    >>> round(float(bootstrap_interval(np.ones(12)).low), 2)  # all of 12 are solved: not sure that all of any are
    0.76
    """
    values = np.asarray(values, dtype=np.float64)
    table = values.reshape(len(values), -1)
    found = share_intervals(table, resample_weights(len(table), resamples=resamples, seed=seed), level=level)
    return Interval(*(np.asarray(ends).reshape(values.shape[1:]) for ends in found))


def share_intervals(values: Array, weights: Array, *, level: float = 0.95) -> tuple[Array, Array, Array]:
    """Return the means over problems of ``(problems, n)`` shares and both ends of their intervals, each ``(n,)``.

    Args:
        values: Shares from 0 to 1; NaN is left out.
        weights: ``(resamples, problems)``, as :func:`resample_weights` draws them.
        level: Share of the draws inside.
    """
    mean = weighted_means(values, np.ones((1, len(values))))[0]
    low, high = interval(weighted_means(values, weights), level=level)
    return mean, *widened(values, low, high, least=0.0, level=level)


def difference_interval(difference: Array, draws: Array, *, level: float = 0.95) -> tuple[float, float]:
    """Return the ends of the interval of the mean of ``(problems,)`` differences of shares, whose draws are given.

    Args:
        difference: From -1 to 1.
        draws: ``(resamples,)`` means, or what else was resampled with the problems.
        level: Share of the draws inside.
    """
    low, high = widened(difference[:, None], *interval(draws[:, None], level=level), least=-1.0, level=level)
    return float(low[0]), float(high[0])


def widened(values: Array, low: Array, high: Array, *, least: float, level: float = 0.95) -> tuple[Array, Array]:
    r"""Return ends of intervals that are NaN of one problem, and no less than Wilson's where all values are equal.

    If all n problems have the value v, up to :math:`u = z^2 / (n + z^2)` of all problems may be otherwise: the upper
    end of the interval for a share of which none of n was seen (Wilson, J. Am. Stat. Assoc. 22, 1927). They may have
    any value from ``least`` to 1, so the mean lies between :math:`(1 - u) v + u \cdot least` and
    :math:`(1 - u) v + u`. For shares that are all 0 or all 1 these are Wilson's ends.

    Args:
        values: ``(problems, n)``; NaN is left out.
        low: ``(n,)`` lower ends.
        high: Upper ends.
        least: The smallest value there can be: 0 for shares, -1 for differences of shares.
        level: Of the interval.
    """
    known = np.isfinite(values)
    n = known.sum(axis=0)
    top, bottom = np.where(known, values, -np.inf).max(axis=0), np.where(known, values, np.inf).min(axis=0)
    with np.errstate(invalid="ignore"):
        same = (n > 1) & (top - bottom <= EQUAL)
    z = statistics.NormalDist().inv_cdf((1 + level) / 2)
    other = z**2 / (n + z**2)
    kept = (1 - other) * np.where(same, top, 0.0)
    low = np.where(same, np.minimum(low, kept + other * least), low)
    high = np.where(same, np.maximum(high, kept + other), high)
    return np.where(n > 1, low, np.nan), np.where(n > 1, high, np.nan)


def paired_bootstrap(
    a: Array, b: Array, *, resamples: int = 10_000, seed: int = 0, level: float = 0.95
) -> PairedDifference:
    """Return the mean of ``a - b`` over problems with its percentile bootstrap interval and p-value.

    Args:
        a: ``(problems,)`` values of one model.
        b: ``(problems,)`` values of the other on the same problems, in the same order.
        resamples: Bootstrap draws.
        seed: Of the draws.
        level: Share of the draws inside the interval.

    Raises:
        ValueError: Shapes differ, or no problem has both values.

    >>> paired_bootstrap(np.array([0.5, 1.0, 0.75]), np.array([0.25, 0.75, 0.5])).p_value  # 2 / 2**3
    0.25
    """
    difference = _paired(a, b)
    draws = resample_weights(len(difference), resamples=resamples, seed=seed) @ difference / len(difference)
    tail = min(np.count_nonzero(draws <= 0), np.count_nonzero(draws >= 0))
    floor = 2.0 ** (1 - int(np.count_nonzero(difference)))
    p_value = min(1.0, max(floor, 2 * (1 + tail) / (1 + resamples)))
    ends = difference_interval(difference, draws, level=level)
    return PairedDifference(float(difference.mean()), *ends, p_value, len(difference))


def paired_permutation_test(a: Array, b: Array, *, permutations: int = 10_000, seed: int = 0) -> float:
    """Return the two-sided p-value that the mean of ``a - b`` is zero, by swapping the models on random problems.

    If the models do not differ, the sign of each problem's difference is a coin; problems that are equal have none. All
    signs are tried where that takes at most ``permutations``; otherwise as many are drawn, and the observed one counts
    among them (p is never 0).

    Args:
        a: ``(problems,)`` values of one model.
        b: ``(problems,)`` values of the other on the same problems, in the same order.
        permutations: Swaps tried at most.
        seed: Of the random swaps.

    Raises:
        ValueError: As :func:`paired_bootstrap`.

    >>> paired_permutation_test(np.ones(5), np.zeros(5))  # 2 of 32 sign patterns are as far from zero
    0.0625
    """
    difference = _paired(a, b)
    difference = difference[difference != 0]
    m = len(difference)
    least = abs(difference.sum()) - 1e-12 * np.abs(difference).sum()  # the order of adding must not decide
    if 2**m <= permutations:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=m)))
        return float((np.abs(signs @ difference) >= least).mean())
    rng = np.random.default_rng(seed)
    as_far, step = 0, max(1, _CELLS // m)
    for start in range(0, permutations, step):
        signs = rng.integers(0, 2, size=(min(step, permutations - start), m)) * 2.0 - 1.0
        as_far += int(np.count_nonzero(np.abs(signs @ difference) >= least))
    return (1 + as_far) / (1 + permutations)


def sign_test(a: Array, b: Array) -> float:
    """Return the exact two-sided p-value that ``a > b`` is as likely as ``a < b``; equal problems do not count.

    For values of 0 and 1 this is McNemar's exact test (Psychometrika 12, 1947): of the problems that one model alone
    solved, is the share of the first further from a half than coins would be?

    Args:
        a: ``(problems,)`` values of one model.
        b: ``(problems,)`` values of the other on the same problems, in the same order.

    Raises:
        ValueError: As :func:`paired_bootstrap`.

    >>> sign_test(np.array([1, 1, 1, 1, 1, 0]), np.array([0, 0, 0, 0, 0, 0]))
    0.0625
    """
    difference = _paired(a, b)
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    tail = sum(math.comb(wins + losses, i) for i in range(min(wins, losses) + 1))
    return min(1.0, float(2 * tail / 2 ** (wins + losses)))  # integers divide exactly, however large


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
    known = ~np.isnan(draws).all(axis=0)
    ends = np.full((2, draws.shape[1]), np.nan)
    ends[:, known] = np.nanquantile(draws[:, known], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return ends[0], ends[1]


def _paired(a: Array, b: Array) -> Array:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"values of two models have shapes {a.shape} and {b.shape}; expected (problems,) for both")
    difference = a - b
    difference = difference[np.isfinite(difference)]
    if not len(difference):
        raise ValueError(f"none of the {len(a)} problems has a value from both models; compare them on common problems")
    return np.where(np.abs(difference) > EQUAL, difference, 0.0)
