r"""An embedded world of word problems: grade-school arithmetic with long, checkable solutions.

A problem tells how many things some people have, each in terms of people named before, and asks for one number.
Its solution takes one step a person, writes the column arithmetic out digit by digit, checks additions and
subtractions by the inverse operation, and ends with ``\boxed{}``. At the default level a solution has some 600 tokens,
long enough that the key-value cache of a Transformer costs more than its weights on a CPU: the regime of the paper.

The world is endless and needs no files: problem number ``index`` of a split is a pure function of
``(seed, split, level, index)``. Splits are disjoint by construction: a digest of the question decides which split it
may appear in (:func:`split_of`). There is one right way to write each solution, so every line can be checked
(:func:`check_steps`), which is what labels the steps for a process reward model.
"""

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lit_thinkfast.records import Example, Problem

Split = Literal["train", "validation", "test"]
Operator = Literal["+", "-", "*"]

TOKENIZER = Path(__file__).parent.parent / "assets" / "tokenizer"
"""Folder of the tokenizer built for this world (byte-level, digits apart, with a chat template)."""

LEVELS: dict[int, tuple[int, int]] = {1: (1, 1), 2: (2, 3), 3: (4, 5), 4: (6, 8)}
"""Level -> least and most number of people whose count must be derived before the question is answered.
Solutions have some 350, 600, 950 and 1400 tokens."""

DEFAULT_LEVEL = 2

PLACES = ("ones", "tens", "hundreds", "thousands", "ten-thousands", "hundred-thousands")
NAMES = [
    "Ada",
    "Ben",
    "Cleo",
    "Dan",
    "Eva",
    "Finn",
    "Gus",
    "Hana",
    "Ivan",
    "June",
    "Kai",
    "Lena",
    "Milo",
    "Nora",
    "Omar",
    "Pia",
    "Quinn",
    "Rosa",
    "Sam",
    "Tess",
    "Uma",
    "Vera",
    "Will",
    "Zoe",
]
ITEMS = [
    "apples",
    "books",
    "coins",
    "shells",
    "stamps",
    "cards",
    "beads",
    "pens",
    "stones",
    "buttons",
    "marbles",
    "tickets",
]
LARGEST = 9999
ANSWER = "answer"
LABELS = "ABCDEFGHIJ"


@dataclass(frozen=True, slots=True)
class Fact:
    """``person = left operator right``; an operand is a person's name or a number. A plain count has no operator."""

    person: str
    left: str | int
    operator: Operator | None = None
    right: str | int = 0


@dataclass(frozen=True, slots=True)
class ArithmeticProblem:
    """One problem with its solution.

    Attributes:
        id: ``split/level/seed/index``.
        question: The text put to the model.
        solution: The worked solution, one step a line.
        answer: The final number.
        level: A key of :data:`LEVELS`.
    """

    id: str
    question: str
    solution: str
    answer: str
    level: int


def split_of(question: str) -> Split:
    """Return the one split in which ``question`` may appear: eight tenths train, one validation, one test."""
    bucket = hashlib.sha256(question.encode()).digest()[0] % 10
    return "validation" if bucket == 8 else "test" if bucket == 9 else "train"


def generate_problem(
    index: int, *, split: Split = "train", level: int = DEFAULT_LEVEL, seed: int = 0
) -> ArithmeticProblem:
    """Return problem number ``index`` of a split.

    Raises:
        ValueError: Unknown level or split.
    """
    if level not in LEVELS:
        raise ValueError(f"level {level!r} is not one of {', '.join(map(str, LEVELS))}")
    if split not in ("train", "validation", "test"):
        raise ValueError(f"split {split!r} is not one of train, validation, test")
    rng = random.Random(f"{seed}/{split}/{level}/{index}")
    while True:
        question = _tell(*_draw(rng, level))
        if split_of(question) == split:
            lines, answer = _solve(question)
            return ArithmeticProblem(f"{split}/{level}/{seed}/{index}", question, "\n".join(lines), str(answer), level)


def problems(split: Split = "test", *, level: int = DEFAULT_LEVEL, count: int, seed: int = 0) -> list[Problem]:
    """Return the first ``count`` problems of a split as evaluation problems."""
    made = (generate_problem(index, split=split, level=level, seed=seed) for index in range(count))
    return [Problem(p.id, p.question, p.answer, p.solution, "arithmetic", p.level) for p in made]


def examples(split: Split = "train", *, level: int = DEFAULT_LEVEL, seed: int = 0, start: int = 0) -> Iterator[Example]:
    """Yield the problems of a split as training texts, without end, from number ``start`` on."""
    index = start
    while True:
        p = generate_problem(index, split=split, level=level, seed=seed)
        yield Example(p.id, p.question, p.solution, "arithmetic")
        index += 1


def check_steps(question: str, solution: str) -> list[bool]:
    """Say for each line of ``solution`` whether everything up to and including it is right.

    Raises:
        ValueError: ``question`` is not a problem of this world.
    """
    expected, _ = _solve(question)
    labels, right = [], True
    for number, line in enumerate(solution.split("\n")):
        right = right and number < len(expected) and line.strip() == expected[number]
        labels.append(right)
    return labels


def _draw(rng: random.Random, level: int) -> tuple[list[Fact], Fact, str]:
    """Draw facts in an order in which each rests on earlier ones, the fact that is asked for, and the kind of thing."""
    while True:
        steps = rng.randint(*LEVELS[level])
        people = rng.sample(NAMES, steps + 1)
        counts = {people[0]: rng.randint(100, 899)}
        facts = [Fact(people[0], counts[people[0]])]
        for person in people[1:]:
            fact = _relation(rng, person, counts)
            counts[person] = _value(fact, counts)
            facts.append(fact)
        first, second = people[-1], rng.choice(people[:-1])
        operator: Operator = "+" if rng.random() < 0.5 or counts[first] == counts[second] else "-"
        if operator == "-" and counts[first] < counts[second]:
            first, second = second, first
        asked = Fact(ANSWER, first, operator, second)
        if _value(asked, counts) <= LARGEST and all(10 <= count <= LARGEST for count in counts.values()):
            return facts, asked, rng.choice(ITEMS)


def _relation(rng: random.Random, person: str, counts: dict[str, int]) -> Fact:
    """Draw how the count of ``person`` follows from those of people already known, most often the latest."""
    known = list(counts)
    base = known[-1] if rng.random() < 0.6 else rng.choice(known)
    kind = rng.random()
    if kind < 0.35:
        return Fact(person, base, "+", rng.randint(21, 789))
    if kind < 0.65 and counts[base] > 60:
        return Fact(person, base, "-", rng.randint(21, min(789, counts[base] - 20)))
    if kind < 0.85 and len(known) > 1:
        return Fact(person, base, "+", rng.choice([name for name in known if name != base]))
    return Fact(person, base, "*", rng.randint(2, 6))


def _value(fact: Fact, counts: dict[str, int]) -> int:
    left = counts[fact.left] if isinstance(fact.left, str) else fact.left
    right = counts[fact.right] if isinstance(fact.right, str) else fact.right
    return {None: left, "+": left + right, "-": left - right, "*": left * right}[fact.operator]


_WORDS: dict[str, Operator] = {"plus": "+", "minus": "-", "times": "*"}
_SPOKEN = {operator: word for word, operator in _WORDS.items()}
_HAS = re.compile(r"[A-J]: (\w+) has (\d+) \w+\.")
_DERIVED = re.compile(r"[A-J]: (\w+) has (\w+)'s \w+ (plus|minus|times) (\d+|(\w+)'s)\.")
_ASKED = re.compile(r"[A-J]: What are (\w+)'s \w+ (plus|minus) (\w+)'s\?")


def _tell(facts: list[Fact], asked: Fact, items: str) -> str:
    """Put facts and question into words, one a line; :func:`_parse` reads them back.

    In every sentence the names stand at fixed distances from each other, so that a small model can learn to look them
    up within the minutes of training that a CPU can spend.
    """
    sentences = []
    for fact in facts:
        right = fact.right if isinstance(fact.right, int) else f"{fact.right}'s"
        if fact.operator is None:
            sentences.append(f"{fact.person} has {fact.left} {items}.")
        else:
            sentences.append(f"{fact.person} has {fact.left}'s {items} {_SPOKEN[fact.operator]} {right}.")
    assert asked.operator is not None
    sentences.append(f"What are {asked.left}'s {items} {_SPOKEN[asked.operator]} {asked.right}'s?")
    return "\n".join(f"{label}: {sentence}" for label, sentence in zip(LABELS, sentences, strict=False))


def _parse(question: str) -> list[tuple[str, Fact]]:
    """Read each line back as the fact it states; the last one is the question itself."""
    facts: list[tuple[str, Fact]] = []
    known: set[str] = set()
    for line in question.split("\n"):
        if match := _HAS.fullmatch(line):
            fact = Fact(match[1], int(match[2]))
        elif match := _DERIVED.fullmatch(line):
            fact = Fact(match[1], match[2], _WORDS[match[3]], match[5] or int(match[4]))
        elif match := _ASKED.fullmatch(line):
            fact = Fact(ANSWER, match[1], _WORDS[match[2]], match[3])
        else:
            raise ValueError(f"not a problem of the arithmetic world: cannot read {line!r}")
        if unknown := [x for x in (fact.left, fact.right) if isinstance(x, str) and x not in known]:
            raise ValueError(f"not a problem of the arithmetic world: nothing is known of {unknown[0]} in {line!r}")
        facts.append((line, fact))
        known.add(fact.person)
    if ANSWER not in known:
        raise ValueError("not a problem of the arithmetic world: nothing is asked")
    return facts


def _solve(question: str) -> tuple[list[str], int]:
    """Return the lines of the worked solution and the answer."""
    counts: dict[str, int] = {}
    lines: list[str] = []
    for sentence, fact in _parse(question):
        counts[fact.person] = value = _value(fact, counts)
        lines.append(sentence)
        if fact.operator is not None:
            left = counts[fact.left] if isinstance(fact.left, str) else fact.left
            right = counts[fact.right] if isinstance(fact.right, str) else fact.right
            lines.append(f"So {fact.person} = {fact.left} {fact.operator} {fact.right}")
            lines += [f"{name}={counts[name]}" for name in (fact.left, fact.right) if isinstance(name, str)]
            lines.append(f"work {left}{fact.operator}{right}")
            lines += {"+": _add, "-": _subtract, "*": _multiply}[fact.operator](left, right)
        lines.append(f"{fact.person}={value}")
        if fact.operator == "+":
            lines += [f"check {value}-{right}", *_subtract(value, right), f"back to {left}"]
        elif fact.operator == "-":
            lines += [f"check {value}+{right}", *_add(value, right), f"back to {left}"]
    return [*lines, f"The answer is \\boxed{{{counts[ANSWER]}}}."], counts[ANSWER]


def _digits(number: int) -> list[int]:
    """Decimal digits, ones first."""
    return [int(digit) for digit in reversed(str(number))]


def _padded(left: int, right: int) -> list[tuple[str, int, int]]:
    a, b = _digits(left), _digits(right)
    width = max(len(a), len(b))
    a, b = a + [0] * (width - len(a)), b + [0] * (width - len(b))
    return list(zip(PLACES[:width], a, b, strict=True))


def _add(left: int, right: int) -> list[str]:
    lines, carry = [], 0
    for place, a, b in _padded(left, right):
        total = a + b + carry
        lines.append(f"{place} {a}+{b}+{carry}={total} write {total % 10} carry {total // 10}")
        carry = total // 10
    return lines


def _subtract(left: int, right: int) -> list[str]:
    lines, borrow = [], 0
    for place, a, b in _padded(left, right):
        top = a if a >= b + borrow else a + 10
        rest, lent = top - b - borrow, int(top > a)
        lines.append(f"{place} {top}-{b}-{borrow}={rest} write {rest} borrow {lent}")
        borrow = lent
    return lines


def _multiply(left: int, right: int) -> list[str]:
    lines, carry = [], 0
    for place, a in zip(PLACES, _digits(left), strict=False):
        total = a * right + carry
        lines.append(f"{place} {a}*{right}+{carry}={total} write {total % 10} carry {total // 10}")
        carry = total // 10
    return lines
