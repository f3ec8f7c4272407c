"""The short table of a comparison as plain cells, for LaTeX and Markdown, which only set them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lit_thinkfast.analysis.comparison import Comparison
from lit_thinkfast.analysis.table import attention_layers, shown_ks
from lit_thinkfast.analysis.text import count, duration, whole
from lit_thinkfast.records import Rule

COLUMNS = {"coverage": "coverage", "majority": "majority", "weighted_best_of_n": "weighted", "best_of_n": "best-of-N"}


@dataclass(frozen=True)
class Cell:
    """One value in per cent.

    Attributes:
        value: 0 to 100; NaN where it was not measured.
        low: Lower end of its 95 % interval.
        high: Upper end.
        best: Whether no other model has more in this column.
    """

    value: float
    low: float
    high: float
    best: bool


@dataclass(frozen=True)
class Row:
    """One model: its name as it is, facts in words, values."""

    model: str
    facts: tuple[str, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class ShortTable:
    """Models by values.

    Attributes:
        facts: Heads of the facts.
        columns: (rule, k) of the values.
        rows: One a model.
    """

    facts: tuple[str, ...]
    columns: tuple[tuple[Rule, int], ...]
    rows: tuple[Row, ...]


def short_table(c: Comparison) -> ShortTable:
    """Return the table of models: size, attention layers, tokens, seconds of a sample, values at one sample and all."""
    keys: list[tuple[Rule, int]] = [(c.rules[0], k) for k in shown_ks(c)] + [(r, c.ks[-1]) for r in c.rules[1:]]
    best = {key: _most([p.value for name in c.runs if (p := c.point(name, *key))]) for key in keys}
    rows = []
    for name, run in c.runs.items():
        seconds = float(c.measured[name].sample_seconds.mean())
        facts = (
            "-" if run.num_parameters is None else count(run.num_parameters),
            attention_layers(run),
            whole(run.tokens_per_completion),
            duration(seconds),
        )
        cells = []
        for key in keys:
            p = c.point(name, *key)
            known = p is not None and math.isfinite(p.value)
            cells.append(
                Cell(100 * p.value, 100 * p.low, 100 * p.high, p.value == best[key] and len(c.runs) > 1)
                if p is not None and known
                else Cell(math.nan, math.nan, math.nan, False)
            )
        rows.append(Row(name, facts, tuple(cells)))
    return ShortTable(("parameters", "attention", "tokens", "time a sample"), tuple(keys), tuple(rows))


def _most(values: Sequence[float]) -> float:
    return max((v for v in values if math.isfinite(v)), default=math.nan)
