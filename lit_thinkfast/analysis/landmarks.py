"""Landmarks of curves over time: when a value is reached, when one model overtakes another, how good on the whole.

Each comes with a 95 % interval from one bootstrap over problems that resamples times as well and gives all models the
same draws. A draw in which a curve never gets to a landmark counts as infinity, not as missing: leaving it out would
make the interval too short and too early. A single problem has no interval.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lit_thinkfast.analysis.budget import Array, Measured
from lit_thinkfast.analysis.resampled import EQUAL, Resampled, all_resampled, central
from lit_thinkfast.metrics.statistics import widened
from lit_thinkfast.records import Rule


@dataclass(frozen=True, slots=True)
class Reach:
    """The time that a model takes to reach a value.

    Attributes:
        model: Name of the model.
        rule: How the answer is selected.
        value: Share of problems solved that is to be reached.
        seconds: Engine seconds a problem at which the curve first gets there; infinity where it never does.
        low: Lower end of the 95 % interval.
        high: Upper end; infinity where more than 2.5 % of the draws never get there.
    """

    model: str
    rule: Rule
    value: float
    seconds: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Crossing:
    """The budget from which on ``second`` is ahead of ``first``, up to the last budget that both have samples for.

    Attributes:
        first: The model that leads, or ties, just before.
        second: The model that leads from then on.
        rule: How the answer is selected.
        seconds: Engine seconds a problem.
        low: Lower end of the 95 % interval. A draw in which ``second`` leads all along counts with the first budget
            that both have a sample for.
        high: Upper end; infinity where ``second`` does not lead at the end in more than 2.5 % of the draws.
    """

    first: str
    second: str
    rule: Rule
    seconds: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Speedup:
    """How many times faster a model is than the baseline at the same value.

    Attributes:
        model: Name of the model.
        baseline: The model it is compared with.
        rule: How the answer is selected.
        value: Share of problems solved that both are to reach.
        factor: Seconds of the baseline by seconds of the model; infinity where only the model gets there, 0 where only
            the baseline does.
        low: Lower end of the 95 % interval, over the draws in which at least one of them gets there.
        high: Upper end.
    """

    model: str
    baseline: str
    rule: Rule
    value: float
    factor: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Area:
    """The mean value of a curve over the logarithm of time: every doubling of the budget counts the same.

    Attributes:
        model: Name of the model.
        rule: How the answer is selected.
        value: Mean share of problems solved.
        low: Lower end of the 95 % interval.
        high: Upper end.
        start: Seconds a problem from which all models have a sample.
        end: Seconds a problem up to which all models have samples left.
    """

    model: str
    rule: Rule
    value: float
    low: float
    high: float
    start: float
    end: float


@dataclass(frozen=True)
class Landmarks:
    """All landmarks of a comparison; empty where some model has no engine seconds."""

    reach: Sequence[Reach] = ()
    crossings: Sequence[Crossing] = ()
    areas: Sequence[Area] = ()
    speedups: Sequence[Speedup] = ()


def find_landmarks(
    measured: Mapping[str, Measured], rules: Sequence[Rule], baseline: str, *, resamples: int = 2000, seed: int = 0
) -> Landmarks:
    """Return the landmarks of each rule; the values to reach are those of :func:`round_values`.

    Raises:
        ValueError: A model has no engine seconds.
    """
    reach: list[Reach] = []
    crossed: list[Crossing] = []
    over: list[Area] = []
    faster: list[Speedup] = []
    for rule in rules:
        curves = all_resampled(measured, rule, resamples=resamples, seed=seed)
        low, high = float(min(c.values[0, 0] for c in curves)), float(max(c.values[0].max() for c in curves))
        for value in round_values(low, high):
            reach += [_reach(c, rule, value) for c in curves]
            faster += _speedups(curves, rule, value, baseline)
        crossed += _crossings(curves, rule)
        over += _areas(curves, rule)
    return Landmarks(reach, crossed, over, faster)


def time_to_reach(
    measured: Mapping[str, Measured], rule: Rule, value: float, *, resamples: int = 2000, seed: int = 0
) -> list[Reach]:
    """Return for each model when its curve first reaches ``value``, a share of problems solved.

    Raises:
        ValueError: ``value`` is not a share, or a model has no engine seconds.
    """
    if not 0 < value <= 1:
        raise ValueError(f"value {value} is not a share of problems above 0 and up to 1; for 90 % give 0.9")
    return [_reach(c, rule, value) for c in all_resampled(measured, rule, resamples=resamples, seed=seed)]


def crossings(measured: Mapping[str, Measured], rule: Rule, *, resamples: int = 2000, seed: int = 0) -> list[Crossing]:
    """Return the budgets at which one model overtakes another for good; none for pairs of which one always leads.

    Raises:
        ValueError: A model has no engine seconds.
    """
    return _crossings(all_resampled(measured, rule, resamples=resamples, seed=seed), rule)


def speedups(
    measured: Mapping[str, Measured], rule: Rule, value: float, baseline: str, *, resamples: int = 2000, seed: int = 0
) -> list[Speedup]:
    """Return how many times faster than the baseline each other model reaches ``value``; none where nobody does.

    Raises:
        ValueError: A model has no engine seconds.
    """
    return _speedups(all_resampled(measured, rule, resamples=resamples, seed=seed), rule, value, baseline)


def areas(measured: Mapping[str, Measured], rule: Rule, *, resamples: int = 2000, seed: int = 0) -> list[Area]:
    """Return each model's mean value over log time, where all models take part; none where there is no such span.

    Raises:
        ValueError: A model has no engine seconds.
    """
    return _areas(all_resampled(measured, rule, resamples=resamples, seed=seed), rule)


def round_values(low: float, high: float, *, most: int = 5) -> list[float]:
    """Return round shares above ``low`` and up to ``high``, at most ``most``: multiples of 1, 2, 5, 10 or 20 points.

    >>> round_values(0.31, 0.78), round_values(0.9, 0.92)
    ([0.4, 0.5, 0.6, 0.7], [0.91, 0.92])
    """
    for step in (1, 2, 5, 10, 20, 50):
        found = [i / 100 for i in range(0, 101, step) if low < i / 100 <= high + EQUAL]
        if len(found) <= most:
            return found
    return []


def _reach(curve: Resampled, rule: Rule, value: float) -> Reach:
    seconds = curve.first_reaching(value)
    return Reach(curve.model, rule, value, float(seconds[0]), *_ends(curve, seconds))


def _ends(curve: Resampled, found: Array) -> tuple[float, float]:
    """Return the interval of what was found on a curve and its draws; NaN where one problem was drawn every time."""
    return central(found[1:]) if curve.num_problems > 1 else (math.nan, math.nan)


def _speedups(curves: Sequence[Resampled], rule: Rule, value: float, baseline: str) -> list[Speedup]:
    seconds = {c.model: c.first_reaching(value) for c in curves}
    found = []
    for name, own in seconds.items():
        with np.errstate(invalid="ignore"):  # infinity by infinity: neither gets there, and nothing can be said
            factor = seconds[baseline] / own
        if name != baseline and not math.isnan(factor[0]):
            found.append(Speedup(name, baseline, rule, value, float(factor[0]), *_ends(curves[0], factor)))
    return found


def _areas(curves: Sequence[Resampled], rule: Rule) -> list[Area]:
    start, end = max(c.seconds[0, 0] for c in curves), min(c.seconds[0, -1] for c in curves)
    if not start < end:
        return []
    found = []
    for c in curves:
        mean = c.mean_over_log_time(start, end)
        low, high = _ends(c, mean)
        if high - low <= EQUAL:  # all problems are alike
            alike = np.full((c.num_problems, 1), mean[0])
            low, high = (float(e[0]) for e in widened(alike, np.array([low]), np.array([high]), least=0.0))
        found.append(Area(c.model, rule, float(mean[0]), low, high, float(start), float(end)))
    return found


def _crossings(curves: Sequence[Resampled], rule: Rule) -> list[Crossing]:
    """Return those of models that, in the data as they are, fall behind or tie somewhere and lead from then on."""
    found = []
    for first, second in itertools.permutations(curves, 2):
        seconds = overtaking(first, second)
        begin = max(first.seconds[0, 0], second.seconds[0, 0])
        if begin * (1 + EQUAL) < seconds[0] < math.inf:
            found.append(Crossing(first.model, second.model, rule, float(seconds[0]), *_ends(first, seconds)))
    return found


def overtaking(first: Resampled, second: Resampled) -> Array:
    """Return ``(1 + draws,)`` seconds from which on ``second`` is ahead of ``first``, exact for the pieces.

    Of the budgets at which both have a sample and samples left: the first one where ``second`` leads all along,
    infinity where it does not lead at the end, NaN where there are no such budgets.
    """
    begin = np.maximum(first.seconds[:, :1], second.seconds[:, :1])
    end = np.minimum(first.seconds[:, -1:], second.seconds[:, -1:])
    t = np.sort(np.clip(np.concatenate([first.seconds, second.seconds, begin, end], axis=1), begin, end), axis=1)
    lead = second.at(t) - first.at(t)
    last = t.shape[1] - 1
    behind = lead <= EQUAL
    place = last - behind[:, ::-1].argmax(axis=1)  # of the last knot at which second is not ahead
    rows, after = np.arange(len(t)), np.minimum(place + 1, last)
    gap, gain = -lead[rows, place], lead[rows, after] - lead[rows, place]
    share = np.clip(np.divide(gap, gain, out=np.zeros_like(gap), where=gain > 0), 0.0, 1.0)
    met = t[rows, place] + share * (t[rows, after] - t[rows, place])
    seconds = np.where(behind.any(axis=1), np.where(place == last, np.inf, met), begin[:, 0])
    return np.where((begin <= end)[:, 0], seconds, np.nan)
