import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import pytest

from lit_thinkfast.records import Completion, Problem
from lit_thinkfast.verification import MathVerifier, Verifier, equivalent
from lit_thinkfast.verification.workers import WorkerPool, shared_pool

FAST = {"cpu_seconds": 1, "wall_seconds": 60.0}


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(**FAST) as made:
        yield made


def running(pool):
    return [worker.process.pid for worker in pool._workers if worker.process is not None]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()[0] != "Z"


def test_computer_algebra_decides_what_rules_cannot():
    assert equivalent("1+x", "x+1")
    assert equivalent(r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}")
    assert not equivalent(r"\sqrt{2}", r"\sqrt{3}")
    assert not equivalent("x", "5")
    assert equivalent("(x+1)(x-1)", "x^2-1")
    shared_pool().close()


def test_rules_alone_start_no_process():
    verifier = MathVerifier()
    assert verifier.grade(Problem("p", "?", "1/2"), completion(r"\boxed{0.5}")).correct
    assert verifier._pool is None
    assert running(WorkerPool()) == []


def completion(text, sample=0, reason="stop", problem="p"):
    return Completion(problem, sample, text, 1, 1, reason, 0.0, 0.0)


def test_a_hang_is_killed_and_the_next_comparison_works(pool):
    start = time.monotonic()
    assert pool.compare("10^{10^{10^{10^{10}}}}", "x+1") in ("timeout", "oom", "incorrect", "unparsable")
    assert pool.compare(r"9^{9^{9^{9}}}+1", r"9^{9^{9^{9}}}") in ("timeout", "oom", "incorrect", "unparsable")
    assert time.monotonic() - start < 150
    assert pool.compare("1+x", "x+1") == "correct"


def test_the_clock_kills_what_uses_no_processor_time():
    with WorkerPool() as pool:
        assert pool.compare("1+x", "x+1") == "correct"
        (pid,) = running(pool)
        os.kill(pid, signal.SIGSTOP)
        pool.wall_seconds = 0.5
        assert pool.compare("1+x", "x+1") == "timeout"
        pool.wall_seconds = 30
        assert not alive(pid)
        assert pool.compare("1+x", "x+1") == "correct"


def test_a_death_is_told_and_mended(pool):
    pool.compare("1+x", "x+1")
    (pid,) = running(pool)
    os.kill(pid, signal.SIGKILL)
    assert pool.compare("1+x", "x+1") == "crashed"
    assert pool.compare("1+x", "x+1") == "correct"


def test_processes_are_replaced_and_leave_nothing_behind():
    with WorkerPool(max_jobs=1) as pool:
        pool.compare("1+x", "x+1")
        first = running(pool)
        pool.compare("1+x", "x+1")
        assert running(pool) != first
        pids = first + running(pool)
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
        f"assert p().compare('1+x', 'x+1') == 'correct'\nprint(p()._workers[0].process.pid, flush=True)\n{end}"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    pid = int(ran.stdout)
    deadline = time.monotonic() + 10
    while (gone := not _exists(pid)) is False and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone


def _exists(pid):
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        return alive(pid)
    return False


def test_memory_is_limited():
    with WorkerPool(memory_bytes=400 << 20, cpu_seconds=10) as pool:
        assert pool.compare("1+x", "x+1") == "correct"
        with open(f"/proc/{running(pool)[0]}/limits") as limits:
            line = next(line for line in limits if line.startswith("Max address space"))
    assert line.split()[3] == str(400 << 20)
    with WorkerPool(memory_bytes=1 << 20) as pool, pytest.raises(RuntimeError, match="did not start"):
        pool.compare("1+x", "x+1")


def test_threads_and_forks(pool):
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
    for payload in (
        f"__import__('os').system('touch {canary}')",
        f"open('{canary}','w')",
        f"eval(open('{canary}','w'))",
        f"\\text{{__import__('os').system('touch {canary}')}}",
        f"(lambda: open('{canary}', 'w'))()",
    ):
        with WorkerPool(**FAST) as fresh:
            assert fresh.compare(payload, "x+1") != "correct"
        assert pool.compare("x", payload) != "correct"
    assert not canary.exists()


def test_verdicts():
    problems = [Problem("p", "?", r"\frac{1}{\sqrt{2}}"), Problem("q", "?", "7")]
    completions = [
        completion(r"\boxed{\frac{\sqrt{2}}{2}}", 0),
        completion(r"\boxed{\frac{\sqrt{2}}{3}}", 1),
        completion("not yet", 2, "length"),
        completion("not ever", 3),
        completion("", 4),
        completion(r"\boxed{7} and then more", 0, "length", "q"),
        completion(r"\boxed{9^{9^{9^{9}}}}", 5),
        completion(r"\boxed{{{]}", 6),
    ]
    verifier = MathVerifier(num_workers=2)
    verdicts = verifier.grade_batch(problems, completions)
    outcomes = ["correct", "incorrect", "truncated", "unparsable", "unparsable", "correct", "unparsable", "unparsable"]
    assert [v.outcome for v in verdicts] == outcomes
    assert [v.canonical is None for v in verdicts] == [v.answer is None for v in verdicts]
    assert verdicts[5].problem_id == "q"
    assert "math-verify" in verdicts[0].grader
    assert [verifier.grade(problems[c.problem_id == "q"], c) for c in completions] == verdicts
    twin = pickle.loads(pickle.dumps(verifier))
    assert twin.grade(problems[0], completions[0]) == verdicts[0]
    twin.close()
    verifier.close()


def test_completions_find_their_problems_or_say_so():
    with pytest.raises(ValueError, match="problem 'p', which is not among the 1 problems"):
        MathVerifier().grade(Problem("other", "?", "1"), completion("1"))
    with pytest.raises(ValueError, match="two different problems have the id 'p'"):
        MathVerifier().grade_batch([Problem("p", "?", "1"), Problem("p", "?", "2")], [])
    with pytest.raises(ValueError, match="num_workers 0"):
        WorkerPool(num_workers=0)


def test_a_verifier_of_ones_own_needs_only_grade():
    class Yes(Verifier):
        def grade(self, problem, completion):
            return (problem.id, completion.sample)

    assert Yes().grade_batch([Problem("p", "?", "1")], [completion("", 3)]) == [("p", 3)]
