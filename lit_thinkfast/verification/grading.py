"""From a completion to a verdict."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol, runtime_checkable

from lit_thinkfast.records import Completion, Outcome, Problem, Verdict
from lit_thinkfast.verification.answers import MAX_DEPTH, canonical, decide, too_hard, understood
from lit_thinkfast.verification.extraction import STYLES, extract_answer, final_number, style
from lit_thinkfast.verification.notation import MAX_ANSWER, MAX_DIGITS, Percent
from lit_thinkfast.verification.workers import WorkerPool, shared_pool

_log = logging.getLogger(__name__)


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
    r"""Grade by the final answer: what is simple exactly, the rest by math-verify in processes that can be killed.

    Outcomes: ``correct``; ``incorrect``; ``truncated``: no answer, and the token budget cut the text; ``unparsable``:
    no answer, or one that no rule and no parser can read; ``timeout``, ``oom``, ``crashed``: what computer algebra
    came to.

    Args:
        extraction: How answers are found: a key of :data:`~lit_thinkfast.verification.extraction.STYLES`, or ``auto``:
            the one named like ``Problem.source``, and ``default`` where there is none.
        percent: How a percentage votes: with its fraction (``50\%`` with 1/2) or with its number (``50\%`` with 50).
            For correctness either will do: see :mod:`~lit_thinkfast.verification.answers`.
        last_number: Take the last number of a text that states no answer in a known way, whatever the style.
        num_workers: Processes for comparisons that take computer algebra; by default as many as cores. They start when
            such comparisons come up. Verdicts do not depend on it.

    Raises:
        ValueError: Unknown ``extraction`` or ``percent``, or ``num_workers`` below 1.

    >>> problem = Problem("p", "1 + 1?", answer="2")
    >>> completion = Completion("p", 0, r"It is \boxed{2.0}.", 5, 7, "stop", 0.1, 0.1)
    >>> verdict = MathVerifier().grade(problem, completion)
    >>> verdict.outcome, verdict.answer, verdict.canonical
    ('correct', '2.0', '2')
    """

    def __init__(
        self,
        *,
        extraction: str = "auto",
        percent: Percent = "fraction",
        last_number: bool = False,
        num_workers: int | None = None,
    ) -> None:
        if extraction != "auto":
            style(extraction)
        if percent not in ("fraction", "number"):
            raise ValueError(f"percent {percent!r} is neither fraction nor number")
        self.extraction = extraction
        self.percent: Percent = percent
        self.last_number = last_number
        self.num_workers = num_workers
        self._pool = WorkerPool(num_workers=num_workers)
        self._known: dict[tuple[str, str], Outcome] = {}
        self._golds: dict[str, str | None] = {}

    def grader(self, source: str = "") -> str:
        """Return name, versions and settings for problems of a source: verdicts are comparable if theirs are equal."""
        finders = [getattr(finder, "__name__", type(finder).__name__) for finder in style(self._style(source))]
        if self.last_number and final_number.__name__ not in finders:
            finders.append(final_number.__name__)
        return (
            f"MathVerifier {_versions()} (answer by {', '.join(finders)}; percentage votes as {self.percent}; "
            f"limits {self._pool.limits}, {MAX_ANSWER} characters, {MAX_DIGITS} digits, {MAX_DEPTH} brackets)"
        )

    def grade(self, problem: Problem, completion: Completion) -> Verdict:
        """Return the verdict of one completion. Errors as :meth:`grade_batch`."""
        return self.grade_batch([problem], [completion])[0]

    def grade_batch(self, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[Verdict]:
        """Return the verdict of each completion, in order. Equal pairs of answer and gold are compared once.

        Args:
            problems: The problems, in any order; each completion finds its own by id.
            completions: Any number a problem.

        Raises:
            ValueError: A completion whose problem is missing, two different problems with one id, or a problem with
                completions whose gold answer cannot be read (see :func:`gradable`): no completion could be right.
        """
        owners = problems_of(problems, completions)
        self._check_golds({owner.id: owner for owner in owners}.values())
        answers = [
            extract_answer(
                c.text, extraction=self._style(p.source), last_number=self.last_number, cut=c.finish_reason == "length"
            )
            for c, p in zip(completions, owners, strict=True)
        ]
        if len(self._known) > 1_000_000:
            self._known.clear()
        pairs = {(a, p.answer) for a, p in zip(answers, owners, strict=True) if a is not None}
        # not a difference of sets, which would walk through all that is known
        self._compare(sorted(pair for pair in pairs if pair not in self._known))
        names = {source: self.grader(source) for source in {p.source for p in owners}}
        verdicts = []
        for completion, problem, answer in zip(completions, owners, answers, strict=True):
            if answer is None:
                outcome: Outcome = "truncated" if completion.finish_reason == "length" else "unparsable"
            else:
                outcome = self._known[answer, problem.answer]
            key = None if answer is None else canonical(answer, percent=self.percent)
            verdicts.append(Verdict(problem.id, completion.sample, outcome, answer, key, names[problem.source]))
        return verdicts

    def close(self) -> None:
        """End the grading processes, if any were started."""
        self._pool.close()

    def _style(self, source: str) -> str:
        if self.extraction != "auto":
            return self.extraction
        return source if source in STYLES else "default"

    def _check_golds(self, problems: Iterable[Problem]) -> None:
        for problem in problems:
            if problem.answer not in self._golds:
                self._golds[problem.answer] = _unreadable(problem.answer, self._pool)
            if (why := self._golds[problem.answer]) is not None:
                raise ValueError(
                    f"problem {problem.id!r}: its gold answer {problem.answer[:80]!r} cannot be read ({why}), and no "
                    "completion could be right; leave the problem out, as verification.gradable does"
                )

    def _compare(self, pairs: list[tuple[str, str]]) -> None:
        hard = []
        for answer, gold in pairs:
            decided = decide(answer, gold)
            if decided is not None:
                self._known[answer, gold] = "correct" if decided else "incorrect"
            elif too_hard(answer):
                self._known[answer, gold] = "unparsable"
            else:
                hard.append((answer, gold))
        self._known.update(zip(hard, self._pool.compare_all(hard), strict=True))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None, "_known": {}, "_golds": {}}  # processes stay with whom started them

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pool = WorkerPool(num_workers=self.num_workers)


def gradable(problems: Sequence[Problem]) -> tuple[list[Problem], list[Problem]]:
    """Part problems by whether their gold answer can be read; those removed are named in a warning of the log.

    A gold answer that is empty, too long, or that neither our rules nor math-verify can read within their limits would
    make every completion look wrong.

    Returns:
        The problems kept and those removed, both in order.
    """
    kept: list[Problem] = []
    removed: list[Problem] = []
    for problem in problems:
        why = _unreadable(problem.answer, shared_pool())
        (kept if why is None else removed).append(problem)
        if why is not None:
            _log.warning(
                "problem %r is removed: its gold answer %r cannot be read (%s)", problem.id, problem.answer, why
            )
    return kept, removed


def _unreadable(gold: str, pool: WorkerPool) -> str | None:
    """Return why a gold answer cannot be read, or ``None``."""
    if understood(gold):
        return None
    if not canonical(gold):
        return "it is empty"
    if too_hard(gold):
        return "too long, too deep or too large"
    outcome = pool.compare(gold, gold)
    return None if outcome in ("correct", "incorrect") else f"computer algebra came to {outcome}"


@functools.lru_cache(maxsize=1)
def _versions() -> str:
    """Return our version and those of the packages that decide what we do not."""
    from lit_thinkfast import __version__

    made = [__version__]
    for package in ("math-verify", "latex2sympy2-extended", "sympy"):
        try:
            made.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            made.append(f"without {package}")
    return ", ".join(made)


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
