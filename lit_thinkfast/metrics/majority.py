r"""The exact expectation of majority voting over all size-k subsets, by dynamic programming.

Group g of equal answers has m_g of the n samples. A uniformly random k-subset takes X_g of them; the group with the
largest X_g wins, and tied groups share the credit. Enumerating subsets is hopeless (C(64, 32) = 1.8e18), but the X_g
are independent binomials with any common rate p, conditioned on their sum being k. With b(m, x) the binomial
probability at p = k / n, and [z^i] the coefficient of z^i,

    maj@k = 1 / b(n, k) * sum over g of credit_g * sum over x of b(m_g, x)
            * integral over u in (0, 1) of [z^(k - x)] prod over h != g of (sum_{j < x} b(m_h, j) z^j + u b(m_h, x) z^x)

because the integral of u^t is 1 / (1 + t): the share of g among t other groups that also reach x. The integrand is a
polynomial in u, so Gauss-Legendre nodes integrate it exactly. All terms are positive: nothing cancels. Two facts make
it fast: groups smaller than x contribute whole binomials, which multiply to one binomial, and at most n / x groups are
not smaller than x.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.polynomial.legendre import leggauss

Array = np.ndarray[Any, np.dtype[np.float64]]


@functools.lru_cache(maxsize=65536)
def expected_majority(groups: tuple[tuple[int, float], ...], silent: int, k: int) -> float:
    """Return the expected credit of the most frequent answer among k of the samples, tied answers sharing it.

    Args:
        groups: (samples that give this answer, credit for choosing it) of each answer. Sort them to hit the cache.
        silent: Samples without an answer. They may be drawn but do not vote; a subset of them alone earns 0.
        k: Size of the subsets, 1 <= k <= number of samples.

    >>> expected_majority(((2, 1.0), (1, 0.0)), 0, 1)  # one of three samples: right in two cases
    0.6666666666666666
    """
    sizes = [size for size, _ in groups]
    n = sum(sizes) + silent
    if not groups:
        return 0.0
    if k == n:
        top = [credit for size, credit in groups if size == max(sizes)]
        return sum(top) / len(top)
    credit_of_size: dict[int, float] = {}
    for size, credit in groups:
        credit_of_size[size] = credit_of_size.get(size, 0.0) + credit
    total = 0.0
    for size, credit in credit_of_size.items():
        if credit:
            others = list(sizes)
            others.remove(size)
            rows = _binomial(size, k, n)
            total += credit * sum(
                rows[x] * _others_below(tuple(sorted(others)), silent, x, k, n) for x in range(1, min(size, k) + 1)
            )
    return float(min(total / _binomial(n, k, n)[k], 1.0))


def _others_below(others: tuple[int, ...], silent: int, x: int, k: int, n: int) -> float:
    """Return the probability that the others take k - x in all and none exceeds x, t ties weighted 1 / (1 + t)."""
    degree = k - x
    rivals = [size for size in others if size >= x]
    rest = _binomial(sum(others) - sum(rivals) + silent, k, n)[: degree + 1]
    most_ties = min(len(rivals), degree // x)
    nodes, weights = _nodes(most_ties // 2 + 1)
    product = np.zeros((len(nodes), degree + 1))
    product[:, : len(rest)] = rest
    for size in rivals:
        factor = _binomial(size, k, n)
        grown = product * factor[0]
        for j in range(1, min(x - 1, degree) + 1):
            grown[:, j:] += factor[j] * product[:, : degree + 1 - j]
        if x <= degree:
            grown[:, x:] += (nodes * factor[x])[:, None] * product[:, : degree + 1 - x]
        product = grown
    return float(weights @ product[:, degree])


@functools.lru_cache(maxsize=4096)
def _binomial(m: int, k: int, n: int) -> Array:
    """Return the probabilities of 0 .. min(m, k) successes in m trials at rate k / n, 0 < k < n."""
    p, count = k / n, min(m, k) + 1
    ratios = (m - np.arange(count - 1)) / np.arange(1, count) * (p / (1 - p))
    # From the likeliest value outwards, so that neither a tiny first term nor a product of many ratios loses digits.
    mode = min(int((m + 1) * p), count - 1)
    values = np.ones(count)
    values[mode + 1 :] = np.cumprod(ratios[mode:])
    values[:mode] = np.cumprod(1 / ratios[:mode][::-1])[::-1]
    return values * _mode_probability(m, mode, p)


def _mode_probability(m: int, x: int, p: float) -> float:
    """Return C(m, x) p^x (1 - p)^(m - x), multiplied up so that partial products stay near 1."""
    value, stays = 1.0, m - x
    for i in range(1, x + 1):
        value *= (m - x + i) / i * p
        while value > 1 and stays:
            value, stays = value * (1 - p), stays - 1
    return float(value * (1 - p) ** stays)


@functools.lru_cache(maxsize=256)
def _nodes(count: int) -> tuple[Array, Array]:
    """Return Gauss-Legendre nodes and weights on (0, 1), exact up to degree ``2 * count - 1``."""
    x, w = leggauss(count)
    return (x + 1) / 2, w / 2
