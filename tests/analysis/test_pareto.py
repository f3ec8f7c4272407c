"""Fronts and winners against brute force."""

import itertools
import math

import numpy as np
import pytest

from lit_thinkfast.analysis import pareto_front, seconds_to_reach, winners
from lit_thinkfast.records import BudgetPoint


def point(model, k, seconds, value, rule="coverage"):
    return BudgetPoint(model, rule, k, seconds, value, value, value, 10)


def random_points(seed, models=4):
    rng = np.random.default_rng(seed)
    points = []
    for m in range(models):
        one = rng.uniform(0.1, 2)
        values = np.round(rng.uniform(0, 1, 6), rng.integers(1, 3))  # rounded, so that ties occur
        values = np.sort(values) if rng.random() < 0.6 else values
        points += [point(f"m{m}", k, k * one, float(v)) for k, v in zip((1, 2, 4, 8, 16, 32), values, strict=True)]
    return points


@pytest.mark.parametrize("seed", range(30))
def test_front_equals_brute_force(seed):
    points = [*random_points(seed), point("m0", 1, 0.01, 0.9, rule="majority")]
    own = [p for p in points if p.rule == "coverage"]

    def beaten(p):
        return any(
            q.seconds <= p.seconds and q.value >= p.value and (q.seconds, q.value) != (p.seconds, p.value) for q in own
        )

    expected = sorted({(p.seconds, p.value) for p in own if not beaten(p)})
    front = pareto_front(points, "coverage")
    assert [(p.seconds, p.value) for p in front] == expected
    assert all(a.value < b.value for a, b in itertools.pairwise(front))


@pytest.mark.parametrize("seed", range(30))
def test_winners_equal_brute_force_at_random_times(seed):
    points = random_points(seed)
    stretches = winners(points, "coverage")
    models = {p.model: sorted((p for p in points if p.model == p.model), key=lambda p: p.seconds) for p in points}
    models = {m: [p for p in own if p.model == m] for m, own in models.items()}

    def value(model, seconds):
        own = models[model]
        if seconds < own[0].seconds:
            return -math.inf
        return float(np.interp(seconds, [p.seconds for p in own], [p.value for p in own]))

    assert stretches[0].start == min(p.seconds for p in points)
    assert stretches[-1].end == max(p.seconds for p in points)
    assert all(a.end == b.start for a, b in itertools.pairwise(stretches))
    first = max(own[0].seconds for own in models.values())
    last = min(own[-1].seconds for own in models.values())
    for t in np.random.default_rng(seed).uniform(stretches[0].start, stretches[-1].end, 200):
        s = next(s for s in stretches if s.start <= t <= s.end)
        assert value(s.model, t) == pytest.approx(max(value(m, t) for m in models), abs=1e-9)
        assert s.contested == (first <= t <= last)


def test_crossing_is_exact_and_a_tie_keeps_the_leader():
    fast = [point("fast", 1, 1.0, 0.4), point("fast", 2, 2.0, 0.5), point("fast", 4, 4.0, 0.7)]
    slow = [point("slow", 1, 2.0, 0.4), point("slow", 2, 4.0, 0.8), point("slow", 3, 6.0, 0.8)]
    # from 2 s: fast 0.5 + 0.1 (t - 2), slow 0.4 + 0.2 (t - 2); equal at 3 s
    found = [(s.model, s.start, s.end, s.contested) for s in winners(fast + slow, "coverage")]
    assert found == [
        ("fast", 1.0, 2.0, False),
        ("fast", 2.0, pytest.approx(3.0), True),
        ("slow", pytest.approx(3.0), 4.0, True),
        ("slow", 4.0, 6.0, False),
    ]
    equal = [point("a", 1, 1.0, 0.5), point("a", 2, 2.0, 0.5), point("b", 1, 1.5, 0.5), point("b", 2, 3.0, 0.5)]
    assert {s.model for s in winners(equal, "coverage")} == {"a"}


def test_a_single_point_is_a_front():
    only = [point("m", 1, 2.0, 0.5)]
    assert pareto_front(only, "coverage") == only
    assert [(s.model, s.start, s.end) for s in winners(only, "coverage")] == [("m", 2.0, 2.0)]
    with pytest.raises(ValueError, match="no points of the rule 'majority'"):
        winners(only, "majority")


def test_seconds_to_reach_interpolates_and_knows_never():
    points = [point("m", 1, 1.0, 0.2), point("m", 2, 2.0, 0.6), point("n", 1, 5.0, 0.3)]
    assert seconds_to_reach(points, "coverage", 0.4) == {"m": pytest.approx(1.5), "n": math.inf}
    assert seconds_to_reach(points, "coverage", 0.1) == {"m": 1.0, "n": 5.0}
    falls = [point("m", 1, 1.0, 0.2), point("m", 2, 2.0, 0.6), point("m", 4, 4.0, 0.3)]
    assert seconds_to_reach(falls, "coverage", 0.5) == {"m": pytest.approx(1.75)}
