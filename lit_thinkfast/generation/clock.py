"""The clock of the engine: the only place where seconds of generation come from."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def synchronize(device: torch.device | str) -> None:
    """Wait until the device has done all it was given. Nothing to wait for on a CPU."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()


class Stopwatch:
    """A monotonic stopwatch that waits for the device before it looks.

    Time is cut into laps: everything between two looks belongs to exactly one lap, or was left out by :meth:`skip`, so
    the laps add up to :attr:`elapsed`.

    Args:
        device: Device whose work is timed.
        now: Clock in seconds; tests pass their own.

    >>> ticks = iter([0.0, 1.0, 5.0, 7.0])
    >>> watch = Stopwatch(now=lambda: next(ticks))
    >>> watch.lap()
    1.0
    >>> watch.skip()
    >>> watch.lap(), watch.elapsed
    (2.0, 3.0)
    """

    def __init__(self, device: torch.device | str = "cpu", *, now: Callable[[], float] = time.perf_counter) -> None:
        self.device = torch.device(device)
        self.elapsed = 0.0
        self._now = now
        self._last = self._look()

    def _look(self) -> float:
        synchronize(self.device)
        return self._now()

    def lap(self) -> float:
        """Return the seconds since the last look and start the next lap."""
        now = self._look()
        seconds, self._last = now - self._last, now
        self.elapsed += seconds
        return seconds

    def skip(self) -> None:
        """Leave out the time since the last look: it was not the engine's."""
        self._last = self._look()
