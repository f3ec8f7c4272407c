"""The figures, as matplotlib ``Figure`` objects: ``figure.savefig("coverage.pdf")`` works as usual.

No global state is touched: no pyplot, no backend switch. Every function takes records and returns one panel; the report
puts panels side by side. Time axes are logarithmic. Labels stand at the right end of their line.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lit_thinkfast.analysis.axes import k_axis, label_ends, panel, share_axis, time_axis
from lit_thinkfast.analysis.pareto import Curve, Stretch, curves, pareto_front, winners
from lit_thinkfast.analysis.style import INK, MUTED, PAPER, ModelStyle, model_styles, styled
from lit_thinkfast.analysis.text import RULE_NAMES, duration, shorten
from lit_thinkfast.records import BudgetPoint, Rule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_MARKERS = 24


@styled
def figure_curves(
    points: Iterable[BudgetPoint],
    rule: Rule,
    *,
    axis: Literal["k", "seconds"],
    styles: Mapping[str, ModelStyle] | None = None,
) -> Figure:
    """Draw one rule against samples a problem or against time, with 95 % intervals over problems.

    On the time axis a dotted line continues each curve at its last value: these models have used all their samples.

    Raises:
        ValueError: There are no points of this rule.
    """
    points = [p for p in points if p.rule == rule and math.isfinite(p.value if axis == "k" else p.value + p.seconds)]
    if not points:
        raise ValueError(f"there are no points of the rule {rule!r}")
    styles = styles or model_styles(p.model for p in points)
    figure, axes = panel()
    draw_curves(axes, points, axis=axis, styles=styles)
    ends = []
    for model in dict.fromkeys(p.model for p in points):
        last = max((p for p in points if p.model == model), key=lambda p: p.k if axis == "k" else p.seconds)
        ends.append((model, last.value, styles[model].colour))
    label_ends(axes, ends)
    return figure


def draw_curves(
    axes: Axes,
    points: Sequence[BudgetPoint],
    *,
    axis: Literal["k", "seconds"],
    styles: Mapping[str, ModelStyle],
    bands: bool = True,
) -> None:
    """Draw the points of one rule, each model a line, and set up both axes; ``bands`` are the intervals."""
    edge = max(p.seconds for p in points)
    for model in dict.fromkeys(p.model for p in points):
        own = sorted((p for p in points if p.model == model), key=lambda p: (p.k if axis == "k" else p.seconds, p.k))
        at = np.array([p.k if axis == "k" else p.seconds for p in own], dtype=float)
        dense, style = _between(at), styles[model]
        low, high = (np.interp(dense, at, [getattr(p, end) for p in own]) for end in ("low", "high"))
        if bands:
            axes.fill_between(dense, low, high, color=style.colour, alpha=0.13, linewidth=0)
        values = [p.value for p in own]
        axes.plot(dense, np.interp(dense, at, values), color=style.colour, linestyle=style.dash, linewidth=1.7)
        if len(own) <= _MOST_MARKERS:
            axes.plot(at, values, color=style.colour, marker=style.marker, markersize=3.6, linestyle="none")
        if axis == "seconds" and at[-1] < edge:
            axes.plot([at[-1], edge], [values[-1]] * 2, color=style.colour, linestyle=(0, (1, 2)), linewidth=1.2)
    share_axis(axes, points)
    if axis == "k":
        k_axis(axes, [p.k for p in points])
    else:
        time_axis(axes, min(p.seconds for p in points), edge)


@styled
def figure_front(
    points: Iterable[BudgetPoint], rule: Rule, *, styles: Mapping[str, ModelStyle] | None = None
) -> Figure:
    """Draw the Pareto front of one rule: the upper envelope of all models, in the winner's colour on each stretch.

    Markers are the measured points on it. The band on top repeats the winners; it is pale where a model has not
    finished a sample yet or has no samples left.
    """
    points = list(points)
    styles = styles or model_styles(p.model for p in points)
    figure, axes = panel()
    draw_front(axes, points, rule, styles=styles)
    label_ends(axes, [(c.model, c.values[-1], styles[c.model].colour) for c in curves(points, rule)])
    return figure


def draw_front(axes: Axes, points: Sequence[BudgetPoint], rule: Rule, *, styles: Mapping[str, ModelStyle]) -> None:
    """Draw what :func:`figure_front` shows, without the labels at the right."""
    every, stretches = curves(points, rule), winners(points, rule)
    edge = stretches[-1].end
    for c in every:
        dense = _between(np.array([*c.seconds, edge] if c.seconds[-1] < edge else c.seconds))
        axes.plot(dense, [c.at(s) for s in dense], color=styles[c.model].colour, linewidth=1.0, alpha=0.5)
    by_name = {c.model: c for c in every}
    for before, after in itertools.pairwise(stretches):  # a model enters with a better first sample
        axes.plot([after.start] * 2, [before.end_value, after.start_value], color=MUTED[0], linewidth=0.8, alpha=0.6)
    for s in stretches:
        _envelope(axes, s, by_name[s.model], styles[s.model])
    for p in pareto_front(points, rule):
        if p.value >= max(c.at(p.seconds) for c in every if c.seconds[0] <= p.seconds) - 1e-12:
            style = styles[p.model]
            axes.plot([p.seconds], [p.value], marker=style.marker, markersize=5.2, color=style.colour)
    share_axis(axes, [p for p in points if p.rule == rule])
    time_axis(axes, stretches[0].start, edge)
    _ribbon(axes, stretches, styles, bottom=1.035, height=0.055, names=False, transform=axes.get_xaxis_transform())


@styled
def figure_winners(
    points: Iterable[BudgetPoint], rules: Sequence[Rule], *, styles: Mapping[str, ModelStyle] | None = None
) -> Figure:
    """Draw one ribbon a rule over time: who is best at which budget, with the budgets at which the lead changes."""
    from matplotlib.figure import Figure

    points = list(points)
    styles = styles or model_styles(p.model for p in points)
    fronts = {rule: winners(points, rule) for rule in rules}
    height = 0.62 * len(rules) + 0.62
    figure = Figure(figsize=(10.4, height))
    axes = figure.add_axes((0.155, 0.5 / height, 0.835, 1 - 0.58 / height))
    for row, stretches in enumerate(fronts.values()):
        _ribbon(axes, stretches, styles, bottom=row - 0.27, height=0.54, names=True, transform=axes.transData)
        _mark_changes(axes, stretches, row + 0.27)
    axes.set_ylim(len(rules) - 0.45, -0.5)
    axes.set_yticks(range(len(rules)), [RULE_NAMES[rule] for rule in rules], color=INK[0], fontsize=9.5)
    axes.spines["left"].set_visible(False)
    axes.grid(False)
    start, end = min(f[0].start for f in fronts.values()), max(f[-1].end for f in fronts.values())
    time_axis(axes, start, end, pad=1.0, most=10)
    return figure


def _envelope(axes: Axes, stretch: Stretch, curve: Curve, style: ModelStyle) -> None:
    inside = [s for s in curve.seconds if stretch.start < s < stretch.end]
    dense = _between(np.array([stretch.start, *inside, stretch.end]))
    axes.plot(
        dense, [curve.at(s) for s in dense], color=style.colour, linewidth=3.2, alpha=1.0 if stretch.contested else 0.75
    )


def _ribbon(
    axes: Axes,
    stretches: Sequence[Stretch],
    styles: Mapping[str, ModelStyle],
    *,
    bottom: float,
    height: float,
    names: bool,
    transform: Any,
) -> None:
    from matplotlib.patches import Rectangle

    whole = math.log(stretches[-1].end / stretches[0].start) or 1.0
    inches = axes.bbox.width / axes.figure.dpi
    for s in stretches:
        style = styles[s.model]
        axes.add_patch(
            Rectangle(
                (s.start, bottom),
                s.end - s.start,
                height,
                facecolor=style.colour,
                alpha=1.0 if s.contested else 0.3,
                edgecolor=PAPER[0],
                linewidth=1.2,
                transform=transform,
                clip_on=False,
            )
        )
        room = inches * math.log(max(s.end / s.start, 1.0)) / whole
        name = shorten(s.model, 40)
        if names and room > 0.087 * len(name) + 0.08:
            axes.text(
                math.sqrt(s.start * s.end),
                bottom + height / 2,
                name,
                ha="center",
                va="center",
                fontsize=8.5,
                fontweight="bold",
                color=PAPER[0] if s.contested else INK[0],
            )


def _mark_changes(axes: Axes, stretches: Sequence[Stretch], bottom: float) -> None:
    """Write the budget at which the lead changes hands under the ribbon, where there is room."""
    whole = math.log(stretches[-1].end / stretches[0].start) or 1.0
    last = 0.0
    for before, after in itertools.pairwise(stretches):
        free = last == 0 or math.log(after.start / last) / whole > 0.05
        if before.model != after.model and free:
            axes.text(
                after.start, bottom + 0.03, duration(after.start), ha="center", va="top", fontsize=7.5, color=MUTED[0]
            )
            last = after.start


def _between(at: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the positions with eight more, evenly spread in the logarithm, in each gap."""
    if len(at) < 2:
        return at
    gaps = [np.geomspace(a, b, 9)[:-1] for a, b in itertools.pairwise(at)]
    return np.concatenate([*gaps, at[-1:]])
