"""Decode speed and memory against batch size: figures, cells of tables, and what one model has over another.

Beside measured times stands what the machine allows (the roofline), so that a reader sees how much of a speed-up is the
architecture's. Points of earlier versions, which do not know it, are shown without.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lit_thinkfast.analysis.axes import NARROW, label_ends, panel, plain_ticks, size_ticks, ticks_125
from lit_thinkfast.analysis.style import MUTED, PAPER, ModelStyle, model_styles, styled
from lit_thinkfast.analysis.text import count, duration, factor, memory, percent, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lit_thinkfast.generation.points import DecodePoint

Quantity = Literal["seconds", "tokens_per_second", "memory"]
QUANTITIES: dict[Quantity, tuple[str, str]] = {
    "seconds": ("Time for one batch", "lower is better"),
    "tokens_per_second": ("Throughput, tokens per second", "higher is better"),
    "memory": ("Memory: weights and cache", "lower is better"),
}
_ROOFLINE = (0, (2.0, 1.6))  # dashes of what the machine allows
_SAVED: dict[Quantity, bool] = {"seconds": True, "memory": False}  # and whether the roofline is in them
_DATED = {"png": ("Software",), "svg": ("Date", "Creator")}  # what would make equal figures differ


@styled
def figure_decode(
    benchmark: Sequence[DecodePoint],
    quantity: Quantity,
    *,
    styles: Mapping[str, ModelStyle] | None = None,
    baseline: str | None = None,
) -> Figure:
    """Draw decode seconds, tokens a second or memory against batch size; all points should share their lengths.

    Args:
        benchmark: Points of one prompt and generation length.
        quantity: What to draw. ``seconds`` has the range over rounds; ``memory`` is weights plus cache. Dashed is what
            the roofline allows.
        styles: Styles by model; default in order of appearance.
        baseline: Model that the factors at the right are relative to (how many times faster or smaller at the largest
            batch that both ran); default that of each point, or the first.
    """
    styles = styles or model_styles(p.model for p in benchmark)
    models = list(dict.fromkeys(p.model for p in benchmark))
    figure, axes = panel(NARROW)
    by_model = {m: sorted((p for p in benchmark if p.model == m), key=lambda p: p.batch_size) for m in models}
    ends = []
    numbers = []
    for model, own in by_model.items():
        style, sizes = styles[model], [p.batch_size for p in own]
        values = [amount(p, quantity) for p in own]
        numbers += values + _draw_roofline(axes, own, quantity, style)
        axes.plot(
            sizes,
            values,
            color=style.colour,
            marker=style.marker,
            markersize=4,
            linewidth=1.7,
            linestyle=style.dash,
        )
        if quantity == "seconds":
            fastest, slowest = [p.seconds_low for p in own], [p.seconds_high for p in own]
            axes.fill_between(sizes, fastest, slowest, color=style.colour, alpha=0.15, linewidth=0)
        label = model
        other = baseline if baseline in models else own[-1].baseline if own[-1].baseline in models else models[0]
        shared = {p.batch_size: p for p in by_model[other]}
        both = [(p, shared[p.batch_size]) for p in own if p.batch_size in shared]
        if model != other and both:
            gained = gain(*both[-1], quantity)
            label = f"{shorten(model, 24)}\n{factor(gained)} {_better(quantity, gained)}"
        ends.append((label, values[-1], style.colour))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    size_ticks(axes, sorted({p.batch_size for p in benchmark}))
    axes.set_xlabel("batch size")
    show = {"seconds": duration, "tokens_per_second": count, "memory": memory}[quantity]
    low, high = min(numbers), max(numbers)
    axes.set_ylim(low / 1.25, high * 1.25)
    plain_ticks(axes.yaxis, ticks_125(low / 1.2, high * 1.2, most=7), show)
    label_ends(axes, ends)
    if quantity != "memory" and (note := disturbance(benchmark)):
        axes.text(0, 1.02, note, transform=axes.transAxes, fontsize=7, color=MUTED[0], va="bottom")
    return figure


@styled
def save_decode_figures(benchmark: Sequence[DecodePoint], out: str | os.PathLike[str]) -> list[Path]:
    """Write figures of seconds and memory as PNG and SVG beside a result, for each prompt and generation length.

    Args:
        benchmark: Points of any lengths.
        out: The result; ``speed.json`` has its figures beside it as ``speed.seconds.png`` and so on.

    Returns:
        The files. Equal points give equal bytes.
    """
    import matplotlib

    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    every = sorted({(p.prompt_tokens, p.generate_tokens) for p in benchmark})
    written = []
    for prompt, generate in every:
        own = [p for p in benchmark if (p.prompt_tokens, p.generate_tokens) == (prompt, generate)]
        length = "" if len(every) == 1 else f".{prompt}+{generate}"
        dashed = "; dashed: the roofline" if any(p.predicted_seconds is not None for p in own) else ""
        for quantity, more in _SAVED.items():
            figure = figure_decode(own, quantity)
            told = f"{QUANTITIES[quantity][0]}: prompt {prompt}, {generate} generated{dashed if more else ''}"
            figure.axes[0].set_title(told, loc="left", fontsize=8, pad=14)
            for ending, unset in _DATED.items():
                written.append(path.with_name(f"{path.stem}{length}.{quantity}.{ending}"))
                with matplotlib.rc_context({"svg.hashsalt": "decode"}), warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message=".*missing from font")  # such a letter shows as a box
                    figure.savefig(
                        written[-1], dpi=200, facecolor=PAPER[0], bbox_inches="tight", metadata=dict.fromkeys(unset)
                    )
    return written


def disturbance(benchmark: Sequence[DecodePoint]) -> str:
    """Return a note, if the machine was disturbed while any of the points was measured; else nothing."""
    worst = max((p.drift for p in benchmark if p.disturbed), default=0.0)
    return f"disturbed: the machine's speed changed by {100 * worst:.0f} %" if worst else ""


def amount(point: DecodePoint, quantity: Quantity) -> float:
    """Return one quantity of a decode measurement, in seconds, tokens a second or bytes."""
    if quantity == "memory":
        return float(point.memory_bytes)
    return point.seconds if quantity == "seconds" else point.tokens_per_second


def gain(own: DecodePoint, base: DecodePoint, quantity: Quantity) -> float:
    """Return how many times faster or smaller ``own`` is; the median over rounds where they were measured together."""
    if quantity == "memory":
        return base.memory_bytes / own.memory_bytes
    if own.speedup is not None and own.baseline == base.model:
        return own.speedup
    return base.seconds / own.seconds


def predicted_gain(own: DecodePoint, base: DecodePoint) -> float | None:
    """Return how many times faster the roofline allows ``own`` to be, where it is known of both."""
    if own.predicted_seconds is None or base.predicted_seconds is None:
        return None
    return base.predicted_seconds / own.predicted_seconds


def decode_cells(point: DecodePoint) -> dict[str, str]:
    """Return a point as cells of a table; ``-`` where a point of an earlier version knows nothing."""
    speedup, overhead = point.speedup, point.overhead_share
    predicted, reached = point.predicted_seconds, point.fraction
    return {
        "batch": f"{point.batch_size}" + (f" in {point.splits}" if point.splits > 1 else ""),
        "time": duration(point.seconds),
        "tokens/s": f"{point.tokens_per_second:,.0f}",
        "speed-up": "-" if speedup is None or point.model == point.baseline else factor(speedup),
        "roofline": "-" if predicted is None else duration(predicted),
        "reached": "-" if reached is None else percent(reached, 0),
        "overhead": "-" if overhead is None else percent(overhead),
        "cache": memory(point.cache_bytes),
        "weights": memory(point.weight_bytes),
        "memory": memory(point.memory_bytes),
    }


def decode_remarks(benchmark: Sequence[DecodePoint]) -> list[str]:
    """Return what a reader of times should know beside them."""
    remarks = []
    if note := disturbance(benchmark):
        remarks.append(f"{note} during the run; do not rely on times and speed-ups.")
    for p in benchmark:
        if p.planned_splits is not None and p.splits > p.planned_splits:
            remarks.append(
                f"{shorten(p.model, 40)} ran out of memory at batch {p.batch_size} in {p.planned_splits} as planned; "
                f"it was decoded in {p.splits} parts."
            )
    return remarks


def _draw_roofline(axes: Axes, own: Sequence[DecodePoint], quantity: Quantity, style: ModelStyle) -> list[float]:
    """Draw what the machine allows, and return it."""
    known = [p for p in own if p.predicted_seconds is not None and quantity != "memory"]
    values = [
        amount(p, quantity) * ((p.fraction or 1.0) if quantity == "seconds" else 1 / (p.fraction or 1.0)) for p in known
    ]
    axes.plot([p.batch_size for p in known], values, color=style.colour, linewidth=1.0, linestyle=_ROOFLINE)
    return values


def _better(quantity: Quantity, gained: float) -> str:
    if quantity == "memory":
        return "smaller" if gained >= 1 else "of its size"
    return "faster" if gained >= 1 else "its speed"
