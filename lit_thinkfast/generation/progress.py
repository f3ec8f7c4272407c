"""How far a run has come, for whoever draws the bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """State of a sampling run. Seconds are the engine's: what the caller does meanwhile is not in them.

    Attributes:
        samples_done: Completions finished in this session.
        samples_total: Completions asked for, or ``None`` where a time budget decides.
        tokens: Tokens generated, those of unfinished completions included.
        seconds: Engine time of this session.
        rows: Rows in flight at present.
        time_budget: Engine seconds of the whole run, or ``None`` for as many as it takes.
        spent: Engine seconds of earlier sessions; part of the budget.

    >>> progress = Progress(samples_done=4, samples_total=16, tokens=800, seconds=2.0, rows=4)
    >>> progress.tokens_per_second, progress.samples_per_second, progress.eta_seconds
    (400.0, 2.0, 6.0)
    >>> Progress(samples_done=4, samples_total=None, tokens=800, seconds=2.0, time_budget=60.0, spent=50.0).eta_seconds
    8.0
    """

    samples_done: int
    samples_total: int | None
    tokens: int
    seconds: float
    rows: int = 0
    time_budget: float | None = None
    spent: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def samples_per_second(self) -> float:
        return self.samples_done / self.seconds if self.seconds > 0 else 0.0

    @property
    def eta_seconds(self) -> float | None:
        """Engine seconds left: of the budget, or at the present pace if that ends earlier; ``None`` while unknown."""
        left = [] if self.time_budget is None else [max(0.0, self.time_budget - self.spent - self.seconds)]
        if self.samples_total is not None and self.samples_done > 0:
            left.append(self.seconds / self.samples_done * (self.samples_total - self.samples_done))
        return min(left, default=None)


ProgressCallback = Callable[[Progress], None]
