"""Axes, ticks and line labels that the figures share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_thinkfast.analysis.text import duration, shorten
from lit_thinkfast.records import BudgetPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE = (4.6, 3.05)
NARROW = (3.9, 2.9)
_LABEL_INCHES = 1.12


def panel(size: tuple[float, float] = WIDE) -> tuple[Figure, Axes]:
    """Return an empty panel with room for labels at the right, sizes in inches."""
    from matplotlib.figure import Figure

    width, height = size
    figure = Figure(figsize=size)
    axes = figure.add_axes((0.52 / width, 0.46 / height, 1 - (0.52 + _LABEL_INCHES) / width, 1 - 0.7 / height))
    axes.grid(axis="x", visible=False)
    axes.spines["left"].set_visible(False)
    return figure, axes


def share_axis(axes: Axes, points: Sequence[BudgetPoint]) -> None:
    """Per cent from a round number under the lowest interval to one over the highest; the same for both axes kinds."""
    ends = [end for p in points for end in (p.low, p.value, p.high) if math.isfinite(end)]  # one problem: no interval
    lowest, highest = min(ends), max(ends)
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2) if s == 0.2 or (highest - lowest) / s <= 6)
    low, high = math.floor(lowest / step + 1e-9) * step, math.ceil(highest / step - 1e-9) * step
    if high <= low:
        high = low + step
    ticks = np.arange(round((high - low) / step) + 1) * step + low
    axes.set_ylim(max(low, -0.01), min(high, 1.0) + (0.02 * (high - low) if high >= 1 else 0))
    axes.set_yticks(ticks[ticks <= 1 + 1e-9], [f"{100 * t:.0f} %" for t in ticks if t <= 1 + 1e-9])


def k_axis(axes: Axes, ks: Sequence[int]) -> None:
    """Make x the number of samples, in powers of two."""
    axes.set_xscale("log", base=2)
    powers = [1 << i for i in range(20) if min(ks) <= 1 << i <= max(ks)]
    size_ticks(axes, powers if len(powers) > 1 else sorted(set(ks)))
    axes.set_xlim(min(ks) / 1.12, max(ks) * 1.06 if max(ks) > min(ks) else max(ks) * 1.5)
    axes.set_xlabel("samples per problem, k")


def size_ticks(axes: Axes, sizes: Sequence[int]) -> None:
    """Mark at most eight of the sizes on the x axis."""
    while len(sizes) > 8:
        sizes = sizes[::2]
    plain_ticks(axes.xaxis, sizes, lambda b: f"{b:g}")


def time_axis(axes: Axes, start: float, end: float, *, pad: float = 1.06, most: int = 6) -> None:
    """Make x the time, logarithmic, from ``start`` to ``end`` seconds."""
    axes.set_xscale("log")
    if end <= start:
        start, end = start / 2, end * 2
    axes.set_xlim(start / pad, end * pad)
    plain_ticks(axes.xaxis, ticks_125(start, end, most=most), lambda s: duration(s) if s < 1 else f"{s:,g} s")
    axes.set_xlabel("engine seconds per problem")


def ticks_125(low: float, high: float, *, most: int) -> list[float]:
    """Return the numbers 1, 2, 5 times a power of ten inside the range, thinned to at most ``most``."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [d * 10.0**e for e in decades for d in digits if low <= d * 10.0**e <= high]
        if len(ticks) <= most:
            break
    while len(ticks) > most:
        ticks = ticks[::2]
    return ticks or [math.sqrt(low * high)]


def plain_ticks(axis: Any, at: Sequence[float], show: Callable[[float], str]) -> None:
    """Mark exactly these values, written by ``show``."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    axis.set_major_locator(FixedLocator(list(at)))
    axis.set_major_formatter(FixedFormatter([show(value) for value in at]))
    axis.set_minor_locator(NullLocator())


def label_ends(axes: Axes, ends: Sequence[tuple[str, float, str]]) -> None:
    """Write each label right of the axes at the height of its line's end, pushed apart where they would overlap."""
    height = axes.bbox.height / axes.figure.dpi
    low, high = axes.get_ylim()
    scale = math.log if axes.get_yscale() == "log" else float
    entries = []
    for label, value, colour in ends:
        text = "\n".join(_wrap(line, 15) for line in label.split("\n"))
        place = (scale(value) - scale(low)) / (scale(high) - scale(low)) * height
        entries.append((place, 0.155 * (text.count("\n") + 1) + 0.03, text, colour))
    entries.sort(key=lambda e: e[0])
    for (_, _, text, colour), place in zip(entries, _apart([e[:2] for e in entries], height), strict=True):
        axes.text(
            1.025,
            place / height,
            text,
            transform=axes.transAxes,
            va="center",
            ha="left",
            fontsize=8.5,
            color=colour,
            fontweight="bold",
            linespacing=1.15,
        )


def _wrap(line: str, width: int) -> str:
    """Break one line into at most two, at a space or after a hyphen where there is one."""
    line = shorten(line, 2 * width - 2)
    if len(line) <= width:
        return line
    cut = max((i for i, c in enumerate(line[:width], start=1) if c in " -_/"), default=width)
    cut = cut if len(line) - cut <= width else width
    return f"{line[:cut].rstrip()}\n{shorten(line[cut:], width)}"


def _apart(places: Sequence[tuple[float, float]], height: float) -> list[float]:
    """Return centres at least half of both heights apart, near the wanted (centre, height), sorted by centre."""
    centres = [place for place, _ in places]
    for _ in range(60):
        moved = False
        for i in range(len(centres) - 1):
            need = (places[i][1] + places[i + 1][1]) / 2 - (centres[i + 1] - centres[i])
            if need > 1e-6:
                centres[i] -= need / 2
                centres[i + 1] += need / 2
                moved = True
        if centres and centres[-1] > height:
            centres[-1] = height
        if not moved:
            break
    return centres
