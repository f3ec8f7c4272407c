"""The public shelf: names that may be added to, never renamed without a deprecation."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lit_thinkfast

SHELF = [
    "DistillationModule",
    "MathDataModule",
    "ReasoningEvaluator",
    "HybridConfig",
    "HybridForCausalLM",
    "convert",
    "export_model",
    "verify_export",
    "Mixer",
    "MIXERS",
    "DistillLoss",
    "ForwardKL",
    "ReverseKL",
    "JensenShannon",
    "SkewKL",
    "TopKKL",
    "HiddenStateLoss",
    "MixerOutputLoss",
    "MatrixOrientation",
    "RewardLoss",
    "HeadRewardLoss",
    "CrossEntropy",
    "Teacher",
    "HFTeacher",
    "CachedTeacher",
    "BaseSampler",
    "Sampler",
    "VLLMSampler",
    "SamplingConfig",
    "Verifier",
    "MathVerifier",
    "RewardModel",
    "ProcessRewardModel",
    "LikelihoodRewardModel",
    "HeadRewardModel",
    "Coverage",
    "MajorityVoteAccuracy",
    "WeightedBestOfNAccuracy",
    "BestOfNAccuracy",
    "Problem",
    "Completion",
    "Verdict",
    "BudgetPoint",
]


def test_the_shelf_is_frozen():
    assert sorted(lit_thinkfast.__all__) == sorted(SHELF)
    assert set(lit_thinkfast._HOME) == set(SHELF)
    assert set(SHELF) <= set(dir(lit_thinkfast))


def test_type_checkers_see_the_same_shelf():
    tree = ast.parse(Path(lit_thinkfast.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module.removeprefix("lit_thinkfast.") for node in block.body for alias in node.names}
    assert seen == lit_thinkfast._HOME


@pytest.mark.parametrize("name", SHELF)
def test_every_name_is_there_and_documented(name):
    value = getattr(lit_thinkfast, name)
    assert name == "MIXERS" or (value.__name__ == name and value.__doc__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="NoSuchName"):
        _ = lit_thinkfast.NoSuchName


@pytest.mark.parametrize("order", ["import lit_thinkfast, transformers", "import transformers, lit_thinkfast"])
def test_auto_classes_know_our_models_after_a_bare_import(order):
    script = f"""{order}
config = transformers.AutoConfig.for_model("lit_thinkfast_hybrid")
print(type(config).__name__, transformers.AutoModelForCausalLM._model_mapping[type(config)].__name__)"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["HybridConfig", "HybridForCausalLM"]
