"""Whole documents laid end to end in rows of ``seq_len`` tokens, endlessly, resumable, the same on any number of ranks.

The examples of a corpus, in an order that depends on the seed alone, are cut into blocks of ``block_size``; each block
is packed by itself (best fit, longest first), so that a block's rows are a function of (seed, block). Block b belongs
to shard ``b mod num_shards``, and batch number g of the whole run, counted over all ranks, takes the next rows of shard
``g mod num_shards``. Hence a position is one pair of integers a shard, (blocks done, rows done), and neither the number
of ranks nor of workers changes which rows make up batch g. Both must only divide ``num_shards``.

A document longer than a row keeps its first ``seq_len`` tokens and loses the rest, which is logged; a document without
any label is left out. Nothing else is lost, and nothing is used twice before the corpus is through.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import IterableDataset

from lit_thinkfast.data.blocks import Blocks
from lit_thinkfast.data.corpora import Corpus, Split
from lit_thinkfast.data.rows import Row, RowPacker
from lit_thinkfast.records import PackedBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_EMPTY_BLOCKS = 100
"""Blocks without one usable document, in a row, after which the corpus is given up."""

Cursor = tuple[int, int]
"""Position in a shard: blocks of this shard that are used up, and rows used of the next one."""


class PackedStream(IterableDataset[PackedBatch]):
    """Training batches of one rank, without end; iterating yields ``length`` of them and goes on from there next time.

    Args:
        corpus: Where the examples come from. One without an end is read on, a finite one is read again and again, in a
            new order each time if it is an :class:`~lit_thinkfast.data.corpora.IndexedCorpus`.
        tokenizer: A fast tokenizer.
        seq_len: Tokens a row.
        batch_size: Rows a batch.
        length: Batches that one iteration yields: the length declared to the training loop.
        split: Part of the corpus.
        seed: Of the order.
        system: System prompt, as text or a name.
        rank: Of this process.
        world_size: Processes that share the stream.
        num_shards: See the module's text; a multiple of ranks times workers.
        block_size: Examples packed together: more waste less, and cost more memory and a longer start.
        reshuffle: Draw another order for each pass of a finite corpus; else its rows come again as they were.

    Raises:
        ValueError: A number out of range, or ``world_size`` does not divide ``num_shards``.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        tokenizer: PreTrainedTokenizerBase,
        seq_len: int,
        batch_size: int,
        length: int,
        split: Split = "train",
        seed: int = 0,
        system: str | None = None,
        rank: int = 0,
        world_size: int = 1,
        num_shards: int = 24,
        block_size: int = 128,
        reshuffle: bool = True,
    ) -> None:
        for name, value in {"batch_size": batch_size, "length": length, "block_size": block_size}.items():
            if value < 1:
                raise ValueError(f"{name} {value} is below 1")
        self.packer = RowPacker(tokenizer, seq_len=seq_len, system=system)
        self.blocks = Blocks(corpus, split=split, block_size=block_size, seed=seed, reshuffle=reshuffle)
        self.batch_size, self.length, self.num_shards = batch_size, length, num_shards
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.check_workers(1)
        self._batches = 0
        self._cursors: dict[int, Cursor] = {}
        self._open: dict[int, tuple[int, list[Row]]] = {}
        self._settings = {
            "split": split,
            "seed": seed,
            "seq_len": seq_len,
            "batch_size": batch_size,
            "num_shards": num_shards,
            "block_size": block_size,
            "vocabulary": len(tokenizer),
            "system": self.packer.system or "",
            **({} if reshuffle else {"reshuffle": False}),
        }

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[PackedBatch]:
        for batch, shard, cursor in itertools.islice(self.tagged(), self.length):
            self.advance(shard, cursor)
            yield batch

    def check_workers(self, num_workers: int) -> None:
        """Raise ``ValueError`` unless ranks times workers divide the shards."""
        parts = self.world_size * max(1, num_workers)
        if self.num_shards < 1 or self.num_shards % parts:
            remedy = max(1, round(self.num_shards / parts)) * parts
            raise ValueError(
                f"num_shards {self.num_shards} is not a multiple of {self.world_size} ranks x "
                f"{max(1, num_workers)} workers; use num_shards {remedy}"
            )

    def tagged(self, worker: int = 0, num_workers: int = 1) -> Iterator[tuple[PackedBatch, int, Cursor]]:
        """Yield ``(batch, shard, cursor of the shard after it)`` from the present position, which does not move.

        Worker w of n gives the batches w, w + n, w + 2n, ... of this rank.
        """
        cursors, first = dict(self._cursors), self._batches + self.rank
        self.blocks.stride = self.world_size * num_workers
        self.blocks.lowest = min(
            cursors.get(shard, (0, 0))[0] * self.num_shards + shard for shard in range(self.num_shards)
        )
        for step in itertools.count(worker, num_workers):
            shard = (first + step * self.world_size) % self.num_shards
            rows, cursors[shard] = self._take(shard, cursors.get(shard, (0, 0)))
            yield self.packer.collate(rows), shard, cursors[shard]

    def advance(self, shard: int, cursor: Cursor) -> None:
        """Record that the batch ending at ``cursor`` of ``shard`` was delivered on this rank, and one on each other."""
        self._cursors[shard] = cursor
        self._batches += self.world_size

    def state_dict(self) -> dict[str, Any]:
        """Return the position as plain integers. With several ranks, all must call this: the cursors are gathered."""
        cursors = self._cursors
        if self.world_size > 1:
            parts: list[dict[int, Cursor]] = [{} for _ in range(self.world_size)]
            torch.distributed.all_gather_object(parts, cursors)
            # a rank moves the shards that are its own, and knows the others only as they were when it was restored
            cursors = {shard: max(part.get(shard, (0, 0)) for part in parts) for shard in sorted(set().union(*parts))}
        return {
            "settings": dict(self._settings),
            "batches": self._batches,
            "cursors": [list(cursors.get(shard, (0, 0))) for shard in range(self.num_shards)],
            "blocks": self.blocks.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position that any rank of a run with any number of ranks returned.

        Raises:
            ValueError: The position is of a stream with other settings.
        """
        for name, value in self._settings.items():
            if state["settings"].get(name) != value:
                raise ValueError(
                    f"cannot resume the data: {name} was {state['settings'].get(name)!r} when the checkpoint was "
                    f"written and is {value!r} now; set it back or start anew"
                )
        self._batches = int(state["batches"])
        self._cursors = {shard: (int(block), int(row)) for shard, (block, row) in enumerate(state["cursors"])}
        self._open.clear()
        self.blocks.load_state_dict(state["blocks"])

    def _take(self, shard: int, cursor: Cursor) -> tuple[list[Row], Cursor]:
        """Return the next ``batch_size`` rows of a shard and where they end."""
        taken: list[Row] = []
        turn, row = cursor
        empty = 0
        while len(taken) < self.batch_size:
            rows = self._rows(shard, turn)
            empty = 0 if rows else empty + 1
            if empty > MAX_EMPTY_BLOCKS:
                raise ValueError(
                    f"no example of the corpus has a label within seq_len {self.packer.seq_len} tokens; "
                    "use a larger seq_len or look at the examples"
                )
            part = rows[row : row + self.batch_size - len(taken)]
            taken += part
            row += len(part)
            if row >= len(rows):
                turn, row = turn + 1, 0
        return taken, (turn, row)

    def _rows(self, shard: int, turn: int) -> list[Row]:
        """Return all rows of one block, in an order of their own, keeping them until the shard's next block."""
        if shard not in self._open or self._open[shard][0] != turn:
            block = turn * self.num_shards + shard
            rows = self.packer.rows(self.blocks.read(block))
            order = np.random.default_rng([self.seed, block]).permutation(len(rows))
            self._open[shard] = (turn, [rows[i] for i in order])
        return self._open[shard][1]
