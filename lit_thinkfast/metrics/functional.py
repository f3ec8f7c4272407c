r"""Estimators of test-time accuracy on tensors: what happens, on average, when k of a problem's n samples are drawn.

All functions take the grid of one evaluation and return float64 on the CPU:

* ``correct (problems, samples)``: bool, or int with 1, 0, and -1 where there is no sample (problems may have different
  numbers of samples, and holes).
* ``answers (problems, samples)``: int; equal numbers within a row mean equal answers, by custom the index of the first
  sample with that answer. -1 means that the sample gave no answer: it is drawn like any other, casts no vote, and is
  wrong.
* ``scores (problems, samples)``: float, larger is better.

A problem with fewer than k samples is NaN, and a mean leaves it out with a :class:`FewerSamplesWarning` that says how
many. ``subsets="all"`` averages over every k-subset of the samples, exactly where a closed form or a dynamic programme
exists; ``subsets="prefix"`` takes the first k samples only, as some tools do, at up to four times the variance.
``ties="split"`` shares the credit among tied answers; ``ties="first"`` gives it to the one seen first by sample index.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from lit_thinkfast.metrics.majority import expected_majority
from lit_thinkfast.metrics.voting import Array, Indices, draw_subsets, vote

Ties = Literal["split", "first"]
Subsets = Literal["all", "prefix"]
Reduction = Literal["mean", "none"]


class FewerSamplesWarning(UserWarning):
    """A mean leaves out problems that have fewer than k samples."""


def coverage(correct: Tensor, k: int, *, subsets: Subsets = "all", reduction: Reduction = "mean") -> Tensor:
    r"""Return coverage@k = pass@k, the probability that at least one of k samples is correct.

    Unbiased: 1 - C(n-c, k) / C(n, k) with c of n samples correct (arXiv:2107.03374, eq. 1), computed as
    -expm1(sum of log1p(-max(c, k) / i) over i = n - min(c, k) + 1 .. n), which keeps 15 digits for any n.

    Args:
        correct: ``(problems, samples)``.
        k: Samples drawn, from 1.
        subsets: Which k samples.
        reduction: ``mean`` over problems, or ``none`` for ``(problems,)``.

    Raises:
        ValueError: A shape or value that is not allowed, or no problem has k samples.

    >>> coverage(torch.tensor([[True, False, False, False]]), 2).item()
    0.5
    """
    truth, rows = _rows(correct, k, subsets)
    values = _each(rows, k, lambda p, row: _coverage(len(row), int(truth[p, row].sum()), k))
    return _reduce("coverage", values, k, reduction)


def best_of_n_accuracy(
    correct: Tensor,
    scores: Tensor,
    k: int,
    *,
    ties: Ties = "split",
    subsets: Subsets = "all",
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Return the probability that the best-scored of k samples is correct.

    Exact: with the samples sorted by score, the one of rank r is the best of a k-subset with probability
    C(r-1, k-1) / C(n, k); equal scores share their ranks. Args and errors as :func:`coverage`, and:

    Args:
        correct: ``(problems, samples)``.
        scores: ``(problems, samples)``; infinities are ordinary values.
        k: Samples drawn, from 1.
        ties: What becomes of equal scores.
        subsets: Which k samples.
        reduction: ``mean`` over problems, or ``none`` for ``(problems,)``.

    Raises:
        ValueError: As :func:`coverage`, or a score is NaN.

    >>> best_of_n_accuracy(torch.tensor([[True, False, False]]), torch.tensor([[0.9, 0.1, 0.2]]), 2).item()
    0.6666666666666666
    """
    truth, rows = _rows(correct, k, subsets)
    points = _floats(scores, "scores", truth)
    _choose("ties", ties, Ties)

    def one(problem: int, row: Indices) -> float:
        y, s = truth[problem, row].astype(np.float64), points[problem, row]
        order = np.lexsort((-np.arange(len(row)), s))  # equal scores: the earlier sample ranks higher
        y, s = y[order], s[order]
        if ties == "split":
            _, block, size = np.unique(s, return_inverse=True, return_counts=True)
            y = (np.bincount(block, weights=y) / size)[block]
        return min(float(_rank_weights(len(row), k) @ y), 1.0)

    return _reduce("best_of_n", _each(rows, k, one), k, reduction)


def majority_vote_accuracy(
    correct: Tensor,
    answers: Tensor,
    k: int,
    *,
    ties: Ties = "split",
    subsets: Subsets = "all",
    reduction: Reduction = "mean",
    num_subsets: int = 1000,
    seed: int = 0,
) -> Tensor:
    """Return the probability that the most frequent answer among k samples is correct.

    Exact with ``ties="split"`` (see :mod:`lit_thinkfast.metrics.majority`). The first-seen rule depends on the order of
    the samples and has no closed form: with ``ties="first"`` it is averaged over all subsets where there are at most
    ``num_subsets`` of them, else over that many random ones.

    Args:
        correct: ``(problems, samples)``.
        answers: ``(problems, samples)``.
        k: Samples drawn, from 1.
        ties: What becomes of equally frequent answers.
        subsets: Which k samples.
        reduction: ``mean`` over problems, or ``none`` for ``(problems,)``.
        num_subsets: Random subsets, used with ``ties="first"`` only.
        seed: Seed of the random subsets.

    Raises:
        ValueError: As :func:`coverage`.

    >>> correct, answers = torch.tensor([[True, True, False]]), torch.tensor([[0, 0, 2]])
    >>> majority_vote_accuracy(correct, answers, 3).item(), majority_vote_accuracy(correct, answers, 1).item()
    (1.0, 0.6666666666666666)
    """
    truth, rows = _rows(correct, k, subsets)
    labels = _labels(answers, truth)
    _choose("ties", ties, Ties)

    def one(problem: int, row: Indices) -> float:
        y, a = truth[problem, row].astype(np.float64), labels[problem, row]
        if ties == "split":
            _, group, size = np.unique(a[a >= 0], return_inverse=True, return_counts=True)
            credit = np.bincount(group, weights=y[a >= 0], minlength=len(size)) / np.maximum(size, 1)
            groups = tuple(sorted(zip(size.tolist(), credit.tolist(), strict=True)))
            return expected_majority(groups, int((a < 0).sum()), k)
        chosen, _ = draw_subsets(len(row), k, num_subsets=num_subsets, seed=seed)
        return float(vote(y, a, np.ones(len(row)), chosen, ties=ties).mean())

    return _reduce("majority", _each(rows, k, one), k, reduction)


def weighted_best_of_n_accuracy(
    correct: Tensor,
    answers: Tensor,
    scores: Tensor,
    k: int,
    *,
    ties: Ties = "split",
    subsets: Subsets = "all",
    reduction: Reduction = "mean",
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
        k: Samples drawn, from 1.
        ties: What becomes of answers with equal sums (to a relative 1e-12).
        subsets: Which k samples.
        reduction: ``mean`` over problems, or ``none`` for ``(problems,)``.
        num_subsets: Random subsets a problem.
        seed: Seed of the random subsets.

    Raises:
        ValueError: As :func:`coverage`, or a score is negative, infinite or NaN.

    >>> correct, answers = torch.tensor([[True, False, False]]), torch.tensor([[0, 1, 1]])
    >>> weighted_best_of_n_accuracy(correct, answers, torch.tensor([[0.9, 0.2, 0.3]]), 3).item()
    1.0
    """
    return weighted_best_of_n_estimate(
        correct, answers, scores, k, ties=ties, subsets=subsets, reduction=reduction, num_subsets=num_subsets, seed=seed
    )[0]


def weighted_best_of_n_estimate(
    correct: Tensor,
    answers: Tensor,
    scores: Tensor,
    k: int,
    *,
    ties: Ties = "split",
    subsets: Subsets = "all",
    reduction: Reduction = "mean",
    num_subsets: int = 1000,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return :func:`weighted_best_of_n_accuracy` and the standard error that its random subsets leave.

    The error is that of the Monte Carlo alone, 0 where all subsets were visited; it says nothing of the sampling of
    problems and completions. The permutations are shared by the problems, and the error of the mean allows for that.
    Args and errors as there.
    """
    truth, rows = _rows(correct, k, subsets)
    labels = _labels(answers, truth)
    weights = _floats(scores, "scores", truth)
    _choose("ties", ties, Ties)
    bad = (truth >= 0) & (labels >= 0) & ~((weights >= 0) & np.isfinite(weights))
    if bad.any():
        p, s = np.argwhere(bad)[0]
        raise ValueError(
            f"weighted votes need finite scores from 0 up, but problem {p} sample {s} has {weights[p, s]:g}; "
            "turn log-odds or raw rewards into weights with torch.sigmoid"
        )
    values: list[float] = []
    errors: list[float] = []
    draws = np.zeros(num_subsets)
    counted = 0
    for problem, row in rows:
        if len(row) < k:
            values.append(math.nan)
            errors.append(math.nan)
            continue
        chosen, everyone = draw_subsets(len(row), k, num_subsets=num_subsets, seed=seed)
        won = vote(
            truth[problem, row].astype(np.float64), labels[problem, row], weights[problem, row], chosen, ties=ties
        )
        values.append(float(won.mean()))
        errors.append(0.0 if everyone else _standard_error(won))
        draws += 0.0 if everyone else won - values[-1]
        counted += 1
    value = _reduce("weighted_best_of_n", values, k, reduction)
    error = torch.tensor(errors, dtype=torch.float64)
    return value, error if reduction == "none" else torch.tensor(_standard_error(draws / counted), dtype=torch.float64)


def _standard_error(draws: Array) -> float:
    return float(draws.std(ddof=1) / math.sqrt(len(draws))) if len(draws) > 1 else math.nan


@functools.lru_cache(maxsize=65536)
def _coverage(n: int, c: int, k: int) -> float:
    if n - c < k:
        return 1.0
    few, many = min(c, k), max(c, k)
    return -math.expm1(math.fsum(math.log1p(-many / i) for i in range(n - few + 1, n + 1)))


@functools.lru_cache(maxsize=1024)
def _rank_weights(n: int, k: int) -> Array:
    """Return for ranks 1 .. n (best last) the probability of being the best of a random k-subset."""
    weights = np.zeros(n)
    weights[n - 1] = k / n
    for r in range(n, k, -1):
        weights[r - 2] = weights[r - 1] * (r - k) / (r - 1)
    return weights


def _rows(correct: Tensor, k: int, subsets: Subsets) -> tuple[Any, list[tuple[int, Indices]]]:
    """Return correctness as int8 ``(problems, samples)`` and, for each problem, the indices of the samples in play."""
    _choose("subsets", subsets, Subsets)
    if k < 1:
        raise ValueError(f"k {k} is below 1; use at least 1")
    if correct.ndim != 2:
        raise ValueError(f"correct has shape {tuple(correct.shape)}; expected (problems, samples)")
    if correct.is_floating_point() or correct.is_complex():
        raise ValueError(f"correct is {correct.dtype}; expected bool, or int with 1, 0 and -1 for no sample")
    truth = correct.detach().cpu().to(torch.int64).numpy()
    if truth.size and not -1 <= truth.min() <= truth.max() <= 1:
        raise ValueError(f"correct holds {truth.min()} to {truth.max()}; expected 1, 0 and -1 for no sample")
    rows = [(p, np.flatnonzero(truth[p] >= 0)) for p in range(len(truth))]
    most = max((len(row) for _, row in rows), default=0)
    if most < k:
        raise ValueError(
            f"k {k} is larger than the {most} samples of any of the {len(rows)} problems; use a smaller k or draw more"
        )
    return truth, [(p, row[:k] if subsets == "prefix" else row) for p, row in rows]


def _each(rows: list[tuple[int, Indices]], k: int, estimate: Callable[[int, Indices], float]) -> list[float]:
    """Return the estimate of each problem, NaN where it has fewer than k samples."""
    return [estimate(problem, row) if len(row) >= k else math.nan for problem, row in rows]


def _reduce(name: str, values: list[float], k: int, reduction: Reduction) -> Tensor:
    _choose("reduction", reduction, Reduction)
    result = torch.tensor(values, dtype=torch.float64)
    if reduction == "none":
        return result
    missing = int(result.isnan().sum())
    if missing:
        warnings.warn(
            f"{name}@{k}: the mean is over {len(values) - missing} of {len(values)} problems; "
            f"{missing} have fewer than {k} samples",
            FewerSamplesWarning,
            stacklevel=3,
        )
    return result.nanmean()


def _labels(answers: Tensor, truth: Any) -> Any:
    if tuple(answers.shape) != truth.shape:
        raise ValueError(f"answers have shape {tuple(answers.shape)}, correct {truth.shape}; they must be equal")
    if answers.is_floating_point() or answers.dtype == torch.bool:
        raise ValueError(f"answers are {answers.dtype}; expected integers, -1 for no answer")
    return answers.detach().cpu().to(torch.int64).numpy()


def _floats(scores: Tensor, name: str, truth: Any) -> Array:
    if tuple(scores.shape) != truth.shape:
        raise ValueError(f"{name} have shape {tuple(scores.shape)}, correct {truth.shape}; they must be equal")
    values = scores.detach().cpu().to(torch.float64).numpy()
    bad = np.isnan(values) & (truth >= 0)
    if bad.any():
        p, s = np.argwhere(bad)[0]
        raise ValueError(f"problem {p} sample {s} has the score NaN; score every sample, or mark it -1 in correct")
    return cast(Array, values)


def _choose(name: str, value: str, allowed: Any) -> None:
    if value not in allowed.__args__:
        raise ValueError(f"{name} {value!r} is not one of {', '.join(allowed.__args__)}")
