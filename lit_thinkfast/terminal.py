"""What tools show on a terminal while and after they work."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, Group

    from lit_thinkfast.generation import DecodePoint, Progress


_LINE_SECONDS = 30.0

Update = Callable[..., None]
"""Takes (done, total, text behind the bar)."""


@contextlib.contextmanager
def progress_bar(label: str, *, time_left: bool = True, quiet: bool = False) -> Iterator[Update]:
    """Draw a progress bar on stderr or, where that is no terminal, print a line every half minute.

    Args:
        label: Before the bar.
        time_left: Estimate it from the pace; without, the text is to say it.
        quiet: Draw nothing.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if quiet:
        yield lambda *_: None
    elif console.is_terminal:
        with _bar(label, console, time_left=time_left) as update:
            yield update
    else:

        def show(line: str) -> None:
            console.print(line, markup=False, highlight=False, soft_wrap=True)

        yield line_now_and_then(show, label, seconds=_LINE_SECONDS)


def line_now_and_then(
    show: Callable[[str], None],
    label: str,
    *,
    seconds: float,
    now: Callable[[], float] = time.monotonic,
) -> Update:
    """Return what shows a line when it is called at least ``seconds`` after the last one, or after its making."""
    shown = now()

    def update(done: int, total: int | None, text: str = "") -> None:
        nonlocal shown
        if now() - shown >= seconds:
            shown = now()
            show(f"{label}: {done}/{'?' if total is None else total}  {text}".rstrip())

    return update


@contextlib.contextmanager
def _bar(label: str, console: Console, *, time_left: bool) -> Iterator[Update]:
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
        *([TimeRemainingColumn()] if time_left else []),
        TextColumn("{task.fields[text]}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(label, total=None, text="")
        yield lambda done, total, text="": progress.update(task, completed=done, total=total, text=text)


def sampling_progress(progress: Progress) -> tuple[int, int | None, str]:
    """Return what a bar of :func:`progress_bar` takes: samples or, of a time budget, seconds.

    >>> from lit_thinkfast.generation.progress import Progress
    >>> sampling_progress(Progress(samples_done=40, samples_total=400, tokens=8000, seconds=16.0, rows=32))
    (40, 400, '2.5 samples/s  500 tokens/s  32 rows  2:24 left')
    """
    text = [
        f"{progress.samples_per_second:,.1f} samples/s",
        f"{progress.tokens_per_second:,.0f} tokens/s",
        f"{progress.rows} rows",
    ]
    if (left := progress.eta_seconds) is not None:
        text.append(f"{_clock(left)} left")
    if progress.time_budget is None:
        return progress.samples_done, progress.samples_total, "  ".join(text)
    gone = min(progress.spent + progress.seconds, progress.time_budget)
    return int(gone), round(progress.time_budget), "  ".join([f"{progress.samples_done} samples", *text])


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


_DECODE_COLUMNS = ("batch", "time", "tokens/s", "speed-up", "roofline", "reached", "memory")  # as fit 80 characters


def decode_table(points: Sequence[DecodePoint]) -> Group:
    """Return decode speed and memory as a rich table, what the roofline allows beside it, and remarks below."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from lit_thinkfast.analysis.decode import decode_cells, decode_remarks
    from lit_thinkfast.analysis.text import shorten

    rows = [decode_cells(point) for point in points]
    shown = [heading for heading in _DECODE_COLUMNS if any(row[heading] != "-" for row in rows)]
    looks: dict[str, Any] = {"box": SIMPLE_HEAD, "title_justify": "left", "pad_edge": False, "padding": (0, 1, 0, 0)}
    table = Table(title="decoding, medians of rounds", **looks)
    table.add_column("model", overflow="fold")
    for heading in shown:
        table.add_column(heading, justify="right", no_wrap=True)
    for point, row in zip(points, rows, strict=True):
        table.add_row(Text(shorten(point.model, 24)), *(Text(row[heading]) for heading in shown))
    return Group(table, *(Text(remark, style="bold red") for remark in decode_remarks(points)))
