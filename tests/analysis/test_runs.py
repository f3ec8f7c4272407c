"""Runs that do not fit together are refused in one line; text for people is harmless."""

import dataclasses
import json
import logging

import pytest

from lit_thinkfast.analysis import ModelRun
from lit_thinkfast.analysis.text import clip, factor, plain, shorten
from lit_thinkfast.records import write_jsonl


def test_files_make_a_run(tmp_path, run_maker):
    run = run_maker()
    write_jsonl(run.completions, tmp_path / "c.jsonl")
    write_jsonl(reversed(run.verdicts), tmp_path / "v.jsonl")
    (tmp_path / "c.jsonl.meta.json").write_text(json.dumps({"nested": dict(run.meta)}))
    read = ModelRun.from_files(tmp_path / "c.jsonl", tmp_path / "v.jsonl")
    assert read.by_problem == run.by_problem
    assert (read.num_parameters, read.layer_mixers) == (1_234_567, ["attention", "mamba2"])
    (tmp_path / "c.jsonl.meta.json").write_text("[]")
    with pytest.raises(ValueError, match="expected a JSON object, got list"):
        ModelRun.from_files(tmp_path / "c.jsonl", tmp_path / "v.jsonl")


def test_records_without_partner_or_twice_are_refused(run_maker):
    run = run_maker(problems=2, samples=2)
    with pytest.raises(ValueError, match="1 completions have no verdict, the first is problem 'p1' sample 1"):
        ModelRun(run.completions, run.verdicts[:-1])
    with pytest.raises(ValueError, match="1 verdicts have no completion"):
        ModelRun(run.completions[1:], run.verdicts)
    with pytest.raises(ValueError, match="problem 'p0' sample 0 has 2 verdicts"):
        ModelRun(run.completions, [*run.verdicts, dataclasses.replace(run.verdicts[0], outcome="crashed")])
    with pytest.raises(ValueError, match="without completions"):
        ModelRun([], [])
    with pytest.raises(ValueError, match="none of the completions has a verdict"):
        ModelRun(run.completions, [])


def test_a_problem_without_verdicts_is_removed_and_named(run_maker, caplog):
    run = run_maker(problems=4, samples=3)
    verdicts = [v for v in run.verdicts if v.problem_id not in ("p3", "p1")]
    with caplog.at_level(logging.WARNING):
        kept = ModelRun(run.completions, verdicts, scoring_seconds=12.0)
    assert "2 of 4 problems have no verdict and are left out, the first is 'p1'" in caplog.text
    assert kept.removed_problems == ("p1", "p3")
    assert list(kept.by_problem) == ["p0", "p2"]
    assert {c.problem_id for c in kept.completions} == {"p0", "p2"}
    assert kept.asked == ("p0", "p2", "p1", "p3")
    assert kept.unsampled == ()
    assert kept.scoring_seconds_per_sample == 2.0
    caplog.clear()
    again = dataclasses.replace(kept, note="read again")
    assert again.removed_problems == kept.removed_problems
    assert not caplog.text
    with pytest.raises(ValueError, match="1 completions have no verdict, the first is problem 'p0' sample 0"):
        ModelRun(run.completions, verdicts[1:])
    with pytest.raises(ValueError, match="3 verdicts have no completion"):
        ModelRun([c for c in run.completions if c.problem_id != "p0"], verdicts)


def test_problems_are_read_with_a_run(tmp_path, run_maker, problems):
    run = run_maker()
    write_jsonl(run.completions, tmp_path / "c.jsonl")
    write_jsonl(run.verdicts, tmp_path / "v.jsonl")
    write_jsonl(problems, tmp_path / "p.jsonl")
    read = ModelRun.from_files(tmp_path / "c.jsonl", tmp_path / "v.jsonl", problems=tmp_path / "p.jsonl")
    assert read.problems == {p.id: p for p in problems}


def test_plain_text_has_no_characters_that_act():
    hostile = "".join(map(chr, [*range(0x00, 0x20), *range(0x7F, 0xA0), 0x202E, 0x2066, 0x200F, 0xFEFF, 0xD800]))
    shown = plain(hostile)
    assert set(shown) <= set("\t\n\\xu0123456789abcdef")
    assert plain("café 模型 √2") == "café 模型 √2"


@pytest.mark.parametrize("limit", range(1, 9))
def test_shortened_text_keeps_the_limit(limit):
    assert len(shorten("abcdefgh ij", limit)) <= limit
    assert len(clip("abcdefgh ij", limit)) <= limit
    assert shorten(" a\n b ", 9) == "a b"


def test_factors():
    assert [factor(r)[:-1] for r in (0.0123, 0.29, 1.04, 3.14, 56.8)] == ["0.012", "0.29", "1.04", "3.1", "57"]
