"""The books of the rows that decode together: who is in which slot, what it has said, and what it has cost.

What the model and the random numbers need is on the device; the rest is in arrays on the host, so that a step keeps its
books in a few vectorised operations whatever the number of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lit_thinkfast.generation.config import SamplingConfig
from lit_thinkfast.generation.picking import RowSettings
from lit_thinkfast.generation.rng import uniforms

if TYPE_CHECKING:
    from lit_thinkfast.models.cache import HybridCache

# Positions whose random numbers are computed together
_UNIFORM_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, and the samples that are wanted of it.

    Attributes:
        tokens: At least one.
        key: Who it is, for its random numbers: see :func:`rng.problem_key`.
        samples: Indices of the samples.
        config: How they are sampled: its filters, seed and token budget.
    """

    tokens: Sequence[int]
    key: int
    samples: Sequence[int]
    config: SamplingConfig


@dataclass(frozen=True, slots=True)
class Row:
    """A finished sample.

    Attributes:
        prompt: Index of its prompt among those given.
        sample: Its index.
        tokens: Generated, the end token included.
        stopped: Ended by an end token or a stop string, not by the budget.
        cut: Characters of the text before a stop string; ``None`` where there is none.
        seconds: Its share: of the prefill, divided equally over the samples of the prompt, and of each step, over the
            rows that took it.
        latency: From its admission, the prefill included that it waited for, to its last token.
        finished: The engine's clock at its last token.
    """

    prompt: int
    sample: int
    tokens: list[int]
    stopped: bool
    cut: int | None
    seconds: float
    latency: float
    finished: float


class Rows:
    """Slots 0 to ``count - 1`` are in use, but for those in ``free``.

    Args:
        slots: Most rows.
        max_new_tokens: Most tokens a row.
        device: Of the model.

    Attributes:
        count: Slots in use, free ones among them included.
        free: Slots below ``count`` whose rows have ended, or all slots at the start, in rising order.
        token: (slots,) int64 on the device: what each row takes in next.
    """

    def __init__(self, slots: int, max_new_tokens: int, device: torch.device) -> None:
        self.slots, self.max_new_tokens, self.device = slots, max_new_tokens, device
        self.token, self._keys, self._samples, self._seeds = (
            torch.zeros(slots, dtype=torch.int64, device=device) for _ in range(4)
        )
        self._uniforms = torch.zeros(slots, _UNIFORM_BLOCK, dtype=torch.float64, device=device)
        self._settings: RowSettings | None = None
        self._prompt, self._sample, self._length, self._generated, self._budget = np.zeros((5, slots), dtype=np.int64)
        self._said = np.zeros((slots, max_new_tokens), dtype=np.int64)
        # what clock and sum of shares said when a row was admitted, and what it was charged apart from them
        self._admitted, self._share_before, self._charged = np.zeros((3, slots))
        self.clear()

    def clear(self) -> None:
        """Forget all rows."""
        self.count = self.slots
        self.free = list(range(self.slots))
        self._column = 0
        self._share = 0.0

    @property
    def active(self) -> int:
        """Rows in flight."""
        return self.count - len(self.free)

    @property
    def tokens_in_flight(self) -> int:
        """Tokens that they have said."""
        return int(self._generated[: self.count].sum())

    @property
    def longest(self) -> int:
        """No row has more tokens than this once it has taken its next one in."""
        return int(self._length[: self.count].max()) + 1

    def admit(self, index: int, prompt: Prompt, samples: Sequence[int], *, began: float) -> list[int]:
        """Put samples of a prompt into free slots and return which.

        Args:
            index: Of the prompt.
            prompt: All of whose tokens but the last are in the cache that these slots are given.
            samples: At most as many as there are free slots.
            began: Reading of the clock when the work for these rows began.
        """
        rows, self.free = self.free[: len(samples)], self.free[len(samples) :]
        where = torch.tensor(rows, device=self.device)
        self.token[where] = prompt.tokens[-1]
        self._keys[where] = prompt.key
        self._samples[where] = torch.tensor(samples, device=self.device)
        self._seeds[where] = prompt.config.seed
        settings = RowSettings.repeat(prompt.config, len(rows), device=self.device)
        if self._settings is None:
            self._settings = RowSettings.repeat(prompt.config, self.slots, device=self.device)
        self._settings = self._settings.put(where, settings)
        self._prompt[rows], self._sample[rows] = index, samples
        self._length[rows], self._generated[rows] = len(prompt.tokens) - 1, 0
        self._budget[rows] = prompt.config.max_new_tokens
        self._admitted[rows], self._share_before[rows], self._charged[rows] = began, self._share, 0.0
        if settings.wants_uniform:
            self._draw(where, start=self._column)
        return rows

    def charge_rows(self, rows: list[int], seconds: float) -> None:
        """Charge each of these rows for work that was done for it alone."""
        self._charged[rows] += seconds

    def settings(self) -> RowSettings:
        """How the rows in use pick their tokens."""
        assert self._settings is not None
        return self._settings if self.count == self.slots else self._settings.take(slice(self.count))

    def next_uniforms(self) -> Tensor:
        """Return the random number of each row in use for the token that it is about to say, float64 (count,)."""
        if self._column == 0:
            self._draw(slice(self.count), start=0)
        return self._uniforms[: self.count, self._column]

    def _draw(self, rows: Tensor | slice, *, start: int) -> None:
        """Compute the random numbers of these rows for the columns from ``start`` on."""
        ahead = torch.arange(_UNIFORM_BLOCK - start, device=self.device)
        host = rows.cpu().numpy() if isinstance(rows, Tensor) else rows
        said = torch.from_numpy(self._generated[host]).to(self.device)
        keys, samples, seeds = (values[rows, None] for values in (self._keys, self._samples, self._seeds))
        self._uniforms[rows, start:] = uniforms(keys, samples, said[:, None] + ahead, seed=seeds)

    def say(self, token: Tensor) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Note what the rows in use have said, int64 (count,) on the device, and return it on the host."""
        count = self.count
        self.token[:count] = token
        said = token.cpu().numpy()
        self._said[np.arange(count), self._generated[:count]] = said
        self._generated[:count] += 1
        self._length[:count] += 1
        self._column = (self._column + 1) % _UNIFORM_BLOCK
        return said

    def charge(self, lap: float) -> None:
        """Divide a step's seconds among the rows that took it."""
        self._share += lap / self.count

    def out_of_budget(self) -> list[int]:
        """Rows that have said all they may."""
        over: list[int] = (self._generated[: self.count] >= self._budget[: self.count]).nonzero()[0].tolist()
        return over

    def said(self, row: int) -> list[int]:
        """All tokens of a row so far."""
        tokens: list[int] = self._said[row, : self._generated[row]].tolist()
        return tokens

    def close(self, row: int, *, tokens: list[int], stopped: bool, cut: int | None, elapsed: float) -> Row:
        """Let a row end that has said ``tokens``, and free its slot."""
        done = Row(
            prompt=int(self._prompt[row]),
            sample=int(self._sample[row]),
            tokens=tokens,
            stopped=stopped,
            cut=cut,
            seconds=float(self._charged[row] + self._share - self._share_before[row]),
            latency=elapsed - float(self._admitted[row]),
            finished=elapsed,
        )
        self._generated[row] = 0
        self.free = sorted([*self.free, row])
        return done

    def shrink(self) -> tuple[Tensor, Tensor]:
        """Close the gaps: return index tensors; row ``source[i]`` has moved to slot ``target[i]``."""
        left = self.active
        target = [row for row in self.free if row < left]
        source = [row for row in range(left, self.count) if row not in set(self.free)]
        self.count, self.free = left, []
        moves = torch.tensor([source, target], dtype=torch.int64, device=self.device)
        if source:
            for values in (self.token, self._keys, self._samples, self._seeds, self._uniforms):
                values[moves[1]] = values[moves[0]]
            assert self._settings is not None
            self._settings = self._settings.put(moves[1], self._settings.take(moves[0]))
            for books in (
                self._prompt, self._sample, self._length, self._generated, self._budget, self._said,
                self._admitted, self._share_before, self._charged,
            ):  # fmt: skip
                books[target] = books[source]
        return moves[0], moves[1]


class Waiting:
    """The samples that have not been admitted yet, prompt after prompt."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self._queue: Iterator[tuple[int, Prompt]] = ((i, prompt) for i, prompt in enumerate(prompts) if prompt.samples)
        self._taken = 0
        self.current: tuple[int, Prompt] | None = next(self._queue, None)
        """Index and prompt whose samples come next, or ``None`` when none are left."""
        self.encoded: HybridCache | None = None
        """The cache of the current prompt, once it has been encoded."""
        self.share = 0.0
        """Seconds of that for each of its samples."""

    def take(self, most: int) -> list[int]:
        """Take the next samples of the current prompt, at most so many."""
        assert self.current is not None
        samples = list(self.current[1].samples[self._taken : self._taken + most])
        self._taken += len(samples)
        return samples

    def advance(self) -> None:
        """Go on to the next prompt if the current one has no samples left."""
        if self.current is not None and self._taken == len(self.current[1].samples):
            self._taken, self.encoded = 0, None
            self.current = next(self._queue, None)
