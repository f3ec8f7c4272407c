"""Runs into files: interrupted anywhere, they end up with the texts of an uninterrupted one."""

import dataclasses
import functools
import json

import pytest

from lit_thinkfast.generation import run
from lit_thinkfast.generation.calibration import calibrate
from lit_thinkfast.generation.config import SamplingConfig
from lit_thinkfast.generation.journal import read_meta
from lit_thinkfast.generation.run import fingerprint, generate_to_file
from lit_thinkfast.generation.sampler import Sampler
from lit_thinkfast.records import Completion, read_jsonl

CONFIG = SamplingConfig(temperature=0.9, max_new_tokens=20, num_samples=5, batch_size=8)


@pytest.fixture(autouse=True)
def quick_calibration(monkeypatch):
    monkeypatch.setattr(run, "calibrate", functools.cache(calibrate))


class Killed(Exception):
    pass


def make(model, characters, **changes):
    return Sampler(model, characters, dataclasses.replace(CONFIG, **changes), name="tiny")


def texts(path):
    found = [dataclasses.replace(c, seconds=0.0, latency_seconds=0.0) for c in read_jsonl(Completion, path)]
    return sorted(found, key=lambda c: (c.problem_id, c.sample))


def test_a_run_and_its_metadata(model, characters, problems, tmp_path):
    out = tmp_path / "tiny.jsonl"
    meta = generate_to_file(make(model, characters), problems, out)
    found = list(read_jsonl(Completion, out))
    assert len(found) == 25
    assert {**meta, "identity": read_meta(out)["identity"]} == read_meta(out)
    assert meta["total_seconds"] == pytest.approx(sum(c.seconds for c in found))
    assert meta["total_samples"] == 25
    assert meta["total_tokens"] == sum(c.num_tokens for c in found)
    assert meta["sampling"] == dataclasses.asdict(CONFIG)
    assert (meta["model"], meta["device"], meta["dtype"]) == ("tiny", "cpu", "float64")
    assert meta["versions"].keys() >= {"torch", "transformers", "python"}
    assert meta["layer_mixers"] == model.config.layer_mixers
    assert meta["num_parameters"] == sum(p.numel() for p in model.parameters())
    (session,) = meta["sessions"]
    assert session["samples"] == 25
    assert session["warmup_seconds"] > 0
    assert session["prefill_seconds"] + session["decode_seconds"] == pytest.approx(meta["total_seconds"])
    assert session["calibration"]["before"]["gemm_gflops"] > 0
    assert session["calibration"]["after"]["copy_gb_per_second"] > 0
    assert json.loads(json.dumps(meta)) == meta


@pytest.mark.parametrize("lines", [0, 1, 9, 24])
@pytest.mark.parametrize("torn", [0, 17])
def test_interrupted_anywhere_it_ends_with_the_same_texts(all_models, characters, problems, tmp_path, lines, torn):
    model = all_models["hybrid"]
    whole, out = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    generate_to_file(make(model, characters), problems, whole)
    generate_to_file(make(model, characters), problems, out)
    kept = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(kept[:lines]) + kept[lines][:torn])
    meta = generate_to_file(make(model, characters, batch_size=3), list(reversed(problems)), out)
    assert texts(out) == texts(whole)
    assert len(meta["sessions"]) == (1 if lines == torn == 0 else 2)  # an empty file is a fresh start
    assert meta["sessions"][-1]["samples"] == 25 - lines
    assert meta["total_seconds"] == pytest.approx(sum(c.seconds for c in read_jsonl(Completion, out)))


def test_an_exception_keeps_what_was_written(all_models, characters, problems, tmp_path):
    model, out = all_models["recurrent"], tmp_path / "out.jsonl"

    def stop(progress):
        if progress.samples_done > 12:
            raise Killed

    with pytest.raises(Killed):
        generate_to_file(make(model, characters), problems, out, on_batch=stop)
    assert 0 < len(texts(out)) < 25
    assert read_meta(out)["total_samples"] == len(texts(out))
    generate_to_file(make(model, characters), problems, out)
    whole = tmp_path / "whole.jsonl"
    generate_to_file(make(model, characters), problems, whole)
    assert texts(out) == texts(whole)


def test_a_finished_run_is_left_alone_and_can_be_widened(all_models, characters, problems, tmp_path):
    model, out = all_models["hybrid"], tmp_path / "out.jsonl"
    generate_to_file(make(model, characters, num_samples=2), problems[:3], out)
    before = out.read_bytes()
    meta = generate_to_file(make(model, characters, num_samples=2), problems[:3], out)
    assert out.read_bytes() == before
    assert len(meta["sessions"]) == 1
    meta = generate_to_file(make(model, characters), problems, out)
    assert out.read_bytes().startswith(before)
    assert (meta["total_samples"], meta["num_problems"]) == (25, 5)


def test_mixed_circumstances_are_reported(all_models, characters, problems, tmp_path, caplog):
    model, out = all_models["hybrid"], tmp_path / "out.jsonl"
    generate_to_file(make(model, characters, num_samples=2), problems, out)
    generate_to_file(make(model, characters, batch_size=4), problems, out)
    assert "batch_size 4 and 8" in caplog.text


def test_foreign_journals_are_refused(all_models, characters, problems, tmp_path):
    out = tmp_path / "out.jsonl"
    generate_to_file(make(all_models["hybrid"], characters), problems, out)
    before = out.read_bytes()

    def refused(message, *, model=all_models["hybrid"], asked=problems, **changes):
        with pytest.raises(ValueError, match=message) as caught:
            generate_to_file(make(model, characters, **changes), asked, out)
        assert "\n" not in str(caught.value)
        assert out.read_bytes() == before

    refused("its seed is 0, now it is 1", seed=1)
    refused(r"its temperature is 0\.9, now it is 0\.5", temperature=0.5)
    refused("its weights is", model=all_models["recurrent"])
    refused("holds problem 'toy/3', which is not asked for", asked=problems[:3])
    refused("holds sample 4 of problem 'toy/0', but num_samples is 4", num_samples=4)
    other = [dataclasses.replace(p, question=p.question + "?") for p in problems]
    refused("the prompt of problem 'toy/0' had 30 tokens, now it has 31", asked=other)
    other = [dataclasses.replace(p, question=p.question[::-1]) for p in problems]
    refused("the prompt of problem 'toy/0' is not the one that was sampled", asked=other)


def test_no_problems_is_an_error(all_models, characters, tmp_path):
    with pytest.raises(ValueError, match="no problems"):
        generate_to_file(make(all_models["hybrid"], characters), [], tmp_path / "out.jsonl")
    assert not list(tmp_path.iterdir())


def test_fingerprint_tells_weights_apart(all_models):
    import copy

    model = copy.deepcopy(all_models["hybrid"])
    before = fingerprint(model)
    assert fingerprint(copy.deepcopy(model)) == before
    model.model.norm.weight.data[3] += 1e-9
    assert fingerprint(model) != before
