r"""Exact sums of terms such as ``3/4 * \sqrt{3} * \pi * x^2``: arithmetic and one way to write each.

A term is a rational number times the root of a squarefree integer times powers of symbols, of ``\pi`` and of the
imaginary unit ``i``. Sums, products, powers, quotients by one term and quotients by any number are exact and stay
within such sums. Two different sums are two different functions of their symbols: roots of different squarefree
integers are independent over the rationals, and ``\pi``, being transcendental, is as good as a free symbol.

Sizes are bounded; what grows beyond raises :class:`TooLarge`.
"""

from __future__ import annotations

import math
from fractions import Fraction

Powers = tuple[tuple[str, int], ...]
Key = tuple[int, Powers]
"""Squarefree integer under the root, and symbols with their exponents, in order and none of them 0."""
Terms = dict[Key, Fraction]
"""Key -> coefficient, none of them 0."""

MAX_TERMS, MAX_BITS, MAX_EXPONENT, MAX_RADICAND = 32, 512, 64, 1_000_000

CONSTANT: Key = (1, ())
ONE: Terms = {CONSTANT: Fraction(1)}


class TooLarge(ArithmeticError):
    """A sum beyond the bounds, or a quotient or root that is no such sum."""


def constant(value: Fraction) -> Terms:
    """Return a number as a sum."""
    return {CONSTANT: value} if value else {}


def rational(terms: Terms) -> Fraction | None:
    """Return the rational number that a sum is, or ``None``."""
    return terms.get(CONSTANT, Fraction(0)) if terms.keys() <= {CONSTANT} else None


def symbols(terms: Terms) -> frozenset[str]:
    r"""Return the free symbols of a sum: all but ``i`` and ``\pi``."""
    return frozenset(name for _, powers in terms for name, _ in powers) - {"i", "\\pi"}


def without_symbols(terms: Terms) -> Terms:
    """Return a sum with every free symbol set to 1."""
    total: Terms = {}
    for (radicand, powers), value in terms.items():
        kept = tuple((name, exponent) for name, exponent in powers if name in ("i", "\\pi"))
        _add(total, (radicand, kept), value)
    return total


def plus(left: Terms, right: Terms, sign: int = 1) -> Terms:
    """Return ``left + sign * right``."""
    total = dict(left)
    for key, value in right.items():
        _add(total, key, sign * value)
    return _bounded(total)


def times(left: Terms, right: Terms) -> Terms:
    """Return the product of two sums."""
    total: Terms = {}
    for one, a in left.items():
        for other, b in right.items():
            factor, key = _product(one, other)
            _add(total, key, a * b * factor)
    return _bounded(total)


def over(left: Terms, right: Terms) -> Terms:
    """Return ``left / right``: by one term, or by a number of several, made rational by its conjugates.

    Raises:
        TooLarge: Division by zero, or by several terms with symbols.
    """
    while len(right) > 1:
        if any(name != "i" for _, powers in right for name, _ in powers):
            raise TooLarge
        conjugate = _conjugate(right)
        left, right = times(left, conjugate), times(right, conjugate)
    if not right:
        raise TooLarge
    ((radicand, powers), value) = next(iter(right.items()))
    inverse = (radicand, tuple((name, -exponent) for name, exponent in powers))
    return times(left, {inverse: 1 / (value * radicand)})


def root(inside: Terms, degree: int = 2) -> Terms:
    """Return the root of a rational number; of a degree above 2, only where it is rational.

    Raises:
        TooLarge: Not rational inside (the sign of such roots is read in several ways), or too large to take apart.
    """
    value = rational(inside)
    if value is None or degree < 2 or (degree > 2 and value < 0):
        raise TooLarge
    if degree > 2:
        # floats only propose; the power decides
        parts = [round(part ** (1 / degree)) for part in (value.numerator, value.denominator)]
        if [part**degree for part in parts] != [value.numerator, value.denominator]:
            raise TooLarge
        return constant(Fraction(*parts))
    scaled = _root_of_integer(value.numerator * value.denominator)
    return {key: part / value.denominator for key, part in scaled.items()}


def scaled_to_integers(terms: Terms) -> Terms:
    """Return the multiple with whole coefficients without common factor, the first of them positive."""
    values = [terms[key] for key in sorted(terms, key=_order)]
    scale = Fraction(math.lcm(*(v.denominator for v in values)), math.gcd(*(v.numerator for v in values)))
    return times(terms, constant(-scale if values[0] < 0 else scale))


def written(terms: Terms) -> str:
    r"""Return a sum as text, its terms in order.

    >>> written(plus({(3, ()): Fraction(1, 2)}, {(1, (("x", 2),)): Fraction(-4)}))
    '-4*x^2+\\sqrt{3}/2'
    """
    return "".join(_shown(terms[key], *key) for key in sorted(terms, key=_order)).removeprefix("+") or "0"


def _order(key: Key) -> tuple[int, Powers, int]:
    """Order of terms in writing: high degrees first."""
    return -sum(abs(exponent) for _, exponent in key[1]), key[1], key[0]


def _shown(value: Fraction, radicand: int, powers: Powers) -> str:
    raised = [(name, str(exponent) if exponent > 0 else f"{{{exponent}}}") for name, exponent in powers]
    factors = [name if exponent == "1" else f"{name}^{exponent}" for name, exponent in raised]
    if radicand != 1:
        factors.insert(0, f"\\sqrt{{{radicand}}}")
    top = abs(value.numerator)
    if top != 1 or not factors:
        factors.insert(0, str(top))
    return ("-" if value < 0 else "+") + "*".join(factors) + (f"/{value.denominator}" if value.denominator != 1 else "")


def _add(terms: Terms, key: Key, value: Fraction) -> None:
    total = terms.pop(key, Fraction(0)) + value
    if total:
        terms[key] = total


def _bounded(terms: Terms) -> Terms:
    if len(terms) > MAX_TERMS or any(
        max(v.numerator.bit_length(), v.denominator.bit_length()) > MAX_BITS for v in terms.values()
    ):
        raise TooLarge
    return terms


def _product(left: Key, right: Key) -> tuple[int, Key]:
    """Return the factor and the key of the product of two keys."""
    common = math.gcd(left[0], right[0])
    radicand, factor = (left[0] // common) * (right[0] // common), common
    exponents = dict(left[1])
    for name, exponent in right[1]:
        exponents[name] = exponents.get(name, 0) + exponent
    turns = exponents.pop("i", 0) % 4
    if turns >= 2:
        factor = -factor
    if turns % 2:
        exponents["i"] = 1
    if radicand > MAX_RADICAND or any(abs(exponent) > MAX_EXPONENT for exponent in exponents.values()):
        raise TooLarge
    return factor, (radicand, tuple(sorted((name, exponent) for name, exponent in exponents.items() if exponent)))


def _conjugate(terms: Terms) -> Terms:
    """Turn the sign of one irrational: a root of a prime, or ``i``. The product with the sum is free of it."""
    divisor = max(radicand for radicand, _ in terms)
    prime = next((d for d in range(2, math.isqrt(divisor) + 1) if divisor % d == 0), divisor)
    return {
        key: -value if (key[0] % prime == 0 if prime > 1 else bool(key[1])) else value for key, value in terms.items()
    }


def _root_of_integer(value: int) -> Terms:
    """Return the square root of an integer, that of a negative one with ``i``."""
    powers: Powers = (("i", 1),) if value < 0 else ()
    rest, outside, divisor = abs(value), 1, 2
    whole = math.isqrt(rest)
    if whole * whole == rest:
        return {(1, powers): Fraction(whole)} if whole else {}
    if rest > MAX_RADICAND:
        raise TooLarge
    while divisor * divisor <= rest:
        while rest % (divisor * divisor) == 0:
            rest, outside = rest // (divisor * divisor), outside * divisor
        divisor += 1
    return {(rest, powers): Fraction(outside)}
