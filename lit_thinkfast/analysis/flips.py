"""Problems that one of two models solves and the other does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lit_thinkfast.analysis.budget import Measured
from lit_thinkfast.analysis.runs import ModelRun
from lit_thinkfast.records import Completion, Problem, Rule, Verdict

FLIP_RULES: tuple[Rule, ...] = ("majority", "coverage")


@dataclass(frozen=True, slots=True)
class Side:
    """What one model made of a problem.

    Attributes:
        value: Probability that it solves the problem with k samples.
        answer: Its most frequent answer, the earliest where several are equally frequent; ``None`` without answers.
        votes: Samples with that answer.
        samples: Samples it drew.
        correct: Samples that are right.
        example: Number of a sample to look at: the first right one of the model that solves the problem, the first one
            with the most frequent answer of the other.
    """

    value: float
    answer: str | None
    votes: int
    samples: int
    correct: int
    example: int


@dataclass(frozen=True, slots=True)
class Flip:
    """A problem that one model is likelier than not to solve and the other is not.

    Attributes:
        problem_id: The problem.
        rule: By which the one solves it and the other does not.
        solved_by: Name of the model that solves it.
        question: Empty where it is not known.
        gold: The right answer; empty where it is not known.
        first: What the first model made of it.
        second: What the second model made of it.
    """

    problem_id: str
    rule: Rule
    solved_by: str
    question: str
    gold: str
    first: Side
    second: Side


def find_flips(
    first: Measured,
    second: Measured,
    runs: Sequence[ModelRun],
    problems: Mapping[str, Problem],
    *,
    rules: Sequence[Rule] = FLIP_RULES,
) -> list[Flip]:
    """Return the problems that flip at the largest k, by rule, those of the first model before those of the second.

    Within these the surest come first: the largest difference of the two values, then of the shares of right samples.

    Args:
        first: Of the first model.
        second: Of the second, measured on the same problems.
        runs: The two runs.
        problems: Problem id -> question and gold answer, as far as known.
        rules: By which to look; those that were not measured are passed over.
    """
    found = []
    for rule in (r for r in rules if r in first.values):
        pairs = np.stack([first.values[rule][:, -1], second.values[rule][:, -1]], axis=1)
        for winner in (0, 1):
            flipped = np.flatnonzero((pairs[:, winner] > 0.5) & (pairs[:, 1 - winner] <= 0.5))
            made = [
                _flip(first.problem_ids[i], rule, winner, pairs[i], (first.model, second.model), runs, problems)
                for i in flipped
            ]
            found += sorted(made, key=_surest)
    return found


def _flip(
    problem_id: str,
    rule: Rule,
    winner: int,
    values: Sequence[float],
    names: Sequence[str],
    runs: Sequence[ModelRun],
    problems: Mapping[str, Problem],
) -> Flip:
    one, other = (_side(run.by_problem[problem_id], float(values[i]), solves=i == winner) for i, run in enumerate(runs))
    known = problems.get(problem_id)
    question, gold = (known.question, known.answer) if known else ("", "")
    return Flip(problem_id, rule, names[winner], question, gold, one, other)


def _side(pairs: Sequence[tuple[Completion, Verdict]], value: float, *, solves: bool) -> Side:
    verdicts = [v for _, v in pairs]
    votes = Counter(v.canonical for v in verdicts if v.canonical is not None)
    top = votes.most_common(1)[0] if votes else (None, 0)  # of equally frequent ones the first
    chosen = next((v for v in verdicts if v.canonical == top[0]), verdicts[0])
    example = next((v for v in verdicts if v.correct), chosen) if solves else chosen
    answer = None if top[0] is None else chosen.answer if chosen.answer is not None else top[0]
    return Side(value, answer, top[1], len(verdicts), sum(v.correct for v in verdicts), example.sample)


def _surest(flip: Flip) -> tuple[float, float, str]:
    one, other = flip.first, flip.second
    return (
        -abs(one.value - other.value),
        -abs(one.correct / one.samples - other.correct / other.samples),
        flip.problem_id,
    )
