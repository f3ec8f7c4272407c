"""What every sampler is, whatever does the work: problems in, completions with their costs out.

:class:`~lit_thinkfast.generation.sampler.Sampler` runs a model in this process,
:class:`~lit_thinkfast.generation.vllm.VLLMSampler` asks a server. What they share is here: prompts and their checks,
which samples are wanted and in which order, and the totals.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lit_thinkfast.generation.config import SamplingConfig
from lit_thinkfast.generation.progress import ProgressCallback
from lit_thinkfast.records import Completion, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(slots=True)
class SamplerStats:
    """Totals of a sampler over all its calls. Seconds are the engine's.

    Attributes:
        samples: Completions finished.
        tokens: Tokens of these completions.
        prefills: Prompts encoded.
        steps: Forward passes of the whole batch after prefills.
        row_steps: Rows summed over these passes; finished rows are not among them.
        prefill_seconds: Encoding prompts and giving their caches to the rows.
        decode_seconds: All else.
        overhead_seconds: The part of ``decode_seconds`` outside the model's own step: drawing tokens and keeping books.
            0 on an accelerator, where telling it apart would slow both down.
        warmup_seconds: Unrecorded first steps, compiling and capturing graphs; in no completion's share.
        cache_bytes: Memory held for the rows.
        peak_rows: Most rows that ran together.
    """

    samples: int = 0
    tokens: int = 0
    prefills: int = 0
    steps: int = 0
    row_steps: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    overhead_seconds: float = 0.0
    warmup_seconds: float = 0.0
    cache_bytes: int = 0
    peak_rows: int = 0

    @property
    def engine_seconds(self) -> float:
        """Prefill and decode. Of a run that was not cut short, the sum of the shares of all completions."""
        return self.prefill_seconds + self.decode_seconds


@dataclass(frozen=True, slots=True)
class Request:
    """Samples of one problem that are drawn one after the other.

    Attributes:
        problem: Whose.
        prompt: Its tokens.
        samples: Their indices.
    """

    problem: Problem
    prompt: list[int]
    samples: list[int]


class BaseSampler(ABC):
    """Samples completions of problems.

    Args:
        tokenizer: Of the model.
        config: What to sample.
        name: Written into each completion as its ``model``.
        render: From a problem to prompt tokens; by default the tokenizer's chat template
            (:func:`lit_thinkfast.data.prompts.render_prompt`) around the question, with ``config.system``.

    Attributes:
        stats: Totals so far.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: SamplingConfig,
        *,
        name: str = "",
        render: Callable[[Problem], list[int]] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.name = name
        self.stats = SamplerStats()
        self._render = render

    def sample(
        self,
        problems: Sequence[Problem],
        *,
        skip: Container[tuple[str, int]] = frozenset(),
        on_progress: ProgressCallback | None = None,
        time_budget: float | None = None,
        spent: float = 0.0,
    ) -> Iterator[Completion]:
        """Yield ``config.num_samples`` completions of each problem as they end, in no fixed order.

        Args:
            problems: With ids that differ.
            skip: (problem id, sample) pairs that are not wanted, for example since they exist already.
            on_progress: Called a few times a second. Its time, and what the caller does between completions, is not
                counted.
            time_budget: Seconds of engine time after which to stop; completions that are not finished then are
                dropped. Samples are then drawn in the rounds of :func:`in_rounds`, so that whenever the clock stops no
                problem has had much more of it than another.
            spent: Seconds of the budget that are gone already; ``finished_seconds`` counts from here.

        Raises:
            ValueError: Two problems share an id; a prompt is empty, has tokens unknown to the model, or leaves no
                room for ``max_new_tokens``; or the model gives logits that are not finite.
        """
        if time_budget is not None and not 0 < time_budget < float("inf"):
            raise ValueError(f"time_budget {time_budget} is not a positive number of seconds; give one, like 60")
        prompts = self.prompts(problems)
        plan = in_rounds if time_budget is not None else one_after_the_other
        wanted = [
            Request(problem, prompts[problem.id], left)
            for problem, samples in plan(problems, self.config.num_samples)
            if (left := [s for s in samples if (problem.id, s) not in skip])
        ]
        return self._complete(wanted, on_progress=on_progress, time_budget=time_budget, spent=spent)

    @abstractmethod
    def _complete(
        self,
        wanted: Sequence[Request],
        *,
        on_progress: ProgressCallback | None,
        time_budget: float | None,
        spent: float,
    ) -> Iterator[Completion]:
        """Do the work of :meth:`sample`; requests are to be begun in their order."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return, as plain JSON values, what decides the texts. Runs that differ here must not be mixed."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return, as plain JSON values, what a reader of the figures should know."""

    @abstractmethod
    def calibrate(self) -> dict[str, float] | None:
        """Measure the machine, see :func:`calibration.calibrate`; ``None`` where it is not this one."""

    @property
    @abstractmethod
    def vocabulary(self) -> int | None:
        """Number of tokens that the model knows, or ``None`` if that cannot be told."""

    @property
    @abstractmethod
    def positions(self) -> int | None:
        """Tokens that prompt and completion may have together, or ``None`` for any number."""

    @abstractmethod
    def end_tokens(self) -> list[int]:
        """Return the tokens that end a completion."""

    def prompts(self, problems: Sequence[Problem]) -> dict[str, list[int]]:
        """Return the prompt tokens of each problem by its id. Errors as :meth:`sample`."""
        found: dict[str, list[int]] = {}
        vocabulary, limit = self.vocabulary, self.positions
        for problem in problems:
            if problem.id in found:
                raise ValueError(f"two problems have the id {problem.id!r}; ids must differ")
            prompt = self._prompt(problem)
            if not prompt:
                raise ValueError(f"the prompt of problem {problem.id!r} has no tokens; give it a question")
            if vocabulary is not None and max(prompt) >= vocabulary:
                raise ValueError(
                    f"the prompt of problem {problem.id!r} has token {max(prompt)}, but the model knows {vocabulary}; "
                    "use the tokenizer that belongs to the model"
                )
            if limit is not None and len(prompt) + self.config.max_new_tokens > limit:
                raise ValueError(
                    f"problem {problem.id!r}: prompt of {len(prompt)} tokens + max_new_tokens "
                    f"{self.config.max_new_tokens} exceed the model's {limit} positions; "
                    f"use max_new_tokens {max(limit - len(prompt), 0)} or less"
                )
            found[problem.id] = prompt
        return found

    def _prompt(self, problem: Problem) -> list[int]:
        if self._render is not None:
            return list(self._render(problem))
        from lit_thinkfast.data.prompts import render_prompt

        return render_prompt(self.tokenizer, problem.question, system=self.config.system)


def one_after_the_other(problems: Sequence[Problem], num_samples: int) -> Iterator[tuple[Problem, range]]:
    """Yield all samples of the first problem, then those of the second, and so on."""
    for problem in problems:
        yield problem, range(num_samples)


def in_rounds(problems: Sequence[Problem], num_samples: int) -> Iterator[tuple[Problem, range]]:
    """Yield samples in rounds over all problems, of 1, 1, 2, 4, 8, ... samples each.

    Within a round a problem has at most twice the samples of another, and one has been encoded only log2 times.

    >>> from lit_thinkfast.records import Problem
    >>> two = [Problem(id=name, question="?", answer="") for name in "ab"]
    >>> [(problem.id, list(samples)) for problem, samples in in_rounds(two, 3)]
    [('a', [0]), ('b', [0]), ('a', [1]), ('b', [1]), ('a', [2]), ('b', [2])]
    """
    start = 0
    while start < num_samples:
        stop = min(num_samples, max(1, 2 * start))
        for problem in problems:
            yield problem, range(start, stop)
        start = stop
