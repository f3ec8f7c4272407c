"""The decode loop: one batch of prompts in, token rows and seconds out. Teacher and students run through it alike.

Prompts are prefilled once, left-padded to a common length, and their caches are repeated for the samples they serve.
Then all rows take one step at a time. A row that ends leaves at once: the last rows move into the holes, in place, so
that leaving costs the copy of a few rows and no step is spent on finished ones. Nothing in the loop is done row by row
in Python.

Left out: admitting new rows into a running batch, and speculative decoding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_thinkfast.generation.clock import Stopwatch
from lit_thinkfast.generation.picking import pick_tokens
from lit_thinkfast.generation.rng import uniforms

if TYPE_CHECKING:
    from lit_thinkfast.models.cache import HybridCache
    from lit_thinkfast.models.modeling import HybridForCausalLM

# Positions whose random numbers are computed together
_UNIFORM_BLOCK = 64

StepCallback = Callable[[int, int, int], None]


@dataclass(frozen=True, slots=True)
class RowKeys:
    """Who the rows are, for their random numbers: int64 ``(rows,)`` each, see :func:`rng.uniforms`."""

    problems: Tensor
    samples: Tensor
    seed: int = 0


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What one batch gave. Tensors are on the CPU, one entry a row, in the order in which rows were asked for.

    Attributes:
        tokens: int64 ``(rows, longest)``; row r holds ``lengths[r]`` tokens, what follows is 0.
        lengths: int64 ``(rows,)``, end token included.
        stopped: bool ``(rows,)``: ended by an end token, not by the budget.
        seconds: float64 ``(rows,)``: the row's share. Prefill is divided equally over prompts, then over the rows of
            a prompt; each step equally over the rows that took it. The shares add up to ``prefill_seconds +
            decode_seconds``.
        latency: float64 ``(rows,)``: from the start of the batch to the row's last token.
        prefill_seconds: Encoding the prompts, repeating their caches, and drawing the first tokens.
        decode_seconds: All further steps.
        steps: Forward passes after the prefill.
        row_steps: Rows summed over these passes.
        cache_bytes: Size of the cache of all rows at full length.
    """

    tokens: Tensor
    lengths: Tensor
    stopped: Tensor
    seconds: Tensor
    latency: Tensor
    prefill_seconds: float
    decode_seconds: float
    steps: int
    row_steps: int
    cache_bytes: int


@torch.inference_mode()
def decode_batch(
    model: HybridForCausalLM,
    prompts: Sequence[Sequence[int]],
    *,
    copies: Sequence[int],
    keys: RowKeys,
    temperature: float,
    max_new_tokens: int,
    top_p: float = 1.0,
    end_tokens: Sequence[int] = (),
    watch: Stopwatch | None = None,
    on_step: StepCallback | None = None,
    seconds_between_calls: float = 0.25,
) -> BatchResult:
    """Continue every prompt ``copies`` times.

    Args:
        model: In evaluation mode.
        prompts: Token ids of each prompt, none empty.
        copies: Rows for each prompt, at least 1; the rows of a prompt are neighbours.
        keys: Of all ``sum(copies)`` rows.
        temperature: See :func:`picking.pick_tokens`.
        max_new_tokens: Budget of each row.
        top_p: See :func:`picking.nucleus`.
        end_tokens: Tokens that end a row; none: every row runs to the budget.
        watch: Clock; its owner sees the same seconds.
        on_step: Called with (tokens so far, rows finished, rows left) every now and then, its own time left out.
        seconds_between_calls: Least time between two calls of ``on_step``.

    Raises:
        ValueError: The model's logits are not finite.
    """
    device = next(model.parameters()).device
    watch = watch or Stopwatch(device)
    watch.skip()
    owner = torch.repeat_interleave(torch.arange(len(prompts)), torch.tensor(copies))
    rows = _Rows(model, prompts, owner=owner.to(device), keys=keys, max_new_tokens=max_new_tokens)
    ledger = _Ledger(owner, copies, max_new_tokens)
    is_end = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=device)
    is_end[list(end_tokens)] = True
    tokens = torch.zeros(max_new_tokens, len(owner), dtype=torch.int64, device=device)
    cache_bytes = rows.cache.nbytes
    called = time.monotonic()

    for index in range(max_new_tokens):
        uniform = rows.uniform(index, max_new_tokens) if temperature > 0 else None
        token = pick_tokens(rows.logits, uniform, temperature=temperature, top_p=top_p)
        tokens[index, rows.active] = token
        done = is_end[token]
        leaving = int(done.sum()) if end_tokens else 0  # on an accelerator this is the step's one wait
        last = index + 1 == max_new_tokens
        if leaving or last or index == 0:
            _check_finite(rows.logits)
        ledger.charge(watch.lap(), rows=len(rows.active), index=index)
        if leaving or last:
            ledger.close(rows.active, done, index=index, all_rows=last)
        if leaving == len(rows.active) or last:
            break
        if on_step is not None and time.monotonic() - called >= seconds_between_calls:
            left = len(rows.active) - leaving
            on_step(ledger.closed_tokens + left * (index + 1), len(owner) - left, left)
            called = time.monotonic()
            watch.skip()
        if leaving:
            token = rows.drop(done, token)
        ledger.row_steps += len(rows.active)
        rows.step(token)

    return BatchResult(
        tokens=tokens[: index + 1].T.contiguous().cpu(),
        lengths=ledger.lengths,
        stopped=ledger.stopped,
        seconds=ledger.seconds,
        latency=ledger.latency,
        prefill_seconds=ledger.prefill_seconds,
        decode_seconds=ledger.total - ledger.prefill_seconds,
        steps=index,
        row_steps=ledger.row_steps,
        cache_bytes=cache_bytes,
    )


class _Rows:
    """The rows still decoding, in slots 0 .. n-1: who they are, where they are, and their cache.

    Made by the prefill: each prompt is encoded once, then every row is given the cache and the logits of its prompt.
    """

    def __init__(
        self,
        model: HybridForCausalLM,
        prompts: Sequence[Sequence[int]],
        *,
        owner: Tensor,
        keys: RowKeys,
        max_new_tokens: int,
    ) -> None:
        from lit_thinkfast.models.cache import HybridCache

        device = owner.device
        ids, mask = pad_left(prompts, device=device)
        padded = not bool(mask.all())
        cache = HybridCache(model.config, len(prompts), ids.shape[1], device=device, dtype=model.dtype)
        logits = _last_logits(model, ids, cache, mask=mask if padded else None)
        self.model = model
        self.cache = cache.keep(owner, max_length=ids.shape[1] + max_new_tokens)
        self.logits = logits[owner]
        # without padding all rows are at the same position, which the model counts itself
        self.position = mask.sum(-1, keepdim=True)[owner] if padded else None
        self.active = torch.arange(len(owner), device=device)
        self.problems, self.samples = keys.problems.to(device), keys.samples.to(device)
        self.seed = keys.seed
        self.block = torch.empty(0)

    def uniform(self, index: int, stop: int) -> Tensor:
        """Return the random number of each row at generated position ``index``."""
        column = index % _UNIFORM_BLOCK
        if column == 0:
            ahead = torch.arange(index, min(index + _UNIFORM_BLOCK, stop), device=self.active.device)
            self.block = uniforms(self.problems[:, None], self.samples[:, None], ahead, seed=self.seed)
        return self.block[:, column]

    def drop(self, done: Tensor, token: Tensor) -> Tensor:
        """Let the rows marked in ``done`` leave; return ``token`` of those that stay, in their new slots."""
        left, source, target = fill_holes(done)
        order = torch.arange(left, device=done.device)
        order[target] = source
        self.cache.move_rows(source, target, size=left)
        self.active, self.problems, self.samples = self.active[order], self.problems[order], self.samples[order]
        if self.position is not None:
            self.position = self.position[order]
        if self.block.numel():
            self.block = self.block[order]
        return token[order]

    def step(self, token: Tensor) -> None:
        """Take ``token`` ``(rows,)`` in and compute the logits of what follows."""
        self.logits = _last_logits(self.model, token[:, None], self.cache, position=self.position)
        if self.position is not None:
            self.position = self.position + 1


def pad_left(prompts: Sequence[Sequence[int]], *, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Return ids and mask, int64 ``(prompts, longest)``, padded on the left with 0.

    >>> pad_left([[5, 6, 7], [8]])[0].tolist()
    [[5, 6, 7], [0, 0, 8]]
    """
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def fill_holes(done: Tensor) -> tuple[int, Tensor, Tensor]:
    """Plan the fewest moves that bring all unfinished rows to the front.

    Args:
        done: bool ``(rows,)``.

    Returns:
        Rows left, and two index tensors of equal length: row ``source[i]`` is to move to ``target[i]``.

    >>> left, source, target = fill_holes(torch.tensor([True, False, False, True, False]))
    >>> left, source.tolist(), target.tolist()
    (3, [4], [0])
    """
    left = len(done) - int(done.sum())
    return left, left + (~done[left:]).nonzero()[:, 0], done[:left].nonzero()[:, 0]


def _last_logits(
    model: HybridForCausalLM,
    ids: Tensor,
    cache: HybridCache,
    *,
    mask: Tensor | None = None,
    position: Tensor | None = None,
) -> Tensor:
    """Bring the cache forward by ``ids`` ``(rows, t)`` and return ``(rows, vocabulary)`` after the last of them."""
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=position,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    logits: Tensor = output.logits[:, -1]
    return logits


def _check_finite(logits: Tensor) -> None:
    if not bool(logits.amax(-1).isfinite().all()):
        raise ValueError("the model gave logits that are not finite; check its weights, or use a wider dtype")


class _Ledger:
    """Times and lengths of the rows of a batch."""

    def __init__(self, owner: Tensor, copies: Sequence[int], budget: int) -> None:
        count = len(owner)
        self.lengths = torch.full((count,), budget)
        self.stopped = torch.zeros(count, dtype=torch.bool)
        self.seconds = torch.zeros(count, dtype=torch.float64)
        self.latency = torch.zeros(count, dtype=torch.float64)
        self.total = self.prefill_seconds = self.share = 0.0
        self.row_steps = self.closed_tokens = 0
        self._prefill_part = (1 / len(copies) / torch.tensor(copies, dtype=torch.float64))[owner]

    def charge(self, lap: float, *, rows: int, index: int) -> None:
        """Divide a lap among the ``rows`` that took it; the first lap is the prefill."""
        self.total += lap
        if index == 0:
            self.prefill_seconds = lap
            self.seconds = self._prefill_part * lap
        else:
            self.share += lap / rows

    def close(self, active: Tensor, done: Tensor, *, index: int, all_rows: bool) -> None:
        """Settle the accounts of the rows that end at generated position ``index``."""
        stopped = active[done].cpu()
        ended = active.cpu() if all_rows else stopped
        self.stopped[stopped] = True
        self.lengths[ended] = index + 1
        self.seconds[ended] += self.share
        self.latency[ended] = self.total
        self.closed_tokens += len(ended) * (index + 1)
