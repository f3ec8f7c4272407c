"""How sure a mean over problems is, and whether two models differ: resampling over problems, in numpy.

Problems are the unit: the samples of a problem belong together, so a bootstrap draws whole problems (a cluster
bootstrap), and two models that answered the same problems are compared problem by problem (what is hard for both
cancels out). Values are what the estimators return with ``reduction="none"``; NaN marks a problem without a value,
which resampling leaves out. What the choice of problems leaves uncertain contains the noise of the samples drawn.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple, cast

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]

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
        low: Lower end of the central interval.
        high: Upper end.
        p_value: Two-sided; twice the share of resamples on the far side of zero.
        problems: Problems behind it.
    """

    difference: float
    low: float
    high: float
    p_value: float
    problems: int


def bootstrap_interval(values: Array, *, resamples: int = 2000, seed: int = 0, level: float = 0.95) -> Interval:
    """Return the means over problems of ``(problems, ...)`` values with percentile bootstrap intervals.

    Args:
        values: ``(problems, ...)``, for example a curve over k for each problem; NaN is left out.
        resamples: Bootstrap draws, shared by all columns.
        seed: Of the draws. Equal seeds give equal draws, so curves of one set of problems are comparable.
        level: Share of the draws inside.

    >>> bootstrap_interval(np.array([[1.0], [1.0], [1.0]])).low
    array([1.])
    """
    values = np.asarray(values, dtype=np.float64)
    table = values.reshape(len(values), -1)
    mean = weighted_means(table, np.ones((1, len(table))))[0]
    low, high = interval(
        weighted_means(table, resample_weights(len(table), resamples=resamples, seed=seed)), level=level
    )
    return Interval(*(ends.reshape(values.shape[1:]) for ends in (mean, low, high)))


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

    >>> paired_bootstrap(np.array([0.5, 1.0, 0.75]), np.array([0.25, 0.75, 0.5])).low
    0.25
    """
    difference = _paired(a, b)
    draws = resample_weights(len(difference), resamples=resamples, seed=seed) @ difference / len(difference)
    low, high = interval(draws[:, None], level=level)
    tail = min(np.count_nonzero(draws <= 0), np.count_nonzero(draws >= 0))
    p_value = min(1.0, 2 * (1 + tail) / (1 + resamples))
    return PairedDifference(float(difference.mean()), float(low[0]), float(high[0]), p_value, len(difference))


def paired_permutation_test(a: Array, b: Array, *, permutations: int = 10_000, seed: int = 0) -> float:
    """Return the two-sided p-value that the mean of ``a - b`` is zero, by swapping the models on random problems.

    If the models do not differ, the sign of each problem's difference is a coin. All signs are tried where that takes
    at most ``permutations``; otherwise as many are drawn, and the observed one counts among them (p is never 0).

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
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def _paired(a: Array, b: Array) -> Array:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"values of two models have shapes {a.shape} and {b.shape}; expected (problems,) for both")
    difference = a - b
    difference = difference[np.isfinite(difference)]
    if not len(difference):
        raise ValueError(f"none of the {len(a)} problems has a value from both models; compare them on common problems")
    return difference
