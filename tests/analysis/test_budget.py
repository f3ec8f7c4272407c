"""Budgets against hand computation, bootstraps against loops over resampled problems."""

import dataclasses
import math

import numpy as np
import pytest

from lit_thinkfast.analysis import ModelRun, budget_points, compare, measure
from lit_thinkfast.analysis.budget import interval, resample_weights, weighted_means
from lit_thinkfast.records import Completion, Verdict


def by_hand() -> ModelRun:
    """Two problems: one of three samples right at 1, 2 and 3 s; two of two right at 4 and 6 s."""
    rows = [("a", 0, 1.0, "x"), ("a", 1, 2.0, "y"), ("a", 2, 3.0, "y"), ("b", 0, 4.0, "x"), ("b", 1, 6.0, "x")]
    completions = [Completion(p, s, "", 1, 1, "stop", t, t) for p, s, t, _ in rows]
    verdicts = [Verdict(p, s, "correct" if a == "x" else "incorrect", a, a, score=0.5) for p, s, _, a in rows]
    return ModelRun(completions, verdicts, scoring_seconds=10.0)


def test_points_are_those_computed_by_hand():
    points = {(p.rule, p.k): p for p in budget_points({"m": by_hand()}, ks=[1, 2, 3])}
    one, two, three = (points["coverage", k] for k in (1, 2, 3))
    assert one.value == pytest.approx((1 / 3 + 1) / 2)
    assert two.value == pytest.approx((1 - 1 / 3 + 1) / 2)  # one of the three pairs of "a" misses
    # mean seconds of a sample: (mean(1, 2, 3) + mean(4, 6)) / 2 = 3.5
    assert [one.seconds, two.seconds, three.seconds] == pytest.approx([3.5, 7.0, 10.5])
    assert (one.num_problems, three.num_problems) == (2, 1)  # "b" has two samples
    assert three.value == 1.0
    # majority of three on "a": y wins 2 to 1
    assert points["majority", 3].value == 0.0


def test_reward_model_time_is_added_where_it_is_needed():
    points = {(p.rule, p.k): p for p in budget_points({"m": by_hand()}, ks=[2])}
    assert points["majority", 2].seconds == pytest.approx(7.0)
    assert points["weighted_best_of_n", 2].seconds == pytest.approx(2 * (3.5 + 10.0 / 5))


def test_default_rules_need_scores(run_maker):
    assert {p.rule for p in budget_points({"m": run_maker(scored=False)})} == {"coverage", "majority"}
    with pytest.raises(ValueError, match="m: 96 verdicts have no reward score"):
        budget_points({"m": run_maker(scored=False)}, rules=["best_of_n"])


def test_intervals_equal_a_loop_over_resampled_problems():
    values = np.random.default_rng(3).random((7, 4))
    values[2, 3] = np.nan
    weights = resample_weights(7, resamples=50, seed=5)
    assert (weights.sum(axis=1) == 7).all()
    loop = [np.nanmean(np.repeat(values, w.astype(int), axis=0), axis=0) for w in weights]
    np.testing.assert_allclose(weighted_means(values, weights), loop)
    low, high = interval(weighted_means(values, weights))
    np.testing.assert_allclose(low, np.quantile(loop, 0.025, axis=0))
    np.testing.assert_allclose(high, np.quantile(loop, 0.975, axis=0))


def test_same_seed_same_intervals_other_seed_others(runs):
    first, again, other = (budget_points(runs, ks=[1, 4], resamples=200, seed=s) for s in (0, 0, 1))
    assert first == again
    assert [p.value for p in first] == [p.value for p in other]
    assert [p.low for p in first] != [p.low for p in other]
    for p in first:
        assert p.low <= p.value <= p.high


def test_a_model_equals_itself_without_doubt(runs):
    measured = measure(runs, ks=[1, 2, 4])
    found = compare(measured["teacher"], measured["teacher"], rule="majority", seconds=3.0)
    assert (found.difference, found.low, found.high) == (0.0, 0.0, 0.0)
    assert not found.resolved


def test_difference_equals_a_loop_over_resampled_problems(runs):
    measured = measure(runs, ks=[1, 2, 4, 8])
    seconds, resamples = 1.7, 40
    found = compare(measured["student"], measured["teacher"], rule="coverage", seconds=seconds, resamples=resamples)

    def value(m, rows):
        k = seconds / m.sample_seconds[rows].mean()
        return np.interp(k, m.ks, np.maximum.accumulate(m.values["coverage"][rows].mean(axis=0)))

    def difference(rows):
        return value(measured["student"], rows) - value(measured["teacher"], rows)

    draws = [
        difference(np.repeat(np.arange(12), w.astype(int))) for w in resample_weights(12, resamples=resamples, seed=0)
    ]
    assert found.difference == pytest.approx(difference(np.arange(12)))
    assert found.low == pytest.approx(np.quantile(draws, 0.025))
    assert found.high == pytest.approx(np.quantile(draws, 0.975))


def test_no_difference_before_the_first_sample(runs):
    measured = measure(runs, ks=[1, 2])
    assert math.isnan(compare(measured["student"], measured["teacher"], rule="coverage", seconds=0.5).difference)


def test_models_are_compared_on_the_problems_they_share(runs, run_maker):
    more = {**runs, "other": run_maker(problems=5)}
    assert {p.num_problems for p in budget_points(more, ks=[1])} == {5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ks": [9]}, "k = 9 is larger than the 8 samples a problem that teacher has; use 8 or less"),
        ({"ks": [0]}, "must be numbers of samples from 1"),
    ],
)
def test_impossible_ks_are_refused(runs, change, message):
    with pytest.raises(ValueError, match=message):
        budget_points(runs, **change)


def test_runs_that_cannot_be_compared_are_refused(runs, run_maker):
    with pytest.raises(ValueError, match="give at least one run"):
        budget_points({})
    foreign = run_maker()
    foreign = ModelRun(
        [dataclasses.replace(c, problem_id="z") for c in foreign.completions[:1]],
        [dataclasses.replace(v, problem_id="z") for v in foreign.verdicts[:1]],
    )
    with pytest.raises(ValueError, match="no problem in common"):
        budget_points({**runs, "foreign": foreign})
    free = ModelRun(
        [dataclasses.replace(c, seconds=0.0) for c in runs["teacher"].completions], runs["teacher"].verdicts
    )
    with pytest.raises(ValueError, match="no completion carries engine seconds"):
        budget_points({"free": free})
