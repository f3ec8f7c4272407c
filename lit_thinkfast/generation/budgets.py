r"""The two kinds of time budgets, as functions of measured numbers.

**What k samples would cost** (:class:`Throughput`), the budget of arXiv:2502.20339: samples of a fixed average length,
decoded at the best batch size that fits the memory, k of them for each problem:

.. math:: \text{seconds}(k) = k \cdot \frac{\text{tokens a sample}}{\text{tokens a second}}

The device is full whatever k is (with other problems, or other users), so this is throughput time, not the time that
one problem waits. Encoding the prompt is paid once a problem and is a number of its own.

**What was finished by a deadline** (:func:`finished_by`): one run that noted when each completion ended answers for
every shorter budget, since a shorter run would have done the same things in the same order. By a deadline, short
completions are more often finished than long ones: that belongs to a deadline, but such samples are not a random
subset of all, so what they give is the value of this run at that time rather than an expectation over samples.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from lit_thinkfast.records import Completion

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(given: str | float) -> float:
    """Return the seconds in a duration like ``60s``, ``10m``, ``1.5h``, or plain seconds.

    Raises:
        ValueError: It is something else, or not above 0.

    >>> parse_duration("10m"), parse_duration("1.5h"), parse_duration(90)
    (600.0, 5400.0, 90.0)
    """
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([smh]?)", str(given).strip())
    if not found or not (seconds := float(found[1]) * _UNITS[found[2]]):
        raise ValueError(f"{given!r} is not a duration above 0; write it like 60s, 10m, 2h, or as seconds")
    return seconds


class MeasuredPoint(Protocol):
    """What :class:`Throughput` needs of a measurement, for example of ``DecodePoint``."""

    @property
    def batch_size(self) -> int: ...
    @property
    def tokens_per_second(self) -> float: ...
    @property
    def memory_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Throughput:
    """Seconds for k samples of one problem, from the throughput of a model.

    Attributes:
        batch_size: At which it was measured.
        tokens_per_second: Decode throughput of the whole batch.
        tokens_per_sample: Generated tokens, mean over problems.
        prefill_seconds: To encode the prompt of one problem, which its samples share.

    >>> cost = Throughput(batch_size=64, tokens_per_second=1000.0, tokens_per_sample=250.0, prefill_seconds=0.1)
    >>> cost.decode_seconds(8), cost.seconds(8)
    (2.0, 2.1)
    """

    batch_size: int
    tokens_per_second: float
    tokens_per_sample: float
    prefill_seconds: float = 0.0

    def decode_seconds(self, k: int) -> float:
        """Return the seconds of decoding ``k`` samples: the paper's budget."""
        return k * self.tokens_per_sample / self.tokens_per_second

    def seconds(self, k: int) -> float:
        """Return the seconds of ``k`` samples with the encoding of their prompt, once."""
        return self.prefill_seconds + self.decode_seconds(k)

    def samples_within(self, seconds: float) -> int:
        """Return the largest k with ``seconds(k)`` within ``seconds``, 0 if there is none."""
        left = seconds - self.prefill_seconds
        return max(0, int(left * self.tokens_per_second / self.tokens_per_sample * (1 + 1e-12)))


def throughput(
    points: Iterable[MeasuredPoint],
    completions: Sequence[Completion],
    *,
    memory_budget_bytes: float | None = None,
    prefill_seconds: float = 0.0,
) -> Throughput:
    """Put measured speed and the lengths of real completions together.

    Args:
        points: Of one model, at several batch sizes.
        completions: Of the same model on the problems in question.
        memory_budget_bytes: For weights and caches; ``None``: whatever was measured fits.
        prefill_seconds: To encode one prompt; 0 leaves it out, as the paper does.

    Raises:
        ValueError: No completions, or no point within the memory budget.
    """
    best = best_point(points, memory_budget_bytes=memory_budget_bytes)
    return Throughput(best.batch_size, best.tokens_per_second, tokens_per_sample(completions), prefill_seconds)


def best_point(points: Iterable[MeasuredPoint], *, memory_budget_bytes: float | None = None) -> MeasuredPoint:
    """Return the measurement with the highest throughput among those that fit the memory.

    Raises:
        ValueError: None fits.
    """
    measured = list(points)
    fitting = [p for p in measured if memory_budget_bytes is None or p.memory_bytes <= memory_budget_bytes]
    if not fitting:
        least = min((p.memory_bytes for p in measured), default=None)
        if least is None:
            raise ValueError("there are no measurements to take a throughput from; measure one with benchmark")
        raise ValueError(
            f"no measurement fits memory_budget_bytes {memory_budget_bytes:,.0f}: the smallest takes {least:,}; "
            "measure a smaller batch or allow more"
        )
    return max(fitting, key=lambda p: p.tokens_per_second)


def tokens_per_sample(completions: Iterable[Completion]) -> float:
    """Return the tokens of one completion: the mean over problems of the mean over their samples.

    Raises:
        ValueError: No completions.
    """
    lengths = defaultdict(list)
    for c in completions:
        lengths[c.problem_id].append(c.num_tokens)
    if not lengths:
        raise ValueError("there are no completions to take lengths from; sample some first")
    return statistics.fmean(statistics.fmean(each) for each in lengths.values())


def finished_by(completions: Iterable[Completion], seconds: float) -> list[Completion]:
    """Return the completions that a run with a time budget of ``seconds`` would have had.

    Raises:
        ValueError: A completion does not say when it was finished.
    """
    found = []
    for c in completions:
        if c.finished_seconds is None:
            raise ValueError(
                f"sample {c.sample} of problem {c.problem_id!r} has no finished_seconds (another engine, an earlier "
                "version?); sample again to ask for shorter time budgets"
            )
        if c.finished_seconds <= seconds:
            found.append(c)
    return found


def samples_by(completions: Iterable[Completion], seconds: float, problem_ids: Iterable[str]) -> dict[str, int]:
    """Return how many samples each problem had by ``seconds``, 0 for those without.

    Raises:
        ValueError: As :func:`finished_by`.
    """
    counts = Counter(c.problem_id for c in finished_by(completions, seconds))
    return {problem_id: counts[problem_id] for problem_id in problem_ids}
