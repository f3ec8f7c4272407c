"""The decode loop: prompts in, finished rows out as they end, with what each of them cost. All models run through it.

A fixed number of slots decode together, one token a row and step. A row that ends is replaced at once by the next that
is wanted, so that no step is spent on finished rows (continuous batching); only when nothing is left to admit does the
batch shrink. Prompts and outputs may be of any lengths: every row is at its own.

A prompt is encoded once, in chunks, but for its last token, and its cache copied into the slots of its samples. The
last token is what a new row takes in at its first step, so that new and old rows are treated alike.

Left out: sharing of prefixes between prompts, and speculative decoding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lit_thinkfast.generation.backends import make_decoder
from lit_thinkfast.generation.clock import Stopwatch
from lit_thinkfast.generation.config import SamplingConfig
from lit_thinkfast.generation.picking import pick_tokens
from lit_thinkfast.generation.rows import Prompt, Row, Rows, Waiting

if TYPE_CHECKING:
    from lit_thinkfast.generation.stops import StopStrings
    from lit_thinkfast.models.cache import HybridCache
    from lit_thinkfast.models.modeling import HybridForCausalLM

_SECONDS_BETWEEN_CALLS = 0.25


@dataclass(slots=True)
class EngineTimes:
    """Where the time of an engine went. Seconds on its clock.

    Attributes:
        prefill_seconds: Encoding prompts and giving their caches to slots.
        decode_seconds: All else.
        model_seconds: The part of ``decode_seconds`` in the model's own step; 0 where it was not told apart.
        warmup_seconds: Compiling, or capturing graphs, for shapes that had not occurred before. Not on the clock, and
            so in none of the others, nor in the share of a row.
        prefills: Prompts encoded.
        steps: Steps of the batch.
        row_steps: Rows summed over these steps.
    """

    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    model_seconds: float = 0.0
    warmup_seconds: float = 0.0
    prefills: int = 0
    steps: int = 0
    row_steps: int = 0

    @property
    def overhead_seconds(self) -> float:
        """Drawing tokens, refilling slots, keeping books; 0 where that was not told apart from the model's own step."""
        return self.decode_seconds - self.model_seconds if self.model_seconds else 0.0


@dataclass(frozen=True, slots=True)
class EngineState:
    """How far a run has come.

    Attributes:
        finished: Rows that have ended.
        tokens: Theirs.
        rows: Rows in flight.
        tokens_in_flight: What they have said so far.
    """

    finished: int
    tokens: int
    rows: int
    tokens_in_flight: int


class Engine:
    """Slots of one model, and the loop over them; one run at a time.

    Args:
        model: In evaluation mode. Any model of ours: all-attention, hybrid, recurrent.
        rows: Slots.
        capacity: Tokens that a prompt and its output may have together.
        max_new_tokens: Tokens that an output may have.
        end_tokens: Tokens that end a row; none: every row runs to its budget.
        stops: Strings that end a row, whatever the ``stop`` of its prompt's config.
        prefill_chunk: Tokens of a prompt encoded at a time, which bounds the memory that this takes.
        backend: See :func:`backends.make_decoder`.
        watch: Its clock.
        split_times: Tell the model's own seconds apart. On an accelerator this waits for it once more a step.

    Attributes:
        times: Where the time went, all runs together.
        cache: The slots.
    """

    def __init__(
        self,
        model: HybridForCausalLM,
        *,
        rows: int,
        capacity: int,
        max_new_tokens: int,
        end_tokens: Sequence[int] = (),
        stops: StopStrings | None = None,
        prefill_chunk: int = 512,
        backend: str = "auto",
        watch: Stopwatch | None = None,
        split_times: bool = True,
    ) -> None:
        from lit_thinkfast.models.slots import SlotCache

        device = next(model.parameters()).device
        self.model = model
        self.watch = watch or Stopwatch(device)
        self.times = EngineTimes()
        self.cache = SlotCache(model.config, rows, capacity, device=device, dtype=model.dtype)
        self._decoder = make_decoder(model, self.cache, backend=backend, aside=self._aside)
        self._begun = 0.0  # seconds of the present step before it was interrupted by what is no part of it
        self._rows = Rows(rows, max_new_tokens, device)
        self._prefill_chunk, self._split_times, self._stops = prefill_chunk, split_times, stops
        self._is_end = np.zeros(model.config.vocab_size, dtype=bool)
        self._is_end[list(end_tokens)] = True
        self._may_stop = np.zeros_like(self._is_end)
        if stops is not None:
            known = stops.candidates[: len(self._may_stop)]
            self._may_stop[: len(known)] = known.cpu().numpy()

    def run(
        self,
        prompts: Sequence[Prompt],
        *,
        until: float = float("inf"),
        on_step: Callable[[EngineState], None] | None = None,
    ) -> Iterator[list[Row]]:
        """Yield rows as they end, those of a step together. The caller's time in between is not counted.

        Args:
            prompts: Begun in this order.
            until: Reading of the clock at which to stop; rows that have not ended by then are dropped.
            on_step: Called every now and then, its own time left out.

        Raises:
            ValueError: The model's logits are not finite, or a prompt and its output do not fit.
        """
        self._check(prompts)
        rows, watch, waiting = self._rows, self.watch, Waiting(prompts)
        rows.clear()
        tokens = finished = 0
        called = time.monotonic()
        watch.skip()
        while watch.elapsed < until:
            self._refill(waiting, until)
            if not rows.count or watch.elapsed >= until:
                break
            ended = self._step()
            if watch.elapsed > until:
                break
            if ended:
                tokens += sum(len(row.tokens) for row in ended)
                finished += len(ended)
                yield ended
                watch.skip()
            if on_step is not None and time.monotonic() - called >= _SECONDS_BETWEEN_CALLS:
                on_step(EngineState(finished, tokens, rows.active, rows.tokens_in_flight))
                called = time.monotonic()
                watch.skip()

    def _check(self, prompts: Sequence[Prompt]) -> None:
        capacity, most = self.cache.capacity, self._rows.max_new_tokens
        for prompt in prompts:
            asked = prompt.config.max_new_tokens
            if not prompt.tokens or asked > most or len(prompt.tokens) - 1 + asked > capacity:
                raise ValueError(
                    f"a prompt of {len(prompt.tokens)} tokens and {asked} new ones do not fit slots of {capacity} "
                    f"tokens, {most} of them new; prompts have at least one token, and the engine may be made larger"
                )

    @torch.inference_mode()
    def _refill(self, waiting: Waiting, until: float) -> None:
        """Give free slots to the samples that are next, encoding their prompts; without any, let the batch shrink."""
        rows, watch = self._rows, self.watch
        while rows.free and waiting.current is not None and watch.elapsed < until:
            index, prompt = waiting.current
            began = watch.elapsed
            if waiting.encoded is None:
                waiting.encoded = self._encode(prompt.tokens[:-1])
                waiting.share = self._prefill_lap() / len(prompt.samples)
                self.times.prefills += 1
            admitted = rows.admit(index, prompt, waiting.take(len(rows.free)), began=began)
            self.cache.admit(torch.tensor(admitted, device=self.cache.lengths.device), waiting.encoded)
            rows.charge_rows(admitted, waiting.share + self._prefill_lap() / len(admitted))
            waiting.advance()
        if rows.free:
            source, target = rows.shrink()
            if len(source):
                self.cache.move(source, target)

    def _prefill_lap(self) -> float:
        lap = self.watch.lap()
        self.times.prefill_seconds += lap
        return lap

    def _encode(self, tokens: Sequence[int]) -> HybridCache:
        from lit_thinkfast.models.cache import HybridCache

        device = self.cache.lengths.device
        encoded = HybridCache(self.model.config, 1, max(1, len(tokens)), device=device, dtype=self.model.dtype)
        if tokens:
            for chunk in torch.tensor([list(tokens)], device=device).split(self._prefill_chunk, dim=1):
                self.model.model(input_ids=chunk, past_key_values=encoded, use_cache=True)
        return encoded

    @torch.inference_mode()
    def _step(self) -> list[Row]:
        """Take one step with all rows and return those that ended."""
        rows, watch, times = self._rows, self.watch, self.times
        logits = self._decoder(rows.token[: rows.count], rows.longest)
        model_lap = watch.lap() if self._split_times else 0.0
        begun, self._begun = self._begun, 0.0
        settings = rows.settings()
        uniform = rows.next_uniforms() if settings.wants_uniform else None
        said = rows.say(pick_tokens(logits, uniform, settings))
        ending = self._ending(said)
        if ending or not times.steps:
            _check_finite(logits[list(ending)] if times.steps else logits)
        texts = {row: rows.said(row) for row in ending}

        lap = begun + model_lap + watch.lap()
        times.model_seconds += begun + model_lap if self._split_times else 0.0
        times.decode_seconds += lap
        times.steps += 1
        times.row_steps += rows.count
        rows.charge(lap)
        return [
            rows.close(row, tokens=texts[row], stopped=stopped, cut=cut, elapsed=watch.elapsed)
            for row, (stopped, cut) in ending.items()
        ]

    def _ending(self, said: np.ndarray[tuple[int], np.dtype[np.int64]]) -> dict[int, tuple[bool, int | None]]:
        """Which rows end with what they have just said: by themselves or not, and where a stop string cuts the text."""
        ending: dict[int, tuple[bool, int | None]] = dict.fromkeys(self._rows.out_of_budget(), (False, None))
        if self._stops is not None:
            for row in np.flatnonzero(self._may_stop[said]).tolist():
                if (cut := self._stops.find(self._rows.said(row))) is not None:
                    ending[row] = True, cut
        for row in np.flatnonzero(self._is_end[said]).tolist():
            ending[row] = True, ending.get(row, (True, None))[1]
        return ending

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """Do what is done once for all steps of a shape: off the clock, as part of the warm-up."""
        self._begun += self.watch.lap()
        elapsed = self.watch.elapsed
        yield
        self.times.warmup_seconds += self.watch.lap()
        self.watch.elapsed = elapsed


def _check_finite(logits: Tensor) -> None:
    if not bool(logits.amax(-1).isfinite().all()):
        raise ValueError("the model gave logits that are not finite; check its weights, or use a wider dtype")


@dataclass(frozen=True, slots=True)
class DecodeTimes:
    """What it took to continue one prompt ``rows`` times.

    Attributes:
        prefill_seconds: Encoding the prompt and giving its cache to the rows.
        decode_seconds: All steps, one a new token.
        model_seconds: The part of them in the model.
        steps: Steps.
        cache_bytes: Memory of the rows.
    """

    prefill_seconds: float
    decode_seconds: float
    model_seconds: float
    steps: int
    cache_bytes: int

    @property
    def overhead_seconds(self) -> float:
        """The part of ``decode_seconds`` outside the model: drawing tokens, keeping books."""
        return self.decode_seconds - self.model_seconds


def time_decode(
    model: HybridForCausalLM,
    prompt: Sequence[int],
    *,
    rows: int,
    config: SamplingConfig,
    warmup: int = 0,
) -> DecodeTimes:
    """Continue a prompt in ``rows`` rows by exactly ``config.max_new_tokens`` tokens each, and say what that took.

    Args:
        model: In evaluation mode.
        prompt: Its tokens.
        rows: Samples, all at once.
        config: Its temperature and filters, seed, prefill chunk and backend count.
        warmup: Tokens of an unrecorded run before, on the same memory.
    """
    engine = Engine(
        model,
        rows=rows,
        capacity=len(prompt) - 1 + config.max_new_tokens,
        max_new_tokens=config.max_new_tokens,
        prefill_chunk=config.prefill_chunk,
        backend=config.backend,
    )
    if warmup:
        short = dataclasses.replace(config, max_new_tokens=min(warmup, config.max_new_tokens))
        for _ in engine.run([Prompt(prompt, 0, range(rows), short)]):
            pass
        engine.times = EngineTimes()
    for _ in engine.run([Prompt(prompt, 0, range(rows), config)]):
        pass
    times = engine.times
    return DecodeTimes(
        times.prefill_seconds, times.decode_seconds, times.model_seconds, times.steps, engine.cache.nbytes
    )
