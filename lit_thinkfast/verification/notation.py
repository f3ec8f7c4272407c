r"""The notation of final answers evened out: LaTeX, plain text and spoken units become one plain line.

Nothing here evaluates text. The patterns run in linear time (their repetitions are bounded or cannot overlap), and
callers cap the text first: :data:`MAX_ANSWER`. What an answer *is* after that is the business of
:mod:`lit_thinkfast.verification.answers`.

Words after a number are its unit and are dropped (``5 apples left``), in ``\text{}`` or not, unless one of them may
change its value (``2 pi``, ``10 am``, ``5 north``). Millions and dozens are factors: ``5 million`` is 5000000.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from string import ascii_lowercase
from typing import Literal

Percent = Literal["fraction", "number"]

MAX_ANSWER = 512
"""Characters of the longest answer; a longer one is no answer."""
MAX_DIGITS = 64
"""Digits of the longest number."""

_GREEK = ("alpha", "beta", "gamma", "theta", "lambda", "mu", "phi", "omega")
_PLAIN = str.maketrans(
    {chr(0xFF10 + i): str(i) for i in range(10)}
    | dict.fromkeys("\u2212\u2013\u2012\uff0d", "-")
    | dict.fromkeys("\u00a0\u2009\u202f\u2007\u3000\t\r\n", " ")
    | {"\u2044": "/", "\u2215": "/", "\uff0c": ",", "\uff05": "%", "\u03c0": r"\pi ", "\u221e": r"\infty "}
    | {"\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u00b0": r"^\circ", "\u2264": r"\le ", "\u2265": r"\ge "}
    | {"\u222a": r"\cup ", "\u2229": r"\cap ", "\u00b1": r"\pm ", "\u2208": r"\in ", "\u221a": r"\sqrt "}
    | {
        "\u00bd": r"\frac12 ",
        "\u00bc": r"\frac14 ",
        "\u00be": r"\frac34 ",
        "\u2153": r"\frac13 ",
        "\u2154": r"\frac23 ",
    }
    | {digit: f"^{value}" for value, digit in enumerate("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")}
    | {
        letter: f"\\{name} "
        for letter, name in zip("\u03b1\u03b2\u03b3\u03b8\u03bb\u03bc\u03c6\u03c9", _GREEK, strict=True)
    }
)
_GROUPED = re.compile(r"(?<=[0-9])\\[,!](?=[0-9]{3}(?![0-9]))|(?<=[0-9],)\\!\s{0,4}(?=[0-9]{3}(?![0-9]))")
_SPACING = re.compile(r"(?<!\\)\\(?:[!,;:> ()]|quad(?![a-zA-Z])|qquad(?![a-zA-Z]))|~")
_SIZING = re.compile(r"\\(?:left|right|bigl|bigr|Bigl|Bigr|big|Big|displaystyle|limits)(?![a-zA-Z])")
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname)\s{0,4}\{([^{}]*)\}")
_FRACTION = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_SHORT_FRACTION = re.compile(r"\\frac\s{0,4}([0-9])\s{0,4}([0-9])")
_HALF_SHORT_FRACTION = re.compile(r"\\frac\s{0,4}([0-9])\s{0,4}\{")
_LATE_SHORT_FRACTION = re.compile(r"\\frac\s{0,4}\{([^{}]*)\}\s{0,4}([0-9])")
_SHORT_ROOT = re.compile(r"\\sqrt\s{0,4}([0-9a-zA-Z])")
_LONE_BRACES = re.compile(r"([\^_])\{([a-zA-Z]|[0-9]{1,8})\}")
_DEGREES = re.compile(r"\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})(?![a-zA-Z])")
_BRACED = re.compile(r"\{(?:[^{}]|\{[^{}]*\})*\}")
_UNIT = re.compile(
    r"\s{0,4}(?:(?:square|cubic|sq)\.?\s{1,4})?(?:dollars?|cents?|hours?|hrs?|minutes?|mins?|seconds?|secs?|days?|weeks?"
    r"|months?|years?|miles?|mph|km|cm|mm|meters?|metres?|feet|foot|ft|inch(?:es)?|yards?|grams?|kg|kilograms?|pounds?|lbs?"
    r"|ounces?|degrees?|units?|points?|people)(?:\s{1,4}per\s{1,4}[a-z]{1,12})?\.?(?:\s{0,2}\^\s{0,2}\{?[23]\}?)?$"
)
_TEXT_UNIT = re.compile(r"\\(?:text|textrm|mathrm|mbox)\s{0,4}\{([^{}]*)\}(?:\s{0,2}\^\s{0,2}\{?[23]\}?)?$")
_UNIT_INSIDE = re.compile(r"(?:[a-zA-Z \-'./\u00b5]|\^[23])*")
_LONE_LETTER = re.compile(r"\s*[^msghlLNJWVCFK\W]\s*")
_CLOCK = re.compile(r"(?<=[0-9])\s{0,4}([ap])(?:\.\s?m(?![a-zA-Z])\.?|m(?![a-zA-Z]))", re.IGNORECASE)
_PERCENT = re.compile(r"(?<=[0-9}])\s{0,4}per ?cent(?![a-zA-Z])", re.IGNORECASE)
_UNIT_WORDS = re.compile(r"(%?)\s{0,2}\*{0,2}((?:\s+[a-zA-Z][a-zA-Z'-]+)+)")
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALE = re.compile(rf"\s{{1,4}}({'|'.join(_SCALES)})s?(?![a-zA-Z-])", re.IGNORECASE)
_NO_UNIT = re.compile(
    r"\b(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen"
    r"|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|(?:hundred|thousand|(?:m|b|tr)illion)(?:th)?s?|dozens?|score|half|halves"
    r"|(?:quarter|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth)s?|percent|percentage|negative|plus|minus|squared"
    r"|cubed|factorial|choose|root|remainder|base|binary|octal|hexadecimal|mod|modulo|(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?"
    r"|log|ln|exp|sqrt|max|min|gcd|lcm|det|inf|infty|infinity|pi|phi|psi|tau|alpha|beta|gamma|delta|epsilon|theta|lambda"
    r"|sigma|omega|[ap]\.?m|morning|afternoon|evening|night|noon|midnight|before|after|above|below|less|more|than|or|if"
    r"|when|unless|except|not|wrong|incorrect|repeating|recurring|loss|profit|ago|under|(?<!left )over"
    r"|(?:north|south)(?:east|west)?|east|west|right|(?:(?:counter|anti)-?)?clockwise|left of|the left"
    r"|(?:step|unit|pace|place|space|block|square|degree)s? left|[0-9]{1,64})\b",
    re.IGNORECASE,
)
_CHANGED = re.compile(  # of these, what makes another value; "3 quarters" may be coins, "5 two-liter bottles" are 5
    r"\b(?:halves|and (?:a|one) (?:half|third|quarter)|(?:third|fourth|fifth|sixth|seventh|eighth|ninth|tenth)s"
    r"|(?:hundred|thousand|(?:m|b|tr)illion)ths?|squared|cubed|factorial|choose|not|wrong|incorrect|repeating|recurring"
    r"|(?:by|and|to|of|feet|foot|ft|hours?|hrs?|pounds?|lbs?) [0-9]{1,64}(?!-))\b"
)
_AFTER_NUMBER = re.compile(r"\s*(?::[0-9]{2}|%)?\s*(?=[a-zA-Z(])[a-zA-Z0-9 ,.'()-]+")
_SIDE = re.compile(  # and what may be left out
    r"loss|profit|ago|right|[a-z ]*left[a-z ]*|[a-z-]*clockwise|(?:north|south)(?:east|west)?|east|west"
)
_IN_BRACKETS = re.compile(r"\([^()]*\)")
_TIME_OF_DAY = {"morning": "am", "afternoon": "pm", "evening": "pm", "night": "pm"}
_ASSIGNMENT = re.compile(r"^[a-zA-Z](?:_[0-9a-zA-Z])?(?:\s*\([a-zA-Z]\))?\s*=\s*(?=[^=\s])")
_NAMED_LAST = re.compile(r"(?<=[0-9a-zA-Z)}])\s{0,4}=\s{0,4}[a-zA-Z]$")
_MORE_NAMES = re.compile(
    r"(?:,|(?<![a-zA-Z])(?:and|or)\s{0,4}\}?)\s{0,4}(?:and\s|or\s)?\s{0,4}"
    r"(?:[a-zA-Z](?:_[0-9a-zA-Z])?(?:\s{0,4}\([a-zA-Z]\))?\s{0,4}=[^=]|[^,=]{1,80}=\s{0,4}[a-zA-Z](?![a-zA-Z]))"
)

_INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,20}|[0-9]{1,64})"
_DECIMAL = rf"(?:{_INTEGER}(?:\.[0-9]{{0,64}})?|\.[0-9]{{1,64}})"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)\s*(?:"
    rf"\\frac\s*\{{\s*(?P<top>[+-]?{_DECIMAL})\s*\}}\s*\{{\s*(?P<bottom>[+-]?{_DECIMAL})\s*\}}"
    rf"|(?P<whole>[0-9]{{1,64}})\s*\\frac\s*\{{\s*(?P<mixed_top>{_INTEGER})\s*\}}\s*\{{\s*(?P<mixed_bottom>{_INTEGER})\s*\}}"
    rf"|(?P<whole2>[0-9]{{1,64}})\s+(?P<mixed_top2>[0-9]{{1,64}})\s*/\s*(?P<mixed_bottom2>[0-9]{{1,64}})"
    rf"|(?P<left>{_DECIMAL})\s*/\s*(?P<right>{_DECIMAL})"
    rf"|(?P<decimal>{_DECIMAL})(?:(?:[eE]|\s*\\times\s*10\s*\^\s*\{{?\s*)(?P<power>[+-]?[0-9]{{1,2}})\s*\}}?)?"
    rf")"
)
_PLAIN_INTEGER = re.compile(r"-?[0-9]{1,64}")


def number(answer: str, *, percent: Percent = "fraction") -> Fraction | None:
    r"""Return the exact value of an integer, decimal, fraction, mixed number or percentage, or ``None``.

    A unit after it is left out of account.

    Args:
        answer: A final answer; one of more than :data:`MAX_ANSWER` characters is no number.
        percent: Value of a percentage: its fraction (``50\%`` is 1/2) or its number (50).

    >>> number("3\\frac{1}{4}"), number("-1,234.5"), number("12 cups"), number("12 x"), number("50%")
    (Fraction(13, 4), Fraction(-2469, 2), Fraction(12, 1), None, Fraction(1, 2))
    """
    if len(answer) > MAX_ANSWER:
        return None
    text = tidy(answer)
    value = plain_number(text)
    return value / 100 if value is not None and percent == "fraction" and text.endswith("%") else value


def tidy(answer: str) -> str:
    """Return ``answer`` in plain notation: no dollar signs, spacing or sizing commands, units, or final full stop."""
    if _PLAIN_INTEGER.fullmatch(answer):  # most answers of GSM8K
        return answer
    text = "".join(c for c in answer.translate(_PLAIN) if c.isprintable())
    text = _GROUPED.sub("", text.replace("{,}", ",").replace("\\%", "%").replace("\\$", "").replace("$", " "))
    text = _unwrapped(_SPACING.sub(" ", _SIZING.sub("", _FRACTION.sub(r"\\frac", text))))
    if "\\" in text:
        text = _SHORT_ROOT.sub(r"\\sqrt{\1}", _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text))
        text = _LATE_SHORT_FRACTION.sub(r"\\frac{\1}{\2}", _HALF_SHORT_FRACTION.sub(r"\\frac{\1}{", text))
    text = _LONE_BRACES.sub(_unbraced, _DEGREES.sub("", text))
    text = (text if _MORE_NAMES.search(text) else named(text)[1]).strip("*\u00a3\u20ac\u00a5 ")
    for unit in (_TEXT_UNIT, _UNIT):
        found = unit.search(text)
        if found and _is_unit(*found.groups()) and plain_number(text[: found.start()].rstrip()) is not None:
            text = text[: found.start()].rstrip()
    for _ in range(4 if "\\" in text else 0):  # text in text
        text = _TEXT.sub(lambda m: f" {m.group(1)} ", text)
    text = _CLOCK.sub(lambda m: f" {m.group(1).lower()}m", _PERCENT.sub("%", text.strip()))
    return _LONE_BRACES.sub(_unbraced, _without_unit_words(text))


def named(text: str) -> tuple[str, str]:
    """Part ``x = 5``, ``f(x) = 5`` or ``5 = x`` into name, empty if none, and value; ``x = y = 5`` is named ``x``."""
    name = ""
    while found := _ASSIGNMENT.match(text) or (_NAMED_LAST.search(text) if text.count("=") == 1 else None):
        name = name or "".join(c for c in found[0] if c not in " =")
        text = text[: found.start()] + text[found.end() :]
    return name, text


@dataclass(frozen=True, slots=True)
class Qualified:
    """A number with words after it that are no unit.

    Attributes:
        value: The number.
        words: Those words.
        changed: They make another value of it: ``3 and a half``.
        optional: They may be left out: ``5 steps north``. Of other words it is not known.
    """

    value: Fraction
    words: frozenset[str]
    changed: bool
    optional: bool


def qualified(text: str) -> Qualified | None:
    """Read a number with words after it that are no unit, or return ``None``.

    >>> qualified("10 apples"), qualified("3 and a half").changed, qualified("10 in the morning").words
    (None, True, frozenset({'am'}))
    """
    found = _NUMBER.match(text)
    if found is None or _AFTER_NUMBER.fullmatch(text, found.end()) is None:
        return None
    rest = " ".join(text[found.end() :].lower().split())
    words = frozenset(_TIME_OF_DAY.get(word, word) for word in _NO_UNIT.findall(rest))
    value = plain_number(found[0])
    if value is None or not words:
        return None
    changed = _CHANGED.search(_IN_BRACKETS.sub("", rest)) is not None
    return Qualified(value, words, changed, not changed and all(_SIDE.fullmatch(word) for word in words))


def plain_number(text: str) -> Fraction | None:
    """Return the value of tidied ``text``; a percent sign is left out of account."""
    match = _NUMBER.fullmatch(text[:-1].rstrip() if text.endswith("%") else text)
    if match is None:
        return None
    part = {name: value.replace(",", "") for name, value in match.groupdict().items() if value is not None}
    whole = Fraction(part.get("whole") or part.get("whole2") or 0)
    top = part.get("top") or part.get("mixed_top") or part.get("mixed_top2") or part.get("left") or part.get("decimal")
    bottom = part.get("bottom") or part.get("mixed_bottom") or part.get("mixed_bottom2") or part.get("right") or "1"
    divisor = Fraction(bottom)
    if divisor == 0:
        return None
    value = whole + Fraction(top or 0) * Fraction(10) ** int(part.get("power") or 0) / divisor
    return -value if part["sign"] == "-" else value


def _without_unit_words(text: str) -> str:
    """Take the words off that follow a plain number. The point of ``1. Compute`` numbers a heading, not a thing."""
    found = _NUMBER.match(text)
    if found is None or found[0].endswith("."):
        return text
    plain, end = found[0], found.end()
    while scale := _SCALE.match(text, end):
        value = plain_number(plain)
        plain, end = str((value or 0) * _SCALES[scale[1].lower()]), scale.end()
        if value is None or len(plain) > MAX_DIGITS:
            return text
    if end == len(text):
        return plain
    rest = _UNIT_WORDS.fullmatch(text, end)
    if rest is None:
        return text
    # xy and abc are products of variables
    spoken = any(
        len(word) > 2 and set("aeiou") & set(word) and word not in ascii_lowercase for word in rest[2].lower().split()
    )
    return plain + rest[1] if spoken and _is_unit(rest[2]) else text


def _is_unit(words: str = "") -> bool:
    """Say whether words after a number leave its value alone."""
    return not (
        _NO_UNIT.search(" ".join(words.split())) or _LONE_LETTER.fullmatch(words) or not _UNIT_INSIDE.fullmatch(words)
    )


def _unbraced(found: re.Match[str]) -> str:
    """Write ``^{2}`` as ``^2``, apart from a digit that follows: ``e^{2}3`` is not ``e^23``."""
    apart = found[2].isdigit() and found.string[found.end() : found.end() + 1].isdigit()
    return found[1] + found[2] + " " * apart


def _unwrapped(text: str) -> str:
    """Take off the marks around a formula and the punctuation after it."""
    for _ in range(4):  # wrappings may nest, but not for ever
        before = text
        text = text.strip("* ")
        for opening, closing in (("\\[", "\\]"), ("`", "`")):
            if text.startswith(opening) and text.endswith(closing) and len(text) >= len(opening + closing):
                text = text[len(opening) : -len(closing)].strip()
        text = text[1:-1] if _BRACED.fullmatch(text) else text
        text = text.removesuffix(".").removesuffix(",").removesuffix(";")
        if text == before:
            break
    return text
