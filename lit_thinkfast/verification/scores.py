r"""What a reward model gives: log-odds, of each step and of the whole, and what any object's scores must be.

A reward model gives each step t of a solution the log-odds l_t that all is right up to and including it. Log-odds are
kept because probabilities saturate: computed in bf16, a third of good samples tie at exactly 1. With
r_t = sigmoid(l_t) the score of a solution is r_T (``last``), min r_t, the product or the mean of r_t, computed from
log-odds without loss. Votes are weighted by the score, so it is positive; answers are ranked by log-odds.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from lit_thinkfast.records import Completion, Problem

Aggregation = Literal["last", "min", "product", "mean"]
Transform = Literal["sigmoid", "exp", "identity"]

NO_STEP = -100.0
"""Log-odds of a text without any step: as good as impossible, yet finite."""
SMALLEST = 5e-324
"""The smallest positive number: the score below which log-odds alone tell solutions apart."""
CERTAIN = 750.0
"""Log-odds of a probability of exactly 1, and minus those of one of exactly 0: finite, and beyond those of any other in
float64, which lie from log 5e-324 = -744.4 to 36.7, or 744.4 where its logarithm is given."""


@dataclass(frozen=True, slots=True)
class RewardScore:
    """Reward of one completion.

    Attributes:
        step_log_odds: Log-odds (natural logarithm) that the text is right up to and including each step.
        log_odds: The aggregate, as log-odds, rounded to float32. Rank by this one.
    """

    step_log_odds: tuple[float, ...]
    log_odds: float

    @property
    def score(self) -> float:
        """The aggregate as a probability: positive, so it can weigh votes, and exactly 1 for a certain one.

        >>> RewardScore((0.0,), 0.0).score, RewardScore((750.0,), CERTAIN).score
        (0.5, 1.0)
        """
        x = self.log_odds
        odds = math.exp(-abs(x))
        share = odds / (1 + odds)
        return 1 - share if x >= 0 else max(share, SMALLEST)  # near 1, the share that is left to one is exact


@runtime_checkable
class RewardModel(Protocol):
    """Whatever scores completions.

    Its attribute ``name``, if any, goes into the verdicts. ``timed = False`` says that what a call takes tells nothing
    of what the scores cost, as where they are only looked up. Its method ``identity()``, if any, returns plain values
    that are equal where scores are; an interrupted scoring goes on only if they are what they were.
    """

    def score(self, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[RewardScore]:
        """Return the reward of each completion, whose problem is the one of ``problems`` with its id."""
        ...


class TransformedRewardModel(RewardModel):
    """Makes a reward model of an object whose ``score(problems, completions)`` gives numbers of another kind.

    Raw rewards may be negative, and a vote with a negative weight counts against its answer. So it must be said how a
    number becomes the weight of a vote, a probability:

    - ``sigmoid``: the numbers are log-odds, or unbounded rewards of a model trained on pairs (Bradley and Terry);
    - ``exp``: they are log-probabilities, none above 0;
    - ``identity``: they are probabilities, from 0 to 1.

    Args:
        model: Gives one number for each completion, or a list of those of its steps.
        transform: From number to weight.
        aggregation: From steps to solution.
        name: For the verdicts. Default: the model's own, and the transform.

    Raises:
        ValueError: Unknown transform or aggregation; at a score, a number that is not of its kind.
    """

    def __init__(self, model: Any, *, transform: Transform, aggregation: Aggregation = "last", name: str = "") -> None:
        if transform not in Transform.__args__:  # type: ignore[attr-defined]
            raise ValueError(f"transform {transform!r} is not one of sigmoid, exp, identity")
        check_aggregation(aggregation)
        self.model = model
        self.transform: Transform = transform
        self.aggregation: Aggregation = aggregation
        self.name = name or f"{name_of(model)} ({transform})"
        self.timed = is_timed(model)

    def score(self, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[RewardScore]:
        found = self.model.score(problems, completions)
        _check_count(found, completions, self.name)
        scores = []
        for given, completion in zip(found, completions, strict=True):
            given = given.tolist() if hasattr(given, "tolist") else given  # of numpy or torch
            numbers = given if isinstance(given, (list, tuple)) else [given]
            steps = tuple(self._log_odds(number, completion) for number in numbers)
            scores.append(RewardScore(steps, aggregate(steps, self.aggregation)))
        return scores

    def identity(self) -> dict[str, Any]:
        return {"raw": identity_of(self.model), "transform": self.transform, "aggregation": self.aggregation}

    def _log_odds(self, number: Any, completion: Completion) -> float:
        """Return the log-odds of the weight that a number stands for."""
        try:
            x = float(number)
        except (TypeError, ValueError):
            raise ValueError(
                f"{self.name} gives {_spelled(number)} for {_which(completion)}, which is no number"
            ) from None
        fits = {"sigmoid": math.isfinite(x), "exp": -math.inf < x <= 0, "identity": 0 <= x <= 1}[self.transform]
        if not fits:
            of_kind = {"sigmoid": "finite", "exp": "a log-probability", "identity": "a probability"}[self.transform]
            raise ValueError(f"{self.name} gives {x} for {_which(completion)}, which is not {of_kind}")
        if self.transform == "sigmoid":
            return x
        return log_odds_of(x) if self.transform == "identity" else log_odds_of_log(x)


def name_of(model: Any) -> str:
    """Return the name under which a reward model's scores go into verdicts."""
    return str(getattr(model, "name", "") or type(model).__name__)


def is_timed(model: Any) -> bool:
    """Return whether the time that a reward model takes is that of scoring: true unless its ``timed`` says no."""
    return bool(getattr(model, "timed", True))


def identity_of(model: Any) -> dict[str, Any]:
    """Return what must be equal for two calls to score alike, as far as the reward model tells: its name at least."""
    tell = getattr(model, "identity", None)
    return {"reward_model": name_of(model), **(tell() if callable(tell) else {})}


def checked_scores(scores: Any, completions: Sequence[Completion], name: str) -> list[RewardScore]:
    """Return what a reward model gave, after checking that it is one finite score for each completion.

    Raises:
        ValueError: It is not; the message names the reward model, the problem and the sample.
    """
    _check_count(scores, completions, name)
    for score, completion in zip(scores, completions, strict=True):
        if not isinstance(score, RewardScore):
            raise ValueError(
                f"{name} gives {_spelled(score)} for {_which(completion)}, not a RewardScore; wrap it in "
                "TransformedRewardModel, which says how a number becomes the positive weight of a vote"
            )
        for value in (score.log_odds, *score.step_log_odds):
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(
                    f"{name} gives log-odds of {_spelled(value)} for {_which(completion)}; they must be finite numbers "
                    "(in float16 a model may overflow: use bfloat16 or float32)"
                )
    return list(scores)


def aggregate(step_log_odds: Sequence[float], aggregation: Aggregation) -> float:
    """Return the log-odds of the aggregated probability, rounded to float32; ``NO_STEP`` if there is no step.

    ``product``: log P = sum of log sigmoid(l), and its log-odds log P - log(1 - P). ``mean``: the log of the sum of
    sigmoid(l) over that of sigmoid(-l).

    >>> aggregate([2.0, -1.0, 0.5], "last"), aggregate([2.0, -1.0, 0.5], "min"), aggregate([1.5, -1.5], "mean")
    (0.5, -1.0, 0.0)
    """
    if not step_log_odds:
        return NO_STEP
    if aggregation == "last":
        value = step_log_odds[-1]
    elif aggregation == "min":
        value = min(step_log_odds)
    elif aggregation == "product":
        log_p = math.fsum(_log_sigmoid(x) for x in step_log_odds)
        value = log_p - (math.log(-math.expm1(log_p)) if log_p < 0 else -math.inf)
    else:
        value = _log_sum_exp([_log_sigmoid(x) for x in step_log_odds])
        value -= _log_sum_exp([_log_sigmoid(-x) for x in step_log_odds])
    value = min(max(value, -1e30), 1e30)
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded


def check_aggregation(aggregation: str) -> None:
    """Raise ``ValueError`` if there is no such aggregation."""
    if aggregation not in Aggregation.__args__:  # type: ignore[attr-defined]
        raise ValueError(f"aggregation {aggregation!r} is not one of last, min, product, mean")


def log_odds_of(probability: float) -> float:
    """Return log p - log(1 - p): finite, and never smaller for a larger p, for any float64 from 0 to 1.

    Exactly 0 and 1 become -750 and 750, beyond all others, and :attr:`RewardScore.score` is exactly 1 for the latter.

    Raises:
        ValueError: It is no probability.

    >>> log_odds_of(0.5), log_odds_of(1.0), log_odds_of(0.0)
    (0.0, 750.0, -750.0)
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"{probability!r} is no probability; it must be from 0 to 1")
    if probability in (0, 1):
        return CERTAIN if probability else -CERTAIN
    return math.log(probability) - math.log1p(-probability)


def log_odds_of_log(log_p: float) -> float:
    """Return :func:`log_odds_of` of a log-probability; one that rounding has put above 0 is taken for 0.

    A log-probability may lie below any that a probability in float64 has: then its log-odds are it.

    >>> round(log_odds_of_log(math.log(0.75)), 6) == round(math.log(3), 6), log_odds_of_log(0.0)
    (True, 750.0)
    """
    return log_p - math.log(-math.expm1(log_p)) if log_p < 0 else CERTAIN


def _check_count(scores: Any, completions: Sequence[Completion], name: str) -> None:
    if not hasattr(scores, "__len__") or len(scores) != len(completions):
        got = len(scores) if hasattr(scores, "__len__") else type(scores).__name__
        raise ValueError(f"{name} gives {got} scores for {len(completions)} completions; it must give one for each")


def _which(completion: Completion) -> str:
    return f"sample {completion.sample} of problem {completion.problem_id!r}"


def _spelled(value: Any) -> str:
    return f"{value!r}"[:80]


def _log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def _log_sum_exp(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))
