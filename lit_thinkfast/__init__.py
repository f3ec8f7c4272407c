"""lit-thinkfast: distil Transformers into fast hybrid and Mamba students, and measure reasoning in a fixed time.

The names of ``__all__`` are the public shelf. They are imported when first touched (PEP 562), so that
``import lit_thinkfast`` takes a moment and pulls in neither torch nor Lightning. The Auto classes of transformers
nevertheless know our models from that moment on: registration waits for the import of transformers, whoever does it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import wrapt

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lit_thinkfast.data.module import MathDataModule
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
    from lit_thinkfast.distill.rewards import HeadRewardLoss, RewardLoss
    from lit_thinkfast.distill.teachers import HFTeacher, Teacher
    from lit_thinkfast.generation.config import SamplingConfig
    from lit_thinkfast.generation.sampler import Sampler
    from lit_thinkfast.generation.sampling import BaseSampler
    from lit_thinkfast.generation.vllm import VLLMSampler
    from lit_thinkfast.metrics.accuracy import (
        BestOfNAccuracy,
        Coverage,
        MajorityVoteAccuracy,
        WeightedBestOfNAccuracy,
    )
    from lit_thinkfast.metrics.evaluator import ReasoningEvaluator
    from lit_thinkfast.mixers import MIXERS, Mixer
    from lit_thinkfast.models.configuration import HybridConfig
    from lit_thinkfast.models.convert import convert
    from lit_thinkfast.models.export import export_model, verify_export
    from lit_thinkfast.models.modeling import HybridForCausalLM
    from lit_thinkfast.records import BudgetPoint, Completion, Problem, Verdict
    from lit_thinkfast.verification.grading import MathVerifier, Verifier
    from lit_thinkfast.verification.head import HeadRewardModel
    from lit_thinkfast.verification.likelihood import LikelihoodRewardModel
    from lit_thinkfast.verification.reward import ProcessRewardModel, RewardModel

__all__ = [
    "MIXERS",
    "BaseSampler",
    "BestOfNAccuracy",
    "BudgetPoint",
    "CachedTeacher",
    "Completion",
    "Coverage",
    "CrossEntropy",
    "DistillLoss",
    "DistillationModule",
    "ForwardKL",
    "HFTeacher",
    "HeadRewardLoss",
    "HeadRewardModel",
    "HiddenStateLoss",
    "HybridConfig",
    "HybridForCausalLM",
    "JensenShannon",
    "LikelihoodRewardModel",
    "MajorityVoteAccuracy",
    "MathDataModule",
    "MathVerifier",
    "MatrixOrientation",
    "Mixer",
    "MixerOutputLoss",
    "Problem",
    "ProcessRewardModel",
    "ReasoningEvaluator",
    "ReverseKL",
    "RewardLoss",
    "RewardModel",
    "Sampler",
    "SamplingConfig",
    "SkewKL",
    "Teacher",
    "TopKKL",
    "VLLMSampler",
    "Verdict",
    "Verifier",
    "WeightedBestOfNAccuracy",
    "convert",
    "export_model",
    "verify_export",
]

_SHELF = {
    "data.module": ("MathDataModule",),
    "distill.cached": ("CachedTeacher",),
    "distill.layerwise": ("HiddenStateLoss", "MatrixOrientation", "MixerOutputLoss"),
    "distill.losses": ("CrossEntropy", "DistillLoss", "ForwardKL", "JensenShannon", "ReverseKL", "SkewKL", "TopKKL"),
    "distill.module": ("DistillationModule",),
    "distill.rewards": ("HeadRewardLoss", "RewardLoss"),
    "distill.teachers": ("HFTeacher", "Teacher"),
    "generation.config": ("SamplingConfig",),
    "generation.sampler": ("Sampler",),
    "generation.sampling": ("BaseSampler",),
    "generation.vllm": ("VLLMSampler",),
    "metrics.accuracy": ("BestOfNAccuracy", "Coverage", "MajorityVoteAccuracy", "WeightedBestOfNAccuracy"),
    "metrics.evaluator": ("ReasoningEvaluator",),
    "mixers": ("MIXERS", "Mixer"),
    "models.configuration": ("HybridConfig",),
    "models.convert": ("convert",),
    "models.export": ("export_model", "verify_export"),
    "models.modeling": ("HybridForCausalLM",),
    "records": ("BudgetPoint", "Completion", "Problem", "Verdict"),
    "verification.grading": ("MathVerifier", "Verifier"),
    "verification.head": ("HeadRewardModel",),
    "verification.likelihood": ("LikelihoodRewardModel",),
    "verification.reward": ("ProcessRewardModel", "RewardModel"),
}
_HOME = {name: module for module, names in _SHELF.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


@wrapt.when_imported("transformers")
def _register_models(_: Any) -> None:
    importlib.import_module(f"{__name__}.models")  # registers HybridConfig and HybridForCausalLM
