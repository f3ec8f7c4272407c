"""The program of a grading process: compares answers with math-verify under limits of memory and processor time.

Run as a script, by path, so that it imports nothing but math-verify. One JSON object a line comes in on stdin
(``{"answer": ..., "gold": ...}``) and one goes out on stdout (``{"outcome": ..., "last": ...}``). It ends when stdin
does, and after an outcome that may have left the interpreter in a bad state (``last``).
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any


def main(memory_bytes: int, cpu_seconds: int) -> None:
    """Serve comparisons until stdin ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whatever a parser prints must not be taken for a reply
    limit_resources(memory_bytes)
    logging.disable(logging.CRITICAL)
    import math_verify

    def reply(outcome: str, *, last: bool = False) -> None:
        replies.write(json.dumps({"outcome": outcome, "last": last}) + "\n")
        replies.flush()

    reply("ready")
    for line in sys.stdin:
        job = json.loads(line)
        allow_cpu(cpu_seconds)
        try:
            reply(compare(math_verify, job["answer"], job["gold"]))
        except (MemoryError, RecursionError) as error:
            reply("oom" if isinstance(error, MemoryError) else "unparsable", last=True)
            break
        except Exception:
            reply("unparsable")


def compare(math_verify: Any, answer: str, gold: str) -> str:
    """Return ``correct``, ``incorrect``, or ``unparsable`` if either text is no mathematics."""
    parsed = [
        math_verify.parse(f"${text}$", parsing_timeout=None, raise_on_error=True)
        or math_verify.parse(text, parsing_timeout=None, raise_on_error=True)
        for text in (gold, answer)
    ]
    if not all(parsed):
        return "unparsable"
    return "correct" if math_verify.verify(*parsed, timeout_seconds=None, raise_on_error=True) else "incorrect"


def limit_resources(memory_bytes: int) -> None:
    """Limit address space and open files, and leave no core files. Systems without such limits rely on the clock."""
    try:
        import resource
    except ImportError:
        return
    for kind, value in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 64)):
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):  # macOS knows RLIMIT_AS but refuses it
            continue


def allow_cpu(seconds: int) -> None:
    """Let the process use ``seconds`` of processor time from now; beyond, the system ends it with SIGXCPU."""
    try:
        import resource
    except ImportError:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    limit = int(used.ru_utime + used.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


if __name__ == "__main__":
    main(memory_bytes=int(sys.argv[1]), cpu_seconds=int(sys.argv[2]))
