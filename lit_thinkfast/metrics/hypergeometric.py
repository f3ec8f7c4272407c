"""What a random k-subset of n samples holds: the probabilities that exact estimators are made of.

Counts of groups in the subset are independent binomials of a common rate, conditioned on their sum being k. At rate
k / n that sum is likeliest k, so nothing under- or overflows, for any n.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
Indices = np.ndarray[Any, np.dtype[np.int64]]

_CUT = 1e-21
"""Probabilities below this, against the likeliest, are left out of a window."""


class Window(NamedTuple):
    """Probabilities of the values ``start``, ``start + 1``, ... of a binomial; those outside are as good as zero."""

    start: int
    values: Array

    @property
    def stop(self) -> int:
        """One past the last value."""
        return self.start + len(self.values)

    def at(self, x: Indices) -> Array:
        """Return P(X = x)."""
        inside = (x >= self.start) & (x < self.stop)
        return np.where(inside, self.values[np.clip(x - self.start, 0, len(self.values) - 1)], 0.0)

    def up_to(self, x: Indices) -> Array:
        """Return P(X <= x)."""
        return np.concatenate(([0.0], np.cumsum(self.values)))[np.clip(x + 1 - self.start, 0, len(self.values))]


@functools.lru_cache(maxsize=16384)
def binomial(m: int, k: int, n: int) -> Window:
    """Return the probabilities of m trials at rate k / n, 0 < k < n.

    Neighbours have known ratios; multiplied up from the likeliest value outwards, and scaled to sum to 1, they keep
    their digits where factorials or their logarithms would lose them.

    >>> binomial(2, 1, 2)
    Window(start=0, values=array([0.25, 0.5 , 0.25]))
    """
    p = k / n
    mode = min((m + 1) * k // n, m)
    reach = int(11 * math.sqrt(m * p * (1 - p))) + 30
    start, stop = max(0, mode - reach), min(m, mode + reach) + 1
    x = np.arange(start, stop - 1)
    ratios = (m - x) / (x + 1) * (k / (n - k))
    values = np.ones(stop - start)
    values[mode - start + 1 :] = np.cumprod(ratios[mode - start :])
    values[: mode - start] = np.cumprod(1 / ratios[: mode - start][::-1])[::-1]
    kept = np.flatnonzero(values > _CUT)
    values = values[kept[0] : kept[-1] + 1]
    return Window(start + int(kept[0]), values / values.sum())


@functools.lru_cache(maxsize=65536)
def any_of(n: int, c: int, k: int) -> float:
    """Return the probability that at least one of c marked samples is among the k, to the last digit but one."""
    if c == 0 or n - c < k:
        return float(c > 0)
    few, many = min(c, k), max(c, k)
    if few * math.log1p(-many / n) < -40:
        return 1.0  # what is missing has no digit left
    return -math.expm1(math.fsum(np.log1p(-many / np.arange(n - few + 1, n + 1)).tolist()))


@functools.lru_cache(maxsize=65536)
def at_least(m: int, n: int, c: int, k: int) -> float:
    """Return the probability that at least m of c marked samples are among the k."""
    if k == n:
        return float(c >= m)
    x = np.arange(m, min(c, k) + 1)
    both = binomial(c, k, n).at(x) * binomial(n - c, k, n).at(k - x)
    return min(float(both.sum() / binomial(n, k, n).at(np.array(k))), 1.0)


@functools.lru_cache(maxsize=1024)
def best_rank(n: int, k: int) -> Array:
    """Return for ranks 1 .. n (best last) the probability of being the best of the k: C(r-1, k-1) / C(n, k)."""
    r = np.arange(n, k, -1)
    weights = np.zeros(n)
    weights[k - 1 :] = (k / n * np.concatenate(([1.0], np.cumprod((r - k) / (r - 1)))))[::-1]
    return weights
