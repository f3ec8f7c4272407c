"""Budgets against hand computation, bootstraps against loops over resampled problems."""

import dataclasses
import io
import math

import numpy as np
import pytest
import rich.console
import torch

from lit_thinkfast.analysis import (
    Landmarks,
    ModelRun,
    budget_points,
    compare,
    compare_models,
    measure,
    measured_points,
    priced,
    table,
    winners,
)
from lit_thinkfast.analysis.budget import Measured
from lit_thinkfast.analysis.cautions import cautions
from lit_thinkfast.analysis.deadline import _credits
from lit_thinkfast.metrics.functional import best_of_n_accuracy
from lit_thinkfast.metrics.statistics import interval, resample_weights, weighted_means
from lit_thinkfast.records import Completion, Verdict


def by_hand() -> ModelRun:
    """Two problems: one of three samples right at 1, 2 and 3 s; two of two right at 4 and 6 s."""
    rows = [("a", 0, 1.0, "x"), ("a", 1, 2.0, "y"), ("a", 2, 3.0, "y"), ("b", 0, 4.0, "x"), ("b", 1, 6.0, "x")]
    completions = [Completion(p, s, "", 1, 1, "stop", t, t) for p, s, t, _ in rows]
    verdicts = [Verdict(p, s, "correct" if a == "x" else "incorrect", a, a, score=0.5) for p, s, _, a in rows]
    return ModelRun(completions, verdicts, scoring_seconds=10.0)


def test_points_are_those_computed_by_hand():
    points = {(p.rule, p.k): p for p in budget_points({"m": by_hand()}, ks=[1, 2])}
    one, two = (points["coverage", k] for k in (1, 2))
    assert one.value == pytest.approx((1 / 3 + 1) / 2)
    assert two.value == pytest.approx((1 - 1 / 3 + 1) / 2)  # one of the three pairs of "a" misses
    # mean seconds of a sample: (mean(1, 2, 3) + mean(4, 6)) / 2 = 3.5
    assert [one.seconds, two.seconds] == pytest.approx([3.5, 7.0])
    assert (one.num_problems, two.num_problems) == (2, 2)


def test_all_k_are_of_the_problems_that_have_the_largest():
    points = {(p.rule, p.k): p for p in budget_points({"m": by_hand()}, ks=[1, 2, 3])}
    assert {p.num_problems for p in points.values()} == {1}  # "b" has two samples
    assert [points["coverage", k].value for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert points["majority", 3].value == 0.0  # y wins 2 to 1
    assert points["majority", 3].seconds == pytest.approx(6.0)
    for p in points.values():  # of one problem nothing is sure
        assert math.isnan(p.low)
        assert math.isnan(p.high)


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
    assert (found.difference, found.p_value) == (0.0, 1.0)
    unseen = 1.959963984540054**2 / (12 + 1.959963984540054**2)  # of all problems, where none of twelve differs
    assert (found.low, found.high) == pytest.approx((-unseen, unseen))
    assert not found.resolved


def test_difference_equals_a_loop_over_resampled_problems(runs):
    measured = measure(runs, ks=[1, 2, 4, 8])
    seconds, resamples = 1.7, 40
    found = compare(measured["student"], measured["teacher"], rule="coverage", seconds=seconds, resamples=resamples)

    def value(m, rows):
        k = seconds / m.sample_seconds[rows].mean()
        return np.interp(k, m.ks, m.values["coverage"][rows].mean(axis=0))

    def difference(rows):
        return value(measured["student"], rows) - value(measured["teacher"], rows)

    draws = [
        difference(np.repeat(np.arange(12), w.astype(int))) for w in resample_weights(12, resamples=resamples, seed=0)
    ]
    assert found.difference == pytest.approx(difference(np.arange(12)))
    assert found.low == pytest.approx(np.quantile(draws, 0.025))
    assert found.high == pytest.approx(np.quantile(draws, 0.975))


def test_equal_models_differ_as_rarely_as_the_interval_says():
    """Scores say nothing, so best-of-N is one random sample at every k, and neither model is better.

    The first has many k within its budget and the second one. The best of the many k would win in every sixth case.
    """
    rng, ks, number, simulations = np.random.default_rng(0), (1, 2, 3, 4, 6, 8, 12, 16), 30, 300
    found = []
    for i in range(simulations):
        chance = rng.beta(1, 1, size=(number, 1))
        models = []
        for name, second in (("many", 1.0), ("one", 16.0)):
            correct, scores = rng.random((number, 16)) < chance, rng.random((number, 16))
            values = best_of_n_accuracy(torch.tensor(correct), torch.tensor(scores), ks, reduction="none").numpy()
            ids = tuple(map(str, range(number)))
            models.append(Measured(name, ids, ks, np.full(number, second), 0.0, {"best_of_n": values}))
        found.append(compare(*models, rule="best_of_n", seconds=16.0, resamples=300, seed=i))
    above, below = (
        np.mean([sign * low > 0 for low in ends])
        for sign, ends in zip((1, -1), ([d.low for d in found], [d.high for d in found]), strict=True)
    )
    assert above < 0.055  # 0.025, and the spread of 300 cases
    assert below < 0.055
    assert np.mean([d.difference for d in found]) == pytest.approx(0.0, abs=0.02)
    assert np.mean([d.resolved for d in found]) < 0.08


@pytest.mark.parametrize("problems", [1, 2, 3, 5, 6])
def test_few_problems_settle_nothing(problems):
    """All problems solved by one model and none by the other: coins do so in 2 of 2^P cases."""
    ids = tuple(map(str, range(problems)))
    one, other = (
        Measured(name, ids, (1, 2), np.ones(problems), 0.0, {"coverage": np.full((problems, 2), value)})
        for name, value in (("one", 1.0), ("other", 0.0))
    )
    found = compare(one, other, rule="coverage", seconds=2.0)
    assert found.difference == 1.0
    assert found.p_value == 2 / 2**problems
    assert found.resolved is (problems > 5)
    assert math.isnan(found.low) if problems == 1 else found.low < 0.3


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


def without_seconds(run: ModelRun) -> ModelRun:
    return dataclasses.replace(run, completions=[dataclasses.replace(c, seconds=0.0) for c in run.completions])


def test_a_run_without_seconds_has_values_but_no_times(runs):
    measured = measure({**runs, "foreign": without_seconds(runs["teacher"])}, ks=[1, 4])
    assert [m.timed for m in measured.values()] == [True, True, False]
    points = {(p.model, p.rule, p.k): p for p in measured_points(measured, resamples=50)}
    for rule in measured["teacher"].values:
        foreign, own = points["foreign", rule, 4], points["teacher", rule, 4]
        assert math.isnan(foreign.seconds)
        assert dataclasses.replace(foreign, model="teacher", seconds=own.seconds) == own
    with pytest.raises(ValueError, match="foreign: some or all of its completions carry no engine seconds"):
        compare(measured["teacher"], measured["foreign"], rule="coverage", seconds=3.0)


def test_seconds_of_some_problems_only_are_none(runs):
    some = [dataclasses.replace(c, seconds=0.0) if c.problem_id == "p3" else c for c in runs["teacher"].completions]
    assert not measure({"m": dataclasses.replace(runs["teacher"], completions=some)})["m"].timed


def test_seconds_of_some_samples_only_are_none_and_said(runs):
    """A mean over the samples that were timed would be that of other samples, and with zeros among them too small."""
    some = [dataclasses.replace(c, seconds=0.0) if c.sample == 1 else c for c in runs["teacher"].completions]
    run = dataclasses.replace(runs["teacher"], completions=some)
    c = compare_models({**runs, "teacher": run}, ks=[1, 2], resamples=20)
    assert not c.measured["teacher"].timed
    assert not c.timed
    assert np.isnan(c.measured["teacher"].sample_seconds).all()
    assert cautions(c)[0].startswith("No engine time was recorded for teacher (12 of 96 completions), so")


def test_a_comparison_with_an_untimed_model_is_over_samples_only(runs):
    c = compare_models({**runs, "foreign": without_seconds(runs["teacher"])}, ks=[1, 4], resamples=50)
    assert not c.timed
    assert (c.fronts, c.best, c.landmarks) == ({}, [], Landmarks())
    assert c.rules == ["coverage", "majority", "weighted_best_of_n", "best_of_n"]
    assert {p.model for p in c.points if math.isfinite(p.seconds)} == {"teacher", "student"}
    assert {s.model for s in winners(c.points, "coverage")} <= {"teacher", "student"}


def test_problems_with_few_samples_are_counted_out(runs):
    short = [(c, v) for p in runs["teacher"].by_problem.values() for c, v in p if c.problem_id != "p3" or c.sample < 2]
    run = dataclasses.replace(runs["teacher"], completions=[c for c, _ in short], verdicts=[v for _, v in short])
    points = budget_points({"m": run}, rules=["coverage"], resamples=20)
    assert {p.k: p.num_problems for p in points} == dict.fromkeys((1, 2, 3, 4, 6, 8), 11)
    c = compare_models({"m": run, "other": runs["student"]}, rules=["coverage"], resamples=20)
    assert (c.num_problems, c.few_samples) == (11, ("p3",))
    told = "1 problem (p3) is left out, since some run has fewer than 8 samples of it"
    assert any(told in text for text in cautions(c))
    assert not any("that all models share are compared" in text for text in cautions(c))
    out = io.StringIO()
    rich.console.Console(width=200, file=out).print(table(c))
    assert told in out.getvalue()
    out = io.StringIO()
    rich.console.Console(width=200, file=out).print(table(compare_models({"m": run}, resamples=20)))
    assert told.replace("some run", "the run") in out.getvalue()
    whole = compare_models({"m": run}, ks=[1, 2], rules=["coverage"], resamples=20)
    assert (whole.num_problems, whole.few_samples) == (12, ())


@pytest.mark.parametrize("ks", [None, [1, 4, 16]])
def test_a_model_does_not_win_by_not_finishing_hard_problems(ks):
    """Two models with equal answers; one has half the samples of a problem that neither solves."""

    def made(samples):
        rows = [(f"p{i}", s, True) for i in range(9) for s in range(16)] + [("hard", s, False) for s in range(samples)]
        return ModelRun(
            [Completion(p, s, "", 1, 1, "stop", 1.0, 1.0) for p, s, _ in rows],
            [Verdict(p, s, "correct" if right else "incorrect", str(right), str(right)) for p, s, right in rows],
        )

    c = compare_models({"whole": made(16), "cut": made(8)}, ks=ks, resamples=50)
    for rule in c.rules:
        one, other = ([p.value for p in c.points if (p.model, p.rule) == (name, rule)] for name in c.runs)
        assert one == other
        assert len({p.num_problems for p in c.points}) == 1
    assert {b.model for b in c.best} == {"whole"}
    assert all(b.margin.difference == 0 and not b.margin.resolved for b in c.best)
    assert c.few_samples == ("hard",)


def test_a_k_that_no_problem_has_in_all_runs_is_refused(run_maker, clocked):
    one, other = run_maker(problems=2), run_maker(problems=2)

    def without(run, problem):
        kept = [c for c in run.completions if c.problem_id != problem or c.sample < 3]
        verdicts = [v for v in run.verdicts if v.problem_id != problem or v.sample < 3]
        return dataclasses.replace(run, completions=kept, verdicts=verdicts)

    with pytest.raises(ValueError, match="no problem has 4 samples in all of one, other; use ks of 3 or less"):
        measure({"one": without(one, "p0"), "other": without(other, "p1")}, ks=[4])


def test_prices_turn_seconds_into_dollars(runs):
    points = budget_points(runs, ks=[1, 2], resamples=20)
    for prices in (2.0, {"teacher": 4.0, "student": 1.0}):
        c = compare_models(runs, ks=[1, 2], resamples=20, prices=prices)
        for p, dollars in zip(points, priced(points, c.prices), strict=True):
            assert dollars.seconds == pytest.approx(c.dollars(p.model, p.seconds))
            assert dollars.seconds == pytest.approx(p.seconds * c.prices[p.model] / 3600)
    assert c.price_per_hour is None
    assert math.isnan(compare_models(runs, ks=[1], resamples=20).dollars("teacher", 1.0))


@pytest.mark.parametrize(
    ("prices", "message"),
    [
        ({"teacher": 1.0}, "no price for 'student'"),
        ({"teacher": 1.0, "student": 1.0, "other": 1.0}, "a price for 'other', which is not among the models"),
        (0.0, "the price 0.0 of 'teacher' is not above 0"),
        (math.nan, "the price nan of 'teacher'"),
    ],
)
def test_prices_that_are_none_are_refused(runs, prices, message):
    with pytest.raises(ValueError, match=message):
        compare_models(runs, ks=[1], prices=prices)


def test_models_without_scores_are_named(runs, run_maker):
    c = compare_models({**runs, "bare": run_maker(scored=False)}, ks=[1], resamples=10)
    assert c.unscored == ("bare",)
    assert c.rules == ["coverage", "majority"]


def test_by_default_k_goes_as_far_as_nine_of_ten_problems(run_maker, clocked):
    cut = clocked(run_maker(problems=20), budget=110.0)
    counts = sorted(len(pairs) for pairs in cut.by_problem.values())
    assert counts[0] < counts[-1]
    assert measure({"m": cut, "whole": run_maker(problems=20)}, rules=["coverage"])["whole"].ks[-1] == counts[2]
    assert measure({"m": cut}, ks=[8], rules=["coverage"])["m"].ks == (8,)


def test_best_of_n_ranks_by_log_odds_where_scores_are_equal():
    """At equal samples and at a deadline alike."""
    made = [
        (
            Completion("p", i, str(i), 1, 1, "stop", 1.0, 1.0, finished_seconds=i + 1.0),
            Verdict("p", i, outcome, str(i), str(i), score=1.0, log_odds=40.0 + i),
        )
        for i, outcome in enumerate(["incorrect", "correct"])
    ]
    run = ModelRun([c for c, _ in made], [v for _, v in made])
    assert measure({"m": run}, ks=[2])["m"].values["best_of_n"].tolist() == [[1.0]]
    assert _credits("best_of_n", made, np.array([1, 2])).tolist() == [0.0, 1.0]
