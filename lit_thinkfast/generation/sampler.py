"""Many completions of many problems, batch after batch, with what each of them cost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lit_thinkfast.generation.clock import Stopwatch
from lit_thinkfast.generation.config import SamplingConfig
from lit_thinkfast.generation.engine import BatchResult, RowKeys, decode_batch
from lit_thinkfast.generation.progress import Progress, ProgressCallback
from lit_thinkfast.generation.rng import problem_key
from lit_thinkfast.records import Completion, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lit_thinkfast.models.modeling import HybridForCausalLM

# Steps of the unrecorded first batch
_WARMUP_TOKENS = 3


@dataclass(slots=True)
class SamplerStats:
    """Totals of a sampler over all its calls. Seconds are the engine's.

    Attributes:
        samples: Completions made.
        tokens: Tokens generated.
        batches: Batches run.
        steps: Forward passes after the prefills.
        row_steps: Rows summed over these passes; finished rows are not among them.
        prefill_seconds: Encoding prompts and drawing first tokens.
        decode_seconds: All later steps.
        warmup_seconds: The unrecorded first steps; in no completion's share.
        cache_bytes: Largest cache of a batch.
    """

    samples: int = 0
    tokens: int = 0
    batches: int = 0
    steps: int = 0
    row_steps: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    warmup_seconds: float = 0.0
    cache_bytes: int = 0

    @property
    def engine_seconds(self) -> float:
        """Sum of the shares of all completions."""
        return self.prefill_seconds + self.decode_seconds

    def add(self, batch: BatchResult) -> None:
        """Count one batch."""
        self.samples += len(batch.lengths)
        self.tokens += int(batch.lengths.sum())
        self.batches += 1
        self.steps += batch.steps
        self.row_steps += batch.row_steps
        self.prefill_seconds += batch.prefill_seconds
        self.decode_seconds += batch.decode_seconds
        self.cache_bytes = max(self.cache_bytes, batch.cache_bytes)


@dataclass(frozen=True, slots=True)
class _Request:
    """Samples of one problem that share a batch."""

    problem: Problem
    prompt: list[int]
    samples: list[int]


class Sampler:
    """Samples completions of problems with one model.

    Args:
        model: A :class:`~lit_thinkfast.models.HybridForCausalLM`; a Transformer is one whose layers are all attention
            (``lit_thinkfast.models.load_model`` makes it), so that every model runs on the same engine.
        tokenizer: Of the model.
        config: What to sample.
        name: Written into each completion as its ``model``.
        render: From a problem to prompt tokens; by default the tokenizer's chat template
            (:func:`lit_thinkfast.data.prompts.render_prompt`) around the question, with ``config.system``.

    Raises:
        ValueError: The model is a stock class of transformers.

    Attributes:
        stats: Totals so far.

    Example::

        sampler = Sampler(model, tokenizer, SamplingConfig(num_samples=16), name="student")
        for completion in sampler.sample(problems):
            print(completion.text, completion.seconds)
    """

    def __init__(
        self,
        model: HybridForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
        config: SamplingConfig,
        *,
        name: str = "",
        render: Callable[[Problem], list[int]] | None = None,
    ) -> None:
        if not hasattr(model.config, "layer_mixers"):
            raise ValueError(
                f"cannot sample from a {type(model).__name__}; load it with lit_thinkfast.models.load_model, "
                "or convert it with mixer='attention', which leaves its weights as they are"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.name = name
        self.stats = SamplerStats()
        self._render = render
        self._warm = False

    def sample(
        self,
        problems: Sequence[Problem],
        *,
        skip: Container[tuple[str, int]] = frozenset(),
        on_batch: ProgressCallback | None = None,
    ) -> Iterator[Completion]:
        """Yield ``config.num_samples`` completions of each problem, a batch at a time, in order.

        Args:
            problems: With ids that differ.
            skip: (problem id, sample) pairs that are not wanted, for example since they exist already.
            on_batch: Called after every batch and a few times a second within one. Its time, and what the caller does
                between completions, is not counted.

        Raises:
            ValueError: Two problems share an id; a prompt is empty, has tokens unknown to the model, or leaves no
                room for ``max_new_tokens``; or the model gives logits that are not finite.
        """
        prompts = self.prompts(problems)
        wanted = [
            _Request(problem, prompts[problem.id], samples)
            for problem in problems
            if (samples := [s for s in range(self.config.num_samples) if (problem.id, s) not in skip])
        ]
        return self._run(wanted, on_batch)

    def prompts(self, problems: Sequence[Problem]) -> dict[str, list[int]]:
        """Return the prompt tokens of each problem by its id. Errors as :meth:`sample`."""
        found: dict[str, list[int]] = {}
        vocabulary = self.model.config.vocab_size
        # Without attention there are no positions to run out of.
        limit = self.model.config.max_position_embeddings if self.model.config.attention_layers else None
        for problem in problems:
            if problem.id in found:
                raise ValueError(f"two problems have the id {problem.id!r}; ids must differ")
            prompt = self._prompt(problem)
            if not prompt:
                raise ValueError(f"the prompt of problem {problem.id!r} has no tokens; give it a question")
            if max(prompt) >= vocabulary:
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

    def end_tokens(self) -> list[int]:
        """Return the tokens that end a completion, from the model's generation config and the tokenizer."""
        from lit_thinkfast.data.prompts import end_token_id

        ends: set[int] = set()
        for source in (getattr(self.model, "generation_config", None), self.tokenizer):
            eos = getattr(source, "eos_token_id", None)
            ends.update([eos] if isinstance(eos, int) else eos or [])
        with contextlib.suppress(ValueError):  # a tokenizer may have no end token of its own
            ends.add(end_token_id(self.tokenizer))
        return sorted(end for end in ends if end < self.model.config.vocab_size)

    def _prompt(self, problem: Problem) -> list[int]:
        if self._render is not None:
            return list(self._render(problem))
        from lit_thinkfast.data.prompts import render_prompt

        return render_prompt(self.tokenizer, problem.question, system=self.config.system)

    def _run(self, wanted: list[_Request], on_batch: ProgressCallback | None) -> Iterator[Completion]:
        ends = self.end_tokens()
        total = sum(len(request.samples) for request in wanted)
        before = self.stats.engine_seconds
        samples = tokens = 0
        for batch in fill_batches(wanted, self.config.batch_size):
            rows = sum(len(request.samples) for request in batch)
            if not self._warm:
                self._warm_up(batch, ends)
            watch = Stopwatch(self.model.device)

            def report(new_tokens: int, finished: int, left: int, watch: Stopwatch = watch) -> None:
                assert on_batch is not None
                seconds = self.stats.engine_seconds - before + watch.elapsed
                on_batch(Progress(samples + finished, total, tokens + new_tokens, seconds, left))  # noqa: B023

            result = self._decode(batch, ends, watch=watch, on_step=report if on_batch is not None else None)
            self.stats.add(result)
            samples += rows
            tokens += int(result.lengths.sum())
            if on_batch is not None:
                on_batch(Progress(samples, total, tokens, self.stats.engine_seconds - before, rows))
            yield from self._completions(batch, result)

    def _decode(
        self,
        batch: list[_Request],
        ends: list[int],
        *,
        watch: Stopwatch | None = None,
        on_step: Callable[[int, int, int], None] | None = None,
        max_new_tokens: int | None = None,
    ) -> BatchResult:
        config = self.config
        keys = RowKeys(
            problems=torch.tensor([problem_key(r.problem.id) for r in batch for _ in r.samples], dtype=torch.int64),
            samples=torch.tensor([s for r in batch for s in r.samples], dtype=torch.int64),
            seed=config.seed,
        )
        training = self.model.training
        self.model.eval()
        try:
            return decode_batch(
                self.model,
                [request.prompt for request in batch],
                copies=[len(request.samples) for request in batch],
                keys=keys,
                temperature=config.temperature,
                top_p=config.top_p,
                max_new_tokens=max_new_tokens or config.max_new_tokens,
                end_tokens=ends,
                watch=watch,
                on_step=on_step,
            )
        finally:
            self.model.train(training)

    def _warm_up(self, batch: list[_Request], ends: list[int]) -> None:
        """Run a few steps that are not recorded: first calls pay for libraries, kernels and memory."""
        warmup = min(_WARMUP_TOKENS, self.config.max_new_tokens)
        result = self._decode(batch, ends, max_new_tokens=warmup)
        self.stats.warmup_seconds += result.prefill_seconds + result.decode_seconds
        self._warm = True

    def _completions(self, batch: list[_Request], result: BatchResult) -> Iterator[Completion]:
        lengths = result.lengths.tolist()
        rows = [row[:length] for row, length in zip(result.tokens.tolist(), lengths, strict=True)]
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        seconds, latency, stopped = result.seconds.tolist(), result.latency.tolist(), result.stopped.tolist()
        owners = [(request, sample) for request in batch for sample in request.samples]
        for row, (request, sample) in enumerate(owners):
            yield Completion(
                problem_id=request.problem.id,
                sample=sample,
                text=texts[row],
                num_prompt_tokens=len(request.prompt),
                num_tokens=lengths[row],
                finish_reason="stop" if stopped[row] else "length",
                seconds=seconds[row],
                latency_seconds=latency[row],
                seed=self.config.seed,
                model=self.name,
            )


def fill_batches(wanted: Sequence[_Request], batch_size: int) -> Iterator[list[_Request]]:
    """Yield batches of exactly ``batch_size`` samples, the last perhaps smaller, splitting a problem where need be."""
    batch: list[_Request] = []
    room = batch_size
    for request in wanted:
        samples = request.samples
        while samples:
            batch.append(_Request(request.problem, request.prompt, samples[:room]))
            samples, room = samples[room:], room - len(batch[-1].samples)
            if room == 0:
                yield batch
                batch, room = [], batch_size
    if batch:
        yield batch
