r"""What a story is made of: a headline, numbers to see first, paragraphs, and model names that a page can colour.

Model names are wrapped in the marks ``\x02`` and ``\x03``; :func:`unmarked` removes them.
"""

from __future__ import annotations

from dataclasses import dataclass

from lit_thinkfast.analysis.text import join, percent, shorten


@dataclass(frozen=True)
class Tile:
    """One number to see first, and what it is."""

    value: str
    label: str
    model: str


@dataclass(frozen=True)
class Story:
    """A headline, the numbers to see first, and paragraphs of (lead-in, text); model names are marked."""

    headline: str
    tiles: tuple[Tile, ...]
    paragraphs: tuple[tuple[str, str], ...]


def mark(name: str) -> str:
    """Return a model's name, harmless and short, between marks."""
    return f"\x02{shorten(name, 40)}\x03"


def unmarked(text: str) -> str:
    """Return ``text`` without marks."""
    return text.replace("\x02", "").replace("\x03", "")


def samples_in_words(k: int) -> str:
    """Return ``one sample`` or ``64 samples``."""
    return "one sample" if k == 1 else f"{k} samples"


def listed(values: dict[str, float], verb: str) -> str:
    """Return ``teacher solves 40 %, student 38 %``, names marked."""
    parts = [f"{mark(name)} {percent(value)}" for name, value in values.items()]
    parts[0] = parts[0].replace("\x03", f"\x03 {verb}", 1)
    return join(parts)
