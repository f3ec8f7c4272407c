"""The likelihood reward against a naive sum, token by token, and what it must say of right and wrong lines."""

import dataclasses
import math

import pytest
import torch
from transformers import AutoTokenizer, GraniteConfig, GraniteForCausalLM, LlamaForCausalLM

from lit_thinkfast.data.prompts import encode_example
from lit_thinkfast.records import Completion, Example, Problem
from lit_thinkfast.verification import LikelihoodRewardModel
from lit_thinkfast.verification.reward import NO_STEP

PROBLEMS = [Problem("p", "What is 2 + 3?", "5"), Problem("q", "How many, then?", "7")]
TEXTS = ["a=2+3\na=5\nThe answer is \\boxed{5}.", "a=2+3\na=6\nThe answer is \\boxed{6}.\n", "one line", "\n\nx\n"]


def completion(problem, text, sample=0, finish_reason="stop"):
    return Completion(problem.id, sample, text, 1, 1, finish_reason, 0.0, 0.0)


def naive(folder, problem, text, *, ended):
    """Probability of the text so far after each line, as a product over single tokens of single forward passes."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), LlamaForCausalLM.from_pretrained(folder).eval()
    ids, labels = encode_example(tokenizer, Example("e", problem.question, text))
    start = next(t for t, label in enumerate(labels) if label != -100)
    ids = ids if ended else ids[:-1]
    newline = tokenizer.convert_tokens_to_ids("\u010a")
    assert newline == tokenizer("\n", add_special_tokens=False)["input_ids"][0]
    steps, probability = [], 1.0
    for t in range(start, len(ids)):
        with torch.no_grad():
            probability *= model(torch.tensor([ids[:t]])).logits[0, -1].double().softmax(-1)[ids[t]].item()
        if ids[t] == newline or t == len(ids) - 1:
            steps.append(probability)
    return steps


@pytest.mark.parametrize("finish_reason", ["stop", "length"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_log_odds_are_those_of_the_text_so_far(tiny_teacher, batch_size, finish_reason):
    made = [completion(p, text, s, finish_reason) for p in PROBLEMS for s, text in enumerate(TEXTS)]
    scores = LikelihoodRewardModel(tiny_teacher, batch_size=batch_size).score(PROBLEMS, made)
    for c, score in zip(made, scores, strict=True):
        problem = next(p for p in PROBLEMS if p.id == c.problem_id)
        expected = naive(tiny_teacher, problem, c.text, ended=finish_reason == "stop")
        assert score.step_log_odds == pytest.approx([math.log(p) - math.log1p(-p) for p in expected], rel=1e-4)
        assert score.log_odds == pytest.approx(score.step_log_odds[-1], rel=1e-6)
        assert list(score.step_log_odds) == sorted(score.step_log_odds, reverse=True), "no line makes the text likelier"


def test_a_large_vocabulary_is_read_in_parts(tiny_teacher, monkeypatch):
    made = [completion(PROBLEMS[0], TEXTS[0])]
    whole = LikelihoodRewardModel(tiny_teacher).score(PROBLEMS, made)
    monkeypatch.setattr("lit_thinkfast.verification.likelihood.ELEMENTS", 2 * 481)
    parts = LikelihoodRewardModel(tiny_teacher).score(PROBLEMS, made)
    assert parts[0].step_log_odds == pytest.approx(whole[0].step_log_odds, rel=1e-6)


def test_empty_and_overlong_texts_have_a_finite_score(tiny_teacher):
    model = LikelihoodRewardModel(tiny_teacher)
    empty, long = model.score(
        PROBLEMS, [completion(PROBLEMS[0], "", finish_reason="length"), completion(PROBLEMS[0], "1+1=2\n" * 400, 1)]
    )
    assert empty.log_odds == NO_STEP
    assert 0 < len(long.step_log_odds) < 400
    assert math.isfinite(long.log_odds)
    (ended,) = model.score(PROBLEMS, [dataclasses.replace(completion(PROBLEMS[0], ""), sample=2)])
    assert len(ended.step_log_odds) == 1, "to end at once is a step as well"


def test_a_first_line_that_is_too_long_is_judged_by_what_lies_within(tiny_teacher, caplog):
    """It gets the probability of its first tokens, those of a line that ends there by itself."""
    model = LikelihoodRewardModel(tiny_teacher)
    longest = model.loaded.model.config.max_position_embeddings
    text = "a=2+3 " * longest
    whole = model.encode(PROBLEMS[0].question, completion(PROBLEMS[0], text))
    (score,) = model.score(PROBLEMS, [completion(PROBLEMS[0], text)])
    ids = torch.tensor([whole.ids[:longest]])
    with torch.inference_mode():
        log_p = model.loaded.model(ids).logits[0, :-1].double().log_softmax(-1)
    own = log_p.gather(-1, ids[0, 1:, None])[whole.prompt_tokens - 1 :].sum().item()
    assert score.step_log_odds == pytest.approx((own,), rel=1e-4)
    assert "judged by what lies within: 1; with nothing there to judge, and so log-odds of -100: 0" in caplog.text


def test_a_prompt_that_fills_the_context_leaves_nothing_to_judge(tiny_teacher):
    long = Problem("long", "How many? " * 900, "5")
    short, none = LikelihoodRewardModel(tiny_teacher).score(
        [PROBLEMS[0], long], [completion(PROBLEMS[0], TEXTS[0]), completion(long, "a=5")]
    )
    assert len(short.step_log_odds) == 3
    assert none.log_odds == NO_STEP


def test_a_head_that_does_more_than_multiply_is_refused(tmp_path, tiny_teacher):
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    config = GraniteConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        logits_scaling=8.0,
    )
    GraniteForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="GraniteForCausalLM scales or caps its logits"):
        LikelihoodRewardModel(tmp_path).load()
