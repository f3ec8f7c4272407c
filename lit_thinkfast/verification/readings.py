r"""Reading a final answer: numbers, expressions, words, and tuples, sets, intervals, unions, matrices of them.

A text in plain notation (:mod:`lit_thinkfast.verification.notation`) becomes a :class:`Reading`: its one form, its
shape, and whether it was understood to the last. Readers are tried in turn and know one shape each; what none knows is
kept as text. Nothing is evaluated, and brackets are followed four deep.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

from lit_thinkfast.verification.forms import equation, form
from lit_thinkfast.verification.notation import Percent, named, plain_number, qualified, tidy

_WORDS = re.compile(r"[^\W\d_](?:[^\W\d_]|[' -])+")
_SPOKEN = re.compile(r"[^\W\d_](?:[^\W\d_]|[' ])+")
_CHOICE = re.compile(r"\(\s*([A-Z])\s*\)")
_INFINITY = re.compile(r"([+-]?)\s*(?:\\infty|\\infinity|inf|infty|infinity)")
_MEMBER = re.compile(r"^[a-zA-Z]\s*\\in(?![a-zA-Z])\s*(?=[\[(\\])")
_JOINED = re.compile(r"(?:\s{0,4},)?\s{1,8}(?:and|or)\s{1,8}")
_COMPARISON = re.compile(r"(\\(?:leqslant|geqslant|leq|geq|le|ge|lt|gt)(?![a-zA-Z])|<=|>=|<|>)")
_VARIABLE = re.compile(r"[a-zA-Z]|\\(?:theta|alpha|beta|lambda|mu)")
_MATRIX = re.compile(r"\\begin\s?\{([pb]?matrix)\}(.*)\\end\s?\{\1\}")
_SPACE = re.compile(r"(?P<command>\\[a-zA-Z]{1,32})\s+(?=[a-zA-Z])|(?P<digits>(?<=[0-9.])\s+(?=[0-9.]))|\s+")
_NUMERAL = re.compile(
    r"([0-9][0-9A-Z]{0,63}|[A-F]{1,16}[0-9][0-9A-F]{0,46})(?:_\{?\s{0,4}|\s{0,4}\(?\s{0,4}base\s{1,4})([0-9]{1,2}|[a-z]{1,9})"
    r"\s{0,4}[)}]?"
)
_GROUPED = re.compile(r"[0-9],[0-9]{3}(?![0-9])")
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_BASES |= {"eleven": 11, "twelve": 12, "sixteen": 16}

_OPEN, _CLOSE = "([{", ")]}"
_MAX_PARTS = 64
SCALARS = ("number", "expression")
"""Kinds of one value."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a text was read as.

    Attributes:
        text: The canonical form.
        kind: Its shape; two exact answers of one kind with different texts are different answers.
        symbols: The free symbols of an exact answer; ``None`` if it was not understood to the last.
        size: How many scalars it is made of.
        parts: Of a collection: its values, of named ones in the order of their names, of others as written.
    """

    text: str
    kind: str
    symbols: frozenset[str] | None = None
    size: int = 1
    parts: tuple[str, ...] = ()


@functools.lru_cache(maxsize=1 << 15)
def read(answer: str, percent: Percent) -> Reading:
    """Read a final answer of at most :data:`~lit_thinkfast.verification.notation.MAX_ANSWER` characters."""
    made = _whole(tidy(answer), percent)
    for _ in range(4):
        # text that was evened out may be read once more, as when a space is gone; an exact form reads as itself
        again = made if made.symbols is not None else _whole(tidy(made.text), percent)
        if again.text == made.text or again.symbols is not None:
            break
        made = again
    return made


def _whole(text: str, percent: Percent) -> Reading:
    """Read tidied text that is the whole of an answer: first what only a whole answer can be."""
    if not text:
        return Reading("", "text")
    text = _MEMBER.sub("", text)
    for reader in (_choice, _numeral, _interval, _equation):
        if (found := reader(text)) is not None:
            return found
    return _part(text, percent, 0)


def _choice(text: str) -> Reading | None:
    """Read the letter of a choice in brackets."""
    found = _CHOICE.fullmatch(text)
    return None if found is None else Reading(found[1], "expression", frozenset(found[1]))


def _numeral(text: str) -> Reading | None:
    """Read ``52_8`` or ``52 (base 8)``, digits in a base that has them. A numeral is its digits, not its value."""
    found = _NUMERAL.fullmatch(text)
    base = 0 if found is None else _BASES.get(found[2]) or (int(found[2]) if found[2].isdigit() else 0)
    if found is None or not all(int(digit, 36) < base for digit in found[1]):
        return None
    return Reading(f"{found[1]}_{base}", "numeral", frozenset())


def _interval(text: str) -> Reading | None:
    r"""Read ``1 < x \le 2`` or ``x > 3`` as the interval it is."""
    pieces = [piece.strip() for piece in _COMPARISON.split(text)]
    if len(pieces) not in (3, 5):
        return None
    up = {sign.lstrip("\\")[0] in "<l" for sign in pieces[1::2]}
    if len(up) != 1:
        return None
    if not up.pop():
        pieces.reverse()
    strict = [sign in ("<", ">", "\\lt", "\\gt") for sign in pieces[1::2]]
    if len(pieces) == 3 and _VARIABLE.fullmatch(pieces[0]):
        pieces, strict = ["-\\infty", "", *pieces], [True, *strict]
    elif len(pieces) == 3:
        pieces, strict = [*pieces, "", "\\infty"], [*strict, True]
    ends = [_part(piece, "fraction", 1) for piece in pieces[::4]]
    if not _VARIABLE.fullmatch(pieces[2]) or any(end.symbols is None or end.kind not in SCALARS for end in ends):
        return None
    return _group([*ends], "(["[not strict[0]], ")]"[not strict[1]])


def _equation(text: str) -> Reading | None:
    """Read an equation that is not just a name for a value. Never exact: two of them may have the same solutions."""
    left, sign, right = text.partition("=")
    if not sign or "=" in right:
        return None
    sides = form(left.strip()), form(right.strip())
    if sides[0] is None or sides[1] is None:
        return None
    written = equation(sides[0], sides[1])
    if written is None:
        return None
    name, value = named(written)  # 3x = 0
    return _part(value, "fraction", 1) if name else Reading(written, "equation")


def _part(text: str, percent: Percent, depth: int) -> Reading:
    """Read tidied text that may be a part of an answer."""
    value = plain_number(text)
    if value is not None:
        signed = text.endswith("%")
        return Reading(str(value / 100 if signed and percent == "fraction" else value), "number", frozenset())
    if found := _INFINITY.fullmatch(text):
        return Reading(found[1].replace("+", "") + "\\infty", "number", frozenset())
    if _SPOKEN.fullmatch(text):
        return _word(text)
    if text.endswith("%") and (inner := form(text[:-1])) is not None:
        scaled = form(f"({inner.text})/100") if percent == "fraction" else inner
        if scaled is not None:
            return Reading(scaled.text, "percent")
    if (read := form(text)) is not None:
        # (1) is 1, but ((1), 2) is read by the lines below
        return Reading(read.text, "expression" if read.symbols else "number", read.symbols)
    if depth < 4:
        for reader in (_matrix, _union, _collection, _either):
            if (made := reader(text, lambda part: _part(part, percent, depth + 1))) is not None:
                return made
    if _WORDS.fullmatch(text):
        return _word(text)
    if qualified(text) is not None:
        return Reading(" ".join(text.lower().split()), "qualified")
    return Reading(
        _SPACE.sub(lambda m: f"{m['command']} " if m["command"] else " " if m["digits"] else "", text), "text"
    )


_Reader = Callable[[str], Reading]


def _matrix(text: str, read: _Reader) -> Reading | None:
    found = _MATRIX.fullmatch(text)
    if found is None:
        return None
    rows = [row.split("&") for row in re.sub(r"\\\\\s*$", "", found[2]).split("\\\\")]
    if len({len(row) for row in rows}) != 1 or len(rows) * len(rows[0]) > _MAX_PARTS:
        return None
    cells = [[read(cell.strip()) for cell in row] for row in rows]
    inside = "\\\\".join("&".join(cell.text for cell in row) for row in cells)
    flat = [cell for row in cells for cell in row]
    return Reading(f"\\begin{{pmatrix}}{inside}\\end{{pmatrix}}", "matrix", _symbols(flat), len(flat))


def _union(text: str, read: _Reader) -> Reading | None:
    pieces = re.split(r"\\cup(?![a-zA-Z])", text)
    if not 1 < len(pieces) <= _MAX_PARTS:
        return None
    sets = sorted({piece.text: piece for piece in (read(p.strip()) for p in pieces)}.values(), key=lambda one: one.text)
    if any(one.kind == "text" for one in sets):
        return None
    # overlapping intervals may be written in many ways, so a union is never exact
    return Reading("\\cup".join(one.text for one in sets), "union")


def _collection(text: str, read: _Reader) -> Reading | None:
    r"""Read a tuple or interval, a set, or a bare list. ``a \pm b`` counts for two elements of the latter two."""
    body, opening, closing = text, "", ""
    if text.startswith("\\{") and text.endswith("\\}"):
        body, opening, closing = text[2:-2], "\\{", "\\}"
    elif text[:1] in ("(", "[") and text[-1:] in (")", "]") and len(text) > 1:
        body, opening, closing = text[1:-1], text[0], text[-1]
    ordered = opening not in ("", "\\{")
    if not ordered:
        body = _JOINED.sub(",", body)
    pieces = [named(part.strip()) for part in _split(body)]
    names = [name for name, _ in pieces]
    if not ordered and len(pieces) > 1 and all(names) and len(set(names)) == len(names):
        return _values(sorted(pieces), read)
    values = [value for _, part in pieces for value in ([part] if ordered else _both_signs(part))]
    if not (len(values) > 1 or opening == "\\{") or len(values) > _MAX_PARTS or not all(values):
        return None
    if len({*names} - {""}) > 1 and not ordered:
        return None  # x = 1, y = 2, x = 3
    parts = [read(value) for value in values]
    if not opening and _JOINED.search(text) and any(part.kind not in SCALARS for part in parts):
        return None  # 5 and a half
    return _group(parts, opening, closing)


def _values(pieces: list[tuple[str, str]], read: _Reader) -> Reading | None:
    """Read values with a name each: ``x = 1, y = 2`` is not ``x = 2, y = 1``."""
    if len(pieces) > _MAX_PARTS or not all(value for _, value in pieces):
        return None
    parts = [read(value) for _, value in pieces]
    if any("," in part.text or "=" in part.text for part in parts):
        return None
    written = ",".join(f"{name}={part.text}" for (name, _), part in zip(pieces, parts, strict=True))
    return Reading(written, "values", _symbols(parts), len(parts), tuple(part.text for part in parts))


def _either(text: str, read: _Reader) -> Reading | None:
    """Read one answer in brackets that mean nothing."""
    inside = text[1:-1].strip()
    return read(inside) if text[:1] == "(" and text[-1:] == ")" and _WORDS.fullmatch(inside) else None


def _group(parts: list[Reading], opening: str, closing: str) -> Reading:
    texts = [part.text for part in parts]
    written = tuple(texts)
    if opening in ("", "\\{"):
        texts = sorted(set(texts) if opening else texts)
    inside = ",".join(texts)
    if not opening and _GROUPED.search(inside):
        inside = ", ".join(texts)  # 1 and 200 are not 1,200
    return Reading(opening + inside + closing, opening + "," + closing, _symbols(parts), len(texts), written)


def _symbols(parts: list[Reading]) -> frozenset[str] | None:
    """Return the symbols of all parts, if all are exact scalars."""
    sets = [part.symbols if part.kind in SCALARS else None for part in parts]
    return None if None in sets else frozenset().union(*(one for one in sets if one is not None))


def _both_signs(part: str) -> list[str]:
    r"""Return ``a+b`` and ``a-b`` for ``a \pm b``."""
    pieces = re.split(r"\\pm(?![a-zA-Z])", part)
    return [f"{pieces[0]}+{pieces[1]}", f"{pieces[0]}-{pieces[1]}"] if len(pieces) == 2 else [part]


def _word(text: str) -> Reading:
    return Reading(" ".join(text.lower().split()), "word", frozenset())


def _split(text: str) -> list[str]:
    """Split at commas outside of all brackets; a bracket that does not fit makes one part of the whole."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        if character in _OPEN:
            depth += 1
        elif character in _CLOSE:
            depth -= 1
            if depth < 0:
                return [text]
        elif character == "," and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]] if depth == 0 else [text]
