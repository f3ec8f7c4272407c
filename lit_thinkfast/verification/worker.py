"""The program of a grading process: compares answers with math-verify, each comparison in a fork that may be killed.

Run as a script, by path, so that it imports nothing but math-verify. It loads math-verify once, reads no answer itself,
and forks for each comparison: the fork has limits of memory, processor time and clock that the operating system holds,
for computer algebra hangs in big-integer code that listens to nobody. A fork that is ended costs milliseconds, and no
comparison sees what another left behind, so its outcome is a function of the two answers alone.

One JSON object a line comes in on stdin (``{"answer": ..., "gold": ...}``), and the word for its outcome goes out on
stdout, a line each, after a first line ``ready``. It ends when stdin does.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import resource
import signal
import sys
from typing import Any

OUTCOMES = ("correct", "incorrect", "unparsable", "oom")
"""Exit status of a fork, less :data:`FIRST_STATUS` -> outcome; all other ends are told by their signal."""
FIRST_STATUS = 10


def main(memory_bytes: int, cpu_seconds: float, wall_seconds: float) -> None:
    """Serve comparisons until stdin ends."""
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
    gc.collect()
    gc.disable()  # forks are short: a collector would touch, and so copy, what they share
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os.dup2(nowhere, 0)
            replies.close()
            os._exit(FIRST_STATUS + OUTCOMES.index(run(math_verify, line, cpu_seconds, wall_seconds)))
        print(outcome_of(os.waitpid(child, 0)[1]), file=replies, flush=True)


WARM_UP = (
    ("x+1", "1+x"),
    (r"\frac{1}{\sqrt{3}}", r"\frac{\sqrt{3}}{3}"),
    (r"(1,\pi]", "[1,2)"),
    (r"\sin x", r"\cos x"),
)
"""Pairs compared before the first fork: they load what math-verify loads late, and its parser's tables."""


def run(math_verify: Any, line: str, cpu_seconds: float, wall_seconds: float) -> str:
    """Compare within a fork, under limits."""
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    signal.setitimer(signal.ITIMER_REAL, wall_seconds)
    for kind in (resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):  # it is to start nothing and write nothing
        limit(kind, 0)
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


if __name__ == "__main__":
    main(memory_bytes=int(sys.argv[1]), cpu_seconds=float(sys.argv[2]), wall_seconds=float(sys.argv[3]))
