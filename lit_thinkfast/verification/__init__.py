"""Verification: final answers out of model text, compared safely, and reward models.

Importing this room is cheap: no torch, no math-verify.
"""

from lit_thinkfast.verification.answers import canonical, equivalent, extract_answer
from lit_thinkfast.verification.files import GradingSummary, grade_files
from lit_thinkfast.verification.grading import MathVerifier, Verifier
from lit_thinkfast.verification.head import HeadRewardModel
from lit_thinkfast.verification.judges import load_reward_model
from lit_thinkfast.verification.likelihood import LikelihoodRewardModel
from lit_thinkfast.verification.reward import ProcessRewardModel, RewardModel, RewardScore, StepRewardModel

__all__ = [
    "GradingSummary",
    "HeadRewardModel",
    "LikelihoodRewardModel",
    "MathVerifier",
    "ProcessRewardModel",
    "RewardModel",
    "RewardScore",
    "StepRewardModel",
    "Verifier",
    "canonical",
    "equivalent",
    "extract_answer",
    "grade_files",
    "load_reward_model",
]
