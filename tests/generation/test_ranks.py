"""Several processes, against one: the same completions, whoever is killed and however many go on."""

import contextlib
import dataclasses
import itertools
import json
import logging
import multiprocessing
from pathlib import Path

import pytest

from lit_thinkfast.appending import BusyError
from lit_thinkfast.generation import parts as parts_module
from lit_thinkfast.generation.journal import Journal, meta_path, read_meta
from lit_thinkfast.generation.parts import merge_parts, part_path, read_parts
from lit_thinkfast.generation.ranks import ALONE, Rank, Unwanted, rank_from_environment, rank_of
from lit_thinkfast.generation.run import generate_share, generate_to_file
from lit_thinkfast.generation.sessions import Session
from lit_thinkfast.records import Completion, RecordError, read_jsonl, sealed, to_json

from .fake_sampler import PROBLEMS, FakeSampler


class Killed(BaseException):
    """Ends a process without giving it a chance."""


def texts(path):
    """What does not depend on who sampled it, and when."""
    without = {"seconds": 0.0, "latency_seconds": 0.0, "finished_seconds": None}
    found = [dataclasses.replace(c, **without) for c in read_jsonl(Completion, path)]
    return sorted(found, key=lambda c: (c.problem_id, c.sample))


def run(start, die=None, **changes):
    """Let a sampler work, up to its death after ``die`` steps: files stay as after a SIGKILL."""
    dead = []

    def on_step(steps):
        if steps == die:
            dead.append(steps)
            raise Killed

    def close(session, *args):
        if dead:
            raise Killed
        return last_rites(session, *args)

    last_rites = Session.close
    sampler = FakeSampler(on_step=on_step, **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "close", close)
        try:
            return start(sampler), sampler
        except Killed:
            return "killed", sampler


def share(out, rank, size, *, problems=PROBLEMS, die=None, time_budget=None, **changes):
    """One process of a job."""
    return run(
        lambda sampler: generate_share(sampler, problems, out, rank=Rank(rank, size), time_budget=time_budget),
        die,
        **changes,
    )


@pytest.fixture
def whole(tmp_path):
    out = tmp_path / "whole.jsonl"
    generate_to_file(FakeSampler(), PROBLEMS, out)
    return texts(out)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run" / "out.jsonl"


def files(out):
    return sorted(path.name for path in out.parent.iterdir())


# --- who am I


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, ALONE),
        ({"HOME": "/", "SLURM_JOB_ID": "7"}, ALONE),
        ({"RANK": "3", "WORLD_SIZE": "16", "LOCAL_RANK": "1"}, Rank(3, 16, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, ALONE),
        ({"SLURM_PROCID": "9", "SLURM_NTASKS": "16", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0"}, Rank(9, 16, 1)),
        # a step of fewer tasks than the job
        (
            {"SLURM_PROCID": "1", "SLURM_NTASKS": "16", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0",
             "SLURM_STEP_NUM_TASKS": "2"},
            Rank(1, 2, 1),
        ),
        # torchrun within a job
        (
            {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0", "RANK": "5",
             "WORLD_SIZE": "8", "LOCAL_RANK": "1"},
            Rank(5, 8, 1),
        ),
    ],
)  # fmt: skip
def test_the_environment_of_launchers(environment, rank, caplog):
    assert rank_from_environment(environment) == rank
    assert rank_of("auto", environment=environment) == rank
    assert caplog.text == ""


def test_a_batch_script_without_srun_is_one_process(caplog):
    assert rank_of("auto", environment={"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}) == ALONE
    assert "srun did not start this process" in caplog.text


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "1", "WORLD_SIZE": "2"}, "LOCAL_RANK is None"),
        ({"WORLD_SIZE": "2"}, "RANK is None"),
        ({"RANK": "one", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK is 'one', not a number"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "rank 2 of 2"),
    ],
)
def test_an_environment_that_makes_no_sense(environment, message):
    with pytest.raises(ValueError, match=message):
        rank_from_environment(environment)


def test_a_rank_by_hand():
    assert rank_of("3/8", environment={"RANK": "0"}) == Rank(3, 8, 3)
    for given in ("3", "8/8", "-1/8", "a/b", ""):
        with pytest.raises(ValueError, match="rank"):
            rank_of(given, environment={})


# --- whose is it


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("number", [1, 2, 3, 7, 8, 9, 16, 21])
def test_shares_are_balanced_and_complete(size, number):
    samples = 13
    owners = {}
    for rank in map(Rank, range(size), itertools.repeat(size)):
        for problem in range(number):
            mine = [s for s in range(samples) if rank.owns(problem, s, num_problems=number)]
            assert rank.owned(problem, samples, num_problems=number) == len(mine)
            for sample in mine:
                assert owners.setdefault((problem, sample), rank.rank) == rank.rank, "nobody else's"
    assert len(owners) == number * samples, "everything is somebody's"
    loads = [list(owners.values()).count(rank) for rank in range(size)]
    assert max(loads) - min(loads) <= samples
    if number >= size:
        together = sum(len({owners[p, s] for s in range(samples)}) == 1 for p in range(number))
        assert together >= number - number % size, "problems stay together but for the last round"
        assert max(loads) <= number // size * samples + samples
    else:
        assert max(loads) - min(loads) <= samples / (size // number) + 1


def test_unwanted_is_what_is_done_or_not_mine():
    rank, done = Rank(1, 3), {("toy/1", 0)}
    unwanted = Unwanted(PROBLEMS, rank, done)
    for place, sample in itertools.product(range(5), range(4)):
        mine = rank.owns(place, sample, num_problems=5)
        assert ((f"toy/{place}", sample) in unwanted) == (not mine or (f"toy/{place}", sample) in done)


# --- together


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("number", [1, 5])
def test_processes_make_what_one_makes(out, tmp_path, size, number):
    problems = PROBLEMS[:number]
    generate_to_file(FakeSampler(), problems, tmp_path / "whole.jsonl")
    made = [share(out, rank, size, problems=problems) for rank in reversed(range(size))]
    assert [meta is None for meta, _ in made] == [True] * (size - 1) + [False], "the last one merges"
    assert texts(out) == texts(tmp_path / "whole.jsonl")
    drawn = [key for _, sampler in made for key in sampler.drawn]
    assert len(drawn) == len(set(drawn)) == number * 5
    assert files(out) == ["out.jsonl", "out.jsonl.meta.json"], "parts are gone"
    meta = read_meta(out)
    assert meta == made[-1][0] | {"identity": meta["identity"]}
    used = [sampler.stats.engine_seconds for _, sampler in made]
    assert meta["engine_seconds"] == max(used), "they ran at the same time"
    assert meta["device_seconds"] == sum(used)
    assert meta["total_samples"] == number * 5
    assert meta["total_seconds"] == pytest.approx(sum(used))
    busy = [rank for rank in reversed(range(size)) if made[size - 1 - rank][1].drawn]
    assert sorted(session["rank"] for session in meta["sessions"]) == sorted(busy)
    # and there is nothing left to do, for any number of processes
    before = out.read_bytes()
    again = [share(out, rank, 2, problems=problems) for rank in range(2)]
    assert [meta is None for meta, _ in again] == [False, True], "one of them goes on"
    assert again[0][0]["total_samples"] == number * 5
    assert generate_to_file(FakeSampler(), problems, out)["sessions"] == meta["sessions"]
    assert out.read_bytes() == before


@pytest.mark.parametrize("then", [1, 2, 3, 4])
@pytest.mark.parametrize("die", [(5, 2, None), (9, 9, 9), (None, None, 1)])
def test_killed_then_resumed_with_any_number(out, whole, die, then):
    before = [share(out, rank, 3, die=step) for rank, step in enumerate(die)]
    assert "killed" in [meta for meta, _ in before]
    if then == 1:
        after = [(None, FakeSampler())]
        generate_to_file(after[0][1], PROBLEMS, out)
    else:
        after = [share(out, rank, then) for rank in range(then)]
        assert sum(meta is not None for meta, _ in after) == 1, "one of them goes on"
    assert texts(out) == whole
    drawn = [key for _, sampler in (*before, *after) for key in sampler.drawn]
    assert len(drawn) == len(set(drawn)) == 25, "nothing lost, nothing repeated"
    assert files(out) == ["out.jsonl", "out.jsonl.meta.json"]


def test_merged_by_hand_it_goes_on_later(out, whole):
    for rank, step in enumerate((5, 3)):
        share(out, rank, 2, die=step)
    meta = merge_parts(out)
    done = texts(out)
    assert meta["total_samples"] == len(done) < 25
    assert meta["samples_per_problem"]["max"] <= 5
    assert (meta["engine_seconds"], meta["device_seconds"]) == (5, 8)
    assert files(out) == ["out.jsonl", "out.jsonl.meta.json"]
    with pytest.raises(FileNotFoundError, match=r"no parts of .*out\.jsonl, .*out\.rank-00000-of-00008\.jsonl"):
        merge_parts(out)
    after = [share(out, rank, 4) for rank in range(4)]
    assert sum(len(sampler.drawn) for _, sampler in after) == 25 - len(done)
    assert texts(out) == whole


def test_a_merge_can_be_interrupted_anywhere(tmp_path):
    """Die at the n-th time that the merge touches a file, for all n; then merge again."""
    generate_to_file(FakeSampler(num_samples=2), PROBLEMS, tmp_path / "whole.jsonl")
    for stop in itertools.count():
        out = tmp_path / str(stop) / "out.jsonl"
        for rank, step in enumerate((None, 4)):
            share(out, rank, 2, die=step, num_samples=2)
        sampled = sum(len(part.completions) for part in read_parts(out))
        touched = interrupted_merge(out, stop)
        if touched < stop:
            assert stop > 12, "it was interrupted often enough"
            return
        meta = merge_parts(out) if read_parts(out) else read_meta(out)
        assert meta["total_samples"] == len(texts(out)) == sampled
        assert len(meta["sessions"]) == 2
        assert meta["device_seconds"] == sum(s["engine_seconds"] for s in meta["sessions"])
        generate_to_file(FakeSampler(num_samples=2), PROBLEMS, out)
        assert texts(out) == texts(tmp_path / "whole.jsonl")


def interrupted_merge(out, stop):
    """Merge, and die at touch number ``stop``; return how many there were."""
    count = 0

    def touch(original):
        def touched(*args, **options):
            nonlocal count
            if count == stop:
                raise Killed
            count += 1
            return original(*args, **options)

        return touched

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
        for owner, name in ((Journal, "append"), (Journal, "save_meta"), (Journal, "sync"), (Path, "unlink")):
            patch.setattr(owner, name, touch(getattr(owner, name)))
        merge_parts(out)
    return count


def test_a_process_that_was_killed_alone_is_followed_by_several(out, whole):
    meta, _ = run(lambda sampler: generate_to_file(sampler, PROBLEMS, out), 7)
    assert meta == "killed"
    for rank in range(2):
        share(out, rank, 2)
    assert texts(out) == whole
    meta = read_meta(out)
    alone, *together = meta["sessions"]
    assert (alone["killed"], alone["engine_seconds_before"], alone["engine_seconds"]) == (True, 0, 7)
    assert [session["engine_seconds_before"] for session in together] == [7, 7]
    used = [session["engine_seconds"] for session in together]
    assert meta["engine_seconds"] == 7 + max(used)
    assert meta["device_seconds"] == 7 + sum(used)
    assert files(out) == ["out.jsonl", "out.jsonl.meta.json"]


def test_a_process_that_has_more_to_do_is_not_done(out, whole):
    """A line of its part was deleted after it had said so."""
    share(out, 0, 2)
    part = part_path(out, Rank(0, 2))
    part.write_bytes(b"".join(part.read_bytes().splitlines(keepends=True)[1:]))
    assert share(out, 0, 2, die=0)[0] == "killed"
    assert share(out, 1, 2)[0] is None, "nobody merges yet"
    assert share(out, 0, 2)[0] is not None
    assert texts(out) == whole


def test_parts_with_torn_tails_and_without_newline(out, whole):
    share(out, 0, 2, die=8)
    share(out, 1, 2, die=8)
    one, two = (part_path(out, Rank(rank, 2)) for rank in range(2))
    kept = len(read_parts(out)[0].completions)
    one.write_bytes(one.read_bytes()[:-1])
    two.write_bytes(two.read_bytes()[:-40])
    assert len(read_parts(out)[0].completions) == kept
    for rank in range(3):
        share(out, rank, 3)
    assert texts(out) == whole


def test_parts_of_another_run_are_refused(out):
    share(out, 0, 2, die=5)
    before = files(out)
    for start in (
        lambda: generate_to_file(FakeSampler(seed=1), PROBLEMS, out),
        lambda: generate_share(FakeSampler(seed=1), PROBLEMS, out, rank=Rank(0, 2)),
        lambda: generate_share(FakeSampler(seed=1), PROBLEMS, out, rank=Rank(1, 2)),
        lambda: generate_share(FakeSampler(seed=1), PROBLEMS, out, rank=Rank(0, 3)),
    ):
        with pytest.raises(ValueError, match=r"rank-00000-of-00002\.jsonl belongs to another run: its seed is 0, now"):
            start()
    with pytest.raises(ValueError, match=r"rank-00000-of-00002\.jsonl holds problem"):
        generate_to_file(FakeSampler(), PROBLEMS[4:], out)
    assert set(before) <= set(files(out))
    one = json.loads(meta_path(part_path(out, Rank(0, 2))).read_text())
    share(out, 1, 2, die=5)
    one["identity"]["seed"] = 9
    meta_path(part_path(out, Rank(0, 2))).write_text(json.dumps(one))
    with pytest.raises(ValueError, match="its seed is"):
        merge_parts(out)


def test_two_completions_of_one_sample_are_refused(out):
    share(out, 0, 2, die=5)
    share(out, 1, 2, die=5)
    one, two = read_parts(out)
    with two.path.open("ab") as file:
        file.write((sealed(to_json(dataclasses.replace(one.completions[0], text="other"))) + "\n").encode())
    with pytest.raises(RecordError, match=r"rank-00001-of-00002\.jsonl and .*rank-00000.* hold different completions"):
        merge_parts(out)
    assert len(read_parts(out)) == 2


def test_only_one_job_at_a_time(out, monkeypatch):
    monkeypatch.setattr(parts_module, "_MERGE_SECONDS", 0.1)

    def try_others(steps):
        if steps != 3:
            return
        for start in (
            lambda: generate_to_file(FakeSampler(), PROBLEMS, out),
            lambda: generate_share(FakeSampler(), PROBLEMS, out, rank=Rank(0, 2)),
            lambda: generate_share(FakeSampler(), PROBLEMS, out, rank=Rank(2, 3)),
            lambda: merge_parts(out),
        ):
            with pytest.raises(BusyError, match="is being written by another process"):
                start()
        tried.append(steps)

    tried = []
    generate_share(FakeSampler(on_step=try_others), PROBLEMS, out, rank=Rank(0, 2))
    assert tried == [3]

    def try_share(steps):
        with pytest.raises(BusyError, match="is being written by another process"):
            generate_share(FakeSampler(), PROBLEMS, out, rank=Rank(0, 2))
        raise Killed

    with pytest.raises(Killed):
        generate_to_file(FakeSampler(on_step=try_share), PROBLEMS, out)


def test_each_process_has_the_time_budget(out):
    made = [share(out, rank, 2, num_samples=1000, time_budget=30.0) for rank in range(2)]
    meta = made[1][0]
    assert (meta["engine_seconds"], meta["device_seconds"], meta["time_budget_seconds"]) == (30, 60, 30)
    assert len(texts(out)) == sum(len(sampler.drawn) for _, sampler in made)
    assert [sampler.stats.engine_seconds for _, sampler in made] == [30, 30]
    # the budget is used: nobody has anything to do
    again = [share(out, rank, 2, num_samples=1000, time_budget=30.0) for rank in range(2)]
    assert all(not sampler.drawn for _, sampler in again)


def test_a_killed_process_uses_its_time_budget_once(out):
    share(out, 0, 2, num_samples=1000, time_budget=30.0, die=10)
    share(out, 1, 2, num_samples=1000, time_budget=30.0)
    _, sampler = share(out, 0, 2, num_samples=1000, time_budget=30.0)
    assert sampler.stats.engine_seconds == 20
    meta = read_meta(out)
    assert (meta["engine_seconds"], meta["device_seconds"]) == (30, 60)


@pytest.mark.parametrize("then", [1, 3])
def test_with_another_number_the_longest_clock_counts(out, then):
    share(out, 0, 2, num_samples=1000, time_budget=30.0, die=10)
    share(out, 1, 2, num_samples=1000, time_budget=30.0, die=17)
    if then == 1:
        sampler = FakeSampler(num_samples=1000)
        generate_to_file(sampler, PROBLEMS, out, time_budget=30.0)
        assert sampler.stats.engine_seconds == 13
    else:
        for rank in range(then):
            assert share(out, rank, then, num_samples=1000, time_budget=30.0)[1].stats.engine_seconds == 13
    assert read_meta(out)["engine_seconds"] == 30
    assert max(c.finished_seconds for c in read_jsonl(Completion, out)) <= 30


def test_mixtures_of_machines_are_reported_when_merged(out, caplog):
    caplog.set_level(logging.WARNING)
    share(out, 0, 2)
    assert caplog.text == ""
    share(out, 1, 2, batch_size=3)
    assert "batch_size 3 and 4" in caplog.text


def at_once(out, rank, size):
    share(out, rank, size)


def test_processes_that_end_at_the_same_moment_merge_once(out, whole):
    """Real processes, with nothing to wait for, over and over: somebody merges, and nobody twice."""
    context = multiprocessing.get_context("fork")
    for _ in range(5):
        workers = [context.Process(target=at_once, args=(out, rank, 4)) for rank in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert [worker.exitcode for worker in workers] == [0] * 4
        assert texts(out) == whole
        assert files(out) == ["out.jsonl", "out.jsonl.meta.json"]
        for path in out.parent.iterdir():
            path.unlink()
