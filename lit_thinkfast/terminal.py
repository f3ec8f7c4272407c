"""What tools show on a terminal while and after they work."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from lit_thinkfast.generation import DecodePoint, Progress


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[Callable[..., None]]:
    """Draw a progress bar on stderr; the value is called with (done, total, text behind the bar)."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=None, text="")
        yield lambda done, total, text="": progress.update(task, completed=done, total=total, text=text)


def sampling_progress(progress: Progress) -> tuple[int, int, str]:
    """Return what a bar of :func:`progress_bar` takes."""
    return progress.samples_done, progress.samples_total, f"{progress.tokens_per_second:,.0f} tokens/s"


def decode_table(points: Sequence[DecodePoint]) -> Table:
    """Return decode speed and memory as a rich table."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="decoding, medians of rounds", title_justify="left")
    for heading in ("model", "batch", "seconds", "tokens/s", "cache MB", "weights MB"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for point in points:
        megabytes = [f"{size / 1e6:,.1f}" for size in (point.cache_bytes, point.weight_bytes)]
        speed = (f"{point.seconds:.3f}", f"{point.tokens_per_second:,.0f}")
        table.add_row(Text(point.model), str(point.batch_size), *speed, *megabytes)
    return table
