r"""The table of a comparison for a paper: LaTeX with the package ``booktabs``.

Foreign names are set as they are: every character that LaTeX would act upon is spelled out, and what a font of text
may lack is shown by its code point.
"""

from __future__ import annotations

import math
import re

from lit_thinkfast.analysis.comparison import Comparison
from lit_thinkfast.analysis.provenance import source
from lit_thinkfast.analysis.short_table import COLUMNS, Cell, short_table
from lit_thinkfast.analysis.text import plain, shorten

_SPELLED = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "[": "{[}",  # after \\ or \midrule it would open an argument
    "]": "{]}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    "\N{NO-BREAK SPACE}": "~",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{MINUS SIGN}": "$-$",
    "\N{HORIZONTAL ELLIPSIS}": r"\dots{}",
}


def latex_table(c: Comparison, *, label: str = "tab:thinkfast") -> str:
    r"""Return a ``table`` environment: values in per cent, 95 % intervals below them, the best in bold.

    It needs ``\usepackage{booktabs}`` and ``\usepackage[T1]{fontenc}``. A comment tells where the numbers come from.

    Args:
        c: The comparison.
        label: For ``\ref``: letters, digits and ``:-._``.

    Raises:
        ValueError: ``label`` has other characters.
    """
    if not label or not all(ch.isascii() and (ch.isalnum() or ch in ":-._") for ch in label):
        raise ValueError(f"the label {label!r} must be made of letters, digits and any of :-._")
    table = short_table(c)
    heads = ["model", *table.facts, *(f"{COLUMNS[rule]}@{k}" for rule, k in table.columns)]
    lines = []
    for row in table.rows:
        cells = [latex_text(shorten(row.model, 40)), *map(latex_text, row.facts)]
        below = [""] * len(cells)
        lines.append("    " + " & ".join([*cells, *map(_value, row.cells)]) + r" \\")
        lines.append("    " + " & ".join([*below, *map(_interval, row.cells)]) + r" \\[2pt]")
    baseline = latex_text(shorten(c.baseline, 40))
    caption = (
        f"{c.num_problems} problems, up to {c.ks[-1]} samples a problem; the baseline is {baseline}. Values in per "
        "cent, below them 95\\,\\% bootstrap intervals over problems; the best of a column in bold; engine time."
    )
    return "\n".join(
        [
            f"% Made by lit-thinkfast. {latex_comment(source(c))}",
            r"% \usepackage{booktabs} \usepackage[T1]{fontenc}",
            r"\begin{table}",
            r"  \centering\small\setlength{\tabcolsep}{4pt}",
            rf"  \caption{{{caption}}}",
            rf"  \label{{{label}}}",
            rf"  \begin{{tabular}}{{@{{}}l{'r' * (len(heads) - 1)}@{{}}}}",
            r"    \toprule",
            "    " + " & ".join(latex_text(head) for head in heads) + r" \\",
            r"    \midrule",
            *lines,
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def latex_text(text: str) -> str:
    r"""Return ``text`` as LaTeX sets it letter by letter, on one line.

    >>> latex_text("50% of $x_1$ & \\input{a}")
    '50\\% of \\$x\\_1\\$ \\& \\textbackslash{}input\\{a\\}'
    """
    line = " ".join(plain(text).replace("\N{NO-BREAK SPACE}", "\0").split()).replace("\0", "\N{NO-BREAK SPACE}")
    spelled = "".join(_SPELLED.get(ch) or (ch if ch.isascii() else _by_code(ch)) for ch in line)
    return re.sub("-(?=-)", "-{}", spelled)  # two would make a dash


def latex_comment(text: str) -> str:
    """Return ``text`` so that it stays within one comment."""
    return " ".join(plain(text).split())


def _by_code(letter: str) -> str:
    """Return a letter of Latin-1, which every T1 font has, as it is, and another by its code point."""
    return letter if ord(letter) < 0x100 and letter.isalpha() else f"{{[}}U+{ord(letter):04X}{{]}}"


def _value(cell: Cell) -> str:
    if math.isnan(cell.value):
        return "--"
    return rf"\textbf{{{cell.value:.1f}}}" if cell.best else f"{cell.value:.1f}"


def _interval(cell: Cell) -> str:
    return "" if math.isnan(cell.low) else rf"{{\scriptsize {cell.low:.1f} to {cell.high:.1f}}}"
