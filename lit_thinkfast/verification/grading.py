"""From a completion to a verdict."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol, runtime_checkable

from lit_thinkfast.records import Completion, Outcome, Problem, Verdict
from lit_thinkfast.verification.answers import canonical, decide, extract_answer, too_hard
from lit_thinkfast.verification.workers import WorkerPool


@runtime_checkable
class Verifier(Protocol):
    """Whatever can say if a completion solves its problem. Inherit from it to have ``grade_batch`` for free."""

    def grade(self, problem: Problem, completion: Completion) -> Verdict:
        """Return the verdict of one completion."""
        ...

    def grade_batch(self, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[Verdict]:
        """Return the verdict of each completion, whose problem is the one of ``problems`` with its id."""
        owners = problems_of(problems, completions)
        return [self.grade(p, c) for p, c in zip(owners, completions, strict=True)]


class MathVerifier(Verifier):
    r"""Grade by the final answer: numbers, tuples and words exactly, more by math-verify in killable processes.

    Outcomes: ``correct``; ``incorrect``; ``truncated``: no answer, and the token budget cut the text; ``unparsable``:
    no answer, or one that no rule and no parser can read; ``timeout``, ``oom``, ``crashed``: what computer algebra
    came to.

    Args:
        last_number: Take the last number of a text that states no answer in a known way.
        num_workers: Processes for comparisons that take computer algebra. They start when the first one comes up.

    >>> problem = Problem("p", "1 + 1?", answer="2")
    >>> completion = Completion("p", 0, r"It is \boxed{2.0}.", 5, 7, "stop", 0.1, 0.1)
    >>> verdict = MathVerifier().grade(problem, completion)
    >>> verdict.outcome, verdict.answer, verdict.canonical
    ('correct', '2.0', '2')
    """

    def __init__(self, *, last_number: bool = False, num_workers: int = 1) -> None:
        self.last_number = last_number
        self.num_workers = num_workers
        self._pool: WorkerPool | None = None
        self._known: dict[tuple[str, str], Outcome] = {}

    @functools.cached_property
    def name(self) -> str:
        """Name, versions and settings: two runs are comparable if theirs are equal."""
        from lit_thinkfast import __version__

        try:
            algebra = f"math-verify {version('math-verify')}"
        except PackageNotFoundError:
            algebra = "no math-verify"
        return f"MathVerifier {__version__} ({algebra}{', last number' if self.last_number else ''})"

    def grade(self, problem: Problem, completion: Completion) -> Verdict:
        """Return the verdict of one completion.

        Raises:
            ValueError: The completion is of another problem.
        """
        return self.grade_batch([problem], [completion])[0]

    def grade_batch(self, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[Verdict]:
        """Return the verdict of each completion, in order. Equal pairs of answer and gold are compared once.

        Args:
            problems: The problems, in any order; each completion finds its own by id.
            completions: Any number a problem.

        Raises:
            ValueError: A completion whose problem is missing, or two different problems with one id.
        """
        owners = problems_of(problems, completions)
        answers = [extract_answer(c.text, last_number=self.last_number) for c in completions]
        pairs = {(a, p.answer) for a, p in zip(answers, owners, strict=True) if a is not None}
        self._compare(sorted(pairs - self._known.keys()))
        verdicts = []
        for completion, problem, answer in zip(completions, owners, answers, strict=True):
            if answer is None:
                outcome: Outcome = "truncated" if completion.finish_reason == "length" else "unparsable"
            else:
                outcome = self._known[answer, problem.answer]
            key = None if answer is None else canonical(answer)
            verdicts.append(Verdict(problem.id, completion.sample, outcome, answer, key, self.name))
        return verdicts

    def close(self) -> None:
        """End the grading processes, if any were started."""
        if self._pool is not None:
            self._pool.close()

    def _compare(self, pairs: list[tuple[str, str]]) -> None:
        if len(self._known) > 1_000_000:
            self._known.clear()
        hard = []
        for pair in pairs:
            decided = decide(*pair)
            if decided is not None:
                self._known[pair] = "correct" if decided else "incorrect"
            elif too_hard(pair[0]) or too_hard(pair[1]):
                self._known[pair] = "unparsable"
            else:
                hard.append(pair)
        if hard:
            pool = self._pool = self._pool or WorkerPool(num_workers=self.num_workers)
            with ThreadPoolExecutor(self.num_workers) as threads:
                self._known.update(zip(hard, threads.map(lambda pair: pool.compare(*pair), hard), strict=True))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None, "_known": {}}  # processes stay with whom started them


def problems_of(problems: Iterable[Problem], completions: Iterable[Completion]) -> list[Problem]:
    """Return the problem of each completion.

    Raises:
        ValueError: A completion whose problem is missing, or two different problems with one id.
    """
    known: dict[str, Problem] = {}
    for problem in problems:
        if known.setdefault(problem.id, problem) != problem:
            raise ValueError(f"two different problems have the id {problem.id!r}; ids must be unique")
    return [_find(known, c) for c in completions]


def _find(known: Mapping[str, Problem], completion: Completion) -> Problem:
    if completion.problem_id not in known:
        raise ValueError(
            f"a completion is of problem {completion.problem_id!r}, which is not among the {len(known)} problems; "
            "give the problems that it was sampled from"
        )
    return known[completion.problem_id]
