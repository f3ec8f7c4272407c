"""The story of a comparison at equal numbers of samples: of models without engine seconds, and of one model alone."""

from __future__ import annotations

import math

from lit_thinkfast.analysis.comparison import Comparison
from lit_thinkfast.analysis.telling import Story, Tile, listed, mark, samples_in_words
from lit_thinkfast.analysis.text import RULE_NAMES, RULES_IN_TEXT, join, percent
from lit_thinkfast.records import BudgetPoint, Rule


def tell_untimed(c: Comparison) -> Story:
    """Return the story over samples; nothing is said about time."""
    last = c.ks[-1]
    if len(c.runs) == 1:
        return _alone(c, last)
    tops = {rule: _ranked(c, rule, last) for rule in c.rules}
    tops = {rule: ranked for rule, ranked in tops.items() if ranked}
    paragraphs = []
    for rule, ranked in tops.items():
        values = {p.model: p.value for p in ranked}
        text = f"With {samples_in_words(last)} a problem, {listed(values, 'solves')}."
        if c.ks[0] < last:
            text += f" With {samples_in_words(c.ks[0])}, " + listed(
                {p.model: p.value for p in _ranked(c, rule, c.ks[0])}, "solves"
            )
            text += "."
        paragraphs.append((f"{RULE_NAMES[rule]}.", f"{text} {_apart(ranked)}"))
    tiles = tuple(
        Tile(percent(ranked[0].value), f"{RULES_IN_TEXT[rule]} with {samples_in_words(last)}", ranked[0].model)
        for rule, ranked in tops.items()
    )
    return Story(_headline(tops, last), tiles, tuple(paragraphs))


def _alone(c: Comparison, last: int) -> Story:
    found = [(rule, p) for rule in c.rules if (p := c.point(c.baseline, rule, last)) and math.isfinite(p.value)]
    told = join([f"{RULES_IN_TEXT[rule]} {percent(p.value)}" for rule, p in found]) if found else "nothing is known"
    tiles = tuple(
        Tile(percent(p.value), f"{RULES_IN_TEXT[rule]} with {samples_in_words(last)}", p.model) for rule, p in found
    )
    best = [p.value for rule, p in found if rule != "coverage"] or [p.value for _, p in found]
    headline = f"{mark(c.baseline)} solves {percent(max(best))} with {samples_in_words(last)} a problem" if best else ""
    text = f"With {samples_in_words(last)} a problem: {told}."
    return Story(headline or f"{mark(c.baseline)} alone", tiles, (("One model.", text),))


def _ranked(c: Comparison, rule: Rule, k: int) -> list[BudgetPoint]:
    found = [p for name in c.runs if (p := c.point(name, rule, k)) is not None and math.isfinite(p.value)]
    return sorted(found, key=lambda p: -p.value)


def _headline(tops: dict[Rule, list[BudgetPoint]], last: int) -> str:
    """Say who is best at the largest number of samples by which rules."""
    winners: dict[str, list[str]] = {}
    for rule, ranked in tops.items():
        ties = [p.model for p in ranked if p.value == ranked[0].value]
        winners.setdefault(join([mark(name) for name in ties]), []).append(RULES_IN_TEXT[rule])
    if not winners:
        return "There is nothing to compare"
    told = [f"{who} {'are' if ' and ' in who else 'is'} best by {join(rules)}" for who, rules in winners.items()]
    if len(told) == 1:
        who = next(iter(winners))
        told = [f"{who} {'are' if ' and ' in who else 'is'} best by every rule"]
    return f"With {samples_in_words(last)} a problem, {join(told)}"


def _apart(ranked: list[BudgetPoint]) -> str:
    first, second = ranked[:2]
    if math.isnan(first.low):
        return "Of one problem there are no intervals."
    if first.low > second.high:
        return "The intervals of the first two do not overlap."
    return "The intervals of the first two overlap."
