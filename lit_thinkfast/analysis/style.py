"""How figures look: one colour, marker and dash for each model, everywhere.

Colours are after Okabe and Ito's colour-blind-safe set, darkened where they are thin on white. Every colour has a
second value for dark pages; :mod:`lit_thinkfast.analysis.svg` replaces the first by a CSS variable that knows both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# (light, dark). The first model is usually the Transformer that the others are measured against.
MODEL_COLOURS = (
    ("#c2410b", "#ff9466"),  # vermillion
    ("#0067a8", "#5cb8f2"),  # blue
    ("#00805a", "#38cf9f"),  # bluish green
    ("#a8457f", "#eb9dc8"),  # reddish purple
    ("#946500", "#f0b83c"),  # amber
    ("#20799f", "#9fdcff"),  # sky
    ("#5b5f66", "#b9bec6"),  # grey
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.4)), (0, (1.4, 1.2)))
INK = ("#1c2026", "#e8eaee")
MUTED = ("#626a76", "#9ba3b0")
GRID = ("#e3e6eb", "#333a45")
PAPER = ("#fefefe", "#161a20")
THEME = {"ink": INK, "muted": MUTED, "grid": GRID, "paper": PAPER} | {
    f"model{i}": pair for i, pair in enumerate(MODEL_COLOURS)
}

RC = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "text.color": INK[0],
    "text.parse_math": False,
    "text.usetex": False,
    "axes.edgecolor": MUTED[0],
    "axes.labelcolor": MUTED[0],
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID[0],
    "grid.linewidth": 0.8,
    "xtick.color": MUTED[0],
    "ytick.color": MUTED[0],
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "path",
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True, slots=True)
class ModelStyle:
    """How one model is drawn.

    Attributes:
        index: Place in the palette.
        colour: Hex colour for light backgrounds.
        marker: matplotlib marker, different for each of the first seven models.
        dash: matplotlib line style, solid for the first seven models.
    """

    index: int
    colour: str
    marker: str
    dash: Any


def model_styles(models: Iterable[str]) -> Mapping[str, ModelStyle]:
    """Give each model its style, in order of first appearance."""
    styles = {}
    for number, model in enumerate(dict.fromkeys(models)):
        cycle, index = divmod(number, len(MODEL_COLOURS))
        styles[model] = ModelStyle(index, MODEL_COLOURS[index][0], MARKERS[index], DASHES[cycle % len(DASHES)])
    return styles


def styled(function: Callable[P, T]) -> Callable[P, T]:
    """Run ``function`` under our matplotlib settings, then restore the caller's."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        import matplotlib

        with matplotlib.rc_context(RC):
            return function(*args, **kwargs)

    return wrapper
