"""The sampler that runs a model in this process, on the engine of :mod:`lit_thinkfast.generation.engine`."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lit_thinkfast.generation.calibration import calibrate, describe_machine
from lit_thinkfast.generation.clock import Stopwatch
from lit_thinkfast.generation.config import SamplingConfig
from lit_thinkfast.generation.describe import describe_model, fingerprint
from lit_thinkfast.generation.engine import Engine, EngineState, EngineTimes
from lit_thinkfast.generation.progress import Progress, ProgressCallback
from lit_thinkfast.generation.rng import problem_key
from lit_thinkfast.generation.rows import Prompt, Row
from lit_thinkfast.generation.sampling import BaseSampler, Request
from lit_thinkfast.generation.stops import StopStrings
from lit_thinkfast.records import Completion, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lit_thinkfast.models.modeling import HybridForCausalLM

# Steps of the unrecorded first run
_WARMUP_TOKENS = 3


class Sampler(BaseSampler):
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
        super().__init__(tokenizer, config, name=name, render=render)
        self.model = model

    @property
    def vocabulary(self) -> int:
        size: int = self.model.config.vocab_size
        return size

    @property
    def positions(self) -> int | None:
        # Without attention there are no positions to run out of.
        return self.model.config.max_position_embeddings if self.model.config.attention_layers else None

    def prompts(self, problems: Sequence[Problem]) -> dict[str, list[int]]:
        """As everywhere; and a memory budget that not even one row fits is refused here, before anything is begun."""
        found = super().prompts(problems)
        if found:
            self.plan(list(found.values()))
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
        return sorted(end for end in ends if end < self.vocabulary)

    def identity(self) -> dict[str, Any]:
        vocabulary = json.dumps(sorted(self.tokenizer.get_vocab().items())).encode()
        return {
            **self.config.identity(),
            "model": self.name,
            "weights": fingerprint(self.model),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "vocabulary": hashlib.blake2b(vocabulary, digest_size=8).hexdigest(),
            "end_tokens": self.end_tokens(),
        }

    def describe(self) -> dict[str, Any]:
        return {
            "model": self.name,
            **describe_model(self.model),
            "sampling": dataclasses.asdict(self.config),
            "end_tokens": self.end_tokens(),
            **describe_machine(self.model.device),
        }

    def calibrate(self) -> dict[str, float]:
        return calibrate(self.model.device, dtype=self.model.dtype)

    def plan(self, prompts: Sequence[list[int]]) -> int:
        """Return how many rows decode together for these prompts: what fits the memory budget, or the batch size.

        Raises:
            ValueError: Not even one fits.
        """
        config = self.config
        longest = max(map(len, prompts))
        rows = min(config.batch_size, len(prompts) * config.num_samples)
        if config.memory_budget_gib is None:
            return rows
        from lit_thinkfast.generation.memory import plan_rows

        return min(
            rows,
            plan_rows(
                self.model,
                length=longest - 1 + config.max_new_tokens,
                prompt=longest - 1,
                prefill_chunk=config.prefill_chunk,
                budget_bytes=int(config.memory_budget_gib * 2**30),
            ),
        )

    def _complete(
        self,
        wanted: Sequence[Request],
        *,
        on_progress: ProgressCallback | None,
        time_budget: float | None,
        spent: float,
    ) -> Iterator[Completion]:
        until = float("inf") if time_budget is None else time_budget - spent
        if not wanted or until <= 0:
            return
        prompts = [
            Prompt(request.prompt, problem_key(request.problem.id), request.samples, self.config) for request in wanted
        ]
        total = None if time_budget is not None else sum(len(prompt.samples) for prompt in prompts)
        with _ready(self.model):
            engine = self._engine(prompts)
            self._warm_up(engine, prompts[0])
            watch = engine.watch = Stopwatch(self.model.device)

            def report(state: EngineState) -> None:
                assert on_progress is not None
                tokens = state.tokens + state.tokens_in_flight
                progress = Progress(state.finished, total, tokens, watch.elapsed, state.rows, time_budget, spent)
                on_progress(progress)

            counted = EngineTimes()
            finished = tokens = 0
            try:
                for rows in engine.run(prompts, until=until, on_step=None if on_progress is None else report):
                    finished += len(rows)
                    tokens += sum(len(row.tokens) for row in rows)
                    self.stats.samples += len(rows)
                    self.stats.tokens += sum(len(row.tokens) for row in rows)
                    self._count(engine.times, counted)
                    yield from self._completions(wanted, rows, spent)
            finally:
                self._count(engine.times, counted)
            if on_progress is not None:
                report(EngineState(finished, tokens, 0, 0))

    def _engine(self, prompts: Sequence[Prompt]) -> Engine:
        config = self.config
        rows = min(self.plan([list(prompt.tokens) for prompt in prompts]), sum(len(p.samples) for p in prompts))
        engine = Engine(
            self.model,
            rows=rows,
            capacity=max(len(prompt.tokens) for prompt in prompts) - 1 + config.max_new_tokens,
            max_new_tokens=config.max_new_tokens,
            end_tokens=self.end_tokens(),
            stops=StopStrings(self.tokenizer, config.stop, vocabulary=self.vocabulary) if config.stop else None,
            prefill_chunk=config.prefill_chunk,
            backend=config.backend,
            split_times=self.model.device.type == "cpu",
        )
        self.stats.cache_bytes = max(self.stats.cache_bytes, engine.cache.nbytes)
        self.stats.peak_rows = max(self.stats.peak_rows, rows)
        return engine

    def _warm_up(self, engine: Engine, prompt: Prompt) -> None:
        """Run a few steps that are not recorded: first calls pay for libraries, kernels and memory."""
        short = dataclasses.replace(self.config, max_new_tokens=min(_WARMUP_TOKENS, self.config.max_new_tokens))
        for _ in engine.run([dataclasses.replace(prompt, samples=range(engine.cache.slots), config=short)]):
            pass
        self.stats.warmup_seconds += engine.watch.elapsed + engine.times.warmup_seconds
        engine.times = EngineTimes()

    def _count(self, times: EngineTimes, counted: EngineTimes) -> None:
        """Add to the totals what ``times`` has that ``counted`` has not, and bring ``counted`` up to it."""
        stats = self.stats
        stats.overhead_seconds += times.overhead_seconds - counted.overhead_seconds
        for name in ("prefills", "steps", "row_steps", "prefill_seconds", "decode_seconds", "warmup_seconds"):
            setattr(stats, name, getattr(stats, name) + getattr(times, name) - getattr(counted, name))
        for field in dataclasses.fields(EngineTimes):
            setattr(counted, field.name, getattr(times, field.name))

    def _completions(self, wanted: Sequence[Request], rows: Sequence[Row], spent: float) -> Iterator[Completion]:
        texts = self.tokenizer.batch_decode(
            [row.tokens for row in rows], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        for row, text in zip(rows, texts, strict=True):
            request = wanted[row.prompt]
            yield Completion(
                problem_id=request.problem.id,
                sample=row.sample,
                text=text if row.cut is None else text[: row.cut],
                num_prompt_tokens=len(request.prompt),
                num_tokens=len(row.tokens),
                finish_reason="stop" if row.stopped else "length",
                seconds=row.seconds,
                latency_seconds=row.latency,
                seed=self.config.seed,
                model=self.name,
                finished_seconds=spent + row.finished,
            )


@contextlib.contextmanager
def _ready(model: HybridForCausalLM) -> Iterator[None]:
    """Put the model into evaluation mode and, where FSDP2 spreads its weights over ranks, hold them whole meanwhile.

    The decode step calls parts of layers, which do not gather their weights by themselves. Held whole, they are
    gathered once and not at each step, and ranks need not take the same number of steps. All ranks must come here.
    """
    from torch.distributed.fsdp import FSDPModule

    training = model.training
    model.eval()
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    try:
        # weights that are gathered for the first time in inference mode could not be trained later
        with torch.inference_mode(False), torch.no_grad():
            for module in sharded:
                module.unshard()
                module.set_reshard_after_forward(False, recurse=False)
        yield
    finally:
        with torch.inference_mode(False), torch.no_grad():
            for module in sharded:
                # what surrounds the layers stays gathered between forward and backward pass
                module.set_reshard_after_forward(module is not sharded[0], recurse=False)
                module.reshard()
        model.train(training)
