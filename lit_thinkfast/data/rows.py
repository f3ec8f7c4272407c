"""Rows of whole documents: encoding examples, choosing which share a row, and laying them out as a batch."""

from __future__ import annotations

import bisect
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from lit_thinkfast.data.prompts import IGNORE, encode_examples, system_prompt
from lit_thinkfast.records import Example, PackedBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

LEAST_FILL = 0.75
"""Share of a row's tokens that belong to documents, below which a hint is logged."""


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """Tokens of one example, both of shape ``(tokens,)``."""

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.input_ids)


Row = list[Document]


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put items into as few bins as best fit, longest first, finds; return the indices of each bin.

    Args:
        lengths: Sizes of the items, none above ``capacity``.
        capacity: Size of a bin.

    >>> best_fit([5, 3, 6, 2, 4], capacity=10)
    [[2, 4], [0, 1, 3]]
    """
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, bin), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        found = bisect.bisect_left(free, (lengths[index], -1))
        if found == len(free):
            bins.append([])
            room, target = capacity, len(bins) - 1
        else:
            room, target = free.pop(found)
        bins[target].append(index)
        bisect.insort(free, (room - lengths[index], target))
    return bins


def collate_rows(rows: Sequence[Sequence[Document]], *, seq_len: int, pad_token_id: int) -> PackedBatch:
    """Lay the documents of each row end to end; what is left of a row is a document of padding without labels.

    Returns:
        All fields of shape ``(len(rows), seq_len)``.
    """
    shape = (len(rows), seq_len)
    input_ids = np.full(shape, pad_token_id, dtype=np.int64)
    labels = np.full(shape, IGNORE, dtype=np.int64)
    position_ids = np.empty(shape, dtype=np.int64)
    seq_idx = np.empty(shape, dtype=np.int32)
    for index, row in enumerate(rows):
        start = 0
        for number, document in enumerate(row):
            stop = start + len(document)
            input_ids[index, start:stop] = document.input_ids
            labels[index, start:stop] = document.labels
            position_ids[index, start:stop] = np.arange(stop - start)
            seq_idx[index, start:stop] = number
            start = stop
        position_ids[index, start:] = np.arange(seq_len - start)
        seq_idx[index, start:] = len(row)
    return PackedBatch(
        input_ids=torch.from_numpy(input_ids),
        labels=torch.from_numpy(labels),
        position_ids=torch.from_numpy(position_ids),
        seq_idx=torch.from_numpy(seq_idx),
    )


class RowPacker:
    """Make packed rows out of examples.

    Args:
        tokenizer: A fast tokenizer.
        seq_len: Tokens a row.
        system: System prompt, as text or a name in :data:`lit_thinkfast.data.prompts.PROMPTS`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, seq_len: int, system: str | None = None) -> None:
        if seq_len < 2:
            raise ValueError(f"seq_len {seq_len} is too short; use at least 2")
        self.tokenizer, self.seq_len, self.system = tokenizer, seq_len, system_prompt(system)
        self._reported: set[str] = set()

    def rows(self, examples: Sequence[Example]) -> list[Row]:
        """Return the packed rows of ``examples``, fullest first; each usable example is in exactly one."""
        documents = []
        for example, (ids, labels) in zip(
            examples, encode_examples(self.tokenizer, examples, system=self.system), strict=True
        ):
            if len(ids) > self.seq_len:
                self._report("longer", f"example {example.id!r} has {len(ids)} tokens; seq_len keeps {self.seq_len}")
            kept = np.asarray(labels[: self.seq_len], dtype=np.int32)
            if (kept == IGNORE).all():
                self._report("empty", f"example {example.id!r} has no label within seq_len {self.seq_len}; left out")
                continue
            documents.append(Document(np.asarray(ids[: self.seq_len], dtype=np.int32), kept))
        lengths = [len(document) for document in documents]
        rows = best_fit(lengths, self.seq_len)
        if len(rows) >= 16 and sum(lengths) < LEAST_FILL * len(rows) * self.seq_len:
            mean = sum(lengths) / len(lengths)
            self._report(
                "fill",
                f"rows of seq_len {self.seq_len} are {sum(lengths) / len(rows) / self.seq_len:.0%} full, as whole "
                f"documents of {mean:.0f} tokens fit them badly; a seq_len of {math.ceil(mean / 32) * 128} wastes less",
            )
        return [[documents[i] for i in row] for row in rows]

    def collate(self, rows: Sequence[Row]) -> PackedBatch:
        """Return the rows as one batch."""
        pad = self.tokenizer.pad_token_id
        pad = self.tokenizer.eos_token_id if pad is None else pad
        return collate_rows(rows, seq_len=self.seq_len, pad_token_id=0 if pad is None else pad)

    def _report(self, kind: str, message: str) -> None:
        if kind not in self._reported:
            self._reported.add(kind)
            logger.warning("%s (further ones are not reported)", message)
