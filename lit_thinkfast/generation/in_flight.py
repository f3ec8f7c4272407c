"""Requests that an engine elsewhere works on, several at a time: what is asked and answered, and whose the seconds are.

An engine that serves many requests at once gives no bill for one of them. Here each instant is divided equally among
the requests that are in flight then; an instant with none in flight is nobody's. So the shares add up to the time in
which at least one request was in flight, which is the clock of such a run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


@dataclass(frozen=True, slots=True)
class Job:
    """One sample that is wanted.

    Attributes:
        problem_id: Whose.
        sample: Its index.
        prompt: Token ids.
        parameters: Sampling parameters by the names that vLLM has for them, see :func:`vllm.sampling_parameters`.
    """

    problem_id: str
    sample: int
    prompt: list[int]
    parameters: dict[str, Any]


class Share(NamedTuple):
    """What a request cost.

    Attributes:
        seconds: Its part of the time in which it was in flight.
        latency: All of that time.
        finished: Seconds of the clock when it ended.
    """

    seconds: float
    latency: float
    finished: float


@dataclass(frozen=True, slots=True)
class Answer:
    """A sample that an engine has made.

    Attributes:
        job: What was asked.
        tokens: Generated token ids, the end token included.
        finish_reason: As vLLM says it: ``stop``, ``length``, or what went wrong.
        share: What it cost.
    """

    job: Job
    tokens: list[int]
    finish_reason: str
    share: Share


class Tick(NamedTuple):
    """Nothing new but the time.

    Attributes:
        seconds: Of the clock.
        in_flight: Requests in flight.
        most: Most that were in flight together.
    """

    seconds: float
    in_flight: int
    most: int


class EngineFacts(NamedTuple):
    """What an engine says of itself.

    Attributes:
        model: Name under which it has the model.
        version: Of vLLM.
        positions: Tokens that prompt and completion may have together, or ``None`` if it does not say.
    """

    model: str
    version: str
    positions: int | None


class Engine(Protocol):
    """Something that continues prompts, several at a time."""

    def facts(self) -> EngineFacts:
        """Return what it says of itself."""

    def encode(self, text: str) -> list[int] | None:
        """Return the tokens of a text, without special ones, by the engine's own tokenizer; ``None`` if it won't."""

    def describe(self) -> dict[str, Any]:
        """Return ``device`` and ``device_name`` for a reader, no names of machines among them."""

    def run(self, jobs: Iterator[Job], *, width: int, seconds: float | None = None) -> Generator[Answer | Tick]:
        """Work on jobs, begun in their order, and yield answers as they come, with a tick now and then and at the end.

        Args:
            jobs: Taken one by one when there is room.
            width: Most jobs in flight.
            seconds: When the clock of this call has gone so far, begin no more and give up what is in flight.
        """


class SharedClock:
    """Counts the time in which anything is in flight, and divides it equally among what is. Any thread may use it.

    Args:
        now: Monotonic clock in seconds; tests pass their own.

    Attributes:
        most: Most requests that were in flight together.
    """

    def __init__(self, *, now: Callable[[], float] = time.perf_counter) -> None:
        self.most = 0
        self._now = now
        self._lock = threading.Lock()
        self._count = 0
        self._busy = self._each = self._seen = 0.0

    @property
    def busy(self) -> float:
        """Seconds so far in which at least one request was in flight."""
        with self._lock:
            self._look()
            return self._busy

    @property
    def in_flight(self) -> int:
        """Requests in flight."""
        return self._count

    @contextmanager
    def timing(self, shares: list[Share]) -> Iterator[None]:
        """Be in flight for a while; what it cost is appended to ``shares``, whatever the end was."""
        with self._lock:
            start = self._look()
            each = self._each
            self._count += 1
            self.most = max(self.most, self._count)
        try:
            yield
        finally:
            with self._lock:
                end = self._look()
                self._count -= 1
                shares.append(Share(seconds=self._each - each, latency=end - start, finished=self._busy))

    def _look(self) -> float:
        """Account for the time since the last look. One request that was there all along has got ``_each`` of it."""
        now = self._now()
        if self._count:
            self._busy += now - self._seen
            self._each += (now - self._seen) / self._count
        self._seen = now
        return now


def divide(intervals: Sequence[tuple[float, float]]) -> list[Share]:
    """Return what requests cost that were in flight from ``intervals[i][0]`` to ``intervals[i][1]``, in seconds.

    >>> divide([(10.0, 14.0), (11.0, 13.0)])
    [Share(seconds=3.0, latency=4.0, finished=4.0), Share(seconds=1.0, latency=2.0, finished=3.0)]
    """
    moment = 0.0
    clock = SharedClock(now=lambda: moment)
    running: dict[int, Any] = {}
    found: list[list[Share]] = [[] for _ in intervals]
    events = sorted((time_, ends, i) for i, pair in enumerate(intervals) for ends, time_ in enumerate(pair))
    for moment, ends, i in events:  # noqa: B007 - the clock reads it
        if ends:
            running.pop(i).__exit__(None, None, None)
        else:
            running[i] = clock.timing(found[i])
            running[i].__enter__()
    return [shares[0] for shares in found]
