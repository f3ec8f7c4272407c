r"""Final answers brought to one form, for votes, and compared, for correctness. Safe on any text.

Most answers are numbers, simple expressions, words, and tuples, sets, intervals, unions and matrices of them. These are
decided exactly, by their normal forms (:mod:`lit_thinkfast.verification.readings`); no computer algebra touches them.
What remains goes to math-verify in a process that can be killed (:mod:`lit_thinkfast.verification.workers`). Nothing
here evaluates text.

Rules that graders disagree on, as taken here. A percentage equals its fraction and also the bare number of percent
(``50\%`` = 1/2, and ``50\%`` = 50 where the other side has no sign); as a vote it counts as its fraction, or as its
number where ``percent="number"`` says so. Numbers are compared exactly: 0.33 is not 1/3. ``x = 5`` is 5, ``1 < x < 2``
is ``(1,2)``, and ``1 \pm 2`` is the list 3, -1. Order matters in ``(1, 2)``, not in ``\{1, 2\}`` nor in a bare list.
"""

from __future__ import annotations

import re

from lit_thinkfast.verification.extraction import extract_answer
from lit_thinkfast.verification.forms import form
from lit_thinkfast.verification.notation import MAX_ANSWER, MAX_DIGITS, Percent, number, plain_number, qualified, tidy
from lit_thinkfast.verification.readings import SCALARS, Reading, read
from lit_thinkfast.verification.terms import without_symbols

__all__ = ["MAX_ANSWER", "MAX_DIGITS", "canonical", "decide", "equivalent", "extract_answer", "number", "too_hard"]

MAX_DEPTH = 16
"""Brackets within brackets that a parser is given."""

_TOWER = re.compile(
    r"[0-9]\s*\^\s*(?:[{(][^{}()]*|[0-9a-zA-Z]\s*)\^|\^\s*[{(]?\s*-?[0-9]{5}|\*\*|!\s*!|[0-9]{5}\s*!"
    r"|[0-9]\s*\^\s*[{(]?\s*\\left\s*\("
)
_CODE = re.compile(r"""["`@#?]|__|[a-z]\('|\\(?:input|write|def|csname)(?![a-zA-Z])""")
_DECIMAL_COMMA = re.compile(r"-?[0-9]+, ?[0-9]+")


def canonical(answer: str, *, percent: Percent = "fraction") -> str:
    r"""Return the form under which equal answers share a vote: an exact number or expression, or text evened out.

    A pure function of its text, so votes depend on no order. It is finer than :func:`equivalent`, which may ask
    computer algebra: ``\sin^2 x + \cos^2 x`` and 1 stay apart.

    Args:
        answer: A final answer, as :func:`extract_answer` returns it.
        percent: Whether a percentage votes as its fraction (``50\%`` with 1/2) or as its number (``50\%`` with 50).

    >>> [canonical(a) for a in ("0.50", r"\dfrac12", "$1,000$", r"50\%", "( 1 , 0.5 )", r"\text{Even}", "x = 5")]
    ['1/2', '1/2', '1000', '1/2', '(1,1/2)', 'even', '5']
    >>> [canonical(a) for a in (r"\frac{\sqrt{3}}{3}", r"1/\sqrt3", "1+x", r"1 \pm \sqrt 2", r"1 < x \le 2")]
    ['\\sqrt{3}/3', '\\sqrt{3}/3', 'x+1', '1+\\sqrt{2},1-\\sqrt{2}', '(1,2]']
    """
    return answer if len(answer) > MAX_ANSWER else read(answer, percent).text


def decide(answer: str, gold: str) -> bool | None:
    r"""Say whether two answers are equal as far as exact rules can tell; ``None`` where it takes computer algebra.

    >>> decide("0.5", r"\frac12"), decide("7", "8"), decide(r"x+1", "1+x"), decide(r"\sin 0", "0")
    (True, False, True, None)
    """
    if max(len(answer), len(gold)) > MAX_ANSWER:
        return False
    left, right = read(answer, "fraction"), read(gold, "fraction")
    if not left.text or not right.text:
        return False
    if left.text == right.text:
        return True
    if _is_percent(answer) != _is_percent(gold) and read(answer, "number").text == read(gold, "number").text:
        return True
    if left.parts == right.parts and {left.kind, right.kind} in ({"values", ","}, {"values", "(,)"}):
        return True
    if "qualified" in (left.kind, right.kind):
        return _compare_words(left.text, right.text)
    return False if _differ(left, right) else None


def equivalent(answer: str, gold: str) -> bool:
    r"""Say whether ``answer`` states the same as ``gold``. What cannot be decided in time and memory is False.

    Args:
        answer: A final answer, as :func:`extract_answer` returns it.
        gold: The right answer. The order matters for math-verify, which takes some notations only as gold.

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


def understood(answer: str) -> bool:
    """Say whether exact rules read all of ``answer``, so that it needs no parser to be known as an answer."""
    return len(answer) <= MAX_ANSWER and read(answer, "fraction").symbols is not None


def too_hard(text: str) -> bool:
    """Say whether ``text`` is to be kept from a computer algebra system.

    So is what would cost it too much (long, deep, with towers of powers or factorials) and what is not mathematics:
    brackets that do not fit, characters that no notation here knows, code.
    """
    if len(text) > MAX_ANSWER or re.search(rf"[0-9]{{{MAX_DIGITS + 1}}}", text) or _TOWER.search(text):
        return True
    plain = tidy(text)
    if not plain.isascii() or _CODE.search(plain):
        return True
    braces = brackets = 0
    for character in plain.replace("\\{", "(").replace("\\}", ")"):
        braces += (character == "{") - (character == "}")
        brackets += (character in "([") - (character in ")]")
        if min(braces, brackets) < 0 or braces + brackets > MAX_DEPTH:
            return True
    return braces != 0 or brackets != 0


def _differ(left: Reading, right: Reading) -> bool:
    """Say whether two answers with different forms are surely different answers, also to a lenient reader."""
    kinds = {left.kind, right.kind}
    if "union" in kinds and kinds & {"number", "expression", "word", "matrix"}:
        return True
    if left.symbols is None or right.symbols is None:
        return False
    if left.kind == right.kind == "word":
        # the segments AB and BA are one
        return len(left.text) > 3 or sorted(left.text) != sorted(right.text)
    if kinds == {"values"}:
        # under other names the same values may be meant
        return _names(left) == _names(right) or sorted(left.parts) != sorted(right.parts)
    if left.kind == right.kind:
        # other symbols may be other names for the same
        return left.symbols == right.symbols
    if kinds == {"number", "expression"}:
        # a symbol may be a unit, but k is a thousand
        if left.symbols | right.symbols == {"k"}:
            return True
        one, other = (form(answer.text) for answer in (left, right))
        return one is None or other is None or without_symbols(one.terms) != without_symbols(other.terms)
    if "numeral" in kinds:
        # who leaves the base off may mean the same
        return kinds != {"numeral", "number"} or left.text.partition("_")[0] != right.text.partition("_")[0]
    if "word" in kinds:
        # xy may be a product
        return "expression" not in kinds or max(len(a.text) for a in (left, right) if a.kind == "word") > 3
    if "values" in kinds and kinds & {",", "(,)"}:
        return True
    if "\\{,\\}" in kinds and kinds & {"(,)", "(,]", "[,)", "[,]"}:
        # an order is stated in one alone; but (5) and {5} may be 5
        return min(left.size, right.size) > 1
    many, single = (left, right) if right.kind in SCALARS else (right, left)
    # what is a scalar to one notation is one to all, but (5) and {5} may be 5, and 3,14 a decimal
    return single.kind in SCALARS and many.size > 1 and not _DECIMAL_COMMA.fullmatch(many.text)


def _compare_words(left: str, right: str) -> bool | None:
    """Compare two texts of which one at least is a number with words that are no unit."""
    one, other = qualified(left), qualified(right)
    if one is not None and other is not None:
        if one.words == other.words:
            return False if one.value != other.value else None
        # other words for another value may come to the same: two halves, four quarters
        return False if one.value == other.value else None
    words, bare = (one, plain_number(right)) if one is not None else (other, plain_number(left))
    if words is None or words.value != bare:
        return None
    return False if words.changed else True if words.optional else None


def _names(values: Reading) -> list[str]:
    return [one.partition("=")[0] for one in values.text.split(",")]


def _is_percent(answer: str) -> bool:
    return tidy(answer).endswith("%")
