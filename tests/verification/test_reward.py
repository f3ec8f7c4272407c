import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

import lit_thinkfast
from lit_thinkfast.data.arithmetic import problems as arithmetic_problems
from lit_thinkfast.data.prompts import encode_example, render_prompt
from lit_thinkfast.records import Completion, Example, Problem, RecordError, Verdict, read_jsonl, write_jsonl
from lit_thinkfast.verification import ProcessRewardModel, RewardScore, grade_files
from lit_thinkfast.verification.reward import NO_STEP, aggregate

TOKENIZER = Path(lit_thinkfast.__file__).parent / "assets" / "tokenizer"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("reward")
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=400,
        initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def completion(problem, text, sample=0):
    return Completion(problem.id, sample, text, 1, 1, "stop", 0.0, 0.0)


PROBLEMS = [Problem("p", "What is 2 + 3?", "5"), Problem("q", "How many, then?", "7")]
TEXTS = ["a=2+3\na=5\nThe answer is \\boxed{5}.", "a=2+3\na=6\nThe answer is \\boxed{6}.\n", "one line", "\n\nx\n"]


def naive(folder, problem, text):
    """Log-odds step by step: a forward pass of its own on each prefix that ends with a newline."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), LlamaForCausalLM.from_pretrained(folder).eval()
    plus, minus = (tokenizer.convert_tokens_to_ids(sign) for sign in "+-")
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert len(newline) == 1
    ids = render_prompt(tokenizer, problem.question)
    steps = []
    for token in tokenizer(text if text.endswith("\n") else text + "\n", add_special_tokens=False)["input_ids"]:
        ids.append(token)
        if token == newline[0]:
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1].float()
            steps.append((logits[plus] - logits[minus]).item())
    return steps


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_one_batched_pass_scores_what_prefix_after_prefix_does(folder, batch_size):
    pairs = [(p, completion(p, text, s)) for p in PROBLEMS for s, text in enumerate(TEXTS)]
    scores = ProcessRewardModel(folder, batch_size=batch_size).score(PROBLEMS, [c for _, c in pairs])
    for (problem, made), score in zip(pairs, scores, strict=True):
        expected = naive(folder, problem, made.text)
        assert score.step_log_odds == pytest.approx(expected, abs=2e-4)
        assert score.log_odds == score.step_log_odds[-1]
        assert score.score == pytest.approx(torch.sigmoid(torch.tensor(score.log_odds)).item(), rel=1e-6)


def test_steps_are_scored_where_training_puts_their_labels(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    problem = arithmetic_problems("train", count=1)[0]
    lines = problem.solution.count("\n") + 1
    example = Example("e", problem.question, problem.solution, step_labels=(True,) * lines)
    _, labels = encode_example(tokenizer, example)
    text = ProcessRewardModel(folder).encode(problem.question, completion(problem, problem.solution))
    assert [end + 1 for end in text.ends] == [t for t, label in enumerate(labels) if label != -100]
    assert text.ids == encode_example(tokenizer, example)[0][: len(text.ids)]


def test_empty_and_overlong_texts_have_a_finite_score(folder):
    model = ProcessRewardModel(folder)
    empty, long = model.score(PROBLEMS, [completion(PROBLEMS[0], ""), completion(PROBLEMS[0], "1+1=2\n" * 200, 1)])
    assert empty == RewardScore((), NO_STEP)
    assert 0 < empty.score < 1e-40
    assert 0 < len(long.step_log_odds) < 200
    assert model.score(PROBLEMS, []) == []


def test_an_outcome_of_lines_is_judged_at_the_last_whole_line(folder, tmp_path, caplog):
    path = tmp_path / "outcome"
    shutil.copytree(folder, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"reward_scope": "outcome", "reward_judge": "signs"}))
    lines, line = (completion(PROBLEMS[0], text, s) for s, text in enumerate(("1+1=2\n" * 200, "1+1=2 " * 200)))
    judged, nothing = ProcessRewardModel(path).score(PROBLEMS, [lines, line])
    (steps,) = ProcessRewardModel(folder).score(PROBLEMS, [lines])
    assert judged.step_log_odds == pytest.approx(steps.step_log_odds[-1:], abs=2e-4)
    assert nothing == RewardScore((), NO_STEP)
    assert "judged by what lies within: 1; with nothing there to judge, and so log-odds of -100: 1" in caplog.text


def test_aggregation_from_log_odds_equals_that_of_probabilities():
    rng = np.random.default_rng(0)
    for _ in range(50):
        steps = rng.normal(0, 4, rng.integers(1, 12))
        p = 1 / (1 + np.exp(-steps))
        expected = {"last": p[-1], "min": p.min(), "product": p.prod(), "mean": p.mean()}
        for name, value in expected.items():
            made = RewardScore(tuple(steps), aggregate(list(steps), name))
            assert made.score == pytest.approx(value, rel=1e-5)
            assert np.float32(made.log_odds) == made.log_odds


def test_aggregation_keeps_apart_what_probabilities_cannot():
    for name in ("last", "min", "product", "mean"):
        values = [aggregate([x, x], name) for x in (-900.0, -40.0, 30.0, 40.0, 60.0, 800.0)]
        assert all(math.isfinite(value) for value in values)
        assert values == sorted(values)
        if name != "product":  # beyond 1 - 1e-16, a product of two can only be told from 1 by its log
            assert len(set(values)) == 6
    assert aggregate([40.0, 40.0], "product") == pytest.approx(40 - math.log(2))


def test_what_is_no_reward_model_is_refused_in_one_line(folder, tmp_path):
    with pytest.raises(ValueError, match="aggregation 'best'"):
        ProcessRewardModel(folder, aggregation="best")
    with pytest.raises(ValueError, match="dtype 'int8'"):
        ProcessRewardModel(folder, dtype="int8")
    with pytest.raises(ValueError, match="batch_size 0"):
        ProcessRewardModel(folder, batch_size=0)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        ProcessRewardModel(tmp_path / "nothing").load()
    with pytest.raises(ValueError, match="which is not among the 1 problems"):
        ProcessRewardModel(folder).score(PROBLEMS[:1], [completion(PROBLEMS[1], "x")])


def small(folder, **values):
    """The configuration of ``folder`` with other values."""
    return LlamaConfig.from_pretrained(folder, **values)


def save(model, folder):
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder)
    return folder


def refusal(folder, dtype="float32", protocol="auto"):
    with pytest.raises((ValueError, FileNotFoundError), match=folder.name) as error:
        ProcessRewardModel(folder, protocol=protocol, dtype=dtype).load()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_classifier_is_no_reward_model(folder, tmp_path, caplog):
    """Its head would be random where it is not tied, and the classifier's unused where it is."""
    for tied, words in (
        (False, "weights missing: 1, first lm_head.weight"),
        (True, "not in the model: 1, first score.w"),
    ):
        model = LlamaForSequenceClassification(small(folder, tie_word_embeddings=tied))
        path = save(model, tmp_path / f"classifier{tied}")
        assert "LlamaForSequenceClassification of several labels is no reward model" in refusal(path)
        said = refusal(path, protocol="signs")
        assert words in said
        assert "it is no whole LlamaForCausalLM" in said
    assert "LOAD REPORT" not in caplog.text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_encoder_is_no_reward_model(tmp_path, dtype):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    bert = BertForMaskedLM(BertConfig(vocab_size=481, initializer_range=0.1, **sizes))
    assert "BertLMHeadModel looks ahead" in refusal(save(bert, tmp_path / "bert"), dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_decoders_of_other_families_are_reward_models(folder, tmp_path, dtype):
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=481, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3))
    tied = LlamaForCausalLM(small(folder, tie_word_embeddings=True))
    for model in (gpt2, tied):
        path = save(model, tmp_path / type(model).__name__)
        (score,) = ProcessRewardModel(path, dtype=dtype).score(PROBLEMS, [completion(PROBLEMS[0], TEXTS[0])])
        assert len(score.step_log_odds) == 3


def test_a_folder_that_contradicts_itself_is_no_reward_model(folder, tmp_path):
    fewer = ProcessRewardModel(save(LlamaForCausalLM(small(folder, vocab_size=400)), tmp_path / "fewer"))
    with pytest.raises(ValueError, match=r"fewer: its tokenizer gives token 4\d\d, but the model knows 400"):
        fewer.score(PROBLEMS, [completion(PROBLEMS[0], TEXTS[0])])
    for values, words in (
        ({"num_hidden_layers": 3}, "missing: 9, first model.layers.2"),
        ({"num_hidden_layers": 1}, "not in the model: 9, first model.layers.1"),
        ({"intermediate_size": 50}, "of another shape: 6, first model.layers.0.mlp.down_proj.weight"),
        ({"hidden_size": "x"}, "expected int, got str"),
    ):
        path = save(LlamaForCausalLM(small(folder)), tmp_path / next(iter(values)))
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | values))
        assert words in refusal(path)
    path = save(LlamaForCausalLM(small(folder)), tmp_path / "damaged")
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[:1000])
    assert "cannot read a model from" in refusal(path)
    (path / "tokenizer.json").write_text("{}")
    assert "cannot be used" in refusal(path)


def test_a_file_is_graded_and_scored(folder, tmp_path):
    made = [completion(p, text, s) for p in PROBLEMS for s, text in enumerate(TEXTS)]
    write_jsonl(made, tmp_path / "completions.jsonl")
    seen = []
    summary = grade_files(
        PROBLEMS,
        tmp_path / "completions.jsonl",
        tmp_path / "verdicts.jsonl",
        reward_model=ProcessRewardModel(folder, aggregation="min"),
        progress=lambda done, total: seen.append((done, total)),
    )
    verdicts = list(read_jsonl(Verdict, tmp_path / "verdicts.jsonl"))
    assert [(v.problem_id, v.sample) for v in verdicts] == [(c.problem_id, c.sample) for c in made]
    assert [v.outcome for v in verdicts[:4]] == ["correct", "incorrect", "unparsable", "unparsable"]
    assert summary.verdicts == 8
    assert summary.outcomes == {"correct": 1, "incorrect": 3, "unparsable": 4}
    assert summary.scoring_seconds > 0
    assert seen == [(0, 8), (8, 8)]
    for verdict in verdicts:
        assert 0 < verdict.score < 1
        assert verdict.score == pytest.approx(1 / (1 + math.exp(-min(verdict.step_scores))), rel=1e-6)
        assert verdict.reward_model.endswith("(min)")


def test_grading_without_a_reward_model_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("lit_thinkfast.verification.files.CHUNK", 3)
    made = [completion(PROBLEMS[s % 2], "#### 5", s) for s in range(7)]
    write_jsonl(made, tmp_path / "c.jsonl")
    seen = []
    summary = grade_files(PROBLEMS, tmp_path / "c.jsonl", tmp_path / "v.jsonl", progress=lambda *at: seen.append(at))
    assert seen == [(0, 7), (3, 7), (6, 7), (7, 7)]
    assert summary.scoring_seconds is None
    assert [v.score for v in read_jsonl(Verdict, tmp_path / "v.jsonl")] == [None] * 7


def test_bad_files_leave_no_verdicts(tmp_path):
    out = tmp_path / "v.jsonl"
    with pytest.raises(FileNotFoundError):
        grade_files(PROBLEMS, tmp_path / "none.jsonl", out)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="no completions in this file"):
        grade_files(PROBLEMS, tmp_path / "empty.jsonl", out)
    write_jsonl([completion(PROBLEMS[0], "#### 5")], tmp_path / "torn.jsonl")
    with open(tmp_path / "torn.jsonl", "a") as lines:
        lines.write('{"problem_id": "p", "sam')
    with pytest.raises(RecordError, match=r"torn\.jsonl:2"):
        grade_files(PROBLEMS, tmp_path / "torn.jsonl", out)
    assert not out.exists()
