"""The HTML page around a report's sections: head, style sheet, security policy.

The page runs no scripts, loads nothing and links nowhere but into itself and to the files that it holds; a content
security policy says so to the browser as well.
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


def page(title: str, body: Sequence[str], *, styles: str = "") -> str:
    """Return the document. ``body`` is markup, ``styles`` more rules for the style sheet, both ours."""
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
            f"<style>\n{_style_sheet()}{styles}\n</style>",
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


def section(heading: str, intro: str, *body: str, anchor: str = "", source: str = "") -> str:
    """Return a section, all of it markup of ours.

    Args:
        heading: Of the section.
        intro: How to read what follows.
        body: The figures and tables.
        anchor: Where links of the page lead, unique in it.
        source: Where the numbers of the figures and tables come from.
    """
    name = f' id="{anchor}"' if anchor else ""
    lead = f'<p class="intro">{intro}</p>' if intro else ""
    end = f'<p class="source">Source: {source}. <a href="#provenance">Provenance</a></p>' if source else ""
    return "\n".join([f"<section{name}><h2>{heading}</h2>", lead, *body, end, "</section>"])


def figure(title: str, subtitle: str, svg: str, *, caption: str = "", wide: bool = False, level: int = 3) -> str:
    """Return a figure with its title above and, if any, its caption below; all three are markup.

    ``level`` is that of the title among the page's headings.
    """
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    above = f"<p>{subtitle}</p>" if subtitle else ""
    reach = ' class="wide" tabindex="0"' if wide else ""  # what scrolls must be reached by the keyboard
    return f"<figure{reach}><h{level}>{title}</h{level}>{above}{svg}{below}</figure>"


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


def data_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, left: bool = False, label: str = "table", more: str = ""
) -> str:
    """Return a table in a part that scrolls sideways by itself.

    Args:
        headings: Text of the column heads.
        rows: Cells as whole ``td`` or ``th`` elements.
        left: Whether heads stand at the left.
        label: For who cannot see.
        more: Column heads as whole elements, after the others.
    """
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in headings)
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    opening = '<table class="left">' if left else "<table>"
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{opening}<thead><tr>{head}{more}'
        f"</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    )


def details(summary: str, *body: str) -> str:
    """Return a part that opens on click; both are markup."""
    return f'<details><summary>{summary}</summary><div class="inside">{"".join(body)}</div></details>'


def _style_sheet() -> str:
    sheet = resources.files("lit_thinkfast.analysis").joinpath("report.css").read_text(encoding="utf-8")
    for place, number in (("@light@", 0), ("@dark@", 1)):
        sheet = sheet.replace(place, " ".join(f"--{name}: {pair[number]};" for name, pair in THEME.items()))
    rules = " ".join(f".m{i} {{ --c: var(--model{i}); }}" for i in range(len(MODEL_COLOURS)))
    return sheet.replace("@modelrules@", rules)
