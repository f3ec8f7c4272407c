"""What each process added to a journal, on what machine, and how the engine's clock runs on from one to the next.

The clock of a run counts engine seconds: those in which its samplers work. Sessions follow one another on it, each
begins (``engine_seconds_before``) where the last one ended, so the time between them is nobody's. Processes that
sample together run on the same clock at the same time: the run's ``engine_seconds`` are those of the slowest,
``device_seconds`` are all of theirs added up.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import statistics
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lit_thinkfast.generation.calibration import disturbance, disturbed, drift
from lit_thinkfast.generation.describe import git_state, now
from lit_thinkfast.generation.journal import Journal, read_clock
from lit_thinkfast.generation.ranks import Rank
from lit_thinkfast.generation.sampling import BaseSampler
from lit_thinkfast.records import Completion

_log = logging.getLogger(__name__)
_MACHINE = ("device", "device_name", "threads", "versions")
# Largest values, not sums
_PEAKS = ("cache_bytes", "peak_rows")


class Session:
    """What one process adds to a journal.

    Args:
        sampler: Does the work.
        described: What :meth:`BaseSampler.describe` says.
        rank: Place of the process.
        before: Engine seconds of the run so far.

    Attributes:
        values: The entry of the meta document, complete after :meth:`close`.
        stats_before: Totals of the sampler at the beginning.
    """

    def __init__(self, sampler: BaseSampler, described: Mapping[str, Any], *, rank: Rank, before: float) -> None:
        self._sampler = sampler
        self.stats_before = dataclasses.replace(sampler.stats)
        self.values: dict[str, Any] = {
            "id": uuid.uuid4().hex,
            "started": now(),
            "batch_size": sampler.config.batch_size,
            "git": git_state(),
            **{name: described[name] for name in _MACHINE if name in described},
            "load_average": {"before": _load_average()},
            "calibration": {"before": sampler.calibrate()},
            "engine_seconds_before": before,
        }
        if rank.world_size > 1:
            self.values |= {"rank": rank.rank, "world_size": rank.world_size}

    def close(self, clock: float, path: str | os.PathLike[str]) -> None:
        """Add what is known at the end. A session that was killed lacks it.

        Args:
            clock: Engine seconds of the run, as far as completions and progress told; the sampler may know of more.
            path: Of the journal, for warnings.
        """
        stats, before = self._sampler.stats, self.stats_before
        used = max(stats.engine_seconds - before.engine_seconds, clock - self.values["engine_seconds_before"])
        self.values["engine_seconds"] = used
        after, then = dataclasses.asdict(stats), dataclasses.asdict(before)
        self.values |= {name: after[name] if name in _PEAKS else after[name] - then[name] for name in after}
        self.values["load_average"]["after"] = _load_average()
        calibration = self.values["calibration"]
        calibration["after"] = self._sampler.calibrate()
        if calibration["before"] is not None and calibration["after"] is not None:
            calibration["drift"] = drift(calibration["before"], calibration["after"])
            self.values["disturbed"] = disturbed(calibration["before"], calibration["after"])
            if note := disturbance(calibration["drift"]):
                _log.warning("%s: %s: its seconds are not to be relied on", path, note)
        self.values["finished"] = now()


def run_clock(completions: Iterable[Completion], meta: Mapping[str, Any], *, noted: float = 0.0) -> float:
    """Return the engine seconds of a run so far: the latest of all that is known.

    Args:
        completions: Of its journal. Those without ``finished_seconds`` (earlier versions, other engines) count with
            their shares.
        meta: Meta document of the journal.
        noted: What a killed process noted last, see :meth:`Journal.note_clock`.
    """
    latest, untimed = noted, 0.0
    for c in completions:
        if c.finished_seconds is None:
            untimed += c.seconds
        else:
            latest = max(latest, c.finished_seconds)
    for session in meta.get("sessions", []):
        latest = max(latest, session.get("engine_seconds_before", 0.0) + session.get("engine_seconds", 0.0))
    return max(latest, untimed)


def settle(journal: Journal) -> float:
    """Give a journal's last session its seconds if it was killed, and return the engine seconds of the run."""
    clock = run_clock(journal.completions, journal.meta, noted=read_clock(journal.path))
    settle_killed(journal.meta, clock)
    return clock


def settle_killed(meta: Mapping[str, Any], clock: float) -> None:
    """Give the session that was killed, if there is one, its seconds: up to ``clock``."""
    for session in meta.get("sessions", []):
        if "engine_seconds_before" in session and "engine_seconds" not in session:
            session |= {"engine_seconds": max(0.0, clock - session["engine_seconds_before"]), "killed": True}


def totals(completions: Sequence[Completion], meta: Mapping[str, Any], *, problem_ids: Iterable[str]) -> dict[str, Any]:
    """Return sums over a journal, for its meta document.

    Args:
        completions: All of them.
        meta: Meta document with the closed sessions.
        problem_ids: The problems that were asked for, also those without a completion.

    Returns:
        ``total_samples``, ``total_tokens``; ``total_seconds``: the shares of all completions;
        ``tokens_per_second``: of one device; ``engine_seconds``: of the run, see above; ``device_seconds``: of all
        processes; ``samples_per_problem``: smallest, median and largest number.
    """
    seconds = sum(c.seconds for c in completions)
    tokens = sum(c.num_tokens for c in completions)
    counts = Counter(c.problem_id for c in completions)
    each = [counts[problem_id] for problem_id in problem_ids] or [0]
    sessions = meta.get("sessions", [])
    return {
        "total_samples": len(completions),
        "total_tokens": tokens,
        "total_seconds": seconds,
        "tokens_per_second": round(tokens / seconds, 2) if seconds else 0.0,
        "engine_seconds": run_clock(completions, meta),
        "device_seconds": sum(_device_seconds(session) for session in sessions),
        "samples_per_problem": {"min": min(each), "median": statistics.median(each), "max": max(each)}
        if each
        else None,
    }


def warn_of_mixture(sessions: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Warn where sessions differ in what seconds depend on, and texts as far as logits are rounded."""
    for name in ("device_name", "threads", "batch_size"):
        values = {str(session.get(name)) for session in sessions}
        if len(values) > 1:
            _log.warning(
                "%s mixes sessions with %s %s: its seconds are not those of one run, nor, in half precision, its texts",
                path,
                name,
                " and ".join(sorted(values)),
            )


def _device_seconds(session: Mapping[str, Any]) -> float:
    if "engine_seconds" in session:
        return float(session["engine_seconds"])
    # of an earlier version
    return float(session.get("prefill_seconds", 0.0)) + float(session.get("decode_seconds", 0.0))


def _load_average() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
