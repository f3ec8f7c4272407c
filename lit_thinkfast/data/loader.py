"""Loaders for the training loop: packed batches with a position that can be saved, and fixed lists of batches.

They are plain iterables with a length, which Lightning takes as they are: it neither adds a distributed sampler (that
would hand out some problems twice) nor fetches ahead (that would lose a batch on resume).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader, IterableDataset

from lit_thinkfast.data.packing import Cursor, PackedStream
from lit_thinkfast.data.rows import Row, RowPacker
from lit_thinkfast.records import Example, PackedBatch

T = TypeVar("T")


class PackedLoader:
    """Give the batches of a :class:`PackedStream`, made in this process or in worker processes.

    The saved position counts the batches that were given out, not those that workers prepared ahead, so that a resumed
    run sees the same batches as one that was never stopped, with any number of workers.

    Args:
        stream: Of this rank.
        num_workers: Processes that prepare batches; 0 prepares them here.
        pin_memory: Put batches of workers into pinned memory, for copies to a GPU.

    Raises:
        ValueError: Ranks times workers do not divide the stream's shards.
    """

    def __init__(self, stream: PackedStream, *, num_workers: int = 0, pin_memory: bool = False) -> None:
        stream.check_workers(num_workers)
        self.stream, self.num_workers, self.pin_memory = stream, num_workers, pin_memory

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[PackedBatch]:
        if self.num_workers == 0:
            yield from self.stream
            return
        loader: DataLoader[tuple[PackedBatch, int, Cursor]] = DataLoader(
            _Tagged(self.stream, self.num_workers),
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            worker_init_fn=_start_worker,
        )
        for batch, shard, cursor in itertools.islice(loader, len(self)):
            self.stream.advance(int(shard), (int(cursor[0]), int(cursor[1])))
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position; see :meth:`PackedStream.state_dict`."""
        return self.stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position; see :meth:`PackedStream.load_state_dict`."""
        self.stream.load_state_dict(state)


class _Tagged(IterableDataset[tuple[PackedBatch, int, Cursor]]):
    """The part of a stream that one worker makes, with positions."""

    def __init__(self, stream: PackedStream, num_workers: int) -> None:
        self.stream, self.num_workers = stream, num_workers

    def __iter__(self) -> Iterator[tuple[PackedBatch, int, Cursor]]:
        from torch.utils.data import get_worker_info

        info = get_worker_info()
        assert info is not None
        return self.stream.tagged(info.id, self.num_workers)


def _start_worker(_: int) -> None:
    """Keep a worker's tokenizer on one thread: parallelism comes from the workers."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


class Batches(Generic[T]):
    """A fixed list of batches, the same each time."""

    def __init__(self, batches: Sequence[T]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[T]:
        return iter(self.batches)


def chunks(items: Sequence[T], size: int) -> Batches[list[T]]:
    """Return ``items`` in lists of ``size``, the last one shorter."""
    return Batches([list(items[start : start + size]) for start in range(0, len(items), size)])


def first_batches(
    examples: Iterator[Example], packer: RowPacker, *, count: int, batch_size: int, block_size: int = 128
) -> list[PackedBatch]:
    """Pack examples until there are ``count`` batches or no more examples; the last batch may then have fewer rows."""
    rows: list[Row] = []
    while len(rows) < count * batch_size and (block := list(itertools.islice(examples, block_size))):
        rows += packer.rows(block)
    rows = rows[: count * batch_size]
    return [packer.collate(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
