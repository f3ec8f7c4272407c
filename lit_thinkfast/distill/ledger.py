"""Counting the bytes of tensors that are alive, by part, while any code of torch runs.

Works on real tensors and on those of ``FakeTensorMode``, which have a size and no memory. What an operator allocates
and frees within itself is not seen.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Ledger(TorchDispatchMode):
    """Follow every storage that is made while the mode is on, until it is freed.

    Args:
        share: Share of a part that lies on this device, by its name; 1 where none is given.

    Attributes:
        part: To what new storages are booked.
        phase: Under which name the peak is kept.
        now: Bytes alive, by part, after shares.
        peaks: By phase, the bytes by part when most were alive.
    """

    def __init__(self, share: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.share = dict(share or {})
        self.part = "activations"
        self.phase = "step"
        self.now: Counter[str] = Counter()
        self.peaks: dict[str, dict[str, int]] = {}
        self._booked: dict[int, tuple[str, int, weakref.ref[Any]]] = {}
        self._total = 0
        self._highest: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """Bytes alive."""
        return self._total

    def peak(self, phase: str | None = None) -> int:
        """Return the most bytes that were alive in a phase, or in any."""
        return max(self._highest.values(), default=0) if phase is None else self._highest[phase]

    def begin(self, phase: str, *, part: str | None = None) -> None:
        """Enter a phase, of which what is alive now is the first that is seen."""
        self.phase, self.part = phase, self.part if part is None else part
        self._note()

    def forget_peaks(self) -> None:
        """Begin to look for peaks anew."""
        self.peaks.clear()
        self._highest.clear()

    @contextmanager
    def booking(self, part: str) -> Iterator[None]:
        """Book what is made to ``part``."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def book(self, tensors: Iterable[Tensor], part: str) -> None:
        """Book the storages of tensors, known or not, to ``part``."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._leave(id(storage))
            self._enter(storage, part)
        self._note()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        fresh = False
        for leaf in (result,) if isinstance(result, Tensor) else tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
                storage = leaf.untyped_storage()
                if id(storage) not in self._booked:
                    self._enter(storage, self.part)
                    fresh = True
        if fresh:
            self._note()
        return result

    def _enter(self, storage: Any, part: str) -> None:
        key, size = id(storage), int(storage.nbytes() * self.share.get(part, 1.0))
        self._booked[key] = part, size, weakref.ref(storage, lambda _: self._leave(key))
        self.now[part] += size
        self._total += size

    def _leave(self, key: int) -> None:
        if (entry := self._booked.pop(key, None)) is not None:
            self.now[entry[0]] -= entry[1]
            self._total -= entry[1]

    def _note(self) -> None:
        if self._total >= self._highest[self.phase]:
            self._highest[self.phase] = self._total
            self.peaks[self.phase] = {part: size for part, size in self.now.items() if size}
