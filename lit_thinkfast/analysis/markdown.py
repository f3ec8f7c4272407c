r"""The summary of a comparison in Markdown: headline, table, what to mind, provenance.

Foreign names are escaped for readers that run HTML in Markdown as well as for those that do not: ``<``, ``&`` and ``@``
(addresses, mentions) become entities, and what Markdown would act upon gets a backslash.
"""

from __future__ import annotations

import math
import re

import lit_thinkfast
from lit_thinkfast.analysis.cautions import cautions
from lit_thinkfast.analysis.comparison import Comparison
from lit_thinkfast.analysis.difference import STANDS_OUT
from lit_thinkfast.analysis.provenance import LABELS, origins
from lit_thinkfast.analysis.short_table import COLUMNS, Cell, short_table
from lit_thinkfast.analysis.story import tell, unmarked
from lit_thinkfast.analysis.table import budget_rows
from lit_thinkfast.analysis.text import RULE_NAMES, duration, percent, plain, points, shorten, span

_GRAMMAR = re.compile(r"([\\`*_\[\]|~$#>]|:(?=//)|(?<=www)\.)")
_OPENING = re.compile(r"^(\d*)([-+=.)])")


def markdown_summary(c: Comparison) -> str:
    """Return the summary; tables are of GitHub's flavour."""
    story = tell(c)
    lines = [f"# {markdown_text(unmarked(story.headline))}", ""]
    for lead, text in story.paragraphs:
        lines += [f"**{markdown_text(lead)}** {markdown_text(unmarked(text))}", ""]
    table = short_table(c)
    heads = ["model", *table.facts, *(f"{COLUMNS[rule]}@{k}" for rule, k in table.columns)]
    rows = [
        [markdown_text(shorten(r.model, 40)), *map(markdown_text, r.facts), *map(_cell, r.cells)] for r in table.rows
    ]
    lines += ["## Values", "", *_table(heads, rows), ""]
    lines += ["Per cent, with 95 % bootstrap intervals over problems; the best of a column in bold.", ""]
    if c.timed and len(c.runs) > 1 and c.best:
        rows = [[duration(s), *(_best(row.get(r)) for r in c.rules)] for s, row in budget_rows(c).items()]
        lines += ["## The best model at round budgets", ""]
        lines += [*_table(["engine time a problem", *(RULE_NAMES[r] for r in c.rules)], rows), ""]
        told = f"In brackets the lead in points with its paired 95 % interval; * for those whose interval {STANDS_OUT}."
        lines += [told, ""]
    found = cautions(c)
    if found:
        lines += ["## Mind", "", *(f"- {markdown_text(text)}" for text in found), ""]
    known = origins(c)
    rows = [[label, *(markdown_text(getattr(o, field)) for o in known)] for field, label in LABELS.items()]
    lines += ["## Provenance", "", *_table(["run", *(markdown_text(shorten(o.run, 40)) for o in known)], rows), ""]
    lines += [f"Made by lit-thinkfast {lit_thinkfast.__version__}.", ""]
    return "\n".join(lines)


def markdown_text(text: str) -> str:
    r"""Return ``text`` on one line, as it is read rather than as Markdown would act on it.

    >>> markdown_text("a|b <i>*x*</i>"), markdown_text("1. first"), markdown_text("Llama-1B")
    ('a\\|b &lt;i\\>\\*x\\*&lt;/i\\>', '1\\. first', 'Llama-1B')
    """
    line = " ".join(plain(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace("@", "&#64;")
    return _OPENING.sub(r"\1\\\2", _GRAMMAR.sub(r"\\\1", line))


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    ruler = ["---", *["---:"] * (len(heads) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (heads, ruler, *rows)]


def _cell(cell: Cell) -> str:
    if math.isnan(cell.value):
        return "-"
    number = f"**{cell.value:.1f}**" if cell.best else f"{cell.value:.1f}"
    return f"{number} ({span(cell.low / 100, cell.high / 100)})"


def _best(best: object) -> str:
    from lit_thinkfast.analysis.comparison import BestAt

    if not isinstance(best, BestAt):
        return "-"
    told = f"{markdown_text(shorten(best.model, 30))} {percent(best.value)}, k = {best.k}"
    m = best.margin
    if m is None or math.isnan(m.difference):
        return told
    return f"{told} ({points(m.difference)}, {points(m.low)} to {points(m.high)}{' *' if m.resolved else ''})"
