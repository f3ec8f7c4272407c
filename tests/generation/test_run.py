"""Runs into files: interrupted anywhere, they end up with the texts of an uninterrupted one."""

import dataclasses
import functools
import json
import shutil

import pytest

from lit_thinkfast.generation import sampler as local
from lit_thinkfast.generation.budgets import finished_by
from lit_thinkfast.generation.calibration import calibrate
from lit_thinkfast.generation.config import SamplingConfig
from lit_thinkfast.generation.describe import fingerprint
from lit_thinkfast.generation.journal import clock_path, meta_path, read_clock, read_meta
from lit_thinkfast.generation.run import generate_to_file
from lit_thinkfast.generation.sampler import Sampler
from lit_thinkfast.records import Completion, read_jsonl

from .fake_sampler import PROBLEMS, FakeSampler

CONFIG = SamplingConfig(temperature=0.9, max_new_tokens=20, num_samples=5, batch_size=8)
calibrate_once = functools.cache(calibrate)


class Killed(BaseException):
    """Ends a process without giving it a chance."""


@pytest.fixture(autouse=True)
def quick_calibration(monkeypatch):
    monkeypatch.setattr(local, "calibrate", calibrate_once)


def make(model, characters, **changes):
    return Sampler(model, characters, dataclasses.replace(CONFIG, **changes), name="tiny")


def texts(path):
    """What does not depend on the clock."""
    without = {"seconds": 0.0, "latency_seconds": 0.0, "finished_seconds": None}
    found = [dataclasses.replace(c, **without) for c in read_jsonl(Completion, path)]
    return sorted(found, key=lambda c: (c.problem_id, c.sample))


def killed_at(step):
    def die(steps):
        if steps == step:
            raise Killed

    return die


def kill(monkeypatch, sampler, out, **options):
    """Run until the sampler dies, with nothing done about it: files stay as after a SIGKILL."""
    from lit_thinkfast.generation import run

    with monkeypatch.context() as patch:
        patch.setattr(run.Session, "close", lambda *_: 1 / 0)  # what comes first in the last rites
        with pytest.raises(Killed):
            generate_to_file(sampler, PROBLEMS, out, **options)


def test_a_run_and_its_metadata(model, characters, problems, tmp_path):
    out = tmp_path / "tiny.jsonl"
    meta = generate_to_file(make(model, characters), problems, out)
    found = list(read_jsonl(Completion, out))
    assert len(found) == 25
    assert {**meta, "identity": read_meta(out)["identity"]} == read_meta(out)
    assert meta["total_seconds"] == pytest.approx(sum(c.seconds for c in found))
    assert meta["total_samples"] == 25
    assert meta["total_tokens"] == sum(c.num_tokens for c in found)
    assert meta["sampling"] == json.loads(json.dumps(dataclasses.asdict(CONFIG)))
    assert (meta["model"], meta["device"], meta["dtype"]) == ("tiny", "cpu", "float64")
    assert meta["versions"].keys() >= {"torch", "transformers", "python"}
    assert meta["layer_mixers"] == model.config.layer_mixers
    assert meta["num_parameters"] == sum(p.numel() for p in model.parameters())
    assert meta["samples_per_problem"] == {"min": 5, "median": 5, "max": 5}
    (session,) = meta["sessions"]
    assert session["samples"] == 25
    assert session["warmup_seconds"] > 0
    assert session["prefill_seconds"] + session["decode_seconds"] == pytest.approx(meta["total_seconds"])
    assert meta["engine_seconds"] == pytest.approx(meta["device_seconds"]) == pytest.approx(meta["total_seconds"])
    assert meta["engine_seconds"] == pytest.approx(max(c.finished_seconds for c in found), rel=0.05)
    assert session["calibration"]["before"]["gemm_gflops"] > 0
    assert session["calibration"]["after"]["copy_gb_per_second"] > 0
    assert session["load_average"].keys() == {"before", "after"}
    assert json.loads(json.dumps(meta)) == meta
    assert not clock_path(out).exists()


@pytest.fixture(scope="module")
def whole(all_models, characters, problems, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "whole.jsonl"
    generate_to_file(make(all_models["hybrid"], characters), problems, out)
    return out


@pytest.mark.parametrize(("lines", "torn"), [(0, 0), (0, 17), (9, 0), (24, 17)])
def test_interrupted_anywhere_it_ends_with_the_same_texts(
    all_models, characters, problems, whole, tmp_path, lines, torn
):
    out = tmp_path / "cut.jsonl"
    kept = whole.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(kept[:lines]) + kept[lines][:torn])
    shutil.copy(meta_path(whole), meta_path(out))
    meta = generate_to_file(make(all_models["hybrid"], characters, batch_size=3), list(reversed(problems)), out)
    assert texts(out) == texts(whole)
    assert len(meta["sessions"]) == 2
    assert meta["sessions"][-1]["samples"] == 25 - lines
    assert meta["total_seconds"] == pytest.approx(sum(c.seconds for c in read_jsonl(Completion, out)))


def test_an_exception_keeps_what_was_written(tmp_path):
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    with pytest.raises(Killed):
        generate_to_file(FakeSampler(on_step=killed_at(14)), PROBLEMS, out)
    assert 0 < len(texts(out)) < 25
    meta = read_meta(out)
    assert meta["total_samples"] == len(texts(out))
    assert (meta["engine_seconds"], meta["sessions"][0]["steps"]) == (14, 14)
    generate_to_file(FakeSampler(), PROBLEMS, out)
    generate_to_file(FakeSampler(), PROBLEMS, whole)
    assert texts(out) == texts(whole)


def test_a_finished_run_is_left_alone_and_can_be_widened(tmp_path):
    out = tmp_path / "out.jsonl"
    generate_to_file(FakeSampler(num_samples=2), PROBLEMS[:3], out)
    before = out.read_bytes()
    again = FakeSampler(num_samples=2)
    meta = generate_to_file(again, PROBLEMS[:3], out)
    assert out.read_bytes() == before
    assert again.drawn == []
    assert len(meta["sessions"]) == 1
    meta = generate_to_file(FakeSampler(), PROBLEMS, out)
    assert out.read_bytes().startswith(before)
    assert (meta["total_samples"], meta["num_problems"]) == (25, 5)


def test_a_line_that_was_deleted_is_drawn_again(tmp_path):
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    for path in (out, whole):
        generate_to_file(FakeSampler(), PROBLEMS, path)
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:7] + lines[8:]))
    again = FakeSampler()
    generate_to_file(again, PROBLEMS, out)
    assert len(again.drawn) == 1
    assert texts(out) == texts(whole)


def test_mixed_circumstances_are_reported(tmp_path, caplog):
    out = tmp_path / "out.jsonl"
    generate_to_file(FakeSampler(num_samples=2), PROBLEMS, out)
    assert caplog.text == ""
    generate_to_file(FakeSampler(batch_size=3), PROBLEMS, out)
    assert "batch_size 3 and 4" in caplog.text


@pytest.mark.parametrize(("after", "flag"), [(10.0, False), (8.6, False), (8.4, True), (12.0, True)])
def test_a_machine_that_changes_its_speed_is_reported(tmp_path, caplog, after, flag):
    meta = generate_to_file(FakeSampler(calibrations=[10.0, after]), PROBLEMS, tmp_path / "out.jsonl")
    (session,) = meta["sessions"]
    assert session["disturbed"] is flag
    assert session["calibration"]["drift"] == pytest.approx(abs(after - 10) / max(after, 10), abs=1e-4)
    assert ("disturbed" in caplog.text) is flag


def test_a_machine_that_is_elsewhere_is_not_judged(tmp_path):
    (session,) = generate_to_file(FakeSampler(calibrations=[None]), PROBLEMS, tmp_path / "out.jsonl")["sessions"]
    assert session["calibration"] == {"before": None, "after": None}
    assert "disturbed" not in session


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
    refused(r"the prompt of problem 'toy/\d' had \d+ tokens, now it has \d+", asked=other)
    other = [dataclasses.replace(p, question=p.question[::-1]) for p in problems]
    refused("the prompt of problem 'toy/0' is not the one that was sampled", asked=other)


def test_no_problems_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no problems"):
        generate_to_file(FakeSampler(), [], tmp_path / "out.jsonl")
    assert not list(tmp_path.iterdir())


def test_fingerprint_tells_weights_apart(all_models):
    import copy

    model = copy.deepcopy(all_models["hybrid"])
    before = fingerprint(model)
    assert fingerprint(copy.deepcopy(model)) == before
    model.model.norm.weight.data[3] += 1e-9
    assert fingerprint(model) != before


# --- the clock of a run, and time budgets


@pytest.mark.parametrize("budget", [4.5, 10.5, 30.5, 31.5])
def test_a_time_budget_stops_the_run_and_counts_what_was_finished(tmp_path, budget):
    """The engine ends with a step that began in time, but what was finished by it came too late."""
    meta = generate_to_file(FakeSampler(num_samples=1000), PROBLEMS, tmp_path / "out.jsonl", time_budget=budget)
    found = list(read_jsonl(Completion, tmp_path / "out.jsonl"))
    twin = [c for c in FakeSampler(num_samples=1000).sample(PROBLEMS, time_budget=99.0) if c.finished_seconds <= budget]
    assert found == twin
    assert meta["time_budget_seconds"] == budget
    assert meta["engine_seconds"] == meta["device_seconds"] == budget + 0.5
    counts = [sum(c.problem_id == p.id for c in found) for p in PROBLEMS]
    assert meta["samples_per_problem"] == {"min": min(counts), "median": sorted(counts)[2], "max": max(counts)}
    again = FakeSampler(num_samples=1000)
    assert generate_to_file(again, PROBLEMS, tmp_path / "out.jsonl", time_budget=budget)["sessions"] == meta["sessions"]
    assert again.drawn == []


@pytest.mark.parametrize("steps", [[1], [3, 1], [7, 7, 7], [2, 25, 1, 30]])
def test_killed_sessions_use_a_time_budget_once(tmp_path, monkeypatch, steps):
    """Twin: the arithmetic of the clock. Between the sessions nothing passes, whatever a wall clock does."""
    out, budget, used = tmp_path / "out.jsonl", 40.0, 0.0
    for i, step in enumerate(steps):
        monkeypatch.setattr("time.time", lambda i=i: 1e9 - 1e6 * i)
        sampler = FakeSampler(num_samples=1000, on_step=killed_at(step))
        if used + step < budget:
            kill(monkeypatch, sampler, out, time_budget=budget)
        else:
            generate_to_file(sampler, PROBLEMS, out, time_budget=budget)
        used = min(budget, used + step)
        assert read_clock(out) == used or read_meta(out)["engine_seconds"] == used
        ends = [c.finished_seconds for c in read_jsonl(Completion, out)]
        assert ends == sorted(ends), "the clock runs on"
    meta = generate_to_file(FakeSampler(num_samples=1000), PROBLEMS, out, time_budget=budget)
    found = list(read_jsonl(Completion, out))
    assert meta["engine_seconds"] == meta["device_seconds"] == budget
    assert max(c.finished_seconds for c in found) <= budget
    assert len({(c.problem_id, c.sample) for c in found}) == len(found)
    begins = [s["engine_seconds_before"] for s in meta["sessions"]]
    assert begins[1:] == [s["engine_seconds_before"] + s["engine_seconds"] for s in meta["sessions"]][:-1]
    assert [bool(s.get("killed")) for s in meta["sessions"]][: len(steps)].count(True) >= 1
    assert finished_by(found, budget) == found


def test_a_clock_that_was_lost_is_not_below_the_last_completion(tmp_path, monkeypatch):
    """As after a loss of power."""
    out = tmp_path / "out.jsonl"
    kill(monkeypatch, FakeSampler(on_step=killed_at(12)), out)
    clock_path(out).write_bytes(b"")
    last = max(c.finished_seconds for c in read_jsonl(Completion, out))
    meta = generate_to_file(FakeSampler(), PROBLEMS, out)
    assert meta["sessions"][0]["engine_seconds"] == meta["sessions"][1]["engine_seconds_before"] == last > 8


def test_a_budget_can_be_raised(tmp_path):
    out = tmp_path / "out.jsonl"
    generate_to_file(FakeSampler(num_samples=99), PROBLEMS, out, time_budget=20.0)
    before = out.read_bytes()
    meta = generate_to_file(FakeSampler(num_samples=99), PROBLEMS, out, time_budget=50.0)
    assert out.read_bytes().startswith(before)
    assert (meta["engine_seconds"], meta["sessions"][1]["engine_seconds"]) == (50, 30)


def test_a_journal_of_an_earlier_version_goes_on_with_its_clock(tmp_path):
    """No checksums, no ``finished_seconds``, sessions without a place on the clock."""
    out = tmp_path / "out.jsonl"
    generate_to_file(FakeSampler(num_samples=2), PROBLEMS, out)
    old = [json.loads(line) for line in out.read_text().splitlines()]
    for values in old:
        del values["crc32"], values["finished_seconds"]
    out.write_text("".join(json.dumps(values) + "\n" for values in old))
    meta = read_meta(out)
    for name in ("engine_seconds", "device_seconds", "samples_per_problem", "time_budget_seconds"):
        del meta[name]
    for name in ("id", "engine_seconds_before", "engine_seconds", "load_average"):
        del meta["sessions"][0][name]
    meta_path(out).write_text(json.dumps(meta))
    used = sum(values["seconds"] for values in old)
    meta = generate_to_file(FakeSampler(), PROBLEMS, out)
    assert meta["total_samples"] == 25
    assert meta["sessions"][1]["engine_seconds_before"] == pytest.approx(used)
    assert meta["engine_seconds"] == pytest.approx(used + meta["sessions"][1]["engine_seconds"])
    assert meta["device_seconds"] == pytest.approx(meta["engine_seconds"])


@pytest.mark.parametrize("lines", [0, 9])
def test_a_full_disk_is_one_error(tmp_path, monkeypatch, lines):
    from lit_thinkfast import appending

    out, written = tmp_path / "out.jsonl", []

    def full(fd, data):
        written.append(bytes(data))
        if sum(data.startswith(b"{") for data in written) > lines:
            raise OSError(28, "No space left on device")
        return os_write(fd, data)

    os_write = appending.os.write
    with monkeypatch.context() as patch:
        patch.setattr(appending.os, "write", full)
        with pytest.raises(OSError, match=r"out\.jsonl: cannot write \(No space left on device\)"):
            generate_to_file(FakeSampler(), PROBLEMS, out)
    assert len(texts(out)) == lines
    assert generate_to_file(FakeSampler(), PROBLEMS, out)["total_samples"] == 25


def test_a_disk_that_is_full_for_the_clock_names_it(tmp_path):
    clock_path(tmp_path / "out.jsonl").mkdir()
    (tmp_path / "out.jsonl").touch()
    with pytest.raises(OSError, match=r"out\.jsonl\.clock"):
        generate_to_file(FakeSampler(), PROBLEMS, tmp_path / "out.jsonl")
