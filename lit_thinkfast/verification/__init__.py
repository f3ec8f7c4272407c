"""Verification: final answers out of model text, compared safely, and reward models.

Importing this room is cheap: no torch, no math-verify.
"""

from lit_thinkfast.verification.answers import canonical, equivalent, extract_answer
from lit_thinkfast.verification.files import GradingSummary, grade_files
from lit_thinkfast.verification.grading import MathVerifier, Verifier, gradable
from lit_thinkfast.verification.head import HeadRewardModel
from lit_thinkfast.verification.judges import load_reward_model
from lit_thinkfast.verification.likelihood import LikelihoodRewardModel
from lit_thinkfast.verification.protocols import RewardProtocol
from lit_thinkfast.verification.reward import ProcessRewardModel, StepRewardModel
from lit_thinkfast.verification.saturation import Saturation, saturation_of
from lit_thinkfast.verification.scores import RewardModel, RewardScore, TransformedRewardModel

__all__ = [
    "GradingSummary",
    "HeadRewardModel",
    "LikelihoodRewardModel",
    "MathVerifier",
    "ProcessRewardModel",
    "RewardModel",
    "RewardProtocol",
    "RewardScore",
    "Saturation",
    "StepRewardModel",
    "TransformedRewardModel",
    "Verifier",
    "canonical",
    "equivalent",
    "extract_answer",
    "gradable",
    "grade_files",
    "load_reward_model",
    "saturation_of",
]
