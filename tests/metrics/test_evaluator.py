import dataclasses
import random

import pytest

from lit_thinkfast.generation.config import SamplingConfig
from lit_thinkfast.metrics import ReasoningEvaluator, accuracies, verdict_grid
from lit_thinkfast.records import Completion, Problem
from lit_thinkfast.verification import MathVerifier, RewardScore


class Scripted:
    """Stands in for the sampler: completions are a function of problem and sample."""

    def __init__(self, model, tokenizer, config):
        self.config = config

    def sample(self, problems):
        for problem in problems:
            for s in range(self.config.num_samples):
                answer = random.Random(f"{problem.id}/{s}").choice(["4", "4.0", "5", "6", None])
                text = f"\\boxed{{{answer}}}" if answer else "no idea"
                yield Completion(problem.id, s, text, 1, 1, "stop", 0.0, 0.0)


class Rewards:
    def score(self, problems, completions):
        scores = [random.Random(f"{c.problem_id}-{c.sample}").gauss(0, 30) for c in completions]
        return [RewardScore((x,), float(int(x * 1024) / 1024)) for x in scores]


@pytest.fixture
def problems(monkeypatch):
    monkeypatch.setattr("lit_thinkfast.generation.sampler.Sampler", Scripted)
    return [Problem(f"p{i}", "2 + 2?", "4") for i in range(6)]


def test_the_evaluator_agrees_with_the_way_through_files(problems):
    config = SamplingConfig(num_samples=8)
    evaluator = ReasoningEvaluator(config, reward_model=Rewards())
    evaluator.setup(6)
    evaluator.evaluate(None, None, problems[3:], [3, 4, 5])
    evaluator.evaluate(None, None, [], [])
    evaluator.evaluate(None, None, problems[:3], [0, 1, 2])
    completions = list(Scripted(None, None, config).sample(problems))
    verdicts = [
        dataclasses.replace(verdict, score=reward.score, log_odds=reward.log_odds)
        for verdict, reward in zip(
            MathVerifier().grade_batch(problems, completions), Rewards().score(problems, completions), strict=True
        )
    ]
    expected = {"problems": 6.0, **accuracies(verdict_grid(verdicts), [1, 2, 4, 8])}
    assert evaluator.compute() == pytest.approx(expected, abs=1e-15)
    assert list(evaluator.compute())[:5] == [
        "problems",
        "coverage@1",
        "majority@1",
        "weighted_best_of_n@1",
        "best_of_n@1",
    ]


def test_one_problem_with_one_sample(problems):
    evaluator = ReasoningEvaluator(SamplingConfig(num_samples=1), reward_model=Rewards())
    evaluator.setup(1)
    evaluator.evaluate(None, None, problems[2:3], [0])
    found = evaluator.compute()
    assert found["problems"] == 1.0
    assert found["coverage@1"] == found["majority@1"] == found["best_of_n@1"] == found["weighted_best_of_n@1"]


def test_a_new_round_starts_empty(problems):
    evaluator = ReasoningEvaluator(SamplingConfig(num_samples=4), ks=[4])
    evaluator.setup(6)
    evaluator.evaluate(None, None, problems, list(range(6)))
    first = evaluator.compute()
    assert set(first) == {"problems", "coverage@4", "majority@4"}
    evaluator.reset()
    evaluator.evaluate(None, None, problems[:2], [0, 1])
    assert evaluator.compute()["problems"] == 2.0
    evaluator.setup(6)
    evaluator.evaluate(None, None, problems, list(range(6)))
    assert evaluator.compute() == first


def test_misuse_is_refused_in_one_line(problems):
    with pytest.raises(ValueError, match=r"k 9 is not in 1\.\.8"):
        ReasoningEvaluator(SamplingConfig(num_samples=8), ks=[1, 9])
    with pytest.raises(ValueError, match=r"k 0 is not in 1\.\.8"):
        ReasoningEvaluator(SamplingConfig(num_samples=8), ks=[0, 8])
    evaluator = ReasoningEvaluator(SamplingConfig(num_samples=2))
    with pytest.raises(ValueError, match="call setup"):
        evaluator.compute()
    evaluator.setup(1)
    with pytest.raises(ValueError, match="1 problems came with 0 ids"):
        evaluator.evaluate(None, None, problems[:1], [])
    with pytest.raises(ValueError, match="outside the grid"):
        evaluator.evaluate(None, None, problems[:1], [1])


def test_it_is_what_the_training_loop_asks_for_and_can_be_named_in_a_config():
    from jsonargparse import ArgumentParser

    from lit_thinkfast.distill.evaluation import Evaluator

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--evaluator", type=Evaluator | None)
    config = {
        "class_path": "lit_thinkfast.ReasoningEvaluator",
        "init_args": {
            "sampling": {"num_samples": 4, "max_new_tokens": 8},
            "ks": [1, 4],
            "verifier": {"class_path": "lit_thinkfast.MathVerifier"},
            "reward_model": {"class_path": "lit_thinkfast.ProcessRewardModel", "init_args": {"path": "somewhere"}},
        },
    }
    made = parser.instantiate_classes(parser.parse_object({"evaluator": config})).evaluator
    assert isinstance(made, ReasoningEvaluator)
    assert made.ks == [1, 4]
    assert made.sampling == SamplingConfig(num_samples=4, max_new_tokens=8)
    assert isinstance(made.verifier, MathVerifier)
    assert made.reward_model.path == "somewhere"


def test_with_a_real_model_it_measures_what_the_sampler_writes():
    from pathlib import Path

    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    import lit_thinkfast
    from lit_thinkfast.generation.sampler import Sampler
    from lit_thinkfast.models import convert

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(Path(lit_thinkfast.__file__).parent / "assets" / "tokenizer")
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = LlamaConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **size)
    model = convert(LlamaForCausalLM(config), mixer="attention")
    problems = [Problem(f"p{i}", "2 + 2?", "4") for i in range(3)]
    sampling = SamplingConfig(num_samples=4, max_new_tokens=12, batch_size=5)
    completions = list(Sampler(model, tokenizer, sampling).sample(problems))
    # Untrained text has no answers: make the right answer what one problem's first sample happens to say.
    said = next(c for c in completions if c.text.strip())

    class Says(MathVerifier):
        def grade_batch(self, problems, completions):
            from lit_thinkfast.records import Verdict

            made = [("correct" if c.text == said.text else "incorrect", c.text) for c in completions]
            return [
                Verdict(c.problem_id, c.sample, outcome, text, text)
                for c, (outcome, text) in zip(completions, made, strict=True)
            ]

    evaluator = ReasoningEvaluator(sampling, ks=[4], verifier=Says())
    evaluator.setup(3)
    for i, problem in enumerate(problems):
        evaluator.evaluate(model, tokenizer, [problem], [i])
    solved = len({c.problem_id for c in completions if c.text == said.text})
    assert evaluator.compute()["coverage@4"] == pytest.approx(solved / 3)


def test_a_problem_whose_gold_answer_cannot_be_read_is_left_out(problems, caplog):
    evaluator = ReasoningEvaluator(SamplingConfig(num_samples=8))
    evaluator.setup(6)
    broken = [dataclasses.replace(problems[0], answer="(1, {2"), *problems[1:]]
    evaluator.evaluate(None, None, broken, list(range(6)))
    assert "'p0'" in caplog.text
    found = evaluator.compute()
    evaluator.reset()
    evaluator.evaluate(None, None, problems[1:], list(range(1, 6)))
    assert found == evaluator.compute()
    assert found["problems"] == 5
