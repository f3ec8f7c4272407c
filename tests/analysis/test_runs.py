"""Runs that do not fit together are refused in one line; text for people is harmless."""

import dataclasses
import json

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
