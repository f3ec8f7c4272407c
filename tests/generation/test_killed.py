"""SIGKILL at random points of real runs of ``lit-thinkfast generate``, alone and as several processes."""

import dataclasses
import json
import multiprocessing
import random
import signal
import time

import pytest

from lit_thinkfast.generation.journal import clock_path, read_clock, read_meta
from lit_thinkfast.records import Completion, read_jsonl

ASKED = ("--problems", "arithmetic", "--level", 1, "--limit", 7, "--max-new-tokens", 24, "--batch-size", 6, "--seed", 3)
SAMPLES = ("--num-samples", 10)
# In a process that has imported what the command needs; it is then the command
RUN = """
import multiprocessing, os, sys
multiprocessing.set_start_method("fork", force=True)  # semaphores of bars that are killed are not left over then
os.environ.update({environment!r})
sys.stdout = sys.stderr = open({log!r}, "a")
from lit_thinkfast.cli import main
from lit_thinkfast.generation import sampler
sampler.calibrate = lambda *_, **__: None  # it takes longer than these runs
main({arguments!r})
"""


@pytest.fixture(scope="module")
def start(tiny_teacher, tmp_path_factory):
    """Start the command in a process of its own: ``start(out, *options, **environment) -> Process``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["transformers", "lit_thinkfast.tools", "lit_thinkfast.generation.sampler"])
    log = tmp_path_factory.mktemp("log") / "log.txt"
    running = []

    def run(out, *options, **environment):
        arguments = [str(a) for a in ("generate", "--model", tiny_teacher, *ASKED, "--out", out, *options)]
        code = RUN.format(environment=environment, log=str(log), arguments=arguments)
        process = context.Process(target=exec, args=(code,))
        process.start()
        running.append(process)
        return process

    yield run
    print(log.read_text())  # what they said, should a test have failed
    for process in running:
        process.kill()


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """What an uninterrupted process makes."""
    out = tmp_path_factory.mktemp("whole") / "out.jsonl"
    finish(start(out, *SAMPLES))
    return texts(out)


def texts(path):
    without = {"seconds": 0.0, "latency_seconds": 0.0, "finished_seconds": None}
    found = [dataclasses.replace(c, **without) for c in read_jsonl(Completion, path)]
    return sorted(found, key=lambda c: (c.problem_id, c.sample))


def finish(*processes):
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def lines(out):
    """How many lines there are in the journal and its parts."""
    files = [path for path in out.parent.iterdir() if path.suffix == ".jsonl"] if out.parent.exists() else []
    return sum(path.read_bytes().count(b"\n") for path in files)


def kill_when(process, reached, pause=0.0):
    """SIGKILL a process ``pause`` seconds after something is reached; return whether it lived until then."""
    until = time.monotonic() + 60
    while process.is_alive() and not reached() and time.monotonic() < until:
        time.sleep(0.001)
    time.sleep(pause)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def kill_after(process, out, count, pause=0.0):
    """SIGKILL a process after there are ``count`` more lines."""
    target = lines(out) + count
    return kill_when(process, lambda: lines(out) >= target, pause)


def test_nothing_is_lost_or_repeated(start, whole, tmp_path):
    out, chance = tmp_path / "out.jsonl", random.Random(0)
    kills = sum(
        kill_after(start(out, *SAMPLES), out, count, pause=chance.uniform(0, 0.005)) for count in (0, 1, 18, 5, 12)
    )
    assert kills >= 4
    finish(start(out, *SAMPLES))
    assert texts(out) == whole
    meta = read_meta(out)
    assert sum(bool(session.get("killed")) for session in meta["sessions"]) >= kills - 1
    assert not clock_path(out).exists()


def test_processes_of_a_launcher_killed_and_gone_on_with_by_others(start, whole, tmp_path):
    out = tmp_path / "run" / "out.jsonl"

    def ranks(size):
        names = [{"RANK": str(r), "WORLD_SIZE": str(size), "LOCAL_RANK": str(r)} for r in range(size)]
        return [start(out, *SAMPLES, **environment) for environment in names]

    one, two = ranks(2)
    assert kill_after(two, out, 16)
    kill_after(one, out, 5)
    assert 16 <= lines(out) < len(whole)
    names = {"SLURM_NTASKS": "3", "SLURM_STEP_ID": "0"}
    finish(*(start(out, *SAMPLES, SLURM_PROCID=str(r), SLURM_LOCALID=str(r), **names) for r in range(3)))
    assert texts(out) == whole
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.jsonl", "out.jsonl.meta.json"]
    assert len({session["id"] for session in read_meta(out)["sessions"]}) == len(read_meta(out)["sessions"]) >= 4


def test_a_killed_run_uses_its_time_budget_once(start, tmp_path):
    out, budget = tmp_path / "out.jsonl", ("--time-budget", "2.5s")
    seen = 0.0
    for _ in range(2):
        more = lines(out) + 1
        assert kill_when(start(out, *budget), lambda: read_clock(out) >= seen + 0.3 and lines(out) >= more)  # noqa: B023
        noted = read_clock(out)
        ends = [c.finished_seconds for c in read_jsonl(Completion, out)]
        assert max(ends) <= noted + 1, "the clock is noted a few times a second"
        seen = max(noted, *ends)
    finish(start(out, *budget))
    meta = read_meta(out)
    begins = [session["engine_seconds_before"] for session in meta["sessions"]]
    assert begins[0] == 0
    assert begins[-1] == pytest.approx(seen)
    assert begins == sorted(begins)
    assert 2.5 <= meta["engine_seconds"] < 3.5
    assert meta["device_seconds"] == pytest.approx(meta["engine_seconds"])
    found = list(read_jsonl(Completion, out))
    assert max(c.finished_seconds for c in found) <= 2.5
    counts = meta["samples_per_problem"]
    assert counts["min"] >= 1
    assert counts["max"] <= 2 * counts["min"] + 8, "rounds over all problems"
    assert json.loads(json.dumps(meta)) == meta
    before = out.read_bytes()
    finish(start(out, *budget))
    assert out.read_bytes() == before, "the budget is used"
