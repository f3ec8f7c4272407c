"""Training students: losses, teachers, parameter groups and schedules; the LightningModule is in ``distill.module``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_thinkfast.distill.cached import CachedTeacher
    from lit_thinkfast.distill.layerwise import HiddenStateLoss, MatrixOrientation, MixerOutputLoss
    from lit_thinkfast.distill.losses import (
        CrossEntropy,
        DistillLoss,
        ForwardKL,
        JensenShannon,
        ReverseKL,
        SkewKL,
        TopKKL,
    )
    from lit_thinkfast.distill.module import DistillationModule
    from lit_thinkfast.distill.muon import Muon
    from lit_thinkfast.distill.optim import Schedule, WarmupCosine, WarmupStableDecay, parameter_groups
    from lit_thinkfast.distill.rewards import HeadRewardLoss, RewardLoss
    from lit_thinkfast.distill.signals import Signals
    from lit_thinkfast.distill.teachers import HFTeacher, Teacher

_HOMES = {
    "CachedTeacher": "cached",
    "CrossEntropy": "losses",
    "DistillLoss": "losses",
    "DistillationModule": "module",
    "ForwardKL": "losses",
    "HFTeacher": "teachers",
    "HeadRewardLoss": "rewards",
    "HiddenStateLoss": "layerwise",
    "JensenShannon": "losses",
    "MatrixOrientation": "layerwise",
    "MixerOutputLoss": "layerwise",
    "Muon": "muon",
    "ReverseKL": "losses",
    "RewardLoss": "rewards",
    "Schedule": "optim",
    "Signals": "signals",
    "SkewKL": "losses",
    "Teacher": "teachers",
    "TopKKL": "losses",
    "WarmupCosine": "optim",
    "WarmupStableDecay": "optim",
    "parameter_groups": "optim",
}
__all__ = [
    "CachedTeacher",
    "CrossEntropy",
    "DistillLoss",
    "DistillationModule",
    "ForwardKL",
    "HFTeacher",
    "HeadRewardLoss",
    "HiddenStateLoss",
    "JensenShannon",
    "MatrixOrientation",
    "MixerOutputLoss",
    "Muon",
    "ReverseKL",
    "RewardLoss",
    "Schedule",
    "Signals",
    "SkewKL",
    "Teacher",
    "TopKKL",
    "WarmupCosine",
    "WarmupStableDecay",
    "parameter_groups",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
