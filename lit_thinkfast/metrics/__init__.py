"""Accuracy under test-time compute: estimators on tensors, torchmetrics on a grid, and the evaluator that fills it.

Names are imported when first touched: :mod:`lit_thinkfast.metrics.functional` needs torch alone, the classes need
torchmetrics.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_thinkfast.metrics.accuracy import (
        AccuracyAtK,
        BestOfNAccuracy,
        Coverage,
        MajorityVoteAccuracy,
        WeightedBestOfNAccuracy,
        accuracy_metrics,
    )
    from lit_thinkfast.metrics.compat import COMPAT, accuracies_as
    from lit_thinkfast.metrics.evaluator import ReasoningEvaluator
    from lit_thinkfast.metrics.grid import SampleGrid
    from lit_thinkfast.metrics.tables import Grid, accuracies, accuracy_curves, accuracy_intervals, verdict_grid

__all__ = [
    "COMPAT",
    "AccuracyAtK",
    "BestOfNAccuracy",
    "Coverage",
    "Grid",
    "MajorityVoteAccuracy",
    "ReasoningEvaluator",
    "SampleGrid",
    "WeightedBestOfNAccuracy",
    "accuracies",
    "accuracies_as",
    "accuracy_curves",
    "accuracy_intervals",
    "accuracy_metrics",
    "verdict_grid",
]

_HOME = {
    "COMPAT": "compat",
    "AccuracyAtK": "accuracy",
    "BestOfNAccuracy": "accuracy",
    "Coverage": "accuracy",
    "MajorityVoteAccuracy": "accuracy",
    "WeightedBestOfNAccuracy": "accuracy",
    "ReasoningEvaluator": "evaluator",
    "SampleGrid": "grid",
    "Grid": "tables",
    "accuracies": "tables",
    "accuracies_as": "compat",
    "accuracy_curves": "tables",
    "accuracy_intervals": "tables",
    "accuracy_metrics": "accuracy",
    "verdict_grid": "tables",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
