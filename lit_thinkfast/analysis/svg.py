"""A matplotlib figure as an inline SVG element that follows the page's light or dark colours.

Text becomes paths, so no font is needed and no foreign string reaches the markup. What a stand-alone SVG file needs and
a page must not have is removed: prolog, metadata with addresses, comments, style sheets. Ids get a prefix, since a page
holds many figures. Colours of :data:`lit_thinkfast.analysis.style.THEME` become ``var(--name)``.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import TYPE_CHECKING

from lit_thinkfast.analysis.style import RC, THEME
from lit_thinkfast.analysis.text import escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MISSING_LETTER = ".*missing from font"
"""What matplotlib warns of where its font lacks a letter; such a letter shows as a box."""
_NUMBER = re.compile(r"-?\d+\.\d{3,}")


def inline_svg(figure: Figure, *, name: str, title: str) -> str:
    """Return one ``<svg>`` element.

    Args:
        figure: What to draw.
        name: Prefix of ids: letters, digits and hyphens, unique in the page.
        title: Says in words what can be seen, for people who cannot see it.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({**RC, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=MISSING_LETTER)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for unwanted in (r"<metadata>.*?</metadata>", r"<!--.*?-->", r"<style.*?</style>", r"\s+xmlns(:xlink)?=\"[^\"]*\""):
        text = re.sub(unwanted, "", text, flags=re.DOTALL)
    text = text.replace("xlink:href=", "href=")
    used = set(re.findall(r"(?:href=\"#|url\(#)([^\")]+)", text))
    text = re.sub(r" id=\"([^\"]+)\"", lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r"(href=\"#|url\(#)", rf"\g<1>{name}-", text)
    for variable, (light, _) in THEME.items():
        text = text.replace(light, f"var(--{variable})")
    text = re.sub(r" d=\"[^\"]+\"", lambda m: _NUMBER.sub(_two_digits, m[0]), text)
    text = re.sub(r"\s*\n\s*", "\n", text).replace("<g>\n<g>", "<g><g>")
    head = re.match(r"<svg[^>]*>", text)
    assert head is not None, "matplotlib wrote no svg element"
    box = re.search(r"viewBox=\"([^\"]+)\"", head[0])
    assert box is not None, "matplotlib wrote no viewBox"
    opening = f'<svg viewBox="{box[1]}" role="img" aria-label="{escape(title)}">'
    return opening + text[head.end() :].strip()


def _two_digits(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")
