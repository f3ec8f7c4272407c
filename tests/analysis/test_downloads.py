"""The files inside and beside the page hold the numbers of the comparison, and nothing in them runs."""

import base64
import csv
import dataclasses
import io
import json
import math
import re

import pytest

from lit_thinkfast.analysis import ModelRun, build_report, compare_models, write_bundle
from lit_thinkfast.analysis.downloads import csv_text, everything_json, points_csv, problems_csv
from lit_thinkfast.records import Problem

FORMULAS = ("=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1")


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture
def comparison(runs):
    known = {f"p{i}": Problem(f"p{i}", f"Question {i}?", "=7", level=1 + i % 3, subject="@A") for i in range(12)}
    graded = {name: dataclasses.replace(run, problems=known) for name, run in runs.items()}
    return compare_models(graded, prices=3.0, resamples=100)


def test_points_are_those_of_the_curves(comparison):
    found = rows(points_csv(comparison))
    assert len(found) == len(comparison.points) + len(comparison.deadline)
    for row, p in zip(found, comparison.points, strict=False):
        assert (row["clock"], row["model"], row["rule"], int(row["k"])) == ("mean", p.model, p.rule, p.k)
        for name in ("seconds", "value", "low", "high"):
            assert float(row[name]) == pytest.approx(getattr(p, name), rel=1e-6)
        assert float(row["dollars"]) == pytest.approx(p.seconds / 1200, rel=1e-6)


def test_problems_average_to_the_points(comparison):
    found = rows(problems_csv(comparison))
    assert len(found) == 12 * 2
    for name in comparison.runs:
        own = [row for row in found if row["model"] == name]
        for rule in comparison.rules:
            for k in comparison.ks:
                mean = sum(float(row[f"{rule}@{k}"]) for row in own) / len(own)
                assert mean == pytest.approx(comparison.point(name, rule, k).value, abs=1e-6)
        assert sum(int(row["correct"]) for row in own) == sum(v.correct for v in comparison.runs[name].verdicts)
    assert found[0]["answer"] == "'=7"
    assert found[0]["subject"] == "'@A"


def test_text_cells_cannot_be_formulas_and_numbers_stay_numbers():
    text = csv_text(["=head", "x"], [[cell, -0.5] for cell in FORMULAS])
    head, *body = csv.reader(io.StringIO(text))
    assert head[0] == "'=head"
    for cell, number in body:
        assert cell.startswith(("'", "\\x0d"))  # a carriage return is shown, not written
        assert float(number) == -0.5
    assert csv_text(["x"], [[-1e-9], [3.0], [True], [math.nan], [None]]).split("\n")[1:-1] == [
        "-1e-09",
        "3",
        "True",
        '""',
        '""',
    ]


def test_json_holds_everything_and_no_number_is_made_up(comparison):
    values = json.loads(everything_json(comparison, cautions=["mind"]))
    assert len(values["points"]) == len(comparison.points)
    assert values["cautions"] == ["mind"]
    assert values["provenance"][0]["git"] == "not recorded"
    assert values["meta"]["teacher"]["num_parameters"] == 1_234_567
    assert len(values["values"]["teacher"]["coverage"]) == comparison.num_problems
    never = [
        r
        for r, made in zip(comparison.landmarks.reach, values["landmarks"]["reach"], strict=True)
        if made["seconds"] is None
    ]
    assert all(math.isinf(r.seconds) for r in never)
    assert {g["group"] for g in values["levels"]} == {"1", "2", "3"}


def test_links_of_the_page_hold_the_files(comparison, tmp_path):
    text = build_report(comparison, tmp_path / "r.html").read_text()
    found = dict(re.findall(r'download="([^"]+)" href="data:[a-z/]+;charset=utf-8;base64,([^"]+)"', text))
    files = {name: base64.b64decode(data).decode() for name, data in found.items()}
    assert files["points.csv"] == points_csv(comparison)
    assert files["problems.csv"] == problems_csv(comparison)
    assert json.loads(files["comparison.json"])["baseline"] == "teacher"


def test_bundle_is_complete_and_repeatable(runs, tmp_path):
    comparison = compare_models(runs, rules=["coverage", "majority"], resamples=100)
    first, again = (write_bundle(comparison, tmp_path / name / "page.html") for name in "ab")
    assert first[0] == tmp_path / "a" / "page.html"
    assert [p.name for p in first[1:6]] == ["table.tex", "summary.md", "points.csv", "problems.csv", "comparison.json"]
    assert {p.name for p in first[6:]} == {f"figure{n}.{e}" for n in (1, 3, 4, 5) for e in ("png", "svg")}
    assert sorted(p.name for p in (tmp_path / "a" / "page-files").iterdir()) == sorted(p.name for p in first[1:])
    for one, other in zip(first, again, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_untimed_runs_have_no_seconds(run_maker):
    run = run_maker(problems=3, samples=2)
    bare = ModelRun([dataclasses.replace(c, seconds=0.0) for c in run.completions], run.verdicts)
    c = compare_models({"a": bare, "b": bare}, resamples=20)
    assert all(row["seconds"] == "" for row in rows(points_csv(c)))
    assert json.loads(everything_json(c))["timed"] is False
