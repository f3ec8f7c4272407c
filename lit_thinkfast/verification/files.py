"""Completions in, verdicts out, as files: the body of the ``verify`` verb."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from lit_thinkfast.records import Completion, Problem, Verdict, read_jsonl, write_jsonl
from lit_thinkfast.verification.grading import MathVerifier, Verifier, gradable, problems_of
from lit_thinkfast.verification.saturation import Saturation, Ties
from lit_thinkfast.verification.score_journal import ScoreJournal, journal_path
from lit_thinkfast.verification.scores import (
    RewardModel,
    RewardScore,
    checked_scores,
    identity_of,
    is_timed,
    name_of,
)

CHUNK = 256
"""Completions read, graded and scored together. Large, so that a reward model can batch texts of equal length, but
small enough for a progress bar to move, and for an interruption to cost little."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GradingSummary:
    """What a grading run did.

    Attributes:
        verdicts: How many were written.
        outcomes: Outcome -> how many.
        grading_seconds: Clock time of the verifier.
        scoring_seconds: Clock time of the reward model, loading excluded, sessions added up; ``None`` without one, and
            for one that says ``timed = False``. For the time axis of the rules that need scores.
        removed_problems: Ids of the problems left out, since their gold answer cannot be read, with their completions.
        saturation: How well the scores tell samples apart; ``None`` without a reward model.
    """

    verdicts: int
    outcomes: dict[str, int]
    grading_seconds: float
    scoring_seconds: float | None
    removed_problems: tuple[str, ...] = ()
    saturation: Saturation | None = None


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

    Scores are kept in ``<out>.scores.jsonl`` as they are made: a call that was interrupted goes on from there when it
    is made again, and its verdicts are those of an uninterrupted one. With the verdicts the journal is removed. What is
    graded is graded again.

    Args:
        problems: The problems that the completions answer. Those whose gold answer the verifier, if it is a
            ``MathVerifier``, cannot read are left out with their completions, and named in a warning.
        completions: File of :class:`~lit_thinkfast.records.Completion` lines.
        out: File to write :class:`~lit_thinkfast.records.Verdict` lines to.
        verifier: Default: ``MathVerifier()``.
        reward_model: Scores every completion if given.
        progress: Called with (done, total) at the start and after each chunk.

    Raises:
        FileNotFoundError: No such file of completions.
        RecordError: A line that is not a completion, or of the journal is damaged; the message says file and line.
        ValueError: No completions, one whose problem is missing, no problem that can be graded, scores that are not one
            finite number each, or a journal of another reward model or other completions.
    """
    ids = _survey(problems, completions)
    asked = [problem for problem in problems if problem.id in ids]
    kept, removed = gradable(asked) if verifier is None or isinstance(verifier, MathVerifier) else (asked, [])
    if not kept:
        raise ValueError(
            f"{completions}: no gold answer of its {len(removed)} problems can be read, the first is "
            f"{removed[0].answer[:80]!r}; correct the problems"
        )
    left_out = {problem.id for problem in removed}
    total = sum(count for id, count in ids.items() if id not in left_out)
    outcomes: Counter[str] = Counter()
    grading_seconds = 0.0
    ties = Ties()

    with ExitStack() as stack:
        grader = verifier
        if grader is None:
            grader = own = MathVerifier()
            stack.callback(own.close)
        journal = None
        if reward_model is not None:
            identity = {**identity_of(reward_model), **_digests(kept, completions)}
            journal = stack.enter_context(ScoreJournal(journal_path(out), identity=identity))

        def verdicts() -> Iterator[Verdict]:
            nonlocal grading_seconds
            records = (c for c in read_jsonl(Completion, completions) if c.problem_id not in left_out)
            done = 0
            if progress is not None:
                progress(done, total)
            for number in itertools.count():
                if not (chunk := list(itertools.islice(records, CHUNK))):
                    return
                start = time.perf_counter()
                made = grader.grade_batch(kept, chunk)
                grading_seconds += time.perf_counter() - start
                if reward_model is not None and journal is not None:
                    scores = scores_of(number, reward_model, kept, chunk, journal)
                    ties.add(scores, chunk)
                    made = with_scores(made, scores, name_of(reward_model))
                outcomes.update(verdict.outcome for verdict in made)
                yield from made
                done += len(chunk)
                if progress is not None:
                    progress(done, total)

        count = write_jsonl(verdicts(), out)
        if journal is not None:
            journal.remove()
    measured = ties.measure() if journal is not None else None
    if measured is not None and measured.warning is not None:
        log.warning("%s: %s", out, measured.warning)
    return GradingSummary(
        count,
        dict(outcomes),
        grading_seconds,
        journal.seconds if journal is not None and is_timed(reward_model) else None,
        tuple(problem.id for problem in removed),
        measured,
    )


def scores_of(
    number: int,
    reward_model: RewardModel,
    problems: Sequence[Problem],
    completions: Sequence[Completion],
    journal: ScoreJournal,
) -> list[RewardScore]:
    """Return the scores of a chunk of completions: from the journal if it has them, else made, and added to it."""
    if number < len(journal.chunks):
        return checked_scores(journal.chunks[number].scores, completions, str(journal.path))
    start = time.perf_counter()
    scores = reward_model.score(problems, completions)
    seconds = time.perf_counter() - start
    scores = checked_scores(scores, completions, name_of(reward_model))
    journal.append(scores, seconds)
    return scores


def with_scores(verdicts: Sequence[Verdict], scores: Sequence[RewardScore], name: str) -> list[Verdict]:
    """Return the verdicts with a reward model's scores filled in."""
    return [
        dataclasses.replace(
            verdict,
            score=score.score,
            step_scores=score.step_log_odds,
            reward_model=name,
            log_odds=score.log_odds,
        )
        for verdict, score in zip(verdicts, scores, strict=True)
    ]


def _survey(problems: Sequence[Problem], completions: str | os.PathLike[str]) -> Counter[str]:
    """Return how many completions each problem has. The whole file is read: what is wrong shows before the work."""
    known = {problem.id for problem in problems}
    ids: Counter[str] = Counter()
    for completion in read_jsonl(Completion, completions):
        if completion.problem_id not in known:
            problems_of(problems, [completion])  # says what is wrong
        ids[completion.problem_id] += 1
    if not ids:
        raise ValueError(f"{completions}: there are no completions in this file; generate some first")
    return ids


def _digests(problems: Sequence[Problem], completions: str | os.PathLike[str]) -> dict[str, str]:
    """Return short hashes of the questions and of the file of completions: what is scored."""
    with open(completions, "rb") as file:
        texts = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    asked = hashlib.sha256(json.dumps([[problem.id, problem.question] for problem in problems]).encode())
    return {"completions": texts, "problems": asked.hexdigest()[:16], "chunk": str(CHUNK)}
