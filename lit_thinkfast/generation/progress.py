"""How far a run has come, for whoever draws the bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """State of a sampling run. Seconds are the engine's: what the caller does meanwhile is not in them.

    Attributes:
        samples_done: Completions finished.
        samples_total: Completions asked for.
        tokens: Tokens generated, those of unfinished completions included.
        seconds: Engine time so far.
        rows: Rows in the batch at present.

    >>> progress = Progress(samples_done=4, samples_total=16, tokens=800, seconds=2.0, rows=4)
    >>> progress.tokens_per_second, progress.eta_seconds
    (400.0, 6.0)
    """

    samples_done: int
    samples_total: int
    tokens: int
    seconds: float
    rows: int = 0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def eta_seconds(self) -> float | None:
        """Engine seconds left at the present pace, or ``None`` before the first completion."""
        if self.samples_done == 0:
            return None
        return self.seconds / self.samples_done * (self.samples_total - self.samples_done)


ProgressCallback = Callable[[Progress], None]
