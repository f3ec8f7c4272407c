"""From verdicts to the tensors that estimators take, and from those to a table of accuracies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_thinkfast.metrics.functional import (
    best_of_n_accuracy,
    coverage,
    majority_vote_accuracy,
    weighted_best_of_n_accuracy,
)
from lit_thinkfast.metrics.rows import Subsets, Ties, mean_over_problems, whole
from lit_thinkfast.metrics.statistics import Interval, bootstrap_interval
from lit_thinkfast.records import Verdict

LARGEST_GRID = 100_000_000
"""Cells of the largest grid that is built: a wild sample number in a file must not take all memory."""


class Grid(NamedTuple):
    """Samples of an evaluation; rows are problems.

    Attributes:
        problem_ids: Name of each row.
        correct: ``(problems, samples)`` int8: 1, 0, or -1 where there is no sample.
        answers: ``(problems, samples)`` int64: the column of the first sample with an equal answer; -1 for no answer.
        scores: ``(problems, samples)`` float64, -inf where there is no score: the weights of votes.
        log_odds: ``(problems, samples)`` float64, by which best-of-N ranks, since probabilities near 1 run together;
            ``None`` where they are not known of every score.
    """

    problem_ids: tuple[str, ...]
    correct: Tensor
    answers: Tensor
    scores: Tensor
    log_odds: Tensor | None = None

    @property
    def ranks(self) -> Tensor:
        """What best-of-N ranks by: the log-odds if they are known, else the scores."""
        return self.scores if self.log_odds is None else self.log_odds

    @property
    def scored(self) -> bool:
        """Whether every sample has a score."""
        return bool((self.scores > -torch.inf)[self.correct >= 0].all())


def verdict_grid(verdicts: Iterable[Verdict], *, by: Literal["canonical", "answer"] = "canonical") -> Grid:
    """Lay verdicts out as a grid: problems in order of appearance, the column is ``Verdict.sample``.

    A verdict that occurs twice counts once.

    Args:
        verdicts: Of any problems, in any order.
        by: Which texts are equal answers: ``canonical`` forms, or the extracted ``answer`` as it stands, as tools do
            that vote on raw text.

    Raises:
        ValueError: No verdicts, an unknown ``by``, a sample number out of range, or two verdicts on one sample that
            differ.

    >>> right = Verdict("p", 0, "correct", "4", "4")
    >>> made = [right, Verdict("p", 1, "unparsable"), Verdict("p", 2, "correct", "4.0", "4")]
    >>> verdict_grid(made).answers.tolist()
    [[0, -1, 0]]
    """
    if by not in ("canonical", "answer"):
        raise ValueError(f"by {by!r} is not one of canonical, answer")
    rows: dict[str, dict[int, Verdict]] = {}
    for verdict in verdicts:
        row = rows.setdefault(verdict.problem_id, {})
        if row.setdefault(verdict.sample, verdict) != verdict:
            raise ValueError(
                f"problem {verdict.problem_id!r} sample {verdict.sample} has two verdicts that differ; keep one"
            )
    if not rows:
        raise ValueError("there are no verdicts; verify some completions first")
    least, most = min(min(row) for row in rows.values()), max(max(row) for row in rows.values())
    if least < 0 or (most + 1) * len(rows) > LARGEST_GRID:
        wrong = least if least < 0 else most
        raise ValueError(
            f"sample number {wrong} is out of range; samples of a problem are numbered from 0 without gaps"
        )
    shape = (len(rows), most + 1)
    correct = torch.full(shape, -1, dtype=torch.int8)
    answers = torch.full(shape, -1, dtype=torch.int64)
    scores = torch.full(shape, -torch.inf, dtype=torch.float64)
    log_odds = scores.clone()
    known_log_odds = all(v.log_odds is not None for row in rows.values() for v in row.values() if v.score is not None)
    for i, row in enumerate(rows.values()):
        columns = sorted(row)
        correct[i, columns] = torch.tensor([row[s].correct for s in columns], dtype=torch.int8)
        answers[i, columns] = torch.tensor(first_equal([getattr(row[s], by) for s in columns], columns))
        known = [s for s in columns if row[s].score is not None]
        scores[i, known] = torch.tensor([row[s].score for s in known], dtype=torch.float64)
        if known_log_odds:
            log_odds[i, known] = torch.tensor([row[s].log_odds for s in known], dtype=torch.float64)
    return Grid(tuple(rows), correct, answers, scores, log_odds if known_log_odds else None)


def first_equal(keys: Sequence[str | None], columns: Sequence[int]) -> list[int]:
    """Return for each key the column of the first equal key, -1 for ``None``.

    >>> first_equal(["4", None, "4", "5"], [0, 1, 2, 3])
    [0, -1, 0, 3]
    """
    first: dict[str, int] = {}
    return [-1 if key is None else first.setdefault(key, column) for key, column in zip(keys, columns, strict=True)]


def accuracies(grid: Grid, ks: Sequence[int], *, ties: Ties = "split", subsets: Subsets = "all") -> dict[str, float]:
    """Return every rule at every k, means over problems, as ``coverage@8`` and so on; best-of-N rules if all is scored.

    Scores must be weights, finite and not negative, for the weighted vote.

    Raises:
        ValueError: No ks, or a k that no problem has samples for.
    """
    ks = sorted({whole("k", k) for k in ks})
    curves = accuracy_curves(grid, ks, ties=ties, subsets=subsets)
    means = {rule: mean_over_problems(rule, values, ks) for rule, values in curves.items()}
    return {f"{rule}@{k}": means[rule][i].item() for i, k in enumerate(ks) for rule in curves}


def accuracy_intervals(
    grid: Grid,
    ks: Sequence[int],
    *,
    ties: Ties = "split",
    subsets: Subsets = "all",
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Return :func:`accuracies` with two-sided intervals by a bootstrap over problems.

    Args:
        grid: Of the evaluation.
        ks: Numbers of samples.
        ties: As for the estimators.
        subsets: As for the estimators.
        resamples: Bootstrap draws, the same for all rules and ks.
        seed: Of the draws.
        level: Share of the draws inside.

    Raises:
        ValueError: As :func:`accuracies`.
    """
    ks = sorted({whole("k", k) for k in ks})
    curves = accuracy_curves(grid, ks, ties=ties, subsets=subsets)
    sure = {
        rule: np.asarray(bootstrap_interval(values.numpy(), resamples=resamples, seed=seed, level=level))
        for rule, values in curves.items()
    }
    return {f"{rule}@{k}": Interval(*sure[rule][:, i].tolist()) for i, k in enumerate(ks) for rule in curves}


def accuracy_curves(
    grid: Grid, ks: Sequence[int], *, ties: Ties = "split", subsets: Subsets = "all"
) -> dict[str, Tensor]:
    """Return rule -> ``(problems, ks)`` values of each problem, NaN where it has fewer samples.

    What :mod:`lit_thinkfast.metrics.statistics` takes, to say how sure a mean is or whether two models differ.

    Raises:
        ValueError: As :func:`accuracies`.
    """
    correct, answers, scores = grid.correct, grid.answers, grid.scores
    found = {
        "coverage": coverage(correct, ks, subsets=subsets, reduction="none"),
        "majority": majority_vote_accuracy(correct, answers, ks, ties=ties, subsets=subsets, reduction="none"),
    }
    if grid.scored:
        found["weighted_best_of_n"] = weighted_best_of_n_accuracy(
            correct, answers, scores, ks, ties=ties, subsets=subsets, reduction="none"
        )
        found["best_of_n"] = best_of_n_accuracy(correct, grid.ranks, ks, ties=ties, subsets=subsets, reduction="none")
    return found
