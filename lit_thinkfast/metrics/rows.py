"""From the tensors of an evaluation to the samples of each problem, and from a value of each problem to means."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_thinkfast.metrics.hypergeometric import Array, Indices

Ties = Literal["split", "first"]
Subsets = Literal["all", "prefix"]
Reduction = Literal["mean", "none"]
Invalid = Literal["abstain", "vote", "drop"]
Ks = int | Sequence[int] | Tensor | np.ndarray[Any, Any]
"""Samples drawn: a whole number, or several in a sequence, a tensor or an array of one axis."""


class FewerSamplesWarning(UserWarning):
    """A mean leaves out problems that have fewer than k samples."""


class Row(NamedTuple):
    """The samples of one problem in their order, those that do not exist left out.

    Attributes:
        correct: ``(n,)`` 0 or 1.
        answers: ``(n,)`` equal numbers mean equal answers, below 0 there is none; zeros where nobody asked.
        scores: ``(n,)``; zeros where nobody asked.
        columns: ``(n,)`` columns of the samples in the tensors.
    """

    correct: Array
    answers: Indices
    scores: Array
    columns: Indices

    def first(self, k: int) -> Row:
        """Return the first k samples."""
        return Row(self.correct[:k], self.answers[:k], self.scores[:k], self.columns[:k])

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.correct)


def read_rows(
    correct: Tensor, answers: Tensor | None = None, scores: Tensor | None = None, *, invalid: Invalid = "abstain"
) -> list[Row]:
    """Return the samples of each problem.

    Raises:
        ValueError: A shape, type or value that is not allowed.
    """
    choose("invalid", invalid, Invalid)
    if correct.ndim != 2:
        raise ValueError(f"correct has shape {tuple(correct.shape)}; expected (problems, samples)")
    if correct.is_floating_point() or correct.is_complex():
        raise ValueError(f"correct is {correct.dtype}; expected bool, or int with 1, 0 and -1 for no sample")
    truth = correct.detach().cpu().to(torch.int64).numpy()
    if truth.size and not -1 <= truth.min() <= truth.max() <= 1:
        raise ValueError(f"correct holds {truth.min()} to {truth.max()}; expected 1, 0 and -1 for no sample")
    labels, points = np.zeros_like(truth), np.zeros(truth.shape)
    if answers is not None:
        _check_shape("answers", answers, truth)
        if answers.is_floating_point() or answers.dtype == torch.bool:
            raise ValueError(f"answers are {answers.dtype}; expected integers, -1 for no answer")
        labels = answers.detach().cpu().to(torch.int64).numpy()
    if scores is not None:
        _check_shape("scores", scores, truth)
        points = scores.detach().cpu().to(torch.float64).numpy()
        if (bad := np.isnan(points) & (truth >= 0)).any():
            p, s = np.argwhere(bad)[0]
            raise ValueError(f"problem {p} sample {s} has the score NaN; score every sample, or mark it -1 in correct")
    there = truth >= 0
    if invalid == "drop":
        there = there & (labels >= 0)
    if invalid == "vote":
        labels = np.where(labels < 0, labels.max(initial=0) + 1, labels)
    return [
        Row(truth[p, here].astype(np.float64), labels[p, here], points[p, here], np.flatnonzero(here))
        for p, here in enumerate(there)
    ]


def curves(
    name: str,
    rows: Sequence[Row],
    k: Ks,
    estimate: Callable[[Row, list[int]], Sequence[float]],
    *,
    subsets: Subsets,
    reduction: Reduction,
) -> Tensor:
    """Return ``estimate`` of each problem, or the mean over problems, at one k or several.

    Args:
        name: Of the rule, for warnings.
        rows: Of the problems.
        k: Samples drawn; several make a last axis.
        estimate: Called with the samples of a problem and those k that it has samples for.
        subsets: ``prefix`` hands over the first k samples only.
        reduction: ``mean`` over problems, or ``none``.

    Raises:
        ValueError: A k that is no whole number, is below 1, or that no problem has samples for.
    """
    choose("subsets", subsets, Subsets)
    choose("reduction", reduction, Reduction)
    ks = check_ks(rows, k)
    values = np.full((len(rows), len(ks)), math.nan)
    for problem, row in enumerate(rows):
        enough = [i for i, size in enumerate(ks) if size <= row.n]
        if subsets == "prefix":
            values[problem, enough] = [estimate(row.first(ks[i]), [ks[i]])[0] for i in enough]
        elif enough:
            values[problem, enough] = estimate(row, [ks[i] for i in enough])
    table = torch.from_numpy(values if are_several(k) else values[:, 0])
    return table if reduction == "none" else mean_over_problems(name, table, ks)


def mean_over_problems(name: str, values: Tensor, ks: Sequence[int]) -> Tensor:
    """Return means over the first axis, NaN left out, with a :class:`FewerSamplesWarning` if there were any."""
    for size, missing in zip(ks, values.reshape(len(values), -1).isnan().sum(dim=0).tolist(), strict=True):
        if missing:
            warnings.warn(
                f"{name}@{size}: the mean is over {len(values) - missing} of {len(values)} problems; "
                f"{missing} have fewer than {size} samples",
                FewerSamplesWarning,
                stacklevel=4,
            )
    return values.nanmean(dim=0)


def check_ks(rows: Sequence[Row], k: Ks) -> list[int]:
    """Return k as a list.

    Raises:
        ValueError: None, one that is no whole number, is below 1, or that no problem has samples for.
    """
    ks = [whole("k", each) for each in k] if are_several(k) else [whole("k", k)]  # type: ignore[union-attr]
    if not ks:
        raise ValueError("ks is empty; name at least one number of samples, for example 1,8,64")
    if min(ks) < 1:
        raise ValueError(f"k {min(ks)} is below 1; use at least 1")
    most = max((row.n for row in rows), default=0)
    if max(ks) > most:
        raise ValueError(
            f"k {max(ks)} is larger than the {most} samples of any of the {len(rows)} problems; "
            "use a smaller k or draw more"
        )
    return ks


def are_several(k: Ks) -> bool:
    """Return whether k is a sequence, or a tensor or array with an axis, even if of one number."""
    return getattr(k, "ndim", 0) > 0 or (isinstance(k, Sequence) and not isinstance(k, str | bytes))


def whole(name: str, value: Any) -> int:
    """Return an int of any make as one of Python.

    Raises:
        ValueError: It is something else, such as 2.0 or a truth value.
    """
    try:
        if getattr(value, "ndim", 0) or getattr(value, "dtype", type(value)) in (bool, torch.bool, np.dtype(bool)):
            raise TypeError
        return operator.index(value)
    except TypeError:
        told = " ".join(repr(value).split())[:80]
        raise ValueError(f"{name} {told} is no whole number; give an int, or several in a list") from None


def choose(name: str, value: str, allowed: Any) -> None:
    """Raise a ``ValueError`` unless ``value`` is one of the literals."""
    if value not in allowed.__args__:
        raise ValueError(f"{name} {value!r} is not one of {', '.join(allowed.__args__)}")


def _check_shape(name: str, values: Tensor, truth: Any) -> None:
    if tuple(values.shape) != truth.shape:
        raise ValueError(f"{name} have shape {tuple(values.shape)}, correct {truth.shape}; they must be equal")
