r"""The same answer written in other ways, by rules that know nothing of the grader they are for."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from fractions import Fraction

_INTEGER = re.compile(r"-?\d+")
_PLAIN_FRACTION = re.compile(r"(-?)\\frac\{(-?\d+)\}\{(\d+)\}")
_SLASH_FRACTION = re.compile(r"(-?\d+)/(\d+)")
UNITS = (
    "dollars",
    "apples",
    "miles per hour",
    r"\text{ cm}",
    r"\text{ square units}",
    r"^\circ",
    r"\,\mathrm{kg}",
    "days left",
)

SPACES: tuple[Callable[[str], str], ...] = (
    lambda t: f" {t} ",
    lambda t: t.removesuffix(".") + ".",
    lambda t: rf"{t} \,",
    lambda t: rf"\quad {t}",
    lambda t: rf"\displaystyle {t}",
)
MARKS: tuple[Callable[[str], str], ...] = (
    lambda t: f"${t}$",
    lambda t: rf"\({t}\)",
    lambda t: rf"\[ {t} \]",
    lambda t: f"$ {t} $ ",
)
"""What stands around an answer and means nothing; the marks of a formula stand around it once."""
_MARKED = re.compile(r"(?<!\\)\$|\\[\[(]")


def paraphrases(gold: str, count: int, seed: int = 0) -> list[str]:
    """Return ``count`` different ways to write a gold answer of a benchmark in LaTeX; the first ones change most."""
    rng = random.Random(f"{seed}/{gold}")
    plain = list(dict.fromkeys(text for text in rewritten(gold) if text != gold))
    rng.shuffle(plain)
    found = dict.fromkeys(plain[:count])
    while len(found) < count:
        base = rng.choice([gold, *plain, *found])
        wrap = rng.choice(SPACES if _MARKED.search(base) else SPACES + MARKS)
        found[wrap(base)] = None
    return list(found)


def rewritten(gold: str) -> Iterator[str]:
    """Yield other ways to write an answer, by what it looks like."""
    value = _value(gold)
    if value is not None:
        yield from _numbers(value)
        if value.denominator == 1 or "\\" not in gold:
            yield from (f"{gold} {unit}" if unit[0].isalpha() else f"{gold}{unit}" for unit in UNITS)
    if found := re.fullmatch(r"\\text\{(\(?)(\w+)(\)?)\}", gold):
        word = found[2]
        yield from (
            word,
            rf"\text{{ {word} }}",
            rf"\textbf{{{word}}}",
            rf"\mathrm{{{word}}}",
            rf"\mbox{{{word}}}",
            f"**{word}**",
        )
        if len(word) == 1:
            yield from (f"({word})", rf"\text{{({word})}}", rf"\textbf{{({word})}}", rf"\textbf{{{word}}}")
        else:
            yield from (word.lower(), word.upper(), word.capitalize())
        return
    yield from _notation(gold)
    yield from _order(gold)
    if not re.search(r"[=,<>]|\\in|\\text|\\begin|\\pm|\\cup", gold):
        yield from (f"x = {gold}", f"{gold} = {gold}"[len(gold) + 3 :], rf"{{{gold}}}")


def _value(gold: str) -> Fraction | None:
    """Return the number that a gold answer is, read by rules of this file's own."""
    if found := _PLAIN_FRACTION.fullmatch(gold):
        return Fraction(int(found[1] + "1") * int(found[2]), int(found[3]))
    if _SLASH_FRACTION.fullmatch(gold) or _INTEGER.fullmatch(gold) or re.fullmatch(r"-?\d*\.\d+", gold):
        return Fraction(gold)
    grouped = gold.replace(",", "")
    return Fraction(grouped) if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", gold) else None


def _numbers(value: Fraction) -> Iterator[str]:
    top, bottom = value.numerator, value.denominator
    sign, size = ("-" if top < 0 else ""), abs(top)
    if bottom == 1:
        yield from (
            f"{top}.0",
            f"{top}.00",
            f"{top}.",
            rf"\frac{{{2 * top}}}{{2}}",
            f"{3 * top}/3",
            rf"{top}\,",
            rf"{{{top}}}",
        )
        yield from (f"{100 * top}\\%", f"{100 * top}%") if size < 10 else ()
        yield from (rf"{top} \text{{ units}}", rf"\text{{{top}}}", f"**{top}**", f"{sign}0{size}")
        yield from (
            f"{sign}\\${size}",
            f"{top:,}",
            f"{top:,}.00",
            f"{top:,}".replace(",", "{,}"),
            f"{top:,}".replace(",", r",\!"),
        )
        yield from (f"+{top}", rf"\${top}") if top >= 0 else (f"\u2212{size}", f"- {size}")
        if size and size % 1000 == 0:
            yield rf"{sign}{size // 1000} \times 10^3"
        return
    yield from (
        rf"{sign}\frac{{{size}}}{{{bottom}}}",
        rf"\frac{{{top}}}{{{bottom}}}",
        f"{top}/{bottom}",
        f"{top} / {bottom}",
    )
    yield from (
        rf"{sign}\dfrac{{{size}}}{{{bottom}}}",
        rf"{sign}\tfrac{{{size}}}{{{bottom}}}",
        f"{2 * top}/{2 * bottom}",
    )
    if size < 10 and bottom < 10:
        yield from (rf"{sign}\frac{size}{bottom}", rf"{sign}\frac {size} {bottom}", rf"{sign}\dfrac{size}{bottom}")
    if size > bottom:
        yield rf"{sign}{size // bottom}\frac{{{size % bottom}}}{{{bottom}}}"
        yield f"{sign}{size // bottom} {size % bottom}/{bottom}"
    if 10**6 % bottom == 0:
        digits = f"{size / bottom:.6f}".rstrip("0")
        yield from (f"{sign}{digits}", f"{sign}{digits}0", f"{sign}{digits.removeprefix('0')}")
        yield f"{sign}{float(100 * size / bottom):.10f}".rstrip("0").rstrip(".") + r"\%"


def _notation(gold: str) -> Iterator[str]:
    r"""Yield the same formula with other commands and spaces."""
    grouped = re.search(r"\d,(\\!)?\s*\d{3}(?!\d)", gold)
    yield gold.replace("\\frac", "\\dfrac")
    yield gold.replace("\\frac", "\\tfrac")
    yield gold.replace("\\left", "").replace("\\right", "")
    if "\\left" not in gold and "\\{" not in gold:
        yield re.sub(r"([\])])", r"\\right\1", re.sub(r"([\[(])", r"\\left\1", gold))
    yield re.sub(r"(?<!\\)\s+(?![a-zA-Z])", "", gold) if "\\text" not in gold else gold
    yield re.sub(r"\s*([-+=,])\s*", r" \1 ", gold) if gold[0] != "-" and not grouped else gold
    yield gold.replace(", ", r",\,").replace(",", r",\ ") if not grouped else gold
    yield re.sub(r"\^(\d)(?!\d)", r"^{\1}", gold)
    yield re.sub(r"_(\d+)", r"_{\1}", gold)
    yield re.sub(r"\\sqrt\{(\d)\}", r"\\sqrt\1", gold)
    yield re.sub(r"\\sqrt(\d)", r"\\sqrt{\1}", gold)
    yield re.sub(r"(\d) ?\\(sqrt|pi)", r"\1 \\cdot \\\2", gold)
    yield re.sub(r"(\d) ?\\(sqrt|pi)", r"\1\\,\\\2", gold)
    yield (
        re.sub(r"(?<!\d)\\frac\{(-?\d+)\}\{(\d+)\}", r"\1/\2", gold)
        if _PLAIN_FRACTION.sub("", gold).strip("(,)[] \\leftrigh0123456789-") == ""
        else gold
    )
    yield gold.replace("\\pi", "\u03c0").replace("\\infty", "\u221e").replace("\\cup", "\u222a")
    yield re.sub(r"\\frac\{(\\sqrt\{\d+\})\}\{(\d+)\}", r"\1/\2", gold)
    yield re.sub(r"^\\frac\{\\sqrt\{(\d+)\}\}\{\1\}$", r"\\frac{1}{\\sqrt{\1}}", gold)
    yield re.sub(r"^-\\frac\{([^{}]+)\}", r"\\frac{-\1}", gold)
    if "pmatrix" in gold:
        yield from (gold.replace("pmatrix", "bmatrix"), gold.replace(r" \\ ", r"\\"), gold.replace(r" \\ ", r" \\  "))
        yield re.sub(r"(-?)(\d+)/(\d+)", r"\1\\frac{\2}{\3}", gold)


def _order(gold: str) -> Iterator[str]:
    """Yield the same sum, list or equation in another order."""
    if re.fullmatch(r"[^()\[\]{},=\\]*|[^()\[\],=]*", gold) and "\\pm" not in gold and "\\{" not in gold:
        terms = re.findall(r"[-+]?[^-+]+", gold)
        if len(terms) > 1 and "{" not in "".join(terms[1:]) + terms[0][:0] and "".join(terms) == gold:
            signed = [t if t.lstrip()[0] in "-+" else f"+{t}" for t in terms]
            yield "".join(signed[::-1]).replace(" ", "").removeprefix("+")
            yield " ".join(signed[1:] + signed[:1]).removeprefix("+").strip()
    if re.fullmatch(r"[^()\[\]{}\\]+", gold) and "," in gold and _value(gold) is None:
        parts = [part.strip() for part in gold.split(",")]
        yield from (", ".join(parts[::-1]), ",".join(parts), r" \text{ and } ".join(parts), " and ".join(parts))
    if gold.startswith("\\{") and gold.endswith("\\}"):
        parts = gold[2:-2].split(",")
        yield "\\{" + ", ".join(parts[::-1]) + "\\}"
    if found := re.fullmatch(r"([^\\,]*) \\pm (.*)", gold):
        yield f"{found[1]} + {found[2]}, {found[1]} - {found[2]}"
        yield f"{found[1]}-{found[2]},{found[1]}+{found[2]}"
    if found := re.fullmatch(r"([a-z]) = (.*)", gold):
        yield from (found[2], f"{found[2]} = {found[1]}", f"{found[1]}={found[2]}")
    if "\\cup" in gold:
        yield r" \cup ".join(part.strip() for part in reversed(gold.split("\\cup")))
