"""Votes over given subsets of samples, for the rules whose expectation over all subsets has no closed form."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from lit_thinkfast.metrics.hypergeometric import Array, Indices
from lit_thinkfast.metrics.rows import Row

TIE = 1e-12
"""Sums this close, relatively, are equal: the order in which floats are added must not decide a vote."""


def weighted_votes(
    rows: Sequence[Row], k: int, *, ties: Literal["split", "first"], prefix: bool, num_subsets: int, seed: int
) -> tuple[Array, Array, Array]:
    """Return the accuracy of the vote by scores for each problem, its standard error, and that of their mean.

    A problem with fewer than k samples is NaN; the mean leaves it out. Errors are 0 where every subset was visited, or
    with ``prefix`` the only one that counts. Subsets are the same for problems of one size: errors of the mean follow
    from the draws of all problems added up.
    """
    values, errors = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    together: Array | float = 0.0
    counted = 0
    for problem, row in enumerate(rows):
        if row.n < k:
            continue
        counted += 1
        chosen, everyone = draw_subsets(k if prefix else row.n, k, num_subsets=num_subsets, seed=seed)
        won = vote(row.correct, row.answers, row.scores, chosen, ties=ties)
        values[problem] = won.mean()
        errors[problem] = 0.0 if everyone else _standard_error(won)
        together = together if everyone else together + (won - values[problem])
    pooled = _standard_error(together / counted) if isinstance(together, np.ndarray) else 0.0
    return values, errors, np.array(pooled)


def _standard_error(draws: Array) -> float:
    return float(draws.std(ddof=1) / math.sqrt(len(draws))) if len(draws) > 1 else math.nan


@functools.lru_cache(maxsize=16)
def draw_subsets(n: int, k: int, *, num_subsets: int, seed: int) -> tuple[Indices, bool]:
    """Return k-subsets of 0 .. n-1 as ``(subsets, k)``, each row increasing, and whether they are all of them.

    All subsets if there are at most ``num_subsets``; else the first k places of ``num_subsets`` random permutations
    that depend on ``n`` and ``seed`` alone, so that the subsets of different k are nested and their errors go together.

    Raises:
        ValueError: ``num_subsets`` is below 1.
    """
    if num_subsets < 1:
        raise ValueError(f"num_subsets {num_subsets} is below 1; 1000 is usual")
    if math.comb(n, k) <= num_subsets:
        return np.array(list(itertools.combinations(range(n), k)), dtype=np.int64).reshape(-1, k), True
    return np.sort(_permutations(n, num_subsets, seed)[:, :k], axis=1), False


@functools.lru_cache(maxsize=16)
def _permutations(n: int, count: int, seed: int) -> Indices:
    rng = np.random.default_rng([seed, n])
    return rng.permuted(np.tile(np.arange(n, dtype=np.int64), (count, 1)), axis=1)


def vote(
    correct: Array,
    answers: Indices,
    weights: Array,
    subsets: Indices,
    *,
    ties: Literal["split", "first"],
    tolerance: float = TIE,
) -> Array:
    """Return for each subset the credit of the answer with the largest sum of weights.

    Args:
        correct: ``(samples,)`` 0 or 1.
        answers: ``(samples,)`` equal numbers mean equal answers; below 0 there is none, and no vote.
        weights: ``(samples,)``.
        subsets: ``(subsets, k)`` indices of samples, each row increasing.
        ties: ``split``: the mean over tied answers. ``first``: the tied answer with the smallest sample index.
        tolerance: Sums this close, relatively, tie.

    Returns:
        ``(subsets,)`` in 0 to 1; 0 where nobody answered. The credit of an answer is the mean of ``correct`` over those
        who gave it (``split``), or that of the first of them (``first``): the same if equal answers are equally right.
    """
    named, group = np.unique(answers, return_inverse=True)
    groups = len(named)
    flat = group[subsets] + np.arange(len(subsets))[:, None] * groups  # one bin for each (subset, answer)
    shape = (len(subsets), groups)
    bins = len(subsets) * groups

    def total(values: Array) -> Array:
        sums = np.bincount(flat.ravel(), weights=values[subsets].ravel(), minlength=bins)
        return sums.reshape(shape).astype(np.float64)

    counts, sums = total(np.ones(len(answers))), total(np.where(answers < 0, 0.0, weights))
    present = (counts > 0) & (named >= 0)
    best = np.where(present, sums, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    tied = present & (sums >= best - tolerance * np.abs(np.where(best > -np.inf, best, 0.0)))
    if ties == "split":
        credit = total(correct) / np.maximum(counts, 1)
        return np.asarray((credit * tied).sum(axis=1) / np.maximum(tied.sum(axis=1), 1), dtype=np.float64)
    winners = np.take_along_axis(tied, group[subsets], axis=1)  # (subsets, k): does this sample's answer win?
    first = winners.argmax(axis=1)
    credit = correct[subsets[np.arange(len(subsets)), first]]
    return np.asarray(np.where(winners.any(axis=1), credit, 0.0), dtype=np.float64)
