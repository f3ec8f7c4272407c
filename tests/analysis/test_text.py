"""What acts instead of showing is marked, whatever the character."""

import unicodedata

import pytest

from lit_thinkfast.analysis.text import dollars, plain


def test_every_character_shows_or_is_marked():
    """Twin: the categories of Unicode. Controls, surrogates and most formats act; everything else is left alone."""
    for code in [*range(0x3000), *range(0xD7F0, 0x10000)]:
        ch, kind = chr(code), unicodedata.category(chr(code))
        if ch in "\t\n":
            assert plain(ch) == ch
        elif kind in ("Cc", "Cs", "Zl", "Zp"):
            assert plain(ch) != ch, hex(code)
        elif kind not in ("Cf", "Cn", "Co"):
            assert plain(ch) == ch, hex(code)
        if unicodedata.bidirectional(ch) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"):
            assert plain(ch) == f"\\u{code:04x}"


@pytest.mark.parametrize(
    ("amount", "told"), [(0.0, "$0.00"), (0.999, "$1.00"), (99.999, "$100.00"), (1e6, "$1,000,000")]
)
def test_dollars(amount, told):
    assert dollars(amount) == told


def test_no_dollars():
    assert dollars(float("nan")) == "-"
