"""What the training loop asks of an evaluation by sampling; ``lit_thinkfast.metrics.ReasoningEvaluator`` answers it."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from lit_thinkfast.records import Problem


@runtime_checkable
class Evaluator(Protocol):
    """Samples answers to problems and measures them, over all ranks of a run."""

    def setup(self, num_problems: int) -> None:
        """Make room for the problems of the whole evaluation set; called on every rank before each round."""

    def reset(self) -> None:
        """Forget what was seen."""

    def evaluate(self, model: Any, tokenizer: Any, problems: list[Problem], ids: list[int]) -> None:
        """Sample and grade ``problems``, whose places in the evaluation set are ``ids``; on this rank alone."""

    def compute(self) -> dict[str, float]:
        """Return the measures over all ranks, the same on each; called on every rank after each round."""
