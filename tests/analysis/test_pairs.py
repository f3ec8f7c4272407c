"""Two models compared: p-values against enumeration, values against the curves, flips against hand-made runs."""

import dataclasses
import io
import itertools
import json
import math

import numpy as np
import pytest
from rich.console import Console

from lit_thinkfast.analysis import ModelRun, compare, compare_pair, measure, pair_table
from lit_thinkfast.analysis.pairs import holm, values_within
from lit_thinkfast.analysis.resampled import resampled
from lit_thinkfast.metrics.statistics import resample_weights
from lit_thinkfast.records import Completion, Problem, Verdict

RULES = ["coverage", "majority", "weighted_best_of_n", "best_of_n"]


def enumerated(differences):
    """The share of all sign patterns whose sum is at least as far from zero."""
    found = abs(sum(differences))
    signed = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    return sum(s >= found - 1e-9 for s in signed) / len(signed)


def test_rows_at_equal_samples_equal_loops(run_maker):
    a, b = run_maker(problems=9, seed=1), run_maker(problems=9, seed=2, skill=0.3)
    c = compare_pair(a, b, names=("a", "b"), resamples=70, seed=5)
    measured = measure({"a": a, "b": b})
    rows = [r for r in c.rows if r.basis == "samples"]
    assert [(r.rule, r.at) for r in rows] == [(rule, k) for rule in RULES for k in (1, 2, 3, 4, 6, 8)]
    for r in rows:
        i = measured["a"].ks.index(r.at)
        one, other = (measured[name].values[r.rule][:, i] for name in ("a", "b"))
        d = one - other
        draws = [np.repeat(d, w).mean() for w in resample_weights(9, resamples=70, seed=5).astype(int)]
        assert (r.first, r.second, r.difference) == pytest.approx((one.mean(), other.mean(), d.mean()))
        assert (r.low, r.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))
        assert r.p_value == pytest.approx(enumerated(d))
        assert (r.won, r.lost, r.tied) == ((d > 1e-9).sum(), (d < -1e-9).sum(), (abs(d) <= 1e-9).sum())
        assert (r.first_k, r.second_k) == (r.at, r.at)
    adjusted = holm([r.p_value for r in c.rows])
    assert [r.adjusted for r in c.rows] == adjusted


def test_rows_at_equal_time_are_on_the_curves(runs):
    c = compare_pair(runs["teacher"], runs["student"], names=("teacher", "student"), resamples=60)
    measured = measure(runs)
    rows = [r for r in c.rows if r.basis == "time"]
    assert {r.rule for r in rows} == set(RULES)
    for r in rows:
        d = compare(measured["teacher"], measured["student"], rule=r.rule, seconds=r.at, resamples=60)
        assert (r.difference, r.low, r.high) == pytest.approx((d.difference, d.low, d.high))
        assert r.first - r.second == pytest.approx(r.difference)
        for name, k in (("teacher", r.first_k), ("student", r.second_k)):
            second = measured[name].sample_seconds.mean()
            assert k == pytest.approx(min(r.at / second, 8))
            assert (name in r.short_of_samples) == (8 * second < r.at)
        v = [values_within(measured[name], r.rule, r.at) for name in ("teacher", "student")]
        assert r.p_value == pytest.approx(enumerated(v[0] - v[1]), abs=0.02)
    assert min(r.at for r in rows) >= 1.0 > 0.5  # both have a sample


@pytest.mark.parametrize("seed", range(6))
def test_values_within_a_budget_average_to_the_curve(seed):
    rng = np.random.default_rng(seed)
    from lit_thinkfast.analysis.budget import Measured

    values = rng.random((7, 4))  # means may fall with k
    m = Measured("m", tuple("abcdefg"), (1, 2, 5, 9), rng.uniform(0.5, 2, 7), 0.0, {"majority": values})
    curve = resampled(m, "majority", resamples=1, seed=0)
    for seconds in rng.uniform(1.0, 12.0, 40) * m.sample_seconds.mean():
        expected = curve.at(np.array([[seconds]]))[0, 0]
        assert values_within(m, "majority", seconds).mean() == pytest.approx(expected)


def test_rows_at_equal_deadlines(run_maker, clocked):
    a, b = clocked(run_maker(seed=1), budget=60.0), clocked(run_maker(seed=2, seconds=0.5), budget=60.0)
    c = compare_pair(a, b, names=("a", "b"), rules=["coverage"], resamples=30)
    rows = [r for r in c.rows if r.basis == "deadline"]
    assert rows
    for r in rows:
        solved = []
        for run in (a, b):
            done = {(x.problem_id, x.sample) for x in run.completions if x.finished_seconds <= r.at * 12 * (1 + 1e-12)}
            right = {v.problem_id for v in run.verdicts if v.correct and (v.problem_id, v.sample) in done}
            solved.append(len(right) / 12)
        assert (r.first, r.second) == pytest.approx(tuple(solved))
    queued = compare_pair(a, clocked(run_maker(), rounds=False), names=("a", "q"), rules=["coverage"], resamples=9)
    assert not [r for r in queued.rows if r.basis == "deadline"]
    assert any("q: it was not sampled in rounds" in note for note in queued.notes)


def test_without_seconds_only_samples_are_compared(run_maker):
    run = run_maker(problems=5)
    free = dataclasses.replace(run, completions=[dataclasses.replace(c, seconds=0.0) for c in run.completions])
    c = compare_pair(run, free, resamples=20)
    assert {r.basis for r in c.rows} == {"samples"}
    assert "second: no engine seconds, so the models are compared at equal samples only." in c.notes
    for r in c.rows:  # a run equals itself
        assert (r.difference, r.p_value, r.adjusted, r.tied) == (0, 1, 1, 5)
        assert r.low == -r.high < -0.1  # of five problems, none of which differs
    assert not c.flips


def test_holm_equals_its_definition():
    rng = np.random.default_rng(1)
    p = np.round(rng.random(20) ** 3, 2)
    for i, adjusted in enumerate(holm(p.tolist())):
        smaller = [(20 - rank) * q for rank, q in enumerate(sorted(p)) if q <= p[i]]
        assert adjusted == pytest.approx(min(1.0, max(smaller)))
    assert holm([]) == []


def of_answers(answers, gold="4"):
    """A run with the given answers of each problem; ``None`` is no answer."""
    completions, verdicts = [], []
    for problem, given in answers.items():
        for i, answer in enumerate(given):
            completions.append(Completion(problem, i, "", 1, 1, "stop", 1.0, 1.0))
            outcome = "correct" if answer == gold else "incorrect" if answer else "unparsable"
            verdicts.append(Verdict(problem, i, outcome, answer and f" {answer} ", answer))
    return ModelRun(completions, verdicts, problems={"sure": Problem("sure", "What is 2 + 2?", "4")})


def test_flips_are_those_made_by_hand():
    a = of_answers({"sure": "4444", "close": "5444", "same": "4444", "lost": ["5", None, "5", "6"], "none": "5555"})
    b = of_answers({"sure": "5556", "close": "5554", "same": "4444", "lost": "4544", "none": [None] * 4})
    c = compare_pair(a, b, names=("a", "b"), resamples=20)
    found = [(f.rule, f.solved_by, f.problem_id) for f in c.flips]
    assert found == [
        ("majority", "a", "sure"),
        ("majority", "a", "close"),
        ("majority", "b", "lost"),
        ("coverage", "a", "sure"),
        ("coverage", "b", "lost"),
    ]
    sure, close, lost = c.flips[:3]
    assert (sure.question, sure.gold) == ("What is 2 + 2?", "4")
    assert (close.question, close.gold) == ("", "")
    assert dataclasses.astuple(sure.first) == (1.0, " 4 ", 4, 4, 4, 0)
    assert dataclasses.astuple(sure.second) == (0.0, " 5 ", 3, 4, 0, 0)
    assert dataclasses.astuple(close.first) == (1.0, " 4 ", 3, 4, 3, 1)
    assert dataclasses.astuple(lost.first) == (0.0, " 5 ", 2, 4, 0, 0)
    assert c.k == 4


def test_the_document_is_json_and_the_table_harmless(run_maker):
    hostile = "[red]\x1b[31m\u202eevil[/red]"
    a, b = run_maker(seed=1, skill=0.9, problems=6), run_maker(seed=2, skill=0.1, problems=6)
    spelled = [dataclasses.replace(v, answer=hostile) for v in a.verdicts]
    asked = {f"p{i}": Problem(f"p{i}", hostile, hostile) for i in range(6)}
    a = dataclasses.replace(a, verdicts=spelled, problems=asked)
    c = compare_pair(a, b, names=(hostile, "plain"), resamples=20)
    document = json.loads(json.dumps(c.to_dict(), allow_nan=False))
    assert document["rows"][0]["rule"] == "coverage"
    assert document["flips"][0]["question"] == hostile
    out = io.StringIO()
    Console(file=out, width=200, force_terminal=True, color_system=None).print(pair_table(c))
    text = out.getvalue()
    assert "\x1b[31m" not in text
    assert "\u202e" not in text
    assert "[red]\\x1b[31m\\u202eevil[/red]" in text
    for told in ("equal samples a problem", "equal engine time", "w/l/t", "6 problems, up to 8 samples"):
        assert told in text


def test_what_is_left_out_is_said(run_maker, clocked):
    a, b = clocked(run_maker(problems=8)), run_maker(problems=6)
    verdicts = [v for v in a.verdicts if v.problem_id != "p0"]
    a = dataclasses.replace(a, verdicts=verdicts, meta={"prompts": dict.fromkeys([*a.problems, "p99"], "hash")})
    c = compare_pair(a, b, rules=["coverage"], resamples=10)
    assert c.num_problems == 5
    notes = " ".join(c.notes)
    assert "2 problems of first are left out" in notes
    assert "1 problems of first have no verdict" in notes
    assert "1 problems of second are left out" in notes
    assert "1 problems of first have no finished sample" in notes


def test_all_rows_are_of_the_same_problems(run_maker, clocked):
    runs = [clocked(run_maker(problems=20, seed=s), budget=b) for s, b in ((1, 110.0), (2, 120.0))]
    counts = [min(len(run.by_problem[f"p{i}"]) for run in runs) for i in range(20)]
    assert len(set(counts)) > 1  # the deadline has cut a round
    c = compare_pair(*runs, rules=["majority"], resamples=10)
    assert c.k == sorted(counts)[2]  # eighteen of twenty have as many
    assert c.num_problems == sum(n >= c.k for n in counts)
    assert {r.won + r.lost + r.tied for r in c.rows if r.basis != "deadline"} == {c.num_problems}
    assert {r.won + r.lost + r.tied for r in c.rows if r.basis == "deadline"} == {20}
    few = compare_pair(*runs, ks=[2, max(counts)], rules=["majority"], resamples=10)
    assert few.num_problems == counts.count(max(counts))
    told = f"{20 - few.num_problems} problems have fewer than {max(counts)} samples in one of the runs"
    assert any(told in note for note in few.notes)
    with pytest.raises(ValueError, match="k = 9 is larger than the 8 samples a problem that first has"):
        compare_pair(*runs, ks=[9])


def test_two_models_need_two_names(run_maker):
    run = run_maker(problems=2)
    with pytest.raises(ValueError, match="both models are called 'm'"):
        compare_pair(run, run, names=("m", "m"))
    assert math.isfinite(compare_pair(run, run, resamples=5).rows[0].first)
