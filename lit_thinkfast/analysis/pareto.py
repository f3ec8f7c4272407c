"""Which model is best at which time budget: Pareto front, upper envelope and its stretches.

A model's curve is linear in time between measured points (some problems get the smaller, some the larger k), falls
where a larger k is worse, is undefined before its first sample is finished, and is held flat after its last: nothing is
extrapolated. Who is best at a budget is who is on the upper envelope of all curves there.

:func:`pareto_front` is something else, an envelope over measured points: within a time the best k of any model, chosen
with the values in hand. It is there to be drawn; differences and intervals are those of the curves.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lit_thinkfast.analysis.resampled import EQUAL, first_reaching
from lit_thinkfast.records import BudgetPoint, Rule


@dataclass(frozen=True, slots=True)
class Stretch:
    """Budgets over which one model is best.

    Attributes:
        model: The winner.
        start: Seconds a problem from which it leads.
        end: Seconds a problem up to which it leads; the last stretch ends at the longest time measured.
        start_value: Value of the leader at ``start``.
        end_value: Value of the leader just before ``end``.
        contested: Whether every model takes part all through: each has finished a sample and has samples left. Where
            this is false the stretch is won against some who cannot answer yet or who stopped for lack of samples.
    """

    model: str
    start: float
    end: float
    start_value: float
    end_value: float
    contested: bool


@dataclass(frozen=True)
class Curve:
    """One model's value against time for one rule."""

    model: str
    seconds: tuple[float, ...]
    values: tuple[float, ...]

    def at(self, seconds: float) -> float:
        """Return the value within a budget; NaN before the first sample is finished."""
        if seconds < self.seconds[0]:
            return math.nan
        return float(np.interp(seconds, self.seconds, self.values))

    def first_reaching(self, value: float) -> float:
        """Return the seconds at which the curve first reaches ``value``; infinity where it never does."""
        return float(first_reaching(np.array(self.seconds), np.array([self.values]), value)[0])


def _known(p: BudgetPoint) -> bool:
    """Whether a point lies on a curve over time: its value and its seconds are known."""
    return math.isfinite(p.value) and math.isfinite(p.seconds)


def curves(points: Iterable[BudgetPoint], rule: Rule) -> list[Curve]:
    """Return one curve for each model in order of appearance.

    Raises:
        ValueError: There are no points of this rule.
    """
    grouped: dict[str, list[BudgetPoint]] = {}
    for p in points:
        if p.rule == rule and _known(p):
            grouped.setdefault(p.model, []).append(p)
    if not grouped:
        raise ValueError(f"there are no points of the rule {rule!r}")
    found = []
    for model, own in grouped.items():
        own.sort(key=lambda p: p.seconds)
        found.append(Curve(model, tuple(p.seconds for p in own), tuple(p.value for p in own)))
    return found


def pareto_front(points: Iterable[BudgetPoint], rule: Rule) -> list[BudgetPoint]:
    """Return the measured points of ``rule`` that no other point beats, in order of time and of strictly rising value.

    A point is beaten when another takes no more time and solves no fewer problems, and is better in one of the two. Of
    points equal in both, the first given stays.
    """
    front: list[BudgetPoint] = []
    for p in sorted((p for p in points if p.rule == rule and _known(p)), key=lambda p: (p.seconds, -p.value)):
        if not front or p.value > front[-1].value:
            front.append(p)
    return front


def winners(points: Iterable[BudgetPoint], rule: Rule) -> list[Stretch]:
    """Return who is best at every budget, from the first finished sample on, as adjoining stretches.

    Exact for the piecewise-linear curves: crossings inside a segment are found. In a tie the leader stays the leader.

    Raises:
        ValueError: There are no points of this rule.
    """
    every = curves(points, rule)
    first, last = max(c.seconds[0] for c in every), min(c.seconds[-1] for c in every)
    found: list[Stretch] = []
    leader: Curve | None = None
    breaks = sorted({s for c in every for s in c.seconds})
    if len(breaks) == 1:
        breaks *= 2
    for start, end in itertools.pairwise(breaks):
        running = [c for c in every if c.seconds[0] <= start]
        cuts = [start, *_crossings(running, start, end), end]
        for left, right in itertools.pairwise(cuts):
            # A model whose samples start exactly at ``right`` does not count yet: values are taken inside.
            middle = (left + right) / 2
            best = max(c.at(middle) for c in running)
            if leader is None or leader.at(middle) < best - EQUAL:
                leader = next(c for c in running if c.at(middle) >= best - EQUAL)
            stretch = Stretch(
                leader.model, left, right, leader.at(left), leader.at(right), first <= left and right <= last
            )
            if found and (found[-1].model, found[-1].contested) == (stretch.model, stretch.contested):
                previous = found.pop()
                stretch = Stretch(
                    leader.model, previous.start, right, previous.start_value, stretch.end_value, stretch.contested
                )
            found.append(stretch)
    return found


def _crossings(running: Sequence[Curve], start: float, end: float) -> list[float]:
    """Return where two curves meet strictly inside a span on which all are linear, increasing."""
    inside = set()
    for one, other in itertools.combinations(running, 2):
        gap, later = one.at(start) - other.at(start), one.at(end) - other.at(end)
        if gap * later < 0:
            inside.add(start + (end - start) * gap / (gap - later))
    return sorted(s for s in inside if start < s < end)


def seconds_to_reach(points: Iterable[BudgetPoint], rule: Rule, value: float) -> dict[str, float]:
    """Return for each model the seconds a problem at which its curve first reaches ``value``; infinity if never."""
    return {c.model: c.first_reaching(value) for c in curves(points, rule)}
