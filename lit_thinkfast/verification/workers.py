"""Processes that compare answers with math-verify and can be killed at any moment.

Computer algebra on model text hangs, eats memory and cannot be interrupted from within (big-integer code does not
listen to signals), so each comparison runs in a fork of a child process, under limits of memory, processor time and
clock (see :mod:`lit_thinkfast.verification.worker`). A comparison that is killed loses nothing but itself. The child is
a plain subprocess: it works from threads, daemonic processes and notebooks, and never imports the caller's main module.
Children start when there are comparisons enough to share, live on, and end with the pool, with the interpreter, or
within about a second of their parent's death. A pool that a process inherits by fork starts children of its own there
and leaves its parent's alone. Needs a POSIX system.
"""

from __future__ import annotations

import functools
import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Literal

Comparison = Literal["correct", "incorrect", "unparsable", "timeout", "oom", "crashed"]

_PROGRAM = str(Path(__file__).with_name("worker.py"))
_START_SECONDS = 300.0
_GRACE_SECONDS = 0.2
"""How much later than the fork's own clock ours ends it, and all of the process with it: only what is stopped, or
starved of processor time, comes to that."""
_JOBS_A_WORKER = 32
"""Comparisons that are worth the start of a process, which takes as long."""


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerPool:
    """A few grading processes.

    Args:
        num_workers: Processes at most. Default: as many as cores. More than one is only started for many comparisons.
        cpu_seconds: Processor time of one comparison. Ends most hangs, and unlike the clock does not depend on how busy
            the machine is.
        wall_seconds: Clock time of one comparison, above the former so that a busy machine rarely decides.
        memory_bytes: Address space of a process.

    Raises:
        ValueError: A limit that is not above 0.
    """

    def __init__(
        self,
        *,
        num_workers: int | None = None,
        cpu_seconds: float = 0.9,
        wall_seconds: float = 1.5,
        memory_bytes: int = 1 << 30,
    ) -> None:
        num_workers = available_cores() if num_workers is None else num_workers
        limits = {
            "num_workers": num_workers,
            "cpu_seconds": cpu_seconds,
            "wall_seconds": wall_seconds,
            "memory_bytes": memory_bytes,
        }
        for name, value in limits.items():
            if not value > 0:
                raise ValueError(f"{name} {value} is not above 0; give it a positive value")
        self.num_workers = num_workers
        self.limits = f"{cpu_seconds:g} s of processor, {wall_seconds:g} s of clock, {memory_bytes >> 20} MiB"
        self.wall_seconds = wall_seconds
        self._command = [sys.executable, "-P", _PROGRAM, str(memory_bytes), str(cpu_seconds), str(wall_seconds)]
        self._workers = [_Worker() for _ in range(num_workers)]
        self._set_free()
        self._finalizer = weakref.finalize(self, _stop_all, self._workers)
        _pools.add(self)

    def compare(self, answer: str, gold: str) -> Comparison:
        """Return whether ``answer`` equals ``gold``, or how the comparison ended. Waits for a free process.

        Raises:
            RuntimeError: The grading process cannot be started at all, for example since math-verify is missing.
        """
        worker = self._free.get()
        try:
            if worker.process is None:
                worker.start(self._command)
            return worker.ask({"answer": answer, "gold": gold}, self.wall_seconds + _GRACE_SECONDS)
        except BaseException:
            worker.stop()
            raise
        finally:
            self._free.put(worker)

    def compare_all(self, pairs: Sequence[tuple[str, str]]) -> list[Comparison]:
        """Return the outcome of each pair of answer and gold, in order; as :meth:`compare`, on several processes."""
        threads = min(self.num_workers, -(-len(pairs) // _JOBS_A_WORKER))
        if threads < 2:
            return [self.compare(*pair) for pair in pairs]
        with ThreadPoolExecutor(threads) as executor:
            return list(executor.map(lambda pair: self.compare(*pair), pairs))

    def close(self) -> None:
        """End all processes and wait for them. The pool can be used again, which starts new ones."""
        _stop_all(self._workers)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _set_free(self) -> None:
        self._free: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for worker in self._workers:
            self._free.put(worker)

    def _start_afresh(self) -> None:
        """Give up, in a forked child, what is the parent's: its processes, and a queue whose lock may be held."""
        for worker in self._workers:
            worker.forget()
        self._set_free()


_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()
_lock = threading.RLock()
"""Held while a process starts, while the shared pool is made, and across each fork, so that none falls in between."""


@functools.cache
def _shared() -> WorkerPool:
    return WorkerPool()


def shared_pool() -> WorkerPool:
    """Return this process's pool with default limits."""
    with _lock:
        return _shared()


def _after_fork() -> None:
    """Part from the parent's processes, before the child, which has one thread yet, runs anything else."""
    for pool in list(_pools):
        pool._start_afresh()
    _lock.release()


os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_after_fork)


class _Worker:
    """One process and its pipes."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self._unread = b""

    def start(self, command: list[str]) -> None:
        self.stop()
        # a session of its own: an interrupt from the keyboard is for us, and its forks can be ended with it
        with _lock:
            self.process = subprocess.Popen(
                [*command, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,
            )
        self._unread = b""
        if self._read(_START_SECONDS) != "ready":
            self.stop()
            raise RuntimeError(
                "the grading process did not start; see if python -c 'import math_verify' works, or raise its memory"
            )

    def ask(self, job: dict[str, str], seconds: float) -> Comparison:
        process = self.process
        assert process is not None
        assert process.stdin is not None
        deadline = time.monotonic() + seconds
        try:
            process.stdin.write(json.dumps(job).encode() + b"\n")
            reply = self._read(seconds)
        except BrokenPipeError:
            reply = None
        if reply is None:
            ended = time.monotonic() < deadline
            self.stop()
            return "crashed" if ended else "timeout"
        return reply  # type: ignore[return-value]

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # it keeps nothing that could be lost
        process.kill()
        process.wait()
        _close_pipes(process)

    def forget(self) -> None:
        """Let go of a process that is not ours but our parent's, and of our copies of its pipes."""
        process, self.process = self.process, None
        if process is not None:
            process.returncode = 0  # not for us to wait for
            _close_pipes(process)

    def _read(self, seconds: float) -> str | None:
        """Return the next reply, or ``None`` if none comes in time or the process ends."""
        assert self.process is not None
        assert self.process.stdout is not None
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    return None
                chunk = os.read(self.process.stdout.fileno(), 65536)
                if not chunk:
                    return None
                self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _stop_all(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.stop()
