"""Deadline curves against a brute-force replay of the journal."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from lit_thinkfast.analysis import compare_models, deadline_points, pareto_front, winners
from lit_thinkfast.analysis.deadline import common_problems, device_seconds, replay, sampled_in_rounds, why_not
from lit_thinkfast.generation.budgets import finished_by, samples_by
from lit_thinkfast.metrics.functional import (
    best_of_n_accuracy,
    coverage,
    majority_vote_accuracy,
    weighted_best_of_n_accuracy,
)
from lit_thinkfast.metrics.tables import verdict_grid
from lit_thinkfast.records import Problem

RULES = ("coverage", "majority", "weighted_best_of_n", "best_of_n")


def answered_by(run, problems, clock, rule):
    """Ask the estimators for all samples that each problem has by a time of the run's clock; 0 where it has none."""
    done = {(c.problem_id, c.sample) for c in finished_by(run.completions, clock)}
    values = []
    for problem in problems:
        own = [v for v in run.verdicts if v.problem_id == problem and (problem, v.sample) in done]
        if not own:
            values.append(0.0)
            continue
        grid, n = verdict_grid(own), len(own)
        with_all = {
            "coverage": lambda g=grid, n=n: coverage(g.correct, n),
            "majority": lambda g=grid, n=n: majority_vote_accuracy(g.correct, g.answers, n),
            "weighted_best_of_n": lambda g=grid, n=n: weighted_best_of_n_accuracy(g.correct, g.answers, g.scores, n),
            "best_of_n": lambda g=grid, n=n: best_of_n_accuracy(g.correct, g.scores, n),
        }
        values.append(with_all[rule]().item())
    return np.array(values)


@pytest.mark.parametrize("scoring", [None, 20.0])
@pytest.mark.parametrize("rule", RULES)
def test_curve_equals_a_replay_of_the_journal(run_maker, clocked, rule, scoring):
    run = dataclasses.replace(clocked(run_maker(problems=7, samples=6), budget=30.0), scoring_seconds=scoring)
    made = replay("m", run, run.asked, [rule], steps=15)
    a_sample = (scoring or 0.0) / len(run.completions) if rule in ("weighted_best_of_n", "best_of_n") else 0.0
    times = sorted(c.finished_seconds for c in run.completions)
    for i, seconds in enumerate(made.seconds[rule]):
        # the latest moment of the clock at which sampling and scoring together have taken no more than the budget
        paid = [t for n, t in enumerate(times, start=1) if (t + a_sample * n) / 7 <= seconds * (1 + 1e-12)]
        clock = max(paid, default=0.0)
        np.testing.assert_allclose(made.values[rule][:, i], answered_by(run, run.asked, clock, rule), atol=1e-12)
        assert made.most[rule][i] == max(samples_by(run.completions, clock, run.asked).values())
    assert made.seconds[rule][-1] == pytest.approx((times[-1] + a_sample * len(times)) / 7)


def test_equal_scores_and_missing_answers_are_treated_as_by_the_estimators(run_maker, clocked):
    rng = np.random.default_rng(5)
    run = clocked(run_maker(problems=9, samples=8))
    verdicts = [
        dataclasses.replace(
            v,
            score=float(rng.integers(0, 3)) / 2,
            **({"answer": None, "canonical": None, "outcome": "unparsable"} if rng.random() < 0.4 else {}),
        )
        for v in run.verdicts
    ]
    run = dataclasses.replace(run, verdicts=verdicts)
    clocks = np.linspace(0.0, max(c.finished_seconds for c in run.completions), 9)
    for rule in RULES:
        made = replay("m", run, run.asked, [rule], deadlines=(clocks / 9).tolist())
        for i, clock in enumerate(clocks):
            np.testing.assert_allclose(made.values[rule][:, i], answered_by(run, run.asked, clock, rule), atol=1e-12)


def test_a_problem_without_a_sample_is_unsolved(run_maker, clocked):
    run = clocked(run_maker(skill=1.0, problems=12), budget=9.0)
    assert 0 < len(run.by_problem) < 12
    assert set(run.unsampled) == {f"p{i}" for i in range(12)} - set(run.by_problem)
    points, reasons = deadline_points({"m": run}, rules=["coverage"])
    assert not reasons
    assert points[-1].value == pytest.approx(
        sum(any(v.correct for _, v in pairs) for pairs in run.by_problem.values()) / 12
    )
    assert {p.num_problems for p in points} == {12}
    assert points[-1].seconds == pytest.approx(max(c.finished_seconds for c in run.completions) / 12)


def test_the_metadata_says_which_problems_were_asked(run_maker, clocked):
    run = clocked(run_maker(problems=6), budget=5.0)
    asked = [f"p{i}" for i in range(9)]
    told = dataclasses.replace(run, problems={}, meta={"generation": {"prompts": dict.fromkeys(asked, "hash")}})
    assert told.asked == tuple(asked)
    listed = dataclasses.replace(run, problems={}, meta={"prompts": asked})
    assert listed.asked == tuple(asked)
    assert dataclasses.replace(run, meta={}).asked == tuple(run.by_problem)  # its problems may be those of a larger set
    foreign = dataclasses.replace(run, problems={}, meta={"prompts": {"system": "think"}})
    assert foreign.asked == tuple(run.by_problem)


def test_removed_problems_took_time_but_do_not_count(run_maker, clocked):
    whole = clocked(run_maker(problems=6))
    run = dataclasses.replace(whole, verdicts=[v for v in whole.verdicts if v.problem_id != "p2"])
    assert common_problems({"m": run}) == ["p0", "p1", "p3", "p4", "p5"]
    points, _ = deadline_points({"m": run}, rules=["majority"])
    last = max(c.finished_seconds for c in run.completions)
    assert points[-1].seconds == pytest.approx(last / 6)
    assert points[-1].num_problems == 5


def test_interval_equals_a_loop_over_resampled_problems(run_maker, clocked):
    from lit_thinkfast.metrics.statistics import resample_weights

    run = clocked(run_maker(), budget=20.0)
    points, _ = deadline_points({"m": run}, rules=["majority"], steps=5, resamples=60, seed=3)
    values = replay("m", run, run.asked, ["majority"], steps=5).values["majority"]
    draws = [np.repeat(values, w, axis=0).mean(axis=0) for w in resample_weights(12, resamples=60, seed=3).astype(int)]
    alike = np.ptp(values, axis=0) == 0  # nothing is solved yet: Wilson's
    for found, q in (([p.low for p in points], 0.025), ([p.high for p in points], 0.975)):
        np.testing.assert_allclose(np.array(found)[~alike], np.quantile(draws, q, axis=0)[~alike])
    assert all(p.low < p.high for p in points)
    assert all(p.low <= p.value <= p.high for p in points)


@pytest.mark.parametrize("slots", [1, 4, 16])
@pytest.mark.parametrize("samples", [2, 3, 4, 9, 16, 31, 32])
@pytest.mark.parametrize("problems", [2, 10])
def test_rounds_are_told_from_one_problem_after_the_other(run_maker, clocked, slots, samples, problems):
    run = run_maker(problems=problems, samples=samples)
    assert sampled_in_rounds(clocked(run, slots=slots))
    assert sampled_in_rounds(clocked(run, slots=slots, budget=problems * samples / 3 + slots * 2))
    if slots == 1 or slots < samples:  # else they are begun together
        assert not sampled_in_rounds(clocked(run, slots=slots, rounds=False))


@pytest.mark.parametrize(("faster", "told"), [(1.0, True), (1.9, True), (8.0, False)])
def test_a_process_may_be_a_round_ahead_of_another(run_maker, clocked, faster, told):
    parts = [clocked(run_maker(problems=10, samples=32, seconds=s), slots=2) for s in (faster, 1.0)]
    renamed = [
        [dataclasses.replace(r, problem_id=f"q{r.problem_id}") for r in records]
        for records in (parts[1].completions, parts[1].verdicts)
    ]
    both = dataclasses.replace(
        parts[0],
        completions=[*parts[0].completions, *renamed[0]],
        verdicts=[*parts[0].verdicts, *renamed[1]],
    )
    assert sampled_in_rounds(both) is told


def test_a_killed_session_leaves_rounds_rounds(run_maker, clocked):
    run = clocked(run_maker(problems=10, samples=16), slots=8)
    kill, last = 60.0, max(c.finished_seconds for c in run.completions)
    lost = [c for c in run.completions if c.finished_seconds - c.latency_seconds < kill < c.finished_seconds]
    assert lost
    again = [dataclasses.replace(c, finished_seconds=last + c.latency_seconds) for c in lost]
    kept = [c for c in run.completions if c not in lost]
    assert sampled_in_rounds(dataclasses.replace(run, completions=[*kept, *again]))


@pytest.mark.parametrize(("problems", "samples", "slots"), [(12, 16, 256), (30, 16, 512), (5, 8, 64)])
def test_the_noise_of_floats_orders_no_samples(run_maker, clocked, problems, samples, slots):
    """Samples that are begun together on a clock that has run before: finished less latency is not always the same."""
    run = clocked(run_maker(problems=problems, samples=samples), slots=slots)
    later = [dataclasses.replace(c, finished_seconds=c.finished_seconds + 100.3) for c in run.completions]
    begun = {c.finished_seconds - c.latency_seconds for c in later}
    assert len(begun) > 1
    assert max(begun) - min(begun) < 1e-9
    assert sampled_in_rounds(dataclasses.replace(run, completions=later))


def test_without_a_beginning_the_metadata_decides(run_maker, clocked):
    run = clocked(run_maker())
    bare = [dataclasses.replace(c, latency_seconds=0.0) for c in run.completions]
    for meta, told in (({}, False), ({"time_budget_seconds": 60.0}, True), ({"time_budget_seconds": None}, False)):
        assert sampled_in_rounds(dataclasses.replace(run, completions=bare, meta=meta)) is told


def test_runs_without_a_deadline_say_why(run_maker, clocked):
    plain = run_maker()
    assert why_not(plain) == "96 of its completions do not say when they were finished (finished_seconds)"
    queued = clocked(plain, rounds=False)
    assert why_not(queued).startswith("it was not sampled in rounds")
    zero = [dataclasses.replace(c, finished_seconds=0.0) for c in plain.completions]
    assert why_not(dataclasses.replace(plain, completions=zero)) == "its completions carry no engine seconds"
    partly = [*zero[:5], *(dataclasses.replace(c, finished_seconds=1.0) for c in zero[5:])]
    assert why_not(dataclasses.replace(plain, completions=partly)) == "5 of its completions carry no engine seconds"
    c = compare_models({"plain": plain, "queued": queued, "timed": clocked(plain)}, ks=[1, 2], resamples=50)
    assert {p.model for p in c.deadline} == {"timed"}
    assert set(c.no_deadline) == {"plain", "queued"}
    assert winners(c.deadline, "coverage")[0].model == "timed"
    assert pareto_front(c.deadline, "coverage")


def test_samples_that_end_together_are_one_deadline(run_maker, clocked):
    run = clocked(run_maker())
    together = [dataclasses.replace(c, finished_seconds=5.0) for c in run.completions]
    made = replay("m", dataclasses.replace(run, completions=together), run.asked, ["coverage"])
    assert made.seconds["coverage"].tolist() == [5.0 / 12]
    assert made.most["coverage"].tolist() == [8]


def test_rules_without_scores_are_left_out(run_maker, clocked):
    points, _ = deadline_points({"m": clocked(run_maker(scored=False))}, resamples=20)
    assert {p.rule for p in points} == {"coverage", "majority"}


def test_seconds_of_several_processes_are_added_up(run_maker):
    sessions = [
        {"engine_seconds_before": 0.0, "engine_seconds": 4.0, "world_size": 2, "rank": 0},
        {"engine_seconds_before": 0.0, "engine_seconds": 3.0, "world_size": 2, "rank": 1},
        {"engine_seconds_before": 4.0, "engine_seconds": 10.0},
        {"engine_seconds_before": 14.0, "killed": True},
    ]
    run = dataclasses.replace(run_maker(), meta={"sessions": sessions})
    clock = np.array([1.0, 3.5, 4.0, 6.0, 20.0])
    assert device_seconds(run, clock).tolist() == [2.0, 6.5, 7.0, 9.0, 20.0]
    assert device_seconds(run_maker(), clock).tolist() == clock.tolist()


def test_runs_without_a_common_problem_are_refused(run_maker, clocked):
    one = clocked(run_maker(problems=3))
    other = dataclasses.replace(
        one,
        completions=[dataclasses.replace(c, problem_id="z" + c.problem_id) for c in one.completions],
        verdicts=[dataclasses.replace(v, problem_id="z" + v.problem_id) for v in one.verdicts],
        problems={"z" + p: Problem("z" + p, "?", "1") for p in one.problems},
        meta={},
    )
    with pytest.raises(ValueError, match="no problem in common"):
        deadline_points({"one": one, "other": other})


def test_estimators_used_here_are_exact():
    # the twin above rests on this: at k = n no estimator samples subsets
    torch.manual_seed(0)
    correct, answers = torch.randint(0, 2, (3, 5)), torch.randint(0, 3, (3, 5))
    once = weighted_best_of_n_accuracy(correct, answers, torch.ones(3, 5), 5, seed=0)
    assert math.isclose(once.item(), weighted_best_of_n_accuracy(correct, answers, torch.ones(3, 5), 5, seed=9).item())
