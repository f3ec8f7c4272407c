"""The program of a grading process: compares answers with math-verify, each comparison in a fork that may be killed.

Run as a script, by path, so that it imports nothing but math-verify. It loads math-verify once, reads no answer itself,
and forks for each comparison: the fork has limits of memory, processor time and clock that the operating system holds,
for computer algebra hangs in big-integer code that listens to nobody. A fork that is ended costs milliseconds, and no
comparison sees what another left behind, so its outcome is a function of the two answers alone.

One JSON object a line comes in on stdin (``{"answer": ..., "gold": ...}``), and the word for its outcome goes out on
stdout, a line each, after a first line ``ready``. It ends when stdin does, or when its parent does: stdin may outlive
that one, for other processes that it forked may hold its other end.

The first wall is that no text is ever evaluated. The second is what a fork may do if a parser had a hole, and it is no
sandbox. A fork writes no byte to a file, has few files and connections open at a time, and gains no privileges from a
program it starts (on Linux); except for root, whom the system exempts, it starts no process. It may still read, create,
empty, rename and remove whatever its user may, and use the network.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import resource
import select
import signal
import sys
from collections.abc import Iterator
from typing import Any

OUTCOMES = ("correct", "incorrect", "unparsable", "oom")
"""Exit status of a fork, less :data:`FIRST_STATUS` -> outcome; all other ends are told by their signal."""
FIRST_STATUS = 10

OPEN_FILES = 16
"""Files a fork may have open: enough to import what math-verify loads late."""

PARENT_SECONDS = 1.0
"""How often a process that waits for work looks whether its parent lives. The system's own signal for that death is
none for us: it comes when the *thread* ends that started the process, and ours are started by short-lived ones."""


def main(memory_bytes: int, cpu_seconds: float, wall_seconds: float, parent: int) -> None:
    """Serve comparisons until stdin ends or ``parent``, a process id, is our parent no more."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)  # whatever a parser prints must not be taken for a reply
    for ending in (
        signal.SIGPROF,
        signal.SIGALRM,
        signal.SIGINT,
    ):  # they may have been ignored or blocked by the caller
        signal.signal(ending, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    limit(resource.RLIMIT_AS, memory_bytes)
    limit(resource.RLIMIT_CORE, 0)
    logging.disable(logging.CRITICAL)
    sys.dont_write_bytecode = True
    import math_verify

    for gold, answer in WARM_UP:
        compare(math_verify, answer, gold)
    os.chdir("/")  # no file of the caller's is in reach of a bare name
    gain_no_privileges()
    gc.collect()
    gc.disable()  # forks are short: a collector would touch, and so copy, what they share
    print("ready", file=replies, flush=True)
    for line in jobs(parent):
        child = os.fork()
        if child == 0:
            os.dup2(nowhere, 0)
            replies.close()
            os._exit(FIRST_STATUS + OUTCOMES.index(run(math_verify, line, cpu_seconds, wall_seconds)))
        print(outcome_of(os.waitpid(child, 0)[1]), file=replies, flush=True)


def jobs(parent: int) -> Iterator[bytes]:
    """Yield the lines of stdin until it ends or ``parent`` does."""
    unread = b""
    while os.getppid() == parent:
        if select.select([0], [], [], PARENT_SECONDS)[0]:
            chunk = os.read(0, 65536)
            if not chunk:
                return
            *lines, unread = (unread + chunk).split(b"\n")
            yield from lines


WARM_UP = (
    ("x+1", "1+x"),
    (r"\frac{1}{\sqrt{3}}", r"\frac{\sqrt{3}}{3}"),
    (r"(1,\pi]", "[1,2)"),
    (r"\sin x", r"\cos x"),
)
"""Pairs compared before the first fork: they load what math-verify loads late, and its parser's tables."""


def run(math_verify: Any, line: str | bytes, cpu_seconds: float, wall_seconds: float) -> str:
    """Compare within a fork, under limits."""
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    signal.setitimer(signal.ITIMER_REAL, wall_seconds)
    limit(resource.RLIMIT_NPROC, 0)
    limit(resource.RLIMIT_FSIZE, 0)
    limit(resource.RLIMIT_NOFILE, OPEN_FILES)
    try:
        job = json.loads(line)
        return compare(math_verify, job["answer"], job["gold"])
    except MemoryError:
        return "oom"
    except Exception:  # too deep a recursion among them
        return "unparsable"


def compare(math_verify: Any, answer: str, gold: str) -> str:
    """Return ``correct``, ``incorrect``, or ``unparsable`` if either text is no mathematics."""
    parsed = [
        math_verify.parse(f"${text}$", parsing_timeout=None, raise_on_error=True)
        or math_verify.parse(text, parsing_timeout=None, raise_on_error=True)
        for text in (gold, answer)
    ]
    if any(all(isinstance(reading, str) for reading in readings) for readings in parsed):
        return "unparsable"  # math-verify hands back the text of what it could not read
    return "correct" if math_verify.verify(*parsed, timeout_seconds=None, raise_on_error=True) else "incorrect"


def outcome_of(status: int) -> str:
    """Return the word for the end of a fork."""
    code = os.waitstatus_to_exitcode(status)
    if code in (-signal.SIGPROF, -signal.SIGALRM):
        return "timeout"
    return OUTCOMES[code - FIRST_STATUS] if 0 <= code - FIRST_STATUS < len(OUTCOMES) else "crashed"


def limit(kind: int, value: int) -> None:
    """Limit a resource of this process and its forks, as far as the system knows that limit."""
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    try:
        resource.setrlimit(kind, (value, value))
    except (ValueError, OSError):  # macOS knows RLIMIT_AS but refuses it
        return


def gain_no_privileges() -> None:
    """Let no program that this process or its forks start have more rights than they (Linux)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS


if __name__ == "__main__":
    memory, cpu, wall, parent = sys.argv[1:]
    main(memory_bytes=int(memory), cpu_seconds=float(cpu), wall_seconds=float(wall), parent=int(parent))
