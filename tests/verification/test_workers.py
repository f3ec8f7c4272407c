import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from lit_thinkfast.verification import workers
from lit_thinkfast.verification.answers import equivalent
from lit_thinkfast.verification.worker import FIRST_STATUS, OUTCOMES, PARENT_SECONDS, outcome_of, run
from lit_thinkfast.verification.workers import WorkerPool, available_cores, shared_pool

HANG = (r"(x+y+z)^{999}", r"x+\sin x")
"""Take computer algebra a minute, and are none of the towers that are refused before a parser sees them."""


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(num_workers=1) as made:
        made.compare("1+x", "x+1")
        yield made


def running(pool):
    return [worker.process.pid for worker in pool._workers if worker.process is not None]


def alive(pid):
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def children(pid):
    with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/task/{pid}/children") as found:
        return [int(child) for child in found.read().split()]
    return []


def soon(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def fork(act):
    """Return the id of a fork that does ``act`` in a thread; it exits with 0 if the outcome is true, and never hangs."""
    if (pid := os.fork()) == 0:
        done = []
        thread = threading.Thread(target=lambda: done.append(act()), daemon=True)
        thread.start()
        thread.join(30)
        os._exit(0 if done == [True] else 1)
    return pid


def test_computer_algebra_decides_what_rules_cannot():
    assert equivalent(r"\sin(2x)", r"2\sin x\cos x")
    assert not equivalent(r"\sin x", r"\cos x")
    assert not equivalent(r"9^{9^{9^9}}", r"\sin x")
    shared_pool().close()


def test_outcomes(pool):
    assert pool.compare("x+1", "1+x") == "correct"
    assert pool.compare("x+1", "2+x") == "incorrect"
    assert pool.compare("{{]", "1+x") == pool.compare("x", "{{]") == pool.compare("", "x") == "unparsable"
    assert pool.compare("\ud800\n\x00", "x") == "unparsable"
    pids = running(pool)
    start = time.monotonic()
    assert pool.compare(*HANG) == "timeout"
    assert time.monotonic() - start < 2
    assert pool.compare("x+1", "1+x") == "correct"
    assert running(pool) == pids  # a hang costs a fork, not the process


def test_how_a_fork_ended():
    assert [outcome_of((FIRST_STATUS + i) << 8) for i in range(4)] == list(OUTCOMES)
    assert outcome_of(signal.SIGPROF) == outcome_of(signal.SIGALRM) == "timeout"
    assert outcome_of(signal.SIGKILL) == outcome_of(signal.SIGSEGV) == outcome_of(0) == outcome_of(1 << 8) == "crashed"


@pytest.mark.parametrize(
    ("error", "outcome"), [(MemoryError, "oom"), (RecursionError, "unparsable"), (TypeError, "unparsable")]
)
def test_errors_within_a_fork_are_told_apart(error, outcome):
    class Algebra:
        def parse(self, *_, **__):
            raise error

    if (child := os.fork()) == 0:
        os._exit(FIRST_STATUS + OUTCOMES.index(run(Algebra(), '{"answer": "1", "gold": "2"}', 5.0, 5.0)))
    assert outcome_of(os.waitpid(child, 0)[1]) == outcome


@pytest.mark.parametrize(("target", "outcome"), [("fork", "crashed"), ("process", "crashed"), ("stopped", "timeout")])
def test_a_death_is_told_and_mended(pool, target, outcome):
    assert pool.compare("1+x", "x+1") == "correct"
    (pid,) = running(pool)
    found, start = [], time.monotonic()
    thread = threading.Thread(target=lambda: found.append(pool.compare(*HANG)))
    thread.start()
    (fork,) = soon(lambda: children(pid))
    if target == "stopped":
        os.kill(pid, signal.SIGSTOP)
        os.kill(fork, signal.SIGSTOP)  # neither clock nor processor limit of its own will end it
    else:
        os.kill(fork if target == "fork" else pid, signal.SIGKILL)
    thread.join()
    assert time.monotonic() - start < 2.5
    assert found == [outcome]
    assert alive(pid) == (target == "fork")
    assert soon(lambda: not alive(fork))
    assert pool.compare("1+x", "x+1") == "correct"


def test_nothing_is_left_behind():
    with WorkerPool(num_workers=3) as pool:
        assert running(pool) == []
        assert pool.compare_all([("1+x", "x+1")] * 3) == ["correct"] * 3
        assert len(running(pool)) == 1  # more are not worth their start
        pids = running(pool)
    assert not any(alive(pid) for pid in pids)
    with pytest.raises(ChildProcessError):
        os.waitpid(pids[-1], 0)  # it has been waited for: no zombie
    assert pool.compare("1+x", "x+1") == "correct"
    pool.close()


@pytest.mark.parametrize(
    "end", ["", "import os; os._exit(0)", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
)
def test_processes_end_with_their_parent(end):
    script = (
        "from lit_thinkfast.verification.workers import shared_pool as p\n"
        f"assert p().compare('1+x', 'x+1') == 'correct'\nprint(p()._workers[-1].process.pid, flush=True)\n{end}"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert soon(lambda: not alive(int(ran.stdout)))


def test_a_process_outlives_the_thread_that_started_it_and_no_parent():
    with WorkerPool(num_workers=1) as pool:
        thread = threading.Thread(target=lambda: pool.compare("1+x", "x+1"))
        thread.start()
        thread.join()
        (pid,) = running(pool)
        time.sleep(PARENT_SECONDS + 0.2)
        assert pool.compare("1+x", "x+1") == "correct"
        assert running(pool) == [pid]
        process = pool._workers[0].process
        assert not any(os.get_inheritable(pipe.fileno()) for pipe in (process.stdin, process.stdout))
    script = """if True:
        import os, signal, time
        from lit_thinkfast.verification.workers import shared_pool
        assert shared_pool().compare("1+x", "x+1") == "correct"
        process = next(worker.process for worker in shared_pool()._workers if worker.process)
        os.dup(process.stdin.fileno())
        if (sibling := os.fork()) == 0:  # has the pipe open, so the process never sees its end
            os.close(1)
            os.close(2)
            time.sleep(60)
            os._exit(0)
        print(process.pid, sibling, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    pid, sibling = map(int, ran.stdout.split())
    try:
        assert soon(lambda: not alive(pid))
        assert alive(sibling)
    finally:
        os.kill(sibling, signal.SIGKILL)


@pytest.mark.parametrize("busy", [False, True])
def test_a_fork_has_processes_of_its_own(pool, busy):
    assert pool.compare("1+x", "x+1") == "correct"
    before, found = running(pool), []
    thread = threading.Thread(target=lambda: found.append(pool.compare(*(HANG if busy else ("1+x", "x+1")))))
    thread.start()
    if busy:
        assert soon(lambda: children(before[0]))  # the only worker is out of the queue that the forks inherit
    else:
        thread.join()

    def graded(constant, outcome):
        pairs = [(rf"\sin({n}x)+{constant}", rf"1+\sin({n}x)") for n in range(2, 22)]
        assert pool.compare_all(pairs) == [outcome] * len(pairs)
        assert not set(running(pool)) & set(before)
        pool.close()
        return True

    forks = [fork(lambda: graded(1, "correct")), fork(lambda: graded(2, "incorrect"))]
    assert [os.waitpid(pid, 0)[1] for pid in forks] == [0, 0]
    thread.join()
    assert found == ["timeout" if busy else "correct"]
    assert pool.compare("1+x", "x+1") == "correct"
    assert running(pool) == before  # closing the pool in the forks was not for these


def test_a_fork_waits_until_no_process_is_half_started():
    held = threading.Event()

    def hold():
        with workers._lock:
            held.set()
            time.sleep(0.3)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    start = time.monotonic()
    pid = fork(lambda: shared_pool() is shared_pool())
    assert time.monotonic() - start > 0.2
    assert os.waitpid(pid, 0)[1] == 0
    thread.join()


def test_what_a_fork_may_not_do(tmp_path):
    class Algebra:
        def parse(self, *_, **__):
            os.closerange(3, 256)
            with pytest.raises(OSError, match="too large"), open(tmp_path / "written", "w") as file:
                file.write("x")
            with pytest.raises(OSError, match="Too many open files"):
                keep.extend(socket.socket() for _ in range(256))
            keep.clear()
            if os.getuid():  # root is exempt
                with pytest.raises(BlockingIOError):
                    os.fork()
            raise MemoryError

    keep = []
    assert os.waitpid(fork(lambda: run(Algebra(), '{"answer": "1", "gold": "2"}', 5.0, 5.0) == "oom"), 0)[1] == 0
    with WorkerPool(num_workers=1) as pool:
        pool.compare("1+x", "x+1")
        (pid,) = running(pool)
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        with open(f"/proc/{pid}/status") as status:
            assert "NoNewPrivs:\t1\n" in status.readlines()


def test_limits():
    with WorkerPool(num_workers=1, memory_bytes=400 << 20, cpu_seconds=0.2, wall_seconds=1.5) as pool:
        assert pool.compare("1+x", "x+1") == "correct"
        with open(f"/proc/{running(pool)[0]}/limits") as limits:
            line = next(line for line in limits if line.startswith("Max address space"))
        start = time.monotonic()
        assert pool.compare(*HANG) == "timeout"
        assert time.monotonic() - start < 1.6
        assert pool.limits == "0.2 s of processor, 1.5 s of clock, 400 MiB"
    assert line.split()[3] == str(400 << 20)
    with WorkerPool(num_workers=1, memory_bytes=1 << 20) as pool, pytest.raises(RuntimeError, match="did not start"):
        pool.compare("1+x", "x+1")
    for name in ("num_workers", "wall_seconds", "cpu_seconds", "memory_bytes"):
        with pytest.raises(ValueError, match=f"{name} 0 is not above 0"):
            WorkerPool(**{name: 0})
    assert WorkerPool().num_workers == available_cores() >= 1


def test_many_threads_ask_one_process(pool):
    found = []
    threads = [threading.Thread(target=lambda: found.append(pool.compare("1+x", "x+1"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["correct"] * 4


def test_no_code_in_answers_is_run(pool, tmp_path, monkeypatch):
    canary = tmp_path / "canary"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "math_verify.py").write_text(f"open({str(canary)!r}, 'w')")  # a module of the folder must not be taken
    with WorkerPool(num_workers=1) as fresh:
        for payload in (
            f"__import__('os').system('touch {canary}')",
            f"open('{canary}','w')",
            f"eval(open('{canary}','w'))",
            f"\\text{{__import__('os').system('touch {canary}')}}",
            f"(lambda: open('{canary}', 'w'))()",
        ):
            assert fresh.compare(payload, "x+1") != "correct"
            assert pool.compare("x", payload) != "correct"
    assert not canary.exists()
