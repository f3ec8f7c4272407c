r"""Final answers in model text: finding them, bringing them to one form, comparing them. Safe on any text.

Most answers are numbers, tuples of numbers or words, and these are decided here, exactly, with ``Fraction``: no
computer algebra touches them. What remains goes to math-verify in a process that can be killed
(:mod:`lit_thinkfast.verification.workers`). Nothing in this file evaluates text, and its patterns run in linear time on
text that is capped first.

Rules that graders disagree on, as taken here. A percentage equals its fraction and also the bare number of percent
(``50\%`` = 1/2, and ``50\%`` = 50 where the other side has no sign); as a vote it counts as the bare number. Numbers
are compared exactly: 0.33 is not 1/3. Words after a number are its unit and are dropped (``5 apples left``), unless
one of them may change its value (``5 million``, ``2 pi``, ``10 am``). Order matters in ``(1, 2)``, not in ``\{1, 2\}``
nor in a bare list.
"""

from __future__ import annotations

import re
from collections import deque
from fractions import Fraction
from string import ascii_lowercase

MAX_TEXT = 65_536
"""Characters of a completion that are searched, counted from its end: the answer comes last."""
MAX_ANSWER = 512
"""Characters of the longest answer; a longer one is no answer."""
MAX_DIGITS = 64
"""Digits of the longest number."""
MAX_DEPTH = 32
"""Brackets within brackets that a parser is given."""

_PLAIN = str.maketrans(
    {chr(0xFF10 + i): str(i) for i in range(10)}
    | dict.fromkeys("\u2212\u2013\u2012\uff0d", "-")
    | dict.fromkeys("\u00a0\u2009\u202f\u2007\u3000\t\r\n", " ")
    | {"\u2044": "/", "\u2215": "/", "\uff0c": ",", "\uff05": "%", "\u03c0": r"\pi ", "\u221e": r"\infty "}
    | {"\u00d7": r"\times ", "\u00b0": r"^\circ", "\u2264": r"\le ", "\u2265": r"\ge ", "\u222a": r"\cup "}
)
_SPACING = re.compile(r"(?<!\\)\\(?:[!,;:> ()]|quad(?![a-zA-Z])|qquad(?![a-zA-Z]))|~")
_SIZING = re.compile(r"\\(?:left|right|bigl|bigr|Bigl|Bigr|big|Big|displaystyle|limits)(?![a-zA-Z])")
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname)\s{0,4}\{([^{}]*)\}")
_FRACTION = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_SHORT_FRACTION = re.compile(r"\\frac\s{0,4}([0-9])\s{0,4}([0-9])")
_HALF_SHORT_FRACTION = re.compile(r"\\frac\s{0,4}([0-9])\s{0,4}\{")
_LATE_SHORT_FRACTION = re.compile(r"\\frac\s{0,4}\{([^{}]*)\}\s{0,4}([0-9])")
_SHORT_ROOT = re.compile(r"\\sqrt\s{0,4}([0-9a-zA-Z])")
_LONE_BRACES = re.compile(r"([\^_])\{([0-9a-zA-Z])\}")
_DEGREES = re.compile(r"\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})(?![a-zA-Z])")
_UNIT = re.compile(
    r"\s{0,4}(?:(?:square|cubic|sq)\.?\s{1,4})?(?:dollars?|cents?|hours?|hrs?|minutes?|mins?|seconds?|secs?|days?|weeks?"
    r"|months?|years?|miles?|mph|km|cm|mm|meters?|metres?|feet|foot|ft|inch(?:es)?|yards?|grams?|kg|kilograms?|pounds?|lbs?"
    r"|ounces?|degrees?|units?|points?|people)(?:\s{1,4}per\s{1,4}[a-z]{1,12})?\.?(?:\s{0,2}\^\s{0,2}\{?[23]\}?)?$"
)
_TEXT_UNIT = re.compile(
    r"\\(?:text|textrm|mathrm|mbox)\s{0,4}\{(?![^{}]{0,40}(?:illion|thousand|hundred|percent|%))[^{}]*\}"
    r"(?:\s{0,2}\^\s{0,2}\{?[23]\}?)?$"
)
_PERCENT = re.compile(r"(?<=[0-9}])\s{0,4}per ?cent(?![a-zA-Z])", re.IGNORECASE)
_UNIT_WORDS = re.compile(r"(%?)[$*]{0,2}((?:\s+[a-zA-Z][a-zA-Z'-]+)+)")
_NO_UNIT = re.compile(
    r"\b(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen"
    r"|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|(?:hundred|thousand|(?:m|b|tr)illion|dozen)(?:th)?s?|score|half|halves"
    r"|(?:quarter|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth)s?|percent|percentage|negative|plus|minus|squared"
    r"|cubed|factorial|choose|root|remainder|base|binary|octal|hexadecimal|mod|modulo|(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?"
    r"|log|exp|sqrt|max|min|gcd|lcm|det|inf|infty|infinity|pi|phi|psi|tau|alpha|beta|gamma|delta|epsilon|theta|lambda|sigma"
    r"|omega|am|pm|morning|afternoon|evening|night|before|after|below|less|more|than|or|if|when|unless|except|not)\b",
    re.IGNORECASE,
)
_GROUPED = re.compile(r"(?<=[0-9])\\[,!](?=[0-9]{3}(?![0-9]))|(?<=[0-9],)\\!(?=[0-9]{3}(?![0-9]))")
_ASSIGNMENT = re.compile(r"^[a-zA-Z]\s*=\s*(?=[^=\s])")

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
_WORDS = re.compile(r"[a-zA-Z][a-zA-Z' -]+")
_AFTER_ANSWER = re.compile(r"answer\s{0,8}(?:is|are|:|=)[\s:]{0,8}", re.IGNORECASE)
_LAST_NUMBER = re.compile(r"(?<![0-9a-zA-Z.])[+-]?\$?[0-9][0-9,]{0,80}(?:\.[0-9]{1,64})?(?:/[0-9]{1,64})?%?")
_TOWER = re.compile(r"[0-9]\s*\^\s*(?:\{[^{}]*|[0-9a-zA-Z]\s*)\^|\^\s*\{?\s*-?[0-9]{5}|\*\*|!\s*!|[0-9]{5}\s*!")

_OPEN, _CLOSE = "([{", ")]}"


def extract_answer(text: str, *, last_number: bool = False) -> str | None:
    r"""Return the final answer that ``text`` states, as written, or ``None``.

    In this order: the last ``\boxed{}`` (braces matched; one that never closes is no answer, as when the token budget
    cut the text), the last ``####`` that a number follows (GSM8K; with its unit, unless it numbers a
    heading), what follows the last "answer is" or "answer:".

    Args:
        text: Any text; only its last ``MAX_TEXT`` characters are searched.
        last_number: Fall back to the last number in the text.

    >>> extract_answer(r"So $x = \boxed{\frac{1}{2}}$."), extract_answer("5 + 5 = 10\n#### 10"), extract_answer("Well.")
    ('\\frac{1}{2}', '10', None)
    """
    text = text[-MAX_TEXT:]
    box = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if box >= 0:
        return _shown(_boxed(text, box + len("\\boxed" if text.startswith("\\boxed", box) else "\\fbox")))
    mark = text.rfind("####")
    if mark >= 0:
        line = text[mark + 4 : mark + 5 + MAX_ANSWER].split("\n", 1)[0]
        # in a heading, such as "#### 2 Apply the formula", words follow the number and an answer comes later
        heading = re.search("[a-zA-Z]{2}", line) and _last_match(_AFTER_ANSWER, text[mark:])
        if number(line) is not None and not heading:
            return _shown(line)
    found = _last_match(_AFTER_ANSWER, text)
    if found is not None:
        return _shown(_sentence(text[found.end() : found.end() + MAX_ANSWER + 1]))
    if last_number:
        found = _last_match(_LAST_NUMBER, text)
        return None if found is None else _shown(found.group().rstrip(","))
    return None


def canonical(answer: str) -> str:
    r"""Return the form under which equal answers share a vote: an exact number, or text with notation evened out.

    A pure function of its text, so votes depend on no order. It is finer than :func:`equivalent`: ``x + 1`` and ``1 +
    x`` stay apart, since deciding that takes computer algebra.

    >>> [canonical(a) for a in ("0.50", r"\dfrac12", "$1,000$", r"50\%", "( 1 , 0.5 )", r"\text{Even}", "x = 5")]
    ['1/2', '1/2', '1000', '50', '(1,1/2)', 'even', '5']
    """
    if len(answer) > MAX_ANSWER:
        return answer
    return _canonical(tidy(answer), depth=0)


def number(answer: str) -> Fraction | None:
    r"""Return the exact value of an integer, decimal, fraction, mixed number or percentage (its count), or ``None``.

    A unit after it is left out of account.

    >>> number("3\\frac{1}{4}"), number("-1,234.5"), number("12 cups"), number("12 x")
    (Fraction(13, 4), Fraction(-2469, 2), Fraction(12, 1), None)
    """
    if len(answer) > MAX_ANSWER:
        return None
    return _number(tidy(answer))


def decide(answer: str, gold: str) -> bool | None:
    r"""Say whether two answers are equal as far as exact rules can tell; ``None`` where it takes computer algebra.

    >>> decide("0.5", r"\frac12"), decide("7", "8"), decide(r"x+1", "1+x")
    (True, False, None)
    """
    if max(len(answer), len(gold)) > MAX_ANSWER:
        return False
    left, right = tidy(answer), tidy(gold)
    a, b = _number(left), _number(right)
    if a is not None and b is not None:
        percents = left.endswith("%"), right.endswith("%")
        if percents[0] != percents[1] and (a / 100 if percents[0] else a) == (b / 100 if percents[1] else b):
            return True
        return a == b
    one, other = _canonical(left, depth=0), _canonical(right, depth=0)
    if one == other:
        return bool(one)
    if not one or not other:
        return False
    plain = [value is not None or _is_word(text) for value, text in ((a, left), (b, right))]
    if all(plain) or (_numbers(one) and _numbers(other) and one[0] == other[0] and one[-1] == other[-1]):
        return False
    return None


def equivalent(answer: str, gold: str) -> bool:
    r"""Say whether ``answer`` states the same as ``gold``. What cannot be decided in time and memory is False.

    Args:
        answer: A final answer, as :func:`extract_answer` returns it.
        gold: The right answer. The order matters for math-verify: a gold ``1 < x < 2`` accepts ``(1, 2)``.

    >>> equivalent("1,000.0", "$1000$"), equivalent(r"50\%", r"\frac{1}{2}"), equivalent("12", "21")
    (True, True, False)
    """
    decided = decide(answer, gold)
    if decided is not None:
        return decided
    if too_hard(answer) or too_hard(gold):
        return False
    from lit_thinkfast.verification.workers import shared_pool

    return shared_pool().compare(answer, gold) == "correct"


def too_hard(text: str) -> bool:
    """Say whether ``text`` is to be kept from a computer algebra system: long, deep, or with powers and factorials."""
    if len(text) > MAX_ANSWER or re.search(rf"[0-9]{{{MAX_DIGITS + 1}}}", text) or _TOWER.search(text):
        return True
    depth = 0
    for character in text:
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth > MAX_DEPTH:
            return True
    return False


def tidy(answer: str) -> str:
    """Return ``answer`` in plain notation: no dollar signs, spacing or sizing commands, units, or final full stop."""
    text = "".join(c for c in answer.translate(_PLAIN) if c.isprintable())
    text = _GROUPED.sub("", text.replace("{,}", ",").replace("\\%", "%").replace("\\$", ""))
    text = _unwrapped(_SPACING.sub(" ", _SIZING.sub("", _FRACTION.sub(r"\\frac", text))))
    text = _SHORT_ROOT.sub(r"\\sqrt{\1}", _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text))
    text = _LATE_SHORT_FRACTION.sub(r"\\frac{\1}{\2}", _HALF_SHORT_FRACTION.sub(r"\\frac{\1}{", text))
    text = _ASSIGNMENT.sub("", _DEGREES.sub("", text)).lstrip("$*\u00a3\u20ac").strip()
    for unit in (_TEXT_UNIT, _UNIT):
        found = unit.search(text)
        if found and _number(text[: found.start()].rstrip()) is not None:
            text = text[: found.start()].rstrip()
    text = _PERCENT.sub("%", _TEXT.sub(lambda m: f" {m.group(1)} ", text).strip())
    return _LONE_BRACES.sub(r"\1\2", _without_unit_words(text))


def _without_unit_words(text: str) -> str:
    """Take the words off that follow a plain number. The point of ``1. Compute`` numbers a heading, not a thing."""
    found = _NUMBER.match(text)
    rest = None if found is None or found[0].endswith(".") else _UNIT_WORDS.fullmatch(text, found.end())
    if found is None or rest is None:
        return text
    # xy and abc are products of variables
    spoken = any(
        len(word) > 2 and set("aeiou") & set(word) and word not in ascii_lowercase for word in rest[2].lower().split()
    )
    return found[0] + rest[1] if spoken and not _NO_UNIT.search(rest[2]) else text


def _unwrapped(text: str) -> str:
    """Take off the marks around a formula and the punctuation after it."""
    for _ in range(4):  # wrappings may nest, but not for ever
        before = text
        text = text.strip().strip("$").strip()
        for opening, closing in (("\\[", "\\]"), ("**", "**"), ("`", "`")):
            if text.startswith(opening) and text.endswith(closing) and len(text) >= len(opening + closing):
                text = text[len(opening) : -len(closing)].strip()
        text = text.removesuffix(".").removesuffix(",").removesuffix(";")
        if text == before:
            break
    return text


def _canonical(text: str, *, depth: int) -> str:
    value = _number(text)
    if value is not None:
        return str(value)
    if depth < 4:
        body, opening, closing = text, "", ""
        if text.startswith("\\{") and text.endswith("\\}"):
            body, opening, closing = text[2:-2], "\\{", "\\}"
        elif text[:1] in ("(", "[") and text[-1:] in (")", "]"):
            body, opening, closing = text[1:-1], text[0], text[-1]
        parts = _split(body)
        if len(parts) > 1 and all(part.strip() for part in parts):
            made = [_canonical(part.strip(), depth=depth + 1) for part in parts]
            if opening in ("", "\\{"):
                made = sorted(set(made) if opening else made)
            return opening + ",".join(made) + closing
        if opening == "(" and closing == ")" and re.fullmatch(r"\s*[A-Z]\s*", body):
            return body.strip()  # the letter of a choice
    return " ".join(text.lower().split()) if _is_word(text) else "".join(text.split())


def _number(text: str) -> Fraction | None:
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


def _numbers(form: str) -> bool:
    """Say whether a canonical form is a bracketed list of numbers."""
    body = form.removeprefix("\\{").removesuffix("\\}") if form.startswith("\\{") else form[1:-1]
    return form[0] in "([\\" and all(re.fullmatch(r"-?[0-9]+(?:/[0-9]+)?", part) for part in body.split(","))


def _is_word(text: str) -> bool:
    return _WORDS.fullmatch(text) is not None


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


def _last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


def _boxed(text: str, start: int) -> str | None:
    """Return what a box holds whose command ends at ``start``."""
    while start < len(text) and text[start] in " \n":
        start += 1
    if not text.startswith("{", start):
        return re.split(r"[\s$]", text[start : start + MAX_ANSWER + 1], maxsplit=1)[0]
    depth, position = 0, start
    while position < min(len(text), start + MAX_ANSWER + 2):
        character = text[position]
        if character == "\\":
            position += 1  # an escaped brace is not a brace
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[start + 1 : position]
        position += 1
    return None


def _sentence(text: str) -> str:
    """Return the answer that ``text`` begins with: a formula between dollar signs, or the rest of the sentence."""
    if text.startswith("$") and not text[1:2].isdigit():
        closing = text.find("$", 2)
        if closing > 0:
            return text[: closing + 1]
    return re.split(r"\n|\.(?=\s|$)|\.?\s+I hope", text, maxsplit=1)[0]


def _shown(found: str | None) -> str | None:
    """Return a found answer stripped of outer marks, or ``None`` if nothing is left of it or it is too long."""
    if found is None:
        return None
    answer = "".join(c for c in found if c.isprintable() or c == "\n").strip().strip("*").strip()
    return answer if 0 < len(answer) <= MAX_ANSWER and tidy(answer) else None
