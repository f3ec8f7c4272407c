"""Landmarks against dense numeric integration, root search, and a naive loop over resampled problems."""

import dataclasses
import math

import numpy as np
import pytest

from lit_thinkfast.analysis import areas, compare_models, crossings, measure, seconds_to_reach, speedups, time_to_reach
from lit_thinkfast.analysis.budget import Measured, measured_points
from lit_thinkfast.analysis.landmarks import find_landmarks, overtaking, round_values
from lit_thinkfast.analysis.resampled import central, resampled
from lit_thinkfast.metrics.statistics import resample_weights

DRAWS = 60


def made(model, seed, *, second, skill, ks=(1, 2, 4, 8), problems=15):
    """Per-problem values that may fall with k, and times that differ between problems."""
    rng = np.random.default_rng(seed)
    rise = np.linspace(0, 0.3, len(ks)) + rng.normal(0, 0.05, len(ks))
    values = np.clip(skill + rng.normal(0, 0.3, (problems, 1)) + rise, 0, 1)
    seconds = second * rng.uniform(0.5, 1.5, problems)
    ids = tuple(f"p{i}" for i in range(problems))
    return Measured(model, ids, ks, seconds, 0.0, {"coverage": values})


def curve(m, rows):
    """The curve of some problems as knots, by hand."""
    second = m.sample_seconds[rows].mean()
    return second * np.array(m.ks), m.values["coverage"][rows].mean(axis=0)


def naive_draws(n, statistic, *, seed=0):
    rows = [np.repeat(np.arange(n), w.astype(int)) for w in resample_weights(n, resamples=DRAWS, seed=seed)]
    return statistic(np.arange(n)), np.array([statistic(r) for r in rows])


def ends(draws):
    known = np.sort(draws[~np.isnan(draws)])
    place = np.array([0.025, 0.975]) * (len(known) - 1)
    return known[math.floor(place[0])], known[math.ceil(place[1])]


def naive_reach(m, rows, value):
    t, v = curve(m, rows)
    if v.max() < value:
        return np.inf
    if v[0] >= value:
        return t[0]
    dense = np.sort(np.concatenate([np.linspace(t[0], t[-1], 50_001), t]))  # with the tops of peaks
    return dense[np.argmax(np.interp(dense, t, v) >= value)]


def naive_overtaking(first, second, rows):
    (t1, v1), (t2, v2) = curve(first, rows), curve(second, rows)
    start, end = max(t1[0], t2[0]), min(t1[-1], t2[-1])
    if start > end:
        return np.nan
    dense = np.linspace(start, end, 200_001)
    ahead = np.interp(dense, t2, v2) - np.interp(dense, t1, v1) > 1e-12
    if not ahead[-1]:
        return np.inf
    behind = np.flatnonzero(~ahead)
    return dense[behind[-1] + 1] if len(behind) else start


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("value", [0.3, 0.62, 0.8])
def test_reach_equals_a_search_on_a_dense_grid_and_a_loop(seed, value):
    m = made("m", seed, second=1.0, skill=0.45)
    (found,) = time_to_reach({"m": m}, "coverage", value, resamples=DRAWS)
    estimate, draws = naive_draws(15, lambda rows: naive_reach(m, rows, value))
    assert found.seconds == pytest.approx(estimate, rel=1e-3)
    assert (found.low, found.high) == pytest.approx(ends(draws), rel=1e-3)


def test_reach_agrees_with_the_points(runs):
    measured = measure(runs)
    points = measured_points(measured, resamples=10)
    for value in (0.3, 0.7, 0.95, 1.0):
        found = {r.model: r.seconds for r in time_to_reach(measured, "coverage", value, resamples=10)}
        assert found == pytest.approx(seconds_to_reach(points, "coverage", value))


def test_draws_that_never_reach_it_are_infinite_not_missing():
    values = np.repeat([[0.0], [1.0]], [2, 8], axis=0)
    m = Measured("m", tuple("abcdefghij"), (1,), np.ones(10), 0.0, {"coverage": values})
    (found,) = time_to_reach({"m": m}, "coverage", 0.8)
    assert (found.seconds, found.low, found.high) == (1.0, 1.0, math.inf)
    (never,) = time_to_reach({"m": m}, "coverage", 1.0, resamples=20)
    assert never.seconds == math.inf
    assert central(np.array([1.0, 2.0, np.inf])) == (1.0, math.inf)
    assert central(np.array([np.inf, np.inf])) == (math.inf, math.inf)
    assert central(np.array([np.nan, 3.0])) == (3.0, 3.0)


@pytest.mark.parametrize("seed", range(12))
def test_overtaking_equals_a_search_on_a_dense_grid_and_a_loop(seed):
    rng = np.random.default_rng(seed)
    first = made("first", seed, second=rng.uniform(0.5, 1.0), skill=0.5)
    second = made("second", seed + 100, second=rng.uniform(0.8, 2.5), skill=rng.uniform(0.4, 0.65))
    estimate, draws = naive_draws(15, lambda rows: naive_overtaking(first, second, rows))
    a, b = (resampled(m, "coverage", resamples=DRAWS, seed=0) for m in (first, second))
    found = overtaking(a, b)
    expected = np.concatenate([[estimate], draws])
    np.testing.assert_array_equal(np.isinf(found), np.isinf(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    reported = {
        (c.first, c.second): c for c in crossings({"first": first, "second": second}, "coverage", resamples=DRAWS)
    }
    begins = max(curve(first, np.arange(15))[0][0], curve(second, np.arange(15))[0][0])
    assert (("first", "second") in reported) == (begins * 1.0001 < estimate < np.inf)
    if c := reported.get(("first", "second")):
        assert c.seconds == pytest.approx(estimate, rel=1e-3)
        assert (c.low, c.high) == pytest.approx(ends(draws), rel=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_speedup_equals_a_loop(seed):
    measured = {
        "fast": made("fast", seed, second=0.5, skill=0.45),
        "base": made("base", seed + 20, second=1.0, skill=0.5),
    }
    with np.errstate(invalid="ignore"):
        estimate, draws = naive_draws(
            15, lambda rows: np.divide(*(naive_reach(measured[name], rows, 0.6) for name in ("base", "fast")))
        )
    found = speedups(measured, "coverage", 0.6, "base", resamples=DRAWS)
    if np.isnan(estimate):
        assert not found
    else:
        assert found[0].factor == pytest.approx(estimate, rel=1e-3)
        assert (found[0].low, found[0].high) == pytest.approx(ends(draws), rel=1e-3)
    assert [s.model for s in found] in ([], ["fast"])
    assert not speedups(measured, "coverage", 1.0, "base", resamples=DRAWS)


def test_one_crossing_computed_by_hand():
    ids, two = ("a", "b"), np.ones((2, 1))
    fast = Measured("fast", ids, (1, 2, 4), np.full(2, 1.0), 0.0, {"coverage": two * [[0.4, 0.5, 0.7]]})
    slow = Measured("slow", ids, (1, 2, 4), np.full(2, 2.0), 0.0, {"coverage": two * [[0.4, 0.8, 0.8]]})
    (only,) = crossings({"fast": fast, "slow": slow}, "coverage", resamples=5)
    assert (only.first, only.second) == ("fast", "slow")
    assert (only.seconds, only.low, only.high) == pytest.approx((3.0, 3.0, 3.0))
    same = dataclasses.replace(fast, model="same")
    assert crossings({"fast": fast, "same": same}, "coverage", resamples=5) == []
    for area in areas({"fast": fast, "slow": slow}, "coverage", resamples=5):  # two problems, which are alike
        assert area.low < area.value - 0.1 < area.value + 0.1 < area.high


def test_of_one_problem_nothing_has_an_interval():
    measured = {
        name: Measured(name, ("a",), (1, 2, 4), np.array([second]), 0.0, {"coverage": np.array([values])})
        for name, second, values in (("fast", 1.0, [0.4, 0.5, 0.7]), ("slow", 2.0, [0.4, 0.8, 0.8]))
    }
    found = find_landmarks(measured, ["coverage"], "slow", resamples=20)
    every = [*found.reach, *found.crossings, *found.areas, *found.speedups]
    assert all((found.reach, found.crossings, found.areas, found.speedups))
    assert all(math.isnan(x.low) and math.isnan(x.high) for x in every)


def test_a_curve_that_falls_reaches_what_its_peak_has():
    ids, rise = ("a", "b"), np.ones((2, 1)) * [[0.4, 0.8, 0.5]]
    measured = {"m": Measured("m", ids, (1, 2, 4), np.ones(2), 0.0, {"majority": rise})}
    (found,) = time_to_reach(measured, "majority", 0.6, resamples=5)
    assert found.seconds == pytest.approx(1.5)
    curve = resampled(measured["m"], "majority", resamples=1, seed=0)
    assert curve.at(np.array([[3.0]]))[0, 0] == pytest.approx(0.65)
    assert find_landmarks(measured, ["majority"], "m", resamples=5).reach[-1].value == 0.8


@pytest.mark.parametrize("seed", range(4))
def test_area_equals_dense_integration_and_a_loop(seed):
    measured = {
        "one": made("one", seed, second=0.7, skill=0.5),
        "other": made("other", seed + 50, second=1.3, skill=0.6),
    }
    every = np.arange(15)
    start = max(curve(m, every)[0][0] for m in measured.values())
    end = min(curve(m, every)[0][-1] for m in measured.values())
    log_time = np.linspace(math.log(start), math.log(end), 20_001)
    for found in areas(measured, "coverage", resamples=DRAWS):
        m = measured[found.model]

        def mean(rows, m=m):
            v = np.interp(np.exp(log_time), *curve(m, rows))
            return float(np.mean((v[1:] + v[:-1]) / 2))

        estimate, draws = naive_draws(15, mean)
        assert (found.start, found.end) == pytest.approx((start, end))
        assert found.value == pytest.approx(estimate, abs=1e-6)
        assert (found.low, found.high) == pytest.approx(ends(draws), abs=1e-5)


def test_no_area_where_the_spans_do_not_meet():
    measured = {
        "fast": made("fast", 0, second=0.01, skill=0.5, ks=(1, 2)),
        "slow": made("slow", 1, second=10.0, skill=0.5, ks=(1, 2)),
    }
    found = find_landmarks(measured, ["coverage"], "slow", resamples=20)
    assert not found.areas
    assert not found.crossings
    assert {r.model for r in found.reach} == {"fast", "slow"}


def test_values_to_reach_are_round_and_few():
    assert round_values(0.0, 1.0) == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert round_values(0.5, 0.5) == []
    for low, high in np.sort(np.random.default_rng(0).random((50, 2)), axis=1):
        found = round_values(low, high)
        assert len(found) <= 5
        assert all(low < v <= high + 1e-12 for v in found)


def test_a_value_that_is_no_share_is_refused(runs):
    with pytest.raises(ValueError, match=r"for 90 % give 0\.9"):
        time_to_reach(measure(runs), "coverage", 90)


def test_a_comparison_has_its_landmarks(runs):
    c = compare_models(runs, resamples=100, prices=3.6)
    measured = measure(runs)
    assert {r.rule for r in c.landmarks.reach} == set(c.rules)
    values = {r.value for r in c.landmarks.reach if r.rule == "coverage"}
    expected = [r for v in sorted(values) for r in time_to_reach(measured, "coverage", v, resamples=100)]
    assert [r for r in c.landmarks.reach if r.rule == "coverage"] == expected
    assert [a for a in c.landmarks.areas if a.rule == "majority"] == areas(measured, "majority", resamples=100)
    assert [x for x in c.landmarks.crossings if x.rule == "best_of_n"] == crossings(
        measured, "best_of_n", resamples=100
    )
    assert {(s.model, s.baseline) for s in c.landmarks.speedups} == {("student", "teacher")}
    for s in c.landmarks.speedups:
        times = {r.model: r.seconds for r in c.landmarks.reach if (r.rule, r.value) == (s.rule, s.value)}
        assert s.factor == pytest.approx(times["teacher"] / times["student"])
    assert c.price_per_hour == 3.6
    assert c.dollars("teacher", 1000.0) == pytest.approx(1.0)
