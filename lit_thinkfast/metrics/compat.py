"""The numbers that other tools would print for a grid, to the last digit.

Each function follows one tool: which samples it takes, what it does with ties, with samples without an answer and with
problems that have too few samples, and in which order it adds floats. All but the pass@k tools take the first k samples
instead of averaging over subsets, which costs up to four times the variance. Use them to compare with published
numbers; ``docs/metrics.md`` says which switches of the estimators come closest.

The rules with scores add up ``grid.scores`` as they stand: for a tool's last digit these must be its own raw scores in
float64. The scores of a file of verdicts are the sigmoid of float32 log-odds, which keeps the order of scores (within a
relative 1e-6) and the ties between samples, but not sums: not to the last digit for probabilities (search-and-learn),
and not at all for unbounded rewards (``rm_majority`` of NeMo-Skills). Put the raw ones in, ``last`` having those of
each problem::

    grid._replace(scores=torch.tensor([last[id] for id in grid.problem_ids], dtype=torch.float64), log_odds=None)

Which answers are equal is up to the grid: search-and-learn groups by a canonical form of its own, NeMo-Skills and
lm-evaluation-harness by the raw text (``verdict_grid(verdicts, by="answer")``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from lit_thinkfast.metrics.rows import Row, read_rows
from lit_thinkfast.metrics.tables import Grid
from lit_thinkfast.metrics.voting import vote


def accuracies_as(tool: str, grid: Grid, ks: Sequence[int]) -> dict[str, float]:
    """Return what ``tool`` reports for a grid at each k, under its own names and in its own unit.

    Args:
        tool: One of :data:`COMPAT`.
        grid: Of the evaluation. For the rules with scores, of the tool's raw scores; see the module.
        ks: Numbers of samples.

    Raises:
        ValueError: An unknown tool, a k below 1, or a grid that the tool refuses.

    >>> import torch
    >>> grid = Grid(("p",), torch.tensor([[1, 0]]), torch.tensor([[0, 1]]), torch.zeros(1, 2).double())
    >>> accuracies_as("nemo-skills", grid, [2])["majority@2"]  # a tie is half right
    50.0
    """
    if tool not in COMPAT:
        raise ValueError(f"tool {tool!r} is not one of {', '.join(COMPAT)}")
    if not ks or min(ks) < 1:
        raise ValueError(f"ks {list(ks)} must be numbers of samples from 1, at least one")
    return COMPAT[tool](grid, sorted(set(ks)))


def human_eval(grid: Grid, ks: Sequence[int]) -> dict[str, float]:
    """Return ``pass@k`` as shares, like openai/human-eval; a k that some problem has too few samples for is dropped."""
    rows = read_rows(grid.correct)
    return {f"pass@{k}": _mean_pass(rows, k) for k in ks if all(row.n >= k for row in rows)}


def large_language_monkeys(grid: Grid, ks: Sequence[int]) -> dict[str, float]:
    """Return ``pass@k`` as shares, as in section 2.1 of arXiv:2407.21787, whose repository has graders but no metric.

    The published tables hold every k for every problem; with fewer than k samples a problem counts as solved.
    """
    rows = read_rows(grid.correct)
    return {f"pass@{k}": _mean_pass(rows, k) for k in ks}


def search_and_learn(grid: Grid, ks: Sequence[int]) -> dict[str, float]:
    """Return shares of right predictions, like huggingface/search-and-learn: first k samples, first seen wins ties.

    No answer is an answer like others. A group counts as its first member, whose text the tool writes. Keys are those
    of its predictions, ``pred_maj@k``, and where the grid is scored ``pred_naive@k`` and ``pred_weighted@k``.
    """
    rows = read_rows(grid.correct, grid.answers, grid.scores, invalid="vote")
    found: dict[str, float] = {}
    for k in ks:
        first = [row.first(k) for row in rows]
        found[f"pred_maj@{k}"] = _total(_voted(row, ties="first") for row in first) / len(rows)
        if grid.scored:
            found[f"pred_naive@{k}"] = _total(float(row.correct[row.scores.argmax()]) for row in first) / len(rows)
            found[f"pred_weighted@{k}"] = _total(_voted(row, ties="first", by_score=True) for row in first) / len(rows)
    return found


def nemo_skills(grid: Grid, ks: Sequence[int]) -> dict[str, float]:
    """Return percentages like NeMo-Skills: pass@k exactly, all other rules on the first k samples.

    ``majority@k`` (from 2) groups by answer and correctness, and splits ties. ``rm_best@k`` and ``rm_majority@k`` give
    ties to the first seen; a group counts as its last member. Samples without an answer cannot be chosen.

    Raises:
        ValueError: Problems have different numbers of samples, or fewer than k.
    """
    rows = read_rows(grid.correct, grid.answers, grid.scores)
    sizes = {row.n for row in rows}
    if len(sizes) != 1 or max(ks) > min(sizes):
        raise ValueError(
            f"NeMo-Skills wants the same number of samples of every problem, and k up to it; these have "
            f"{min(sizes)} to {max(sizes)}, and k goes to {max(ks)}"
        )

    def percent(values: Iterable[float]) -> float:
        return 100.0 * _total(values) / len(rows)

    found: dict[str, float] = {}
    for k in ks:
        first = [row.first(k) for row in rows]
        found[f"pass@{k}"] = percent(_comb_pass(row, k) for row in rows)
        found[f"pass@1[avg-of-{k}]"] = percent(int(row.correct.sum()) / k for row in first)
        if k > 1:
            found[f"majority@{k}"] = percent(_voted(_by_correctness(row), ties="split") for row in first)
        if grid.scored:
            found[f"rm_best@{k}"] = percent(_best_answered(row) for row in first)
            found[f"rm_majority@{k}"] = percent(_voted(_as_last(row), ties="first", by_score=True) for row in first)
    return found


def lm_evaluation_harness(grid: Grid, ks: Sequence[int]) -> dict[str, float]:
    """Return ``exact_match,maj@k`` as shares, like EleutherAI/lm-evaluation-harness with ``take_first_k``.

    The first seen wins ties; no answer ("[invalid]") is an answer like others.

    Raises:
        ValueError: The first problem has fewer than k samples.
    """
    rows = read_rows(grid.correct, grid.answers, invalid="vote")
    if max(ks) > rows[0].n:
        raise ValueError(
            f"lm-evaluation-harness refuses k {max(ks)} where the first problem has {rows[0].n} samples; "
            "use a smaller k"
        )
    return {f"exact_match,maj@{k}": _total(_voted(row.first(k), ties="first") for row in rows) / len(rows) for k in ks}


COMPAT: Mapping[str, Callable[[Grid, Sequence[int]], dict[str, float]]] = {
    "human-eval": human_eval,
    "large-language-monkeys": large_language_monkeys,
    "lm-evaluation-harness": lm_evaluation_harness,
    "nemo-skills": nemo_skills,
    "search-and-learn": search_and_learn,
}
"""Name of a tool -> what it reports for a grid at some ks."""


def _voted(row: Row, *, ties: Literal["split", "first"], by_score: bool = False) -> float:
    """Return the credit of the vote of all samples; sums that differ in the last digit do not tie."""
    weights = row.scores if by_score else np.ones(row.n)
    return float(vote(row.correct, row.answers, weights, np.arange(row.n)[None], ties=ties, tolerance=0.0)[0])


def _best_answered(row: Row) -> float:
    answered = np.flatnonzero(row.answers >= 0)
    return float(row.correct[answered[row.scores[answered].argmax()]]) if len(answered) else 0.0


def _by_correctness(row: Row) -> Row:
    """Right and wrong samples with one answer become two groups."""
    split = 2 * row.answers + row.correct.astype(np.int64)
    return row._replace(answers=np.where(row.answers < 0, -1, split))


def _as_last(row: Row) -> Row:
    """Every sample becomes as right as the last one with its answer."""
    last = {answer: right for answer, right in zip(row.answers.tolist(), row.correct.tolist(), strict=True)}
    return row._replace(correct=np.array([last[answer] for answer in row.answers.tolist()]))


def _comb_pass(row: Row, k: int) -> float:
    return 1 - math.comb(row.n - int(row.correct.sum()), k) / math.comb(row.n, k)


def _mean_pass(rows: Sequence[Row], k: int) -> float:
    """Return the mean of 1 - C(n-c, k) / C(n, k), multiplied up in float64 as in arXiv:2107.03374, fig. 3."""
    values = []
    for row in rows:
        wrong = row.n - int(row.correct.sum())
        misses = 1.0 - k / np.arange(wrong + 1, row.n + 1)
        values.append(1.0 if wrong < k else 1.0 - misses.prod())
    return float(np.mean(values))


def _total(values: Iterable[float]) -> float:
    """Return the sum, rounded at every step: from Python 3.12 on, ``sum`` is more exact than the tools' ``+=``."""
    total = 0.0
    for value in values:
        total += value
    return total
