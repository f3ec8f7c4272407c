r"""The exact expectation of majority voting over all size-k subsets of n samples, for either rule of ties.

Group g of equal answers has m_g of the n samples. A uniformly random k-subset takes X_g of them; the group with the
largest X_g wins. Enumerating subsets is hopeless (C(64, 32) = 1.8e18), but the X_g are independent binomials of a
common rate, conditioned on their sum being k. With b(m, x) the probability of x among m at rate k / n, and [z^i] the
coefficient of z^i, the probability that g wins with x votes is

    b(m_g, x) / b(n, k) * E over v of [z^(k - x)] prod over h != g of (sum_{j < x} b(m_h, j) z^j + v_h b(m_h, x) z^x)

where v_h is the chance that g wins a tie with h, given what all ties have in common:

* ``split``: tied groups share the credit. Give each a uniform random number, the largest wins: v_h = u for all h, u
  uniform on (0, 1). The expectation over u, of a polynomial, is taken by Gauss-Legendre quadrature.
* ``first``: the tied group whose earliest drawn sample comes first wins. Given x, each tied group's drawn samples are a
  random x-subset of its own, so if the first one of g is at position t, v_h = C(m_h - a, x) / C(m_h, x) with a members
  of h before t. The expectation is a sum over the positions of g.

The coefficient is a sum over the N-th roots of unity (a discrete Fourier transform), with N past the width of what all
others take together, where its aliases vanish. Groups too small to reach x matter only by their total, and make the
terms fade so quickly with the angle that a few dozen roots do. Values of x are taken in octaves, which share their
rivals; x, rivals, roots and positions whose part cannot reach 1e-18 are left out. No term exceeds a probability, so
nothing cancels, and the result is good to some 1e-14.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.polynomial.legendre import leggauss

from lit_thinkfast.metrics.hypergeometric import Array, Indices, Window, binomial
from lit_thinkfast.metrics.voting import vote

NEGLIGIBLE = 1e-18
_CELLS = 400_000
"""Numbers held at once in a product over rivals."""


class _Group(NamedTuple):
    """Groups alike in all that matters: equal in size and, where positions matter, a single one.

    Attributes:
        size: Samples in each.
        copies: How many there are.
        credit: Sum over the groups of the mean correctness of their members.
        members: Samples of a single group, increasing, and their correctness.
    """

    size: int
    copies: int
    credit: float
    members: Indices
    correct: Array


class _Round(NamedTuple):
    """What decides whether a group wins with x votes, for some x that share their rivals.

    Attributes:
        x: Votes of the group, ``(x,)`` consecutive numbers.
        rivals: Groups that may get as many.
        counts: ``(rivals, values)`` probabilities of each rival's votes.
        low: Votes of the first column of ``counts``.
        others: Samples that are not of the group.
        rest: Samples that are neither of the group nor of rivals; they matter by their sum.
        n: All samples.
        k: Samples drawn.
    """

    x: Indices
    rivals: list[_Group]
    counts: Array
    low: int
    others: int
    rest: int
    n: int
    k: int


class _Ties(NamedTuple):
    """Nodes of the expectation over ties: ``weights (x or 1, nodes)``, and v ``(rivals or 1, x or 1, nodes)``."""

    weights: Array
    chances: Array


def expected_majority(
    correct: Array, labels: Indices, ks: Sequence[int], *, ties: Literal["split", "first"]
) -> list[float]:
    """Return the expected credit of the most frequent answer among k of the samples, for each k.

    Args:
        correct: ``(n,)`` 0 or 1. The credit of a group is the mean over its members (``split``), or that of its first
            drawn member (``first``): the same if equal answers are equally right.
        labels: ``(n,)`` equal numbers mean equal answers; below 0 there is none, and no vote.
        ks: Sizes of the subsets, 1 <= k <= n.
        ties: What becomes of equally frequent answers.

    >>> np.round(expected_majority(np.array([1.0, 1.0, 0.0]), np.array([0, 0, 2]), [1, 3], ties="split"), 12).tolist()
    [0.666666666667, 1.0]
    """
    n = len(labels)
    groups = _groups(correct, labels, alike=ties == "split")
    rule = _shared if ties == "split" else _first_seen

    def at(k: int) -> float:
        if k == n:
            return float(vote(correct, labels, np.ones(n), np.arange(n)[None], ties=ties)[0])
        return min(math.fsum(_earned(i, groups, n, k, rule) for i, group in enumerate(groups) if group.credit), 1.0)

    return [at(k) for k in ks]


def _groups(correct: Array, labels: Indices, *, alike: bool) -> list[_Group]:
    """Return the groups, largest first; groups of one size together if ``alike``."""
    spoken = np.flatnonzero(labels >= 0)
    _, group, sizes = np.unique(labels[spoken], return_inverse=True, return_counts=True)
    credit = np.bincount(group, weights=correct[spoken], minlength=len(sizes)) / sizes
    if alike:
        distinct, index, copies = np.unique(-sizes, return_inverse=True, return_counts=True)
        sums = np.bincount(index, weights=credit, minlength=len(distinct))
        return [
            _Group(size, count, total, spoken[:0], correct[:0])
            for size, count, total in zip((-distinct).tolist(), copies.tolist(), sums.tolist(), strict=True)
        ]
    members = np.split(spoken[np.argsort(group, kind="stable")], np.cumsum(sizes)[:-1])
    order = np.argsort(-sizes, kind="stable").tolist()
    return [_Group(int(sizes[i]), 1, float(credit[i]), members[i], correct[members[i]]) for i in order]


def _earned(winner: int, groups: list[_Group], n: int, k: int, rule: Callable[[_Group, _Round], _Ties]) -> float:
    """Return the expected credit of ``groups[winner]``, all its copies together."""
    mine = groups[winner]
    same = [mine._replace(copies=mine.copies - 1)] if mine.copies > 1 else []
    others = groups[:winner] + same + groups[winner + 1 :]
    windows = [binomial(other.size, k, n) for other in others]
    total = 0.0
    for x, weight in _octaves(mine.size, others[:3], windows, n, k):
        reach = sum(window.stop > x[0] for window in windows)  # the first ones, as sizes fall
        rivals = others[:reach]
        low = min([int(x[0]), *(window.start for window in windows[:reach])])
        counts = np.zeros((reach, x[-1] + 1 - low))
        for row, window in zip(counts, windows, strict=False):
            values = window.values[: max(x[-1] + 1 - window.start, 0)]
            row[window.start - low :][: len(values)] = values
        rest = n - mine.size - sum(rival.size * rival.copies for rival in rivals)
        contest = _Round(x, rivals, counts, low, n - mine.size, rest, n, k)
        total += float(weight @ _coefficients(contest, rule(mine, contest)))
    return total


def _octaves(
    size: int, strongest: Sequence[_Group], counts: Sequence[Window], n: int, k: int
) -> Iterator[tuple[Indices, Array]]:
    """Yield the x that matter, with b(size, x) / b(n, k), in runs that at most double."""
    own, all_samples = binomial(size, k, n), binomial(n, k, n)
    x = np.arange(max(own.start, 1), min(own.stop, k + 1))
    weight = own.at(x) / all_samples.at(np.array(k))
    alive = weight
    for rival, window in zip(strongest, counts, strict=False):
        alive = alive * window.up_to(x) ** rival.copies
    kept = np.flatnonzero(alive > NEGLIGIBLE)
    start = int(kept[0]) if len(kept) else len(x)
    while start < len(x) and start <= kept[-1]:
        stop = min(start + int(x[start]), int(kept[-1]) + 1)
        yield x[start:stop], weight[start:stop]
        start = stop


def _coefficients(contest: _Round, ties: _Ties) -> Array:
    """Return ``(x,)`` expectations over ties of the coefficient of z^(k - x)."""
    x, low = contest.x, contest.low
    if not contest.rivals:
        return np.asarray(binomial(contest.rest, contest.k, contest.n).at(contest.k - x) * ties.weights.sum(axis=1))
    angle, roots, start = _circle(contest)
    copies = np.array([rival.copies for rival in contest.rivals])
    votes = np.arange(low, x[-1] + 1)
    found = np.zeros(len(x))
    few_angles = max(1, _CELLS // contest.counts.size)
    for a in range(0, len(angle), few_angles):
        some = slice(a, a + few_angles)
        terms = contest.counts[:, None, :] * roots[np.outer(angle[some], votes) % len(roots)]
        at = terms[:, :, x - low]
        below = np.cumsum(terms, axis=2)[:, :, x - low] - at
        few_nodes = max(1, _CELLS // at.size)
        for q in range(0, ties.weights.shape[1], few_nodes):
            cut = slice(q, q + few_nodes)
            factors = below[..., None] + at[..., None] * ties.chances[:, None, :, cut]
            product = (_power_product(factors, copies) * start[some, :, None]).real.sum(axis=0)
            found += (product * ties.weights[:, cut]).sum(axis=1)
    return found


def _circle(contest: _Round) -> tuple[Indices, Any, Any]:
    """Return the angles that matter, the roots of unity, and ``(angles, x)`` what the rest puts there.

    The sum over angles of the real parts, times the rivals' factors, is the coefficient of z^(k - x).
    """
    k, n, rest, target = contest.k, contest.n, contest.rest, contest.k - contest.x
    width, p = binomial(contest.others, k, n), k / n
    count = int(max(target.max() - width.start, width.stop - 1 - target.min(), 0)) + 1
    roots = np.exp(2j * np.pi * np.arange(count) / count)
    angle = np.arange(count // 2 + 1)  # the other half is its mirror image
    sine, cosine = roots.imag[angle], roots.real[angle]
    fade = np.exp(rest / 2 * np.log1p(-np.minimum(2 * p * (1 - p) * (1 - cosine), 1 - 1e-16)))
    kept = fade > NEGLIGIBLE
    angle, sine, cosine, fade = angle[kept], sine[kept], cosine[kept], fade[kept]
    turn = np.exp(1j * rest * np.arctan2(p * sine, 1 - p + p * cosine))
    mirrored = np.where((angle == 0) | (2 * angle == count), 1.0, 2.0)
    return angle, roots, (mirrored * fade * turn / count)[:, None] * roots[-np.outer(angle, target) % count]


def _shared(mine: _Group, contest: _Round) -> _Ties:
    """Tied groups share the credit: quadrature over u, v = u."""
    copies = np.array([rival.copies for rival in contest.rivals])
    at = contest.counts[:, contest.x - contest.low]
    up_to = contest.counts.cumsum(axis=1)[:, contest.x - contest.low]
    expected = copies @ (at / np.maximum(up_to, 1e-300))  # how many rivals tie, if none wins
    most = min(int(copies.sum()), (contest.k - int(contest.x[0])) // int(contest.x[0]))
    u, w = _nodes(min(most // 2 + 1, _enough_nodes(math.ceil(8 * expected.max()) / 8)))
    return _Ties(mine.credit * w[None], u[None, None])


def _first_seen(mine: _Group, contest: _Round) -> _Ties:
    """The first drawn group wins: a sum over the positions of its first drawn sample, whose correctness counts."""
    x = contest.x
    # P(the j-th member is the first of x drawn) = C(m - 1 - j, x - 1) / C(m, x)
    weights = x[:, None] / mine.size * _left_out(mine.size - 1, x - 1, mine.size)
    nodes = np.flatnonzero((mine.correct > 0) & (weights.max(axis=0) > NEGLIGIBLE))
    chances = np.empty((len(contest.rivals), len(x), len(nodes)))
    for chance, rival in zip(chances, contest.rivals, strict=True):
        before = np.searchsorted(rival.members, mine.members[nodes])
        chance[:] = _left_out(rival.size, x, int(before.max(initial=0)) + 1)[:, before]
    return _Ties(weights[:, nodes], chances)


def _left_out(m: int, x: Indices, count: int) -> Array:
    """Return ``(x, count)`` chances C(m - a, x) / C(m, x) that x drawn of m leave out the first a, a = 0, 1, ..."""
    a = np.arange(count - 1)
    steps = np.maximum(m - a - x[:, None], 0) / np.maximum(m - a, 1)
    return np.concatenate((np.ones((len(x), 1)), np.cumprod(steps, axis=1)), axis=1)


def _power_product(factors: Any, exponents: Indices) -> Any:
    """Return the product over the first axis of ``factors ** exponents``, squaring once for all of them."""
    result = None
    for bit in reversed(range(int(exponents.max()).bit_length())):
        chosen = factors[(exponents >> bit) & 1 == 1].prod(axis=0)
        result = chosen if result is None else result * result * chosen
    return result


@functools.lru_cache(maxsize=4096)
def _enough_nodes(expected: float) -> int:
    """Return how many Gauss-Legendre nodes integrate the generating function of so many expected ties to 1e-18.

    It is at most exp(expected * (u - 1)) in size at complex u, so the error bound on a Bernstein ellipse applies
    (Trefethen, Approximation Theory and Approximation Practice, theorem 19.3); the best ellipse is known.
    """
    if not expected:
        return 1
    nodes = 0
    while True:
        nodes += 1
        rho = (4 * nodes + math.sqrt(16 * nodes**2 + expected**2)) / expected
        log_error = expected * (rho + 1 / rho - 2) / 4 - 2 * nodes * math.log(rho) - math.log1p(-(rho**-2))
        if log_error + math.log(64 / 15) < math.log(NEGLIGIBLE):
            return nodes


@functools.lru_cache(maxsize=1024)
def _nodes(count: int) -> tuple[Array, Array]:
    """Return Gauss-Legendre nodes and weights on (0, 1), exact up to degree ``2 * count - 1``."""
    x, w = leggauss(count)
    return (x + 1) / 2, w / 2
