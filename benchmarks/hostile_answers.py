r"""Answers that mean harm, drawn from a seeded grammar of what breaks graders.

Random LaTeX, mutated real answers, towers of powers, factorials, nesting, digits, broken and invisible characters,
code, texts that make regular expressions backtrack, megabytes, and the hangs that others have reported.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

REAL = (
    *(
        r"\frac{3\sqrt{3}}{4}",
        r"1 \pm \sqrt{19}",
        r"(-\infty, 2) \cup (3, \infty)",
        r"x^3+3x-6",
        r"6 - 5i",
        "52_8",
        "-17",
    ),
    *(
        r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}",
        r"\left( 3, \frac{\pi}{2} \right)",
        r"\text{Tuesday}",
        "3.75",
        "1,2,3",
    ),
    *(r"y = 2x + 3", r"\frac{a+b}{2a}", r"\cot x", r"\{1, 2, 5\}", r"50\%", r"(x+1)(x-2)", r"2\sin\theta", r"\log_2 5"),
    "1,250",
)
"""Answers as benchmarks have them: to be mutated, and to be graded against."""

ATOMS = ("1", "2", "10", "0", "x", "y", "n", r"\pi", "e", "i", "0.5", r"\infty", r"\theta", "99", "x_1")
RULES = (
    *(
        "A+B",
        "A-B",
        "AB",
        r"\frac{A}{B}",
        r"\sqrt{A}",
        "(A, B)",
        "{A}^{B}",
        r"\left[A,B\right)",
        r"\sin(A)",
        "|A|",
        "A!",
    ),
    *(r"\log_{A}{B}", r"\sum_{n=A}^{B}C", r"\int_{A}^{B}C\,dx", r"\{A,B\}", "A=B", "A<B", r"\binom{A}{B}", "A_{B}"),
    *(r"\begin{pmatrix}A&B\\C&1\end{pmatrix}", r"\lim_{x\to A}B", r"\prod_{n=1}^{A}B", r"\lfloor A\rfloor", r"A\cup B"),
)
CODE = (
    *("__import__('os').system('touch CANARY')", "eval(\"open('CANARY','w')\")", "open('CANARY','w').write('x')"),
    *(r"\text{__import__('os').system('touch CANARY')}", "(lambda:open('CANARY','w'))()", "exec('import os')"),
    *(r"\input{/etc/passwd}", r"\write18{touch CANARY}", "$(touch CANARY)", "`touch CANARY`", "{{7*7}}", "x.__class__"),
    *("().__class__.__bases__[0].__subclasses__()", "1 if open('CANARY','w') else 2", "sympify('CANARY')"),
)
REPORTED = (
    r"\dfrac{5^{\left(5^{\left(5^{\left(5^5\right)}\right)} - 4\right)} - 5}{16}",  # Math-Verify issue 65
    *(
        r"(3^{2022}+1)^{2023^{2024}}",
        r"2^{2^{2^{2^{2}}}}-10^{10^{10}}",
        r"10^{10^{10^{100}}}",
        "1e9999999",
        "x=x=x=x=1",
    ),
    *(r"p\int\frac{dx}{1+x}-\int\frac{dx}{(1+x)^3}", r"9^{9^{9^9}}", r"\frac{10^{9999}!}{3}", r"1.{}", "0^{-1}"),
    *(r"\tan(\frac{\pi}{2})", r"\(2003^{2002^{2001}}\)", r"\sum_{k=1}^{\infty} k!", r"(x+y+z)^{999}"),
)

Make = Callable[[random.Random], str]


def hostile(count: int, seed: int = 0, canary: str = "canary") -> Iterator[tuple[str, str]]:
    """Yield ``count`` pairs of a kind and an answer. The code in some of them would make the file ``canary``."""
    rng = random.Random(seed)
    weights = [4 if kind in ("grammar", "mutated") else 1 for kind in KINDS]
    for kind in rng.choices(list(KINDS), weights, k=count):
        yield kind, KINDS[kind](rng).replace("CANARY", canary)


def grammar(rng: random.Random, depth: int = 0) -> str:
    """Return a formula of a random grammar of LaTeX."""
    if depth > 4 or rng.random() < 0.25:
        return rng.choice(ATOMS)
    inner = {name: grammar(rng, depth + 1) for name in "ABC"}
    return "".join(inner.get(character, character) for character in rng.choice(RULES))


def mutated(rng: random.Random) -> str:
    """Return an answer as benchmarks have them, with one to four accidents."""
    text = list(rng.choice(REAL))
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(text) + 1)
        action = rng.randrange(4)
        if action == 0 and len(text) > 1:
            del text[min(place, len(text) - 1)]
        elif action == 1:
            text.insert(place, rng.choice(r"\{}()[]^_$%,.-+=0159xy!&| "))
        elif action == 2:
            text[place:place] = text[:place][-4:]
        else:
            extra = ("\\frac", "\\sqrt", "^{", "}", "\\left", "99999", "\\text{", "\u0663", "\x00")
            text.insert(place, rng.choice(extra))
    return "".join(text)


def tower(rng: random.Random) -> str:
    """Return powers of powers."""
    bases = [str(rng.choice((2, 3, 9, 10, 99, 12345, "x"))) for _ in range(rng.randint(2, 6))]
    join = rng.choice(("B^{A}", "B^(A)", "B**A", "B^{A}!", "B^{-A}"))
    text = bases.pop()
    while bases:
        text = join.replace("A", text).replace("B", bases.pop())
    return rng.choice(("A", "A+1", r"\frac{1}{A}", "x^{A}", r"\sqrt{A}")).replace("A", text)


def factorial(rng: random.Random) -> str:
    form = rng.choice(("A!", "(A!)!", "((A!)!)!", "A!!", r"\binom{A!}{3}", "A!/x", r"\Gamma(A)"))
    return form.replace("A", str(rng.choice((5, 20, 170, 1000, 9999, 123456, "3!", 10**9))))


def nested(*shapes: tuple[str, str, str]) -> Make:
    """Return a maker of up to 10,000 things within each other."""

    def make(rng: random.Random) -> str:
        opening, middle, closing = rng.choice(shapes)
        times = rng.choice((3, 20, 40, 100, 10_000))
        return opening * times + middle + closing * times

    return make


def digits(rng: random.Random) -> str:
    return rng.choice(("", "-", "0.", "x^", "x+")) + rng.choice("123456789") * rng.choice((60, 65, 500, 100_000))


def power(rng: random.Random) -> str:
    exponent = rng.choice((99, 999, 9999, 99999, 10**8, -9999, 0.3))
    return f"{rng.randint(2, 999)}^{{{exponent}}}" + rng.choice(("", "x", "+x", r"\pi"))


def series(rng: random.Random) -> str:
    terms = ("n", "n^n", r"\frac{1}{n}", "n!", "2^n", r"\sin n")
    return rf"\sum_{{n=1}}^{{{10 ** rng.randint(1, 12)}}} {rng.choice(terms)}"


def matrix(rng: random.Random) -> str:
    columns = rng.randint(1, 9)
    rows = ["&".join(rng.choices(ATOMS, k=columns)) for _ in range(rng.randint(1, 9))]
    return r"\begin{pmatrix}" + r"\\".join(rows) + r"\end{pmatrix}" + rng.choice(("", "^{99}", "^{-1}", "!"))


def some(characters: str, *lengths: int) -> Make:
    """Return a maker of random characters."""
    return lambda rng: "".join(rng.choices(characters, k=rng.choice(lengths)))


def repeated(pieces: tuple[str, ...], times: tuple[int, ...], ends: tuple[str, ...] = ("",)) -> Make:
    """Return a maker of one piece many times over."""
    return lambda rng: rng.choice(pieces) * rng.choice(times) + rng.choice(ends)


_BACKTRACKING = ("a", " ", "1,", "0", "$", "\\", "answer is ", "\\boxed{", "-", "#", "x^", "1 ", "\\text{", ",\\!")
_DIGITS_OF_OTHERS = "\u0661\u0662\u0663\uff11\u00b2\u00bd\u2167\u4e09\U0001d7d8\u09e7\u221a\u03c0+-/^"

KINDS: dict[str, Make] = {
    "grammar": grammar,
    "mutated": mutated,
    "tower": tower,
    "factorial": factorial,
    "fractions": nested((r"\frac{", "1", "}{2}")),
    "brackets": nested(("(", "x", ")"), ("{", "1", "}"), ("[", "1,", "]"), (r"\left(", "x", r"\right)")),
    "roots": nested((r"\sqrt{", "x+1", "}")),
    "digits": digits,
    "power": power,
    "series": series,
    "matrix": matrix,
    "braces": some("{}()[]", 5, 50, 400),
    "unicode": some(_DIGITS_OF_OTHERS, 1, 2, 3, 5, 12),
    "bidi": some("\u202e\u2066\u2069\u200f\u200b\u061c\ufeff12x+", 3, 12, 40),
    "control": some("\x00\x01\x07\x1b[31m\r\n\t\x7f0x", 1, 10, 60),
    "code": lambda rng: rng.choice(CODE),
    "redos": repeated(_BACKTRACKING, (50, 170, 5000), ("", "!", "x", "}")),
    "huge": repeated(("x", "1", "(", r"\frac{1}{", "1+", "\U0001f600"), (100_000, 1_000_000)),
    "reported": lambda rng: rng.choice(REPORTED),
}
"""Kind of harm -> maker of an answer."""
