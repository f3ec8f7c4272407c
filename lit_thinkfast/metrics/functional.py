r"""Estimators of test-time accuracy on tensors: what happens, on average, when k of a problem's n samples are drawn.

All functions take the grid of one evaluation and return float64 on the CPU:

* ``correct (problems, samples)``: bool, or int with 1, 0, and -1 where there is no sample (problems may have different
  numbers of samples, and holes).
* ``answers (problems, samples)``: int; equal numbers within a row mean equal answers, by custom the index of the first
  sample with that answer. -1 means that the sample gave no answer.
* ``scores (problems, samples)``: float, larger is better.
* ``k``: samples drawn, a whole number from 1. Several, in a list, a tensor or an array of one axis, make a last axis,
  and share the work.

A problem with fewer than k samples is NaN, and a mean leaves it out with a :class:`FewerSamplesWarning` that says how
many. Switches, with the default first:

* ``subsets="all"`` averages over every k-subset of the samples, exactly where a closed form or a dynamic programme
  exists; ``"prefix"`` takes the first k samples only, as some tools do, at up to four times the variance.
* ``ties="split"`` shares the credit among tied answers; ``"first"`` gives it to the one seen first by sample index.
* ``invalid="abstain"``: a sample without an answer is drawn like any other, but cannot be chosen; a draw of such
  samples alone is wrong. ``"vote"``: having no answer is an answer, the same for all who have none. ``"drop"``: such
  samples do not exist, and n is smaller. Of best-of-N alone the default is ``"vote"``: a reward model chooses among
  samples, whether they have an answer or not.

Errors of all: ``ValueError`` for a shape, type or value that is not allowed, or if no problem has k samples.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lit_thinkfast.metrics.hypergeometric import any_of, at_least, best_rank
from lit_thinkfast.metrics.majority import expected_majority
from lit_thinkfast.metrics.rows import (
    FewerSamplesWarning,
    Invalid,
    Ks,
    Reduction,
    Row,
    Subsets,
    Ties,
    are_several,
    check_ks,
    choose,
    curves,
    mean_over_problems,
    read_rows,
)
from lit_thinkfast.metrics.voting import weighted_votes

__all__ = [
    "FewerSamplesWarning",
    "Invalid",
    "Reduction",
    "Subsets",
    "Ties",
    "best_of_n_accuracy",
    "coverage",
    "g_pass",
    "majority_vote_accuracy",
    "weighted_best_of_n_accuracy",
    "weighted_best_of_n_estimate",
]


def coverage(correct: Tensor, k: Ks, *, subsets: Subsets = "all", reduction: Reduction = "mean") -> Tensor:
    r"""Return coverage@k = pass@k, the probability that at least one of k samples is correct.

    Unbiased: 1 - C(n-c, k) / C(n, k) with c of n samples correct (arXiv:2107.03374, eq. 1), computed as
    -expm1(sum of log1p(-max(c, k) / i) over i = n - min(c, k) + 1 .. n), which keeps 15 digits for any n.

    Args:
        correct: ``(problems, samples)``.
        k: Samples drawn, from 1; several make a last axis.
        subsets: Which k samples.
        reduction: ``mean`` over problems, or ``none`` for ``(problems,)``.

    Raises:
        ValueError: A shape or value that is not allowed, or no problem has k samples.

    >>> coverage(torch.tensor([[True, False, False, False]]), [2, 4])
    tensor([0.5000, 1.0000], dtype=torch.float64)
    """

    def one(row: Row, ks: list[int]) -> list[float]:
        right = int(row.correct.sum())
        return [any_of(row.n, right, size) for size in ks]

    return curves("coverage", read_rows(correct), k, one, subsets=subsets, reduction=reduction)


def g_pass(
    correct: Tensor,
    k: Ks,
    *,
    threshold: float = 1.0,
    subsets: Subsets = "all",
    reduction: Reduction = "mean",
) -> Tensor:
    """Return G-Pass@k, the probability that at least ``ceil(threshold * k)`` of k samples are correct.

    A measure of steadiness (arXiv:2412.13147, eq. 4). ``threshold=1`` is pass^k, all k correct; where one is enough it
    is coverage. Exact: a sum of hypergeometric probabilities. Args and errors as :func:`coverage`, and:

    Args:
        correct: ``(problems, samples)``.
        k: Samples drawn, from 1; several make a last axis.
        threshold: Share of the k that must be correct, above 0 and up to 1; at least one must.
        subsets: Which k samples.
        reduction: ``mean`` over problems, or ``none`` for ``(problems,)``.

    >>> g_pass(torch.tensor([[True, True, True, False]]), 2).item()
    0.5
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold {threshold} is not above 0 and at most 1; 1 asks for all k, 0.5 for half")

    def one(row: Row, ks: list[int]) -> list[float]:
        right = int(row.correct.sum())
        return [at_least(max(math.ceil(threshold * size - 1e-9), 1), row.n, right, size) for size in ks]

    return curves("g_pass", read_rows(correct), k, one, subsets=subsets, reduction=reduction)


def best_of_n_accuracy(
    correct: Tensor,
    scores: Tensor,
    k: Ks,
    *,
    ties: Ties = "split",
    subsets: Subsets = "all",
    reduction: Reduction = "mean",
    answers: Tensor | None = None,
    invalid: Invalid = "vote",
) -> Tensor:
    r"""Return the probability that the best-scored of k samples is correct.

    Exact: with the samples sorted by score, the one of rank r is the best of a k-subset with probability
    C(r-1, k-1) / C(n, k); equal scores share their ranks. Args and errors as :func:`coverage`, and:

    Args:
        correct: ``(problems, samples)``.
        scores: ``(problems, samples)``; infinities are ordinary values.
        k: Samples drawn, from 1; several make a last axis.
        ties: What becomes of equal scores.
        subsets: Which k samples.
        reduction: ``mean`` over problems, or ``none`` for ``(problems,)``.
        answers: ``(problems, samples)``; needed where samples without one abstain or are dropped.
        invalid: What becomes of samples without an answer. By default they can be chosen like all others.

    Raises:
        ValueError: As :func:`coverage`, a score is NaN, or answers are needed and missing.

    >>> best_of_n_accuracy(torch.tensor([[True, False, False]]), torch.tensor([[0.9, 0.1, 0.2]]), 2).item()
    0.6666666666666666
    """
    choose("ties", ties, Ties)
    if answers is None and invalid in ("abstain", "drop"):
        raise ValueError(f"invalid {invalid!r} of best-of-N needs to know which samples have no answer; give answers")

    def one(row: Row, ks: list[int]) -> list[float]:
        valid = row.answers >= 0
        order = np.lexsort((-np.arange(row.n), row.scores, valid))  # equal scores: the earlier sample ranks higher
        y, s, valid = np.where(valid, row.correct, 0.0)[order], row.scores[order], valid[order]
        if ties == "split":
            starts = np.flatnonzero(np.concatenate(([True], (s[1:] != s[:-1]) | (valid[1:] != valid[:-1]))))
            lengths = np.diff(np.append(starts, row.n))
            y = np.repeat(np.add.reduceat(y, starts) / lengths, lengths)
        return [min(float(best_rank(row.n, size) @ y), 1.0) for size in ks]

    rows = read_rows(correct, answers, scores, invalid=invalid)
    return curves("best_of_n", rows, k, one, subsets=subsets, reduction=reduction)


def majority_vote_accuracy(
    correct: Tensor,
    answers: Tensor,
    k: Ks,
    *,
    ties: Ties = "split",
    subsets: Subsets = "all",
    reduction: Reduction = "mean",
    invalid: Invalid = "abstain",
    num_subsets: int | None = None,
    seed: int | None = None,
) -> Tensor:
    """Return the probability that the most frequent answer among k samples is correct.

    Exact for both rules of ties; see :mod:`lit_thinkfast.metrics.majority`.

    Args:
        correct: ``(problems, samples)``.
        answers: ``(problems, samples)``.
        k: Samples drawn, from 1; several make a last axis.
        ties: What becomes of equally frequent answers.
        subsets: Which k samples.
        reduction: ``mean`` over problems, or ``none`` for ``(problems,)``.
        invalid: What becomes of samples without an answer.
        num_subsets: Has no effect: the first-seen rule needs no random subsets any more.
        seed: Has no effect.

    Raises:
        ValueError: As :func:`coverage`.

    >>> correct, answers = torch.tensor([[True, True, False]]), torch.tensor([[0, 0, 2]])
    >>> majority_vote_accuracy(correct, answers, [1, 3])
    tensor([0.6667, 1.0000], dtype=torch.float64)
    """
    choose("ties", ties, Ties)
    if num_subsets is not None or seed is not None:
        warnings.warn(
            "num_subsets and seed of majority_vote_accuracy have no effect, since the value is exact; leave them out, "
            "they go with the next minor release",
            FutureWarning,
            stacklevel=2,
        )

    def one(row: Row, ks: list[int]) -> list[float]:
        return expected_majority(row.correct, row.answers, ks, ties=ties)

    rows = read_rows(correct, answers, invalid=invalid)
    return curves("majority", rows, k, one, subsets=subsets, reduction=reduction)


def weighted_best_of_n_accuracy(
    correct: Tensor,
    answers: Tensor,
    scores: Tensor,
    k: Ks,
    *,
    ties: Ties = "split",
    subsets: Subsets = "all",
    reduction: Reduction = "mean",
    invalid: Invalid = "abstain",
    num_subsets: int = 1000,
    seed: int = 0,
) -> Tensor:
    """Return the probability that the answer with the largest sum of scores among k samples is correct.

    No closed form is known. Where a problem has at most ``num_subsets`` subsets they are all visited; otherwise the
    value is the mean over ``num_subsets`` random permutations, the same for every problem and, cut at k, for every k.
    :func:`weighted_best_of_n_estimate` returns the standard error along with the value.

    Args:
        correct: ``(problems, samples)``.
        answers: ``(problems, samples)``.
        scores: ``(problems, samples)``, finite and not negative where there is an answer: a negative sum would punish
            an answer for being frequent. Log-odds become such weights by ``torch.sigmoid``.
        k: Samples drawn, from 1; several make a last axis.
        ties: What becomes of answers with equal sums (to a relative 1e-12).
        subsets: Which k samples.
        reduction: ``mean`` over problems, or ``none`` for ``(problems,)``.
        invalid: What becomes of samples without an answer.
        num_subsets: Random subsets a problem.
        seed: Seed of the random subsets.

    Raises:
        ValueError: As :func:`coverage`, or a score is negative, infinite or NaN.

    >>> correct, answers = torch.tensor([[True, False, False]]), torch.tensor([[0, 1, 1]])
    >>> weighted_best_of_n_accuracy(correct, answers, torch.tensor([[0.9, 0.2, 0.3]]), 3).item()
    1.0
    """
    return weighted_best_of_n_estimate(
        correct,
        answers,
        scores,
        k,
        ties=ties,
        subsets=subsets,
        reduction=reduction,
        invalid=invalid,
        num_subsets=num_subsets,
        seed=seed,
    )[0]


def weighted_best_of_n_estimate(
    correct: Tensor,
    answers: Tensor,
    scores: Tensor,
    k: Ks,
    *,
    ties: Ties = "split",
    subsets: Subsets = "all",
    reduction: Reduction = "mean",
    invalid: Invalid = "abstain",
    num_subsets: int = 1000,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return :func:`weighted_best_of_n_accuracy` and the standard error that its random subsets leave.

    The error is that of the Monte Carlo alone, 0 where all subsets were visited; it says nothing of the sampling of
    problems and completions. The permutations are shared by the problems, and the error of the mean allows for that.
    Args and errors as there.
    """
    choose("ties", ties, Ties)
    choose("subsets", subsets, Subsets)
    choose("reduction", reduction, Reduction)
    rows = read_rows(correct, answers, scores, invalid=invalid)
    _check_weights(rows)
    ks, several = check_ks(rows, k), are_several(k)
    found = [
        weighted_votes(rows, size, ties=ties, prefix=subsets == "prefix", num_subsets=num_subsets, seed=seed)
        for size in ks
    ]
    columns = [np.stack(column, axis=-1) for column in zip(*found, strict=True)]
    values, errors, pooled = (torch.from_numpy(c if several else c[..., 0]) for c in columns)
    if reduction == "none":
        return values, errors
    return mean_over_problems("weighted_best_of_n", values, ks), pooled


def _check_weights(rows: Sequence[Row]) -> None:
    for problem, row in enumerate(rows):
        bad = np.flatnonzero((row.answers >= 0) & ~((row.scores >= 0) & np.isfinite(row.scores)))
        if len(bad):
            raise ValueError(
                f"weighted votes need finite scores from 0 up, but problem {problem} sample {row.columns[bad[0]]} has "
                f"{row.scores[bad[0]]:g}; turn log-odds or raw rewards into weights with torch.sigmoid, or in a metric "
                "with transform='sigmoid'"
            )
