"""Gains against a loop over resampled problems."""

import dataclasses

import numpy as np
import pytest

from lit_thinkfast.analysis import build_report, compare_models, measure, selection_gains
from lit_thinkfast.metrics.statistics import paired_permutation_test, resample_weights


def test_gains_equal_a_loop_over_resampled_problems(run_maker):
    m = measure({"m": run_maker()})["m"]
    gains = {(g.rule, g.over): g for g in selection_gains(m, resamples=60, seed=2)}
    assert gains.keys() == {
        (rule, over) for rule in ("weighted_best_of_n", "best_of_n") for over in ("one sample", "majority")
    }
    for (rule, over), gain in gains.items():
        value = m.values[rule][:, -1]
        other = m.values["coverage"][:, 0] if over == "one sample" else m.values["majority"][:, -1]
        assert gain.k == m.ks[-1]
        assert gain.difference == pytest.approx(value.mean() - other.mean())
        weights = resample_weights(len(value), resamples=60, seed=2)
        draws = [np.repeat(value, w).mean() - np.repeat(other, w).mean() for w in weights.astype(int)]
        assert [gain.low, gain.high] == pytest.approx(np.quantile(draws, [0.025, 0.975]))
        assert gain.p_value == paired_permutation_test(value, other, permutations=2000, seed=2)
        assert gain.resolved == ((gain.low > 0 or gain.high < 0) and gain.p_value < 0.05)


def test_a_perfect_reward_model_turns_a_vote_into_coverage(run_maker):
    run = run_maker()
    truth = [dataclasses.replace(v, score=float(v.correct)) for v in run.verdicts]
    m = measure({"m": dataclasses.replace(run, verdicts=truth)})["m"]
    best = next(g for g in selection_gains(m) if (g.rule, g.over) == ("best_of_n", "one sample"))
    assert best.difference == pytest.approx((m.values["coverage"][:, -1] - m.values["coverage"][:, 0]).mean())
    assert best.low > 0


@pytest.mark.parametrize("problems", [1, 4])
def test_gains_on_few_problems_are_not_clear(run_maker, problems):
    run = run_maker(problems=problems, skill=0.5)
    truth = [
        dataclasses.replace(v, outcome="correct" if v.sample == 0 else "incorrect", score=float(v.sample == 0))
        for v in run.verdicts
    ]
    gains = selection_gains(measure({"m": dataclasses.replace(run, verdicts=truth)})["m"])
    best = next(g for g in gains if (g.rule, g.over) == ("best_of_n", "one sample"))
    assert best.difference == pytest.approx(7 / 8)
    assert np.isnan(best.low) if problems == 1 else best.low < best.difference
    assert not best.resolved


def test_without_scores_there_are_none(run_maker):
    assert selection_gains(measure({"m": run_maker(scored=False)})["m"]) == []


def test_of_one_sample_there_is_nothing_to_choose(run_maker):
    assert selection_gains(measure({"m": run_maker()}, ks=[1])["m"]) == []


def test_without_a_single_sample_only_the_vote_is_compared(run_maker):
    gains = selection_gains(measure({"m": run_maker()}, ks=[2, 4])["m"])
    assert {g.over for g in gains} == {"majority"}


def test_the_report_shows_them_where_there_are_scores(run_maker, tmp_path):
    for scored in (True, False):
        c = compare_models({"teacher": run_maker(scored=scored), "student": run_maker(seed=1, scored=scored)})
        page = build_report(c, tmp_path / f"{scored}.html").read_text()
        assert ("What the reward model adds" in page) is scored
