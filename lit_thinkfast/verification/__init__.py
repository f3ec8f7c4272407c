"""Verification: final answers out of model text, compared safely, and reward models.

Importing this room is cheap: no torch, no math-verify.
"""

from lit_thinkfast.verification.answers import canonical, equivalent, extract_answer
from lit_thinkfast.verification.files import GradingSummary, grade_files
from lit_thinkfast.verification.grading import MathVerifier, Verifier
from lit_thinkfast.verification.reward import ProcessRewardModel, RewardModel, RewardScore

__all__ = [
    "GradingSummary",
    "MathVerifier",
    "ProcessRewardModel",
    "RewardModel",
    "RewardScore",
    "Verifier",
    "canonical",
    "equivalent",
    "extract_answer",
    "grade_files",
]
