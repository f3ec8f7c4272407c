"""The filters show the rows that they say, and every problem's samples are there within the budget."""

import dataclasses
import re

import pytest

from lit_thinkfast.analysis import ModelRun, build_report, compare_models
from lit_thinkfast.analysis.cautions import cautions
from lit_thinkfast.analysis.problem_table import problem_filters, problem_table
from lit_thinkfast.analysis.samples import LIMITS, by_difficulty, choose, clip_middle, sample_browser
from lit_thinkfast.analysis.style import model_styles
from lit_thinkfast.records import Problem

SUBJECTS = ("Algebra", "<b>Geometry</b>", "")


def with_problems(runs):
    known = {
        f"p{i}": Problem(f"p{i}", f"Question {i}?", "1", level=1 + i % 3, subject=SUBJECTS[i % 3]) for i in range(12)
    }
    return {name: dataclasses.replace(run, problems=known) for name, run in runs.items()}


@pytest.fixture
def comparison(runs):
    return compare_models(with_problems(runs), resamples=50)


def visible(markup, rules, chosen):
    """Return the problems that are left when these buttons are chosen, as a style sheet would do it."""
    hiding = dict(re.findall(r"#([\w-]+):checked\) tbody tr:not\(\.([\w-]+)\)", rules))
    body = markup[markup.index("<tbody>") :]
    shown = []
    for classes, row in re.findall(r'<tr class="([^"]*)">(.*?)</tr>', body):
        if all(hiding[button] in classes.split() for button in chosen):
            shown.append(re.search(r'href="#p(\d+)"', row)[1])
    return shown


def test_filters_agree_with_a_count(comparison):
    c, order = comparison, by_difficulty(comparison)
    markup = problem_table(c, model_styles(c.runs), order)
    filters, _ = problem_filters(c)
    rules = "\n".join(f.rules() for f in filters)
    ids = c.measured["teacher"].problem_ids
    solved = {p: [c.measured[name].values["majority"][row, -1] > 0.5 for name in c.runs] for row, p in enumerate(ids)}
    expected = {
        "show-every": {p for p in ids if all(solved[p])},
        "show-none": {p for p in ids if not any(solved[p])},
        "show-differ": {p for p in ids if any(solved[p]) and not all(solved[p])},
        "level-2": {p for p in ids if c.problems[p].level == 2},
        "subject-1": {p for p in ids if c.problems[p].subject == "<b>Geometry</b>"},
        "subject-2": {p for p in ids if c.problems[p].subject == "Algebra"},
    }
    choices = {key: told for f in filters for key, told in f.choices.items()}
    assert choices["level-2"] == "2"
    assert choices["subject-1"] == "<b>Geometry</b>"
    for f in filters:
        assert all(f.counts[key] == len(expected.get(key, range(f.counts[key]))) for key in f.choices)
    for key in expected.keys() & choices.keys():
        assert {order[int(n)] for n in visible(markup, rules, [key])} == expected[key], key
    both = visible(markup, rules, ["show-every", "level-2"])
    assert {order[int(n)] for n in both} == expected["show-every"] & expected["level-2"]
    assert len(visible(markup, rules, [])) == 12
    assert "<b>Geometry" not in markup


def test_every_choice_has_rows(comparison):
    filters, classes = problem_filters(comparison)
    used = {key for own in classes.values() for key in own}
    assert all(key in used for f in filters for key in f.choices)


def test_samples_of_every_problem_are_shown_within_the_budget(comparison):
    c, styles = comparison, model_styles(comparison.runs)
    order = by_difficulty(c)
    everything = choose(c, styles, order, budget=10**9)
    assert everything.shown == everything.total == 12 * 8 * 2
    assert all(len(everything.markup[p, name]) == 8 for p in order for name in c.runs)
    for budget in (everything.size, everything.size // 2, everything.size // 4):
        some = choose(c, styles, order, budget=budget)
        assert some.size == sum(len(s.encode()) for own in some.markup.values() for s in own) <= budget
        assert some.shown == sum(map(len, some.markup.values()))
    told, _ = sample_browser(c, styles, budget=everything.size // 2)
    assert "of 192 samples are shown" in told
    few = choose(c, styles, order, budget=everything.size // 3)
    for p in order:
        for name, run in c.runs.items():
            shown = "".join(few.markup[p, name])
            for right in (True, False):
                first = next((pair for pair in run.by_problem[p] if pair[1].correct is right), None)
                assert first is None or f"sample {first[0].sample} " in shown


def test_long_texts_keep_both_ends(run_maker):
    long = "first line\n" + "x" * 40_000 + "\nthe answer is 7"
    c = compare_models({"m": run_maker(text=long, samples=2, problems=3)}, resamples=20)
    chosen = choose(c, model_styles(c.runs), by_difficulty(c), budget=10**6)
    assert chosen.limit == LIMITS[0]
    assert chosen.shortened == chosen.shown == 6
    for own in chosen.markup.values():
        assert all("first line" in s and "the answer is 7" in s and "characters left out" in s for s in own)
    assert clip_middle("abcdef", 6) == "abcdef"
    assert clip_middle("abcdefg", 4) == "ab\n[... 3 characters left out ...]\nfg"


def test_no_samples_where_the_budget_is_nothing(run_maker, tmp_path):
    run = run_maker(scored=False)
    text = build_report({"m": run}, tmp_path / "r.html", sample_bytes=0).read_text()
    assert "0 of 96 samples are shown" in text


def test_scores_that_are_the_same_for_many_are_told(run_maker):
    run = run_maker()
    flat = ModelRun(run.completions, [dataclasses.replace(v, score=1.0) for v in run.verdicts])
    told = " ".join(cautions(compare_models({"flat": flat, "sharp": run_maker(seed=3)}, resamples=20)))
    assert "The reward model is saturated" in told
    assert "100\N{NO-BREAK SPACE}% of problems for flat)" in told
