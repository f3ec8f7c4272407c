"""Completions in, verdicts out, as files: the body of the ``verify`` verb."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lit_thinkfast.records import Completion, Problem, Verdict, read_jsonl, write_jsonl
from lit_thinkfast.verification.grading import MathVerifier, Verifier
from lit_thinkfast.verification.reward import RewardModel, StepRewardModel

CHUNK = 256
"""Completions read, graded and scored together. Large, so that a reward model can batch texts of equal length, but
small enough for a progress bar to move."""


@dataclass(frozen=True)
class GradingSummary:
    """What a grading run did.

    Attributes:
        verdicts: How many were written.
        outcomes: Outcome -> how many.
        grading_seconds: Clock time of the verifier.
        scoring_seconds: Clock time of the reward model, loading excluded; ``None`` without one. For the time axis of
            the rules that need scores.
    """

    verdicts: int
    outcomes: dict[str, int]
    grading_seconds: float
    scoring_seconds: float | None


def grade_files(
    problems: Sequence[Problem],
    completions: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    verifier: Verifier | None = None,
    reward_model: RewardModel | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> GradingSummary:
    """Grade a JSON-lines file of completions into one of verdicts, in the same order; it appears whole or not at all.

    Args:
        problems: The problems that the completions answer.
        completions: File of :class:`~lit_thinkfast.records.Completion` lines.
        out: File to write :class:`~lit_thinkfast.records.Verdict` lines to.
        verifier: Default: ``MathVerifier()``.
        reward_model: Scores every completion if given.
        progress: Called with (done, total) at the start and after each chunk.

    Raises:
        FileNotFoundError: No such file of completions.
        RecordError: A line that is not a completion; the message says file and line.
        ValueError: No completions, or one whose problem is missing.
    """
    with open(completions, "rb") as lines:
        total = sum(1 for line in lines if line.strip())
    if not total:
        raise ValueError(f"{completions}: there are no completions in this file; generate some first")
    own = MathVerifier()
    grader = verifier or own
    outcomes: Counter[str] = Counter()
    seconds = {"grading": 0.0, "scoring": 0.0}

    def verdicts() -> Iterator[Verdict]:
        records = read_jsonl(Completion, completions)
        done = 0
        if progress is not None:
            progress(done, total)
        while chunk := list(itertools.islice(records, CHUNK)):
            start = time.perf_counter()
            made = grader.grade_batch(problems, chunk)
            seconds["grading"] += time.perf_counter() - start
            if reward_model is not None:
                if isinstance(reward_model, StepRewardModel):
                    reward_model.load()
                start = time.perf_counter()
                made = with_scores(made, reward_model, problems, chunk)
                seconds["scoring"] += time.perf_counter() - start
            outcomes.update(verdict.outcome for verdict in made)
            yield from made
            done += len(chunk)
            if progress is not None:
                progress(done, total)

    try:
        count = write_jsonl(verdicts(), out)
    finally:
        own.close()
    return GradingSummary(
        count, dict(outcomes), seconds["grading"], seconds["scoring"] if reward_model is not None else None
    )


def with_scores(
    verdicts: Sequence[Verdict],
    reward_model: RewardModel,
    problems: Sequence[Problem],
    completions: Sequence[Completion],
) -> list[Verdict]:
    """Return the verdicts with the reward model's scores filled in."""
    scores = reward_model.score(problems, completions)
    name = getattr(reward_model, "name", type(reward_model).__name__)
    return [
        dataclasses.replace(v, score=s.score, step_scores=s.step_log_odds, reward_model=name)
        for v, s in zip(verdicts, scores, strict=True)
    ]
