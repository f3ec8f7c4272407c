r"""Normal forms of simple expressions: ``(x+1)(x-1)``, ``x^2-1`` and ``-1+x\cdot x`` have one form.

So have ``\frac{1}{\sqrt3}`` and ``\frac{\sqrt3}{3}``. The arithmetic is that of
:mod:`lit_thinkfast.verification.terms`; this file reads text. What does not fit (functions, quotients by sums with
symbols, notation that people read in two ways, such as ``1/2x`` or ``3\frac{1}{4}x``) has no form. Work is bounded: no
text takes more than some milliseconds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from lit_thinkfast.verification.terms import (
    MAX_EXPONENT,
    ONE,
    Terms,
    TooLarge,
    constant,
    over,
    plus,
    rational,
    root,
    scaled_to_integers,
    symbols,
    times,
    written,
)

_MAX_WORK, _MAX_DEPTH = 300, 24
_SUBSCRIPT = r"(?:_(?:[0-9]{1,8}|[a-zA-Z]|\{[0-9a-zA-Z]{1,8}\}))?"
_GREEK = (
    "alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|pi|rho|sigma|tau|phi|varphi|chi"
    "|psi|omega|Gamma|Delta|Theta|Lambda|Sigma|Phi|Psi|Omega"
)
_SYMBOL = (
    rf"\\(?:{_GREEK})(?![a-zA-Z]){_SUBSCRIPT}"
    rf"|[a-zA-Z]{_SUBSCRIPT}(?![a-zA-Z])"
    r"|[a-zA-Z](?=[a-zA-Z](?![a-zA-Z_]))"  # two letters are a product, more are a word
)
_TOKEN = re.compile(
    rf"\s*(?:(?P<number>[0-9]{{1,64}}(?:\.[0-9]{{1,64}})?|\.[0-9]{{1,64}})|(?P<symbol>{_SYMBOL})"
    r"|(?P<sign>\\(?:frac|sqrt|cdot|times)(?![a-zA-Z])|[-+*/^(){}\[\]]))"
)
_LONE_BRACES = re.compile(r"_\{([0-9]{1,8}|[a-zA-Z])\}")
_SPOKEN = re.compile(
    r"(?<![a-zA-Z\\])(?:a[mnst]|by|cm|[fi][tfns]|[gk]g|km|l[bgn]|m[mle]|[ntgsd]o|o[fnrz]|pm|up|us|we|[hb]e)(?![a-zA-Z])"
)
_SPELLED = re.compile(r"(?<![a-zA-Z\\])(sqrt|pi)(?![a-zA-Z])")
_GROUPS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3}){1,20}(?![0-9,])")
_CLOSING = {"(": ")", "[": "]", "{": "}"}


class _Refused(Exception):
    """The text has no form."""


@dataclass(frozen=True, slots=True)
class Form:
    """One normal form.

    Attributes:
        text: The form written out; read again it gives the same form.
        symbols: Its free symbols. A number has none.
        terms: The sum itself.
    """

    text: str
    symbols: frozenset[str]
    terms: Terms


def form(text: str) -> Form | None:
    r"""Return the form of tidied ``text``, or ``None`` if it has none.

    >>> [form(t).text for t in ("(1+x)(x-1)", r"\frac{1}{\sqrt{3}}", r"\frac{2\pi}{4}", "(1+i)^2", "3-3")]
    ['x^2-1', '\\sqrt{3}/3', '\\pi/2', '2*i', '0']
    >>> form(r"\sin x"), form("1/2x")
    (None, None)
    """
    if _SPOKEN.search(text):
        return None
    text = _SPELLED.sub(r"\\\1 ", text).rstrip()
    if "," in text and not set("([") & set(text):  # (12,102) is a pair
        text = _GROUPS.sub(lambda found: found[0].replace(",", ""), text)
    try:
        terms = _Parser(text).whole()
    except (_Refused, TooLarge):
        return None
    return Form(written(terms), symbols(terms), terms)


def equation(left: Form, right: Form) -> str | None:
    """Return ``left = right`` as ``... = 0`` with whole coefficients without common factor; ``None`` for ``0 = 0``."""
    try:
        difference = plus(left.terms, right.terms, -1)
        return written(scaled_to_integers(difference)) + "=0" if difference else None
    except TooLarge:
        return None


class _Parser:
    """Recursive descent over the tokens of one expression, with bounded depth and work."""

    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str]] = []
        self.position, self.depth, self.work = 0, 0, 0
        start = 0
        while start < len(text):
            found = _TOKEN.match(text, start)
            if found is None or found.lastgroup is None:
                raise _Refused
            self.tokens.append((found.lastgroup, found[found.lastgroup]))
            start = found.end()

    def whole(self) -> Terms:
        """Read all of the text."""
        terms = self.sum()
        if self.position != len(self.tokens):
            raise _Refused
        return terms

    def sum(self) -> Terms:
        """Read terms with signs between them, up to what is none."""
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _Refused
        sign = -1 if self.take("-") else 1
        if sign == 1:
            self.take("+")
        total: Terms = {}
        while sign:
            total = plus(total, self.product(), sign)
            sign = 1 if self.take("+") else -1 if self.take("-") else 0
        self.depth -= 1
        return total

    def product(self) -> Terms:
        """Read factors. After a slash, only another sign may follow: ``1/2x`` is read in two ways."""
        result = self.power()
        divided = False
        while True:
            kind, token = self.peek()
            if token in ("*", "\\cdot", "\\times"):
                self.position += 1
                result = self.times(result, self.power())
            elif token == "/":
                self.position += 1
                result = self.over(result, self.power())
                divided = True
            elif kind == "symbol" or token in ("\\frac", "\\sqrt", "(", "["):
                # 3\frac{1}{4} is a mixed number, not a product
                if divided or (token == "\\frac" and self.tokens[self.position - 1][0] == "number"):
                    raise _Refused
                result = self.times(result, self.power())
            else:
                return result

    def power(self) -> Terms:
        """Read a factor with its exponent: a whole number, or one half."""
        base = self.base()
        if not self.take("^"):
            return base
        raised = self.base() if self.peek()[1] in ("{", "(") or self.peek()[0] == "number" else None
        exponent = None if raised is None else rational(raised)
        if exponent is None or self.peek()[1] == "^":
            raise _Refused
        if exponent == Fraction(1, 2):
            return root(base)
        if exponent.denominator != 1 or abs(exponent) > MAX_EXPONENT or (not base and exponent <= 0):
            raise _Refused
        result = ONE
        for _ in range(abs(int(exponent))):
            result = self.times(result, base)
        return self.over(ONE, result) if exponent < 0 else result

    def base(self) -> Terms:
        """Read a number, a symbol, a fraction, a root or a bracket."""
        kind, token = self.peek()
        if token in _CLOSING:
            return self.group(token)
        self.position += 1
        if kind == "number":
            if self.peek()[0] == "number":  # 3 1/4
                raise _Refused
            return plus({}, constant(Fraction(token)))
        if kind == "symbol":
            return {(1, ((_LONE_BRACES.sub(r"_\1", token), 1),)): Fraction(1)}
        if token == "\\frac":
            top = self.group("{")
            return self.over(top, self.group("{"))
        if token == "\\sqrt" and self.peek()[1] == "[":
            degree = rational(self.group("["))
            if degree is None or degree.denominator != 1 or degree > MAX_EXPONENT:
                raise _Refused
            return root(self.group("{"), int(degree))
        if token == "\\sqrt":
            return root(self.group("(" if self.peek()[1] == "(" else "{"))
        raise _Refused

    def group(self, opening: str) -> Terms:
        if not self.take(opening):
            raise _Refused
        inside = self.sum()
        if not self.take(_CLOSING[opening]):
            raise _Refused
        return inside

    def times(self, left: Terms, right: Terms) -> Terms:
        self.charge(len(left) * len(right))
        return times(left, right)

    def over(self, left: Terms, right: Terms) -> Terms:
        self.charge(max(len(left), len(right)) * len(right))
        return over(left, right)

    def charge(self, work: int) -> None:
        self.work += work
        if self.work > _MAX_WORK:
            raise _Refused

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.position] if self.position < len(self.tokens) else ("end", "")

    def take(self, token: str) -> bool:
        found = self.peek()[1] == token
        self.position += found
        return found
