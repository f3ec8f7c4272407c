"""Groups against measuring the group alone."""

import dataclasses
import math

import pytest

from lit_thinkfast.analysis import compare_models, measure, measured_points
from lit_thinkfast.records import Problem


def only(run, problems):
    return dataclasses.replace(
        run,
        completions=[c for c in run.completions if c.problem_id in problems],
        verdicts=[v for v in run.verdicts if v.problem_id in problems],
    )


@pytest.fixture
def graded(runs):
    """Three levels, two subjects, and problems that say neither; known to one of the runs only."""
    subjects = ("algebra", "number theory", "")
    known = {
        f"p{i}": Problem(f"p{i}", "?", "1", level=None if i == 11 else (10, 2, 3)[i % 3], subject=subjects[i % 3])
        for i in range(12)
    }
    return {"teacher": runs["teacher"], "student": dataclasses.replace(runs["student"], problems=known)}


@pytest.mark.parametrize("by", ["level", "subject"])
def test_values_of_a_group_are_those_of_measuring_it_alone(graded, by):
    c = compare_models(graded, resamples=80, seed=4)
    found = c.groups(by)
    shown = {"level": ["2", "3", "10"], "subject": ["algebra", "number theory"]}[by]
    assert list(dict.fromkeys(g.group for g in found)) == shown
    for group in shown:
        members = {p.id for p in c.problems.values() if str(getattr(p, by)) == group}
        alone = measure({name: only(run, members) for name, run in graded.items()})
        expected = {(p.model, p.rule, p.k): p for p in measured_points(alone, resamples=80, seed=4)}
        own = [g for g in found if g.group == group]
        assert len(own) == len(expected)
        for g in own:
            p = expected[g.model, g.rule, g.k]
            assert (g.value, g.low, g.high, g.num_problems) == pytest.approx((p.value, p.low, p.high, len(members)))


def test_every_k_of_a_group_is_of_the_same_problems(graded):
    few = {"p0", "p3", "p6"}  # of p9, that is of one of its group, there are enough samples
    teacher = graded["teacher"]
    kept = [
        (c, v) for pairs in teacher.by_problem.values() for c, v in pairs if c.problem_id not in few or c.sample < 3
    ]
    short = dataclasses.replace(teacher, completions=[c for c, _ in kept], verdicts=[v for _, v in kept])
    ks = [1, 2, 3, 4, 6, 8]
    found = compare_models({**graded, "teacher": short}, ks=ks, resamples=20).groups("level")
    for name in graded:
        own = [g for g in found if (g.group, g.model, g.rule) == ("10", name, "coverage")]
        assert [(g.k, g.num_problems) for g in own] == [(k, 1) for k in ks]
        assert all(math.isnan(g.low) and math.isnan(g.high) for g in own)  # of one problem
    full = [g for g in found if (g.group, g.rule, g.k) == ("2", "coverage", 8)]
    assert all(g.low < g.high for g in full)


def test_nothing_known_gives_no_groups(runs):
    c = compare_models(runs, ks=[1], resamples=10)
    assert c.groups("level") == c.groups("subject") == []
    with pytest.raises(ValueError, match="by 'source' is not one of level, subject"):
        c.groups("source")
