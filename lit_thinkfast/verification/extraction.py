r"""Finding the final answer in a completion.

A *finder* takes a text and returns the last answer that it states in one known way. A *style* is a tuple of finders,
asked in order, and :data:`STYLES` holds one for each evaluation set: solutions of MATH end with ``\boxed{}``, those of
GSM8K with ``####``. To grade a set of your own, add to it::

    STYLES["my_set"] = (my_finder, boxed, final_number)

Text is hostile: only its last :data:`MAX_TEXT` characters are searched, with patterns that run in linear time.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable

from lit_thinkfast.verification.notation import MAX_ANSWER, number, tidy
from lit_thinkfast.verification.readings import read

MAX_TEXT = 65_536
"""Characters of a completion that are searched, counted from its end: the answer comes last."""

Finder = Callable[[str, bool], str | None]
"""``finder(text, cut)`` returns the answer as written, ``None`` if none is stated in its way, or an empty text if one
is stated that is of no use, after which no other finder is asked. ``cut`` says that the token budget ended the text."""

_AFTER_ANSWER = re.compile(
    r"answers?[*_]{0,3}\s{0,8}(?:(?:is|are)(?![a-z'\u2019])|[:=])[*_]{0,3}[\s:]{0,8}"
    # or a heading, alone on its line
    r"|^[ \t]{0,3}(?:#{1,6}[ \t]{0,4}[*_]{0,3}|[*_]{2,3})(?:the )?(?:final )?answers?:?[*_]{0,3}:?[ \t]{0,4}"
    r"\n\s{0,8}",
    re.IGNORECASE | re.MULTILINE,
)
_BULLET = re.compile(r"[-*\u2022]\s{1,4}")
_LETTER = re.compile(r"[*$]{0,3}(?:\\text(?:bf)?\{)?(\(?[A-J]\))[.:*$}]{0,4}(?=\s)(?!\s{1,4}(?:and|or)\s)")
_FORMULA = r"\$(?![0-9])(?:[^$\\]|\\.)+\$"
_JOINT = r"\s{0,4}(?:,\s{0,4}(?:and|or)?|and|or)\s{0,4}"
_JOINED = re.compile(_JOINT)
_FORMULAS = re.compile(
    rf"{_FORMULA}(?:{_JOINT}(?:\$(?:[^$\\]|\\.)+\$|[+-]?[0-9][0-9./]{{0,40}}(?<!\.)(?![0-9]))){{0,16}}", re.DOTALL
)
_REASON = re.compile(r",?\s{1,4}(?:since|because)\b|,\s{1,4}(?:as|so|which|where|not|but)\b")
_NO_ANSWER = re.compile(
    r"(?:in|un)?(?:correct|right|wrong|clear|valid|reasonable|helpful|verified|confirmed|consistent|known|unique)\b|not\b"
    r"|(?:as )?(?:follows|above|below)\b",
    re.IGNORECASE,
)
_CANDIDATES = 8
_LAST_NUMBER = re.compile(r"(?<![0-9a-zA-Z.])[+-]?\$?[0-9][0-9,]{0,80}(?:\.[0-9]{1,64})?(?:/[0-9]{1,64})?\\?%?")
_SENTENCE_END = re.compile(r"\n|\.(?=\s|$)|\.?\s+I hope")


def boxed(text: str, cut: bool = False) -> str | None:
    r"""Find the last ``\boxed{}`` or ``\fbox{}``, braces matched. One that never closes is stated but of no use."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    start += len("\\boxed" if text.startswith("\\boxed", start) else "\\fbox")
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
    return ""


def hashes(text: str, cut: bool = False) -> str | None:
    """Find the last ``####`` that a number follows, with its unit, as in GSM8K; not the heading ``#### 2 Add both``."""
    mark = text.rfind("####")
    if mark < 0:
        return None
    after = text[mark + 4 :]
    line, end, _ = after[: MAX_ANSWER + 1].partition("\n")
    if number(line) is None or boxed(after) or _is_heading(line, after[len(line) :]):
        return None
    return "" if cut and not end else line


def answer_is(text: str, cut: bool = False) -> str | None:
    """Find what follows the last "answer is", "answers are", "answer:" or heading "Answer": a formula, or a sentence.

    Prose is passed over ("this answer is correct") if one of the statements before it has more to say.
    """
    places = [found.end() for found in deque(_AFTER_ANSWER.finditer(text), maxlen=_CANDIDATES)]
    last = None
    for place in reversed(places):
        stated, open_end = _stated(text[place : place + MAX_ANSWER + 1], "\n" in text[max(0, place - 9) : place])
        found = "" if cut and open_end else stated
        if not _is_prose(stated):
            return found
        last = found if last is None else last
    return last


def final_number(text: str, cut: bool = False) -> str | None:
    """Find the last number. In a cut text it is only where the budget ran out, and no answer."""
    found = None if cut else _last_match(_LAST_NUMBER, text)
    return None if found is None else found.group().rstrip(",")


STYLES: dict[str, tuple[Finder, ...]] = {
    "default": (boxed, hashes, answer_is),
    "arithmetic": (boxed, hashes, answer_is),
    "gsm8k": (hashes, boxed, answer_is, final_number),
    "math500": (boxed, answer_is, hashes),
}
"""Name of an evaluation set (``Problem.source``) -> how its answers are found. ``default`` is for all others."""


def style(name: str) -> tuple[Finder, ...]:
    """Return a style by name.

    Raises:
        ValueError: There is no such style.
    """
    if name not in STYLES:
        raise ValueError(f"extraction {name!r} is not one of {', '.join(STYLES)}; add it to extraction.STYLES")
    return STYLES[name]


def extract_answer(
    text: str, *, extraction: str = "default", last_number: bool = False, cut: bool = False
) -> str | None:
    r"""Return the final answer that ``text`` states, as written, or ``None``.

    Args:
        text: Any text; only its last :data:`MAX_TEXT` characters are searched.
        extraction: A key of :data:`STYLES`. By default: the last ``\boxed{}`` (one that never closes is no answer), the
            last ``####`` that a number follows, what follows the last "answer is".
        last_number: Fall back to the last number in the text, whatever the style says.
        cut: The token budget ended the text. A statement that runs up to its end is unfinished and no answer, nor is
            the last number.

    Raises:
        ValueError: There is no such style.

    >>> extract_answer(r"So $x = \boxed{\frac{1}{2}}$."), extract_answer("5 + 5 = 10\n#### 10"), extract_answer("Well.")
    ('\\frac{1}{2}', '10', None)
    >>> extract_answer("So 12 remain.", extraction="gsm8k"), extract_answer("The answer is 1", cut=True)
    ('12', None)
    """
    text = text[-MAX_TEXT:]
    finders = style(extraction)
    if last_number:
        finders = tuple(dict.fromkeys((*finders, final_number)))
    for finder in finders:
        found = finder(text, cut)
        if found is not None:
            return _shown(found)
    return None


def _is_heading(line: str, rest: str) -> bool:
    """Say whether ``2 Add both`` after ``####`` numbers a step: words follow, and the lines below hold the answer."""
    words = re.search("[a-zA-Z]{2}", line)
    if words is None:
        return False
    if _last_match(_AFTER_ANSWER, rest):
        return True
    # "12 apples" has a unit, and what follows may be the next question of a model that runs on
    return words[0][0].isupper() and re.search("[0-9]", rest) is not None


def _stated(text: str, new_line: bool) -> tuple[str, bool]:
    """Return the answer at the start of a text, and whether more of it may follow the text's end."""
    if new_line and (bullet := _BULLET.match(text)):
        text = text[bullet.end() :]
    if letter := _LETTER.match(text):
        return (letter[1] if letter[1].startswith("(") else letter[1][0]), False
    if formulas := _FORMULAS.match(text):
        rest = text[formulas.end() :]
        return formulas[0], _JOINED.match(rest) is not None and _SENTENCE_END.search(rest) is None
    end = _SENTENCE_END.search(text)
    open_end = (end is None or not text[end.end() :].strip()) and "\n" not in text
    text = text[: end.start()] if end else text
    reason = _REASON.search(text)
    return text[: reason.start()] if reason else text, open_end


def _is_prose(stated: str) -> bool:
    """Say whether a statement holds no answer: words of judgement, or many words without a formula or a digit."""
    stated = stated.strip(" *_.!?\n")
    if not stated or _NO_ANSWER.match(stated):
        return True
    if re.search(r"[0-9$\\]", stated):
        return False
    return len(stated.split()) > 3 or read(stated, "fraction").symbols is None


def _last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


def _shown(found: str) -> str | None:
    """Return a found answer stripped of outer marks, or ``None`` if nothing is left of it or it is too long."""
    answer = "".join(c for c in found if c.isprintable() or c == "\n").strip().strip("*").strip()
    return answer if 0 < len(answer) <= MAX_ANSWER and tidy(answer) else None
