"""From verdicts to the tensors that estimators take, and from those to a table of accuracies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lit_thinkfast.metrics.functional import (
    Subsets,
    Ties,
    best_of_n_accuracy,
    coverage,
    majority_vote_accuracy,
    weighted_best_of_n_accuracy,
)
from lit_thinkfast.records import Verdict

LARGEST_GRID = 100_000_000
"""Cells of the largest grid that is built: a wild sample number in a file must not take all memory."""


class Grid(NamedTuple):
    """Samples of an evaluation; rows are problems.

    Attributes:
        problem_ids: Name of each row.
        correct: ``(problems, samples)`` int8: 1, 0, or -1 where there is no sample.
        answers: ``(problems, samples)`` int64: the column of the first sample with an equal answer; -1 for no answer.
        scores: ``(problems, samples)`` float64, -inf where there is no score.
    """

    problem_ids: tuple[str, ...]
    correct: Tensor
    answers: Tensor
    scores: Tensor

    @property
    def scored(self) -> bool:
        """Whether every sample has a score."""
        return bool((self.scores > -torch.inf)[self.correct >= 0].all())


def verdict_grid(verdicts: Iterable[Verdict]) -> Grid:
    """Lay verdicts out as a grid: problems in order of appearance, the column is ``Verdict.sample``.

    A verdict that occurs twice counts once.

    Raises:
        ValueError: No verdicts, a sample number out of range, or two verdicts on one sample that differ.

    >>> right = Verdict("p", 0, "correct", "4", "4")
    >>> made = [right, Verdict("p", 1, "unparsable"), Verdict("p", 2, "correct", "4.0", "4")]
    >>> verdict_grid(made).answers.tolist()
    [[0, -1, 0]]
    """
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
    for i, row in enumerate(rows.values()):
        columns = sorted(row)
        correct[i, columns] = torch.tensor([row[s].correct for s in columns], dtype=torch.int8)
        answers[i, columns] = torch.tensor(first_equal([row[s].canonical for s in columns], columns))
        known = [s for s in columns if row[s].score is not None]
        scores[i, known] = torch.tensor([row[s].score for s in known], dtype=torch.float64)
    return Grid(tuple(rows), correct, answers, scores)


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
    if not ks:
        raise ValueError("ks is empty; name at least one number of samples, for example 1,8,64")
    correct, answers, scores = grid.correct, grid.answers, grid.scores
    table: dict[str, float] = {}
    for k in sorted(set(ks)):
        table[f"coverage@{k}"] = coverage(correct, k, subsets=subsets).item()
        table[f"majority@{k}"] = majority_vote_accuracy(correct, answers, k, ties=ties, subsets=subsets).item()
        if grid.scored:
            weighted = weighted_best_of_n_accuracy(correct, answers, scores, k, ties=ties, subsets=subsets)
            table[f"weighted_best_of_n@{k}"] = weighted.item()
            table[f"best_of_n@{k}"] = best_of_n_accuracy(correct, scores, k, ties=ties, subsets=subsets).item()
    return table
