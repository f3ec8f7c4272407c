"""The HTML page around a report's sections: head, style sheet, security policy.

The page runs no scripts, loads nothing and links nowhere; a content security policy says so to the browser as well.
Everything foreign goes through :func:`~lit_thinkfast.analysis.text.escape`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from lit_thinkfast.analysis.style import MODEL_COLOURS, THEME, ModelStyle
from lit_thinkfast.analysis.text import escape, shorten

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def page(title: str, body: Sequence[str]) -> str:
    """Return the document. ``body`` is markup."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="referrer" content="no-referrer">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{_style_sheet()}</style>",
            "</head>",
            "<body>",
            "<main>",
            *body,
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def write_whole(text: str, out: str | os.PathLike[str]) -> Path:
    """Write a text file; it appears whole or not at all. Folders are made."""
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def section(heading: str, intro: str, *body: str) -> str:
    """Return a section; ``heading`` and ``intro`` are ours and may hold markup."""
    lead = f'<p class="intro">{intro}</p>' if intro else ""
    return "\n".join([f"<section><h2>{heading}</h2>", lead, *body, "</section>"])


def figure(title: str, subtitle: str, svg: str, *, caption: str = "", wide: bool = False) -> str:
    """Return a figure with its title above and, if any, its caption below; all three are markup."""
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    above = f"<p>{subtitle}</p>" if subtitle else ""
    return f"<figure{' class=wide' if wide else ''}><h3>{title}</h3>{above}{svg}{below}</figure>"


def chip(model: str, styles: Mapping[str, ModelStyle], *, limit: int = 40) -> str:
    """Return a model's name with a dot of its colour."""
    return f'<span class="chip m{styles[model].index}">{escape(shorten(model, limit))}</span>'


def coloured(text: str, styles: Mapping[str, ModelStyle]) -> str:
    """Return the markup of a story's text: escaped, the marked names in their colours."""
    indices = {shorten(model, 40): style.index for model, style in styles.items()}
    parts = re.split("\x02(.*?)\x03", text, flags=re.DOTALL)
    return "".join(
        f'<span class="name m{indices[part]}">{escape(part)}</span>'
        if i % 2
        else re.sub("((weighted )?best-of-N)", r"<span>\1</span>", escape(part))
        for i, part in enumerate(parts)
    )


def data_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, left: bool = False) -> str:
    """Return a table; headings are text, cells are whole ``td`` or ``th`` elements."""
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in headings)
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    opening = '<table class="left">' if left else "<table>"
    return f'<div class="scroll">{opening}<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def details(summary: str, *body: str) -> str:
    """Return a part that opens on click; both are markup."""
    return f'<details><summary>{summary}</summary><div class="inside">{"".join(body)}</div></details>'


def _style_sheet() -> str:
    sheet = resources.files("lit_thinkfast.analysis").joinpath("report.css").read_text(encoding="utf-8")
    for place, number in (("@light@", 0), ("@dark@", 1)):
        sheet = sheet.replace(place, " ".join(f"--{name}: {pair[number]};" for name, pair in THEME.items()))
    rules = " ".join(f".m{i} {{ --c: var(--model{i}); }}" for i in range(len(MODEL_COLOURS)))
    return sheet.replace("@modelrules@", rules)
