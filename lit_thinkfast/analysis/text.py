"""Text for people: foreign strings made harmless, numbers made short."""

from __future__ import annotations

import html
import math
import re

_GAP = "\N{NO-BREAK SPACE}"
# Controls but tab and newline, marks that reorder or hide text, halves of characters, annotations and non-characters
_ACTS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff0-\ufffb]"
)

RULE_NAMES = {
    "coverage": "Coverage",
    "majority": "Majority vote",
    "weighted_best_of_n": "Weighted best-of-N",
    "best_of_n": "Best-of-N",
}


RULES_IN_TEXT = {rule: name[0].lower() + name[1:] for rule, name in RULE_NAMES.items()}


def plain(text: str) -> str:
    r"""Return ``text`` with every character that acts instead of showing replaced by a visible mark.

    Control characters (terminal escapes among them), surrogates and the Unicode marks that reorder text can forge
    what a reader sees. Newlines and tabs stay.

    >>> plain("a\x1b[31mb\u202ec")
    'a\\x1b[31mb\\u202ec'
    """
    return _ACTS.sub(_mark, text)


def _mark(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def escape(text: object) -> str:
    """Return ``text`` safe inside HTML text and quoted attributes."""
    return html.escape(plain(str(text)), quote=True)


def shorten(text: str, limit: int) -> str:
    """Return ``text`` on one line of at most ``limit`` characters, its middle left out where needed."""
    text = " ".join(plain(text).split())
    if len(text) <= limit:
        return text
    head = limit // 2
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"


def clip(text: str, limit: int) -> str:
    """Return ``text`` on one line of at most ``limit`` characters, its end left out where needed."""
    text = " ".join(plain(text).split())
    return text if len(text) <= limit else f"{text[: limit - 1].rstrip()}…"


def percent(value: float, digits: int = 1) -> str:
    """Format a share as per cent; ``-`` for NaN."""
    return "-" if math.isnan(value) else f"{100 * value:.{digits}f}{_GAP}%"


def span(low: float, high: float) -> str:
    """Format the ends of an interval of shares as per cent, without the unit; ``-`` where there is none."""
    return "-" if math.isnan(low) or math.isnan(high) else f"{100 * low:.1f} to {100 * high:.1f}"


def points(value: float, digits: int = 1) -> str:
    """Format a difference of shares as signed percentage points, without the unit; ``-`` for NaN."""
    if math.isnan(value):
        return "-"
    return f"{round(100 * value, digits) + 0.0:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def duration(seconds: float) -> str:
    """Format seconds with two or three digits, the unit after a no-break space.

    >>> [duration(s).replace(_GAP, " ") for s in (0.0042, 0.3091, 1.0, 12.53, 204.0)]
    ['4.2 ms', '0.31 s', '1 s', '12.5 s', '3.4 min']
    """
    if not math.isfinite(seconds):
        return "-"
    size, digits, unit = next(
        form
        for limit, form in (
            (0.00995, (1e-3, 1, "ms")),
            (0.0995, (1e-3, 0, "ms")),
            (9.95, (1, 2, "s")),
            (119.5, (1, 1, "s")),
            (7170, (60, 1, "min")),
            (math.inf, (3600, 1, "h")),
        )
        if seconds < limit
    )
    number = f"{seconds / size:.{digits}f}"
    return (number.rstrip("0").rstrip(".") if "." in number and number[0] != "0" else number) + f"{_GAP}{unit}"


def dollars(amount: float) -> str:
    """Format an amount of money with two or three digits; thousandths of a dollar are kept.

    >>> [dollars(a) for a in (0.000123, 0.0456, 1.5, 1234.5)]
    ['$0.00012', '$0.046', '$1.50', '$1,234']
    """
    if not math.isfinite(amount):
        return "-"
    if amount >= 1 or amount == 0:
        return f"${amount:,.2f}" if amount < 100 else f"${amount:,.0f}"
    return f"${amount:.{1 - math.floor(math.log10(amount))}f}"


def count(number: float) -> str:
    """Format a large count: ``812``, ``81.9k``, ``1.24M``, ``3.21B``."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def whole(number: float) -> str:
    """Format a number without decimals; ``-`` for NaN."""
    return "-" if math.isnan(number) else f"{number:,.0f}"


def memory(number: float) -> str:
    """Format bytes in decimal units."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= size:
            return f"{number / size:.3g}{_GAP}{unit}"
    return f"{number:.0f}{_GAP}B"


def factor(ratio: float) -> str:
    """Format a ratio with two or three digits and a multiplication sign: ``1.07``, ``3.1``, ``57`` times."""
    digits = 0 if ratio >= 9.95 else 1 if ratio >= 1.995 else 2
    return f"{ratio:.{digits}f}\N{MULTIPLICATION SIGN}" if ratio >= 0.1 else f"{ratio:.2g}\N{MULTIPLICATION SIGN}"


def join(parts: list[str]) -> str:
    """Join as a list in a sentence: ``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
