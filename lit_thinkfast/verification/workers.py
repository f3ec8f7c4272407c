"""Processes that compare answers with math-verify and can be killed at any moment.

Computer algebra on model text hangs, eats memory and cannot be interrupted from within (big-integer code does not
listen to signals), so each comparison runs in a child process with limits of memory and processor time, watched by a
clock. The child is a plain subprocess: it works from threads, daemonic processes and notebooks, and never imports the
caller's main module. Children start with the first comparison, live on, are replaced after a failure or ``max_jobs``
comparisons, and end with the pool, with the interpreter, or when their parent dies.
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
from pathlib import Path
from typing import Any, Literal

Comparison = Literal["correct", "incorrect", "unparsable", "timeout", "oom", "crashed"]

_PROGRAM = str(Path(__file__).with_name("worker.py"))
_START_SECONDS = 300.0


class WorkerPool:
    """A few grading processes.

    Args:
        num_workers: Processes at most; more are only started when as many threads ask at once.
        wall_seconds: Clock time of one comparison.
        cpu_seconds: Processor time of one comparison, to the whole second above. Ends most hangs, and unlike the clock
            does not depend on how busy the machine is.
        memory_bytes: Address space of a process.
        max_jobs: Comparisons after which a process is replaced, since parsers leak.

    Raises:
        ValueError: A limit that is not above 0.
    """

    def __init__(
        self,
        *,
        num_workers: int = 1,
        wall_seconds: float = 30.0,
        cpu_seconds: int = 2,
        memory_bytes: int = 1 << 30,
        max_jobs: int = 1000,
    ) -> None:
        limits = {
            "num_workers": num_workers,
            "wall_seconds": wall_seconds,
            "cpu_seconds": cpu_seconds,
            "memory_bytes": memory_bytes,
            "max_jobs": max_jobs,
        }
        for name, value in limits.items():
            if not value > 0:
                raise ValueError(f"{name} {value} is not above 0; give it a positive value")
        self.num_workers = num_workers
        self.wall_seconds = wall_seconds
        self.max_jobs = max_jobs
        self._command = [sys.executable, "-P", _PROGRAM, str(memory_bytes), str(cpu_seconds)]
        self._free: queue.LifoQueue[_Worker] = queue.LifoQueue()
        self._workers = [_Worker() for _ in range(num_workers)]
        for worker in self._workers:
            self._free.put(worker)
        self._finalizer = weakref.finalize(self, _stop_all, self._workers, os.getpid())

    def compare(self, answer: str, gold: str) -> Comparison:
        """Return whether ``answer`` equals ``gold``, or how the comparison ended. Waits for a free process.

        Raises:
            RuntimeError: The grading process cannot be started at all, for example since math-verify is missing.
        """
        worker = self._free.get()
        try:
            if worker.process is None or worker.jobs >= self.max_jobs:
                worker.start(self._command)
            return worker.ask({"answer": answer, "gold": gold}, self.wall_seconds)
        except BaseException:
            worker.stop()
            raise
        finally:
            self._free.put(worker)

    def close(self) -> None:
        """End all processes and wait for them. The pool can be used again, which starts new ones."""
        _stop_all(self._workers, os.getpid())

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@functools.lru_cache(maxsize=1)
def _pool_of(pid: int) -> WorkerPool:
    return WorkerPool()


_pool_lock = threading.Lock()


def shared_pool() -> WorkerPool:
    """Return this process's pool of one worker; a forked child gets its own."""
    with _pool_lock:
        return _pool_of(os.getpid())


class _Worker:
    """One process and its pipes."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.jobs = 0
        self._unread = b""

    def start(self, command: list[str]) -> None:
        self.stop()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        self.jobs, self._unread = 0, b""
        if (self._read(_START_SECONDS) or {}).get("outcome") != "ready":
            self.stop()
            raise RuntimeError(
                "the grading process did not start; see if python -c 'import math_verify' works, or raise its memory"
            )

    def ask(self, job: dict[str, str], wall_seconds: float) -> Comparison:
        process = self.process
        assert process is not None
        assert process.stdin is not None
        self.jobs += 1
        try:
            process.stdin.write(json.dumps(job).encode() + b"\n")
            reply = self._read(wall_seconds)
        except BrokenPipeError:
            reply = None
        if reply is None:
            try:
                status = process.wait(0.2)
            except subprocess.TimeoutExpired:
                status = -signal.SIGXCPU  # still at it when the clock ran out
            reply = {"outcome": "timeout" if status == -signal.SIGXCPU else "crashed", "last": True}
        if reply["last"]:
            self.stop()
        outcome: Comparison = reply["outcome"]
        return outcome

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.kill()  # it keeps nothing that could be lost
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def _read(self, seconds: float) -> dict[str, Any] | None:
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
        reply: dict[str, Any] = json.loads(line)
        return reply


def _stop_all(workers: list[_Worker], owner: int) -> None:
    if os.getpid() == owner:  # a forked child must not end the processes of its parent
        for worker in workers:
            worker.stop()
