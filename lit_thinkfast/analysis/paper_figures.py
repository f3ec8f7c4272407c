"""The figures of the paper (arXiv:2502.20339) from our own runs, as PNG and SVG with fixed names.

Figure 1 is the Pareto front over time, figure 3 everything against the number of samples, figures 4 and 5 coverage and
accuracy against the time budget; rows are evaluation sets. (Figure 2, speed and memory of decoding, comes from
:func:`~lit_thinkfast.analysis.decode.save_decode_figures`.) Where some model has no engine seconds only figure 3 can
be drawn.
"""

from __future__ import annotations

import io
import math
import os
import re
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_thinkfast.analysis.comparison import Comparison
from lit_thinkfast.analysis.plots import draw_curves, draw_front
from lit_thinkfast.analysis.provenance import source
from lit_thinkfast.analysis.style import INK, MUTED, PAPER, RC, ModelStyle, model_styles, styled
from lit_thinkfast.analysis.svg import MISSING_LETTER
from lit_thinkfast.analysis.text import RULE_NAMES, RULES_IN_TEXT, shorten
from lit_thinkfast.records import BudgetPoint, Rule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Draw = Callable[["Axes", Sequence[BudgetPoint], Rule, Mapping[str, ModelStyle]], None]

_PANEL = (3.3, 2.5)  # inches
_DPI = 200
_NAME = 28  # characters of a name in the legend
_DATED = {"png": ("Software",), "svg": ("Date", "Creator")}  # what would make equal figures differ


def save_figures(comparisons: Comparison | Mapping[str, Comparison], folder: str | os.PathLike[str]) -> list[Path]:
    """Write ``figure1``, ``figure3``, ``figure4`` and ``figure5``, each as PNG and SVG, and return the paths.

    Equal input gives equal bytes. SVG text is drawn as paths, so no font is needed.

    Args:
        comparisons: One evaluation set, or name -> set (``MATH``, ``GSM8K``), each a row of panels.
        folder: Made if it is not there. Files of the same names are replaced.

    Raises:
        ValueError: No comparison.
    """
    rows = {"": comparisons} if isinstance(comparisons, Comparison) else dict(comparisons)
    if not rows:
        raise ValueError("there is nothing to draw; give at least one comparison")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in paper_figures(rows).items():
        for ending, unwanted in _DATED.items():
            path = folder / f"{name}.{ending}"
            partial = folder / f".{path.name}.{os.getpid()}.partial"
            try:
                _save(figure, partial, ending, {key: None for key in unwanted}, name)
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
            paths.append(path)
    return paths


@styled
def paper_figures(rows: Mapping[str, Comparison]) -> dict[str, Figure]:
    """Return name -> figure, those of the paper that these comparisons allow. Arguments as :func:`save_figures`."""
    every = list(rows.values())
    rules = [rule for rule in RULE_NAMES if all(rule in c.rules for c in every)]
    chosen = [rule for rule in rules if rule != "coverage"]
    accuracy = [rule for rule in ("majority", "weighted_best_of_n") if rule in chosen] or chosen
    first: list[Any] = [rule for rule in ("coverage", *accuracy[-1:]) if rule in rules]
    timed = all(c.timed for c in every)
    figures = {}
    if timed:
        figures["figure1"] = _grid(rows, first, _front)
    figures["figure3"] = _grid(rows, ["coverage", *accuracy] if "coverage" in rules else accuracy, _per_sample)
    if timed and "coverage" in rules:
        figures["figure4"] = _grid(rows, ["coverage"], _per_second)
    if timed and accuracy:
        figures["figure5"] = _grid(rows, accuracy, _per_second)
    return figures


def _front(axes: Axes, points: Sequence[BudgetPoint], rule: Rule, styles: Mapping[str, ModelStyle]) -> None:
    draw_front(axes, points, rule, styles=styles)


def _per_sample(axes: Axes, points: Sequence[BudgetPoint], rule: Rule, styles: Mapping[str, ModelStyle]) -> None:
    own = [p for p in points if p.rule == rule and math.isfinite(p.value)]
    draw_curves(axes, own, axis="k", styles=styles)


def _per_second(axes: Axes, points: Sequence[BudgetPoint], rule: Rule, styles: Mapping[str, ModelStyle]) -> None:
    own = [p for p in points if p.rule == rule and math.isfinite(p.value) and math.isfinite(p.seconds)]
    draw_curves(axes, own, axis="seconds", styles=styles)


def _grid(rows: Mapping[str, Comparison], rules: Sequence[Any], draw: Draw) -> Figure:
    """Return panels under one legend, with their sources below: a row for each comparison and a column for each rule.

    Several comparisons by one rule stand side by side.
    """
    from matplotlib.figure import Figure

    styles = model_styles(name for c in rows.values() for name in c.runs)
    shape = (1, len(rows)) if len(rules) == 1 else (len(rows), len(rules))
    width = max(_PANEL[0] * shape[1], 3.6)
    longest = max(len(shorten(name, _NAME)) for name in styles)
    per_line = min(max(int(width / (0.6 + 0.078 * longest)), 1), len(styles))
    told = [f"{name}: {source(c)}" if name else source(c) for name, c in rows.items()]
    lines = [line for text in told for line in textwrap.wrap(text, int(22 * width))]
    top, bottom = 0.06 + 0.2 * math.ceil(len(styles) / per_line), 0.06 + 0.11 * len(lines)
    figure = Figure(figsize=(width, _PANEL[1] * shape[0] + top + bottom))
    height = figure.get_figheight()
    panels = iter(figure.subplots(*shape, squeeze=False).flat)
    for name, c in rows.items():
        for rule in rules:
            axes = next(panels)
            draw(axes, c.points, rule, styles)
            heading = f"{shorten(name, 30)}: {RULES_IN_TEXT[rule]}" if name else RULE_NAMES[rule]
            axes.set_title(heading, fontsize=9.5, color=INK[0], fontweight="bold", pad=16 if draw is _front else 6)
    _legend(figure, styles, columns=per_line)
    figure.text(0.012, 0.03 / height, "\n".join(lines), ha="left", va="bottom", fontsize=5.5, color=MUTED[0])
    figure.tight_layout(rect=(0, bottom / height, 1, 1 - top / height))
    return figure


def _legend(figure: Figure, styles: Mapping[str, ModelStyle], *, columns: int) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=s.colour, marker=s.marker, linestyle=s.dash, markersize=4, linewidth=1.7)
        for s in styles.values()
    ]
    names = [shorten(name, _NAME).lstrip("_") or "model" for name in styles]  # matplotlib hides _names
    figure.legend(
        handles,
        names,
        loc="upper center",
        bbox_to_anchor=(0.5, 1 - 0.02 / figure.get_figheight()),
        ncols=columns,
        frameon=False,
    )


def _save(figure: Figure, path: Path, ending: str, metadata: Mapping[str, None], name: str) -> None:
    """Save one figure; SVG without the comments in which matplotlib repeats every text."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({**RC, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=MISSING_LETTER)
        figure.savefig(buffer, format=ending, dpi=_DPI, facecolor=PAPER[0], metadata=dict(metadata))
    data = buffer.getvalue()
    if ending == "svg":
        data = re.sub(rb"\s*(<!--.*?-->|<metadata>.*?</metadata>)", b"", data, flags=re.DOTALL)
    path.write_bytes(data)
