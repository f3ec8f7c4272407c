"""Can the scores still tell the best samples apart? In bf16, probabilities of good samples tie at exactly 1.

Of 256 published samples for each of three problems, 94, 1 and 97 had a score of exactly 1.0, with 28 to 46 distinct
values a problem: best-of-N was then the first sample with a score of 1. Log-odds in float32 do not tie there; scores of
other makes may.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from lit_thinkfast.records import Completion
from lit_thinkfast.verification.scores import RewardScore

MOST_TIED = 0.05
"""Share of samples tied for the best above which scores are called saturated."""


@dataclass(frozen=True)
class Saturation:
    """How well scores tell the samples of a problem apart. Equal texts of a problem count once.

    Attributes:
        num_texts: Different texts behind the figures, all problems together.
        share_tied_at_top: Share of a problem's texts that tie for its highest score, 0 where one alone has it; mean
            over problems.
        share_tied_at_top_bf16: The same, had probabilities been kept in bf16.
        share_one_bf16: Share of texts whose probability rounds to exactly 1 in bf16.
        share_distinct: Different scores of a problem for each of its texts; mean over problems.
    """

    num_texts: int
    share_tied_at_top: float
    share_tied_at_top_bf16: float
    share_one_bf16: float
    share_distinct: float

    @property
    def warning(self) -> str | None:
        """One line for the user if the best of several samples is often left to chance."""
        if self.share_tied_at_top <= MOST_TIED:
            return None
        return (
            f"the reward model's scores are saturated: {self.share_tied_at_top:.0%} of a problem's samples tie for its "
            "best, so best-of-N picks among them by chance; have it give log-odds in float32"
        )


def saturation_of(scores: Sequence[RewardScore], completions: Sequence[Completion]) -> Saturation:
    """Measure how far scores tie.

    Args:
        scores: One for each completion.
        completions: Any number a problem.

    Raises:
        ValueError: Their numbers differ, or there are none.

    >>> texts = [Completion("p", i, str(i), 1, 1, "stop", 0.0, 0.0) for i in range(4)]
    >>> saturation_of([RewardScore((x,), x) for x in (9.0, 9.5, 7.0, -1.0)], texts)
    Saturation(num_texts=4, share_tied_at_top=0.0, share_tied_at_top_bf16=0.75, share_one_bf16=0.75, share_distinct=1.0)
    """
    ties = Ties()
    ties.add(scores, completions)
    return ties.measure()


class Ties:
    """Collects scores, a part at a time, and measures how far they tie."""

    def __init__(self) -> None:
        self._log_odds: dict[str, dict[int, float]] = {}  # problem -> hash of text -> log-odds

    def add(self, scores: Sequence[RewardScore], completions: Sequence[Completion]) -> None:
        """Take some scores, one for each completion."""
        for score, completion in zip(scores, completions, strict=True):
            self._log_odds.setdefault(completion.problem_id, {})[hash(completion.text)] = score.log_odds

    def measure(self) -> Saturation:
        """Return the figures.

        Raises:
            ValueError: There are no scores.
        """
        log_odds = [list(texts.values()) for texts in self._log_odds.values()]
        if not log_odds:
            raise ValueError("there are no scores to measure")
        halves = [[bf16(RewardScore((), value).score) for value in values] for values in log_odds]
        count = sum(map(len, log_odds))
        return Saturation(
            count,
            _mean([_tied_at_top(values) for values in log_odds]),
            _mean([_tied_at_top(values) for values in halves]),
            sum(value == 1 for values in halves for value in values) / count,
            _mean([len(set(values)) / len(values) for values in log_odds]),
        )


def bf16(value: float) -> float:
    """Return a positive number rounded to bfloat16, to nearest, ties to even.

    >>> bf16(0.998), bf16(0.999)
    (0.99609375, 1.0)
    """
    (bits,) = struct.unpack("I", struct.pack("f", value))
    bits += 0x7FFF + (bits >> 16 & 1)
    rounded: float = struct.unpack("f", struct.pack("I", bits & 0xFFFF0000))[0]
    return rounded


def _tied_at_top(values: list[float]) -> float:
    best = values.count(max(values))
    return best / len(values) if best > 1 else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
