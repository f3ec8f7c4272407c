"""Texts that are run together, and the start that they share, against each text run alone."""

import random

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2Model,
)

from lit_thinkfast.records import Completion, Problem
from lit_thinkfast.verification import LikelihoodRewardModel, ProcessRewardModel
from lit_thinkfast.verification.running import hidden_states, shares_prefixes
from lit_thinkfast.verification.steps import StepText, batches, shared_prefix

from . import prm_models as made

SIZES = made.SIZES | {"vocab_size": 100}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "a window": lambda: MistralForCausalLM(MistralConfig(sliding_window=5, **SIZES)),
    "without a head": lambda: Qwen2Model(Qwen2Config(**SIZES)),
    "learned positions": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=2)),
}


@pytest.fixture
def eager(monkeypatch):
    """Let short texts be worth sharing."""
    monkeypatch.setattr("lit_thinkfast.verification.steps.RIDGE", 1)


def texts_of(prefix, *lengths, seed=0):
    rng = random.Random(seed)
    start = [rng.randrange(100) for _ in range(prefix)]
    return [StepText(start + [rng.randrange(100) for _ in range(n)], 0, []) for n in lengths]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("lengths", [(3, 9, 1, 6), (0, 4), (7, 7, 7)])
def test_a_shared_start_is_read_once_and_changes_nothing(kind, lengths, eager, monkeypatch):
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    texts = texts_of(11, *lengths)
    assert shares_prefixes(model)
    prefix = shared_prefix(texts)
    assert prefix == 11
    read = []
    forward = type(model.base_model).forward
    monkeypatch.setattr(
        type(model.base_model), "forward", lambda *a, **k: (read.append(k["input_ids"].numel()), forward(*a, **k))[1]
    )
    with torch.inference_mode():
        whole, shared = hidden_states(model, texts), hidden_states(model, texts, share=True)
        assert read == [len(texts) * (11 + max(lengths)), 11, len(texts) * max(lengths)]
        for i, text in enumerate(texts):
            alone = model.base_model(input_ids=torch.tensor([text.ids])).last_hidden_state[0]
            n = len(text.ids)
            torch.testing.assert_close(whole[i, :n], alone, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(shared[i, :n], alone, atol=1e-5, rtol=1e-5)


def test_equal_texts_leave_a_token_to_run(eager):
    model = MODELS["llama"]().eval()
    texts = texts_of(9, 0, 0, 0)
    assert shared_prefix(texts) == 8
    with torch.inference_mode():
        torch.testing.assert_close(hidden_states(model, texts, share=True), hidden_states(model, texts))


def test_a_model_with_a_state_of_its_own_reads_every_text_whole():
    config = MambaConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, state_size=4)
    assert not shares_prefixes(MambaForCausalLM(config).eval())


def test_what_is_worth_sharing():
    assert shared_prefix(texts_of(300, 300, 310, 320)) == 300
    assert shared_prefix(texts_of(30, 600, 610, 620)) == 0, "too little is saved"
    assert shared_prefix(texts_of(40, 5, 6)) == 0, "a short pass costs what a longer one does"
    assert shared_prefix(texts_of(300, 300)) == 0, "a text alone"


def test_batches_hold_each_text_once_and_those_of_one_problem_where_they_share():
    shared = [StepText(t.ids, 0, []) for seed in (1, 2) for t in texts_of(400, 300, 200, 350, seed=seed)]
    apart = [t for seed in range(3, 9) for t in texts_of(5, 30 * seed, seed=seed)]
    owners = ["a"] * 3 + ["b"] * 3 + [f"alone {i}" for i in range(6)]
    found = batches(shared + apart, owners, 2)
    assert sorted(i for rows in found for i in rows) == list(range(12))
    assert max(map(len, found)) == 2
    assert [{owners[i][0] for i in rows} for rows in found[:4]] == [{"a"}, {"a"}, {"b"}, {"b"}]
    lengths = [[len((shared + apart)[i].ids) for i in rows] for rows in found]
    assert lengths[4:] == [[95, 125], [155, 185], [215, 245]]


@pytest.mark.parametrize("make", [ProcessRewardModel, LikelihoodRewardModel])
def test_scores_of_samples_with_a_long_prompt_do_not_depend_on_sharing(make, tmp_path):
    folder = made.llama(tmp_path / "model")
    question = "What is 2 + 3 - 1? " * 40
    problems = [Problem("p", question, "4"), Problem("q", f"{question} Then?", "4")]
    samples = [
        Completion(p.id, i, "\n".join(["a = 5 - 1"] * n), 1, 1, "stop", 0.0, 0.0)
        for i, n in enumerate((3, 1, 7, 4, 2))
        for p in problems
    ]
    shared, alone = make(folder), make(folder)
    alone.load()
    alone._shares = False
    calls = []
    original = shared.hidden_states
    shared.hidden_states = lambda texts: (calls.append(shared_prefix(texts)), original(texts))[1]
    for one, other in zip(shared.score(problems, samples), alone.score(problems, samples), strict=True):
        assert one.step_log_odds == pytest.approx(other.step_log_odds, abs=1e-4, rel=1e-5)
    assert len(calls) == 2
    assert min(calls) > 400
