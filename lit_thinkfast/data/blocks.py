"""Numbered blocks of examples: block k is the same on every rank and after every restart.

The passes over a finite corpus follow one another without a gap: block k is block ``k mod n`` of pass ``k div n``,
with n blocks a pass, the last of them short.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_thinkfast.data.corpora import Corpus, IndexedCorpus, Split
from lit_thinkfast.records import Example


class Blocks:
    """Read blocks of a corpus by number.

    An :class:`IndexedCorpus` is read at random, each pass in another order if it has an end. Any other corpus is read
    forward in its own order; blocks passed on the way to a later one are kept until they are asked for.

    Args:
        corpus: Where the examples come from.
        split: Part of the corpus.
        block_size: Examples a block.
        seed: Of the order.
        reshuffle: Another order in each pass; else all passes are like the first, rows included.

    Attributes:
        lowest: No block before this one will be asked for; a forward reader may start here.
        stride: Only blocks that differ by multiples of this will be asked for; others are not kept.
    """

    def __init__(self, corpus: Corpus, *, split: Split, block_size: int, seed: int, reshuffle: bool = True) -> None:
        self.corpus, self.split, self.block_size, self.seed = corpus, split, block_size, seed
        self.reshuffle = reshuffle
        self.lowest, self.stride = 0, 1
        self._pass_blocks: int | None = None
        self._forward: Iterator[Example] | None = None
        self._next = 0
        self._first_of_pass = 0
        self._passed: dict[int, list[Example]] = {}

    def read(self, block: int) -> list[Example]:
        """Return the examples of block number ``block``, from 0.

        Raises:
            ValueError: The split has no example.
        """
        if isinstance(self.corpus, IndexedCorpus):
            return [self.corpus.example(self.split, index) for index in self._indices(self.corpus, block)]
        if block in self._passed:
            return self._passed.pop(block)
        if self._forward is None or block < self._next:
            self._open_at(min(block, self.lowest))
        while self._next < block:
            number, examples = self._next, self._read_forward()
            if number >= self.lowest and (block - number) % self.stride == 0:
                self._passed[number] = examples
        return self._read_forward()

    def state_dict(self) -> dict[str, Any]:
        """Return the blocks a pass, if that is known: with it a restart need not count them again."""
        return {"pass_blocks": self._pass_blocks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        self._pass_blocks = state["pass_blocks"]
        self._forward = None
        self._passed.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_forward": None, "_passed": {}}

    def _indices(self, corpus: IndexedCorpus, block: int) -> list[int]:
        size = corpus.size(self.split)
        if size is None:
            return list(range(block * self.block_size, (block + 1) * self.block_size))
        if size == 0:
            raise self._empty()
        number, part = divmod(block, -(-size // self.block_size))
        order = _order(self.seed, number if self.reshuffle else 0, size)
        return [int(i) for i in order[part * self.block_size : (part + 1) * self.block_size]]

    def _open_at(self, block: int) -> None:
        """Open the corpus at ``block``. Where the blocks of a pass are not counted yet, it may have to count them."""
        self._passed.clear()
        number, part = divmod(block, self._pass_blocks) if self._pass_blocks else (0, block)
        self._first_of_pass, self._next = block - part, block
        self._forward = iter(self.corpus.examples(self.split, start=part * self.block_size))
        if number == 0 and part and not self._pass_blocks:
            first = next(self._forward, None)
            if first is None:
                self._first_of_pass = self._next = 0
                self._forward = iter(self.corpus.examples(self.split, start=0))
            else:
                self._forward = itertools.chain([first], self._forward)

    def _read_forward(self) -> list[Example]:
        assert self._forward is not None
        examples = list(itertools.islice(self._forward, self.block_size))
        if not examples:
            if self._next == self._first_of_pass:
                raise self._empty()
            self._pass_blocks = self._next - self._first_of_pass
            self._first_of_pass = self._next
            self._forward = iter(self.corpus.examples(self.split, start=0))
            examples = list(itertools.islice(self._forward, self.block_size))
        if not examples:
            raise self._empty()
        self._next += 1
        return examples

    def _empty(self) -> ValueError:
        return ValueError(f"the {self.split} split of {type(self.corpus).__name__} has no example")


@functools.lru_cache(maxsize=2)
def _order(seed: int, number: int, size: int) -> NDArray[np.int64]:
    """Order of the examples in pass ``number``."""
    return np.random.default_rng([seed, number]).permutation(size)
