"""Folders say how they judge, and are not taken for something else."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from lit_thinkfast.records import Completion, Problem
from lit_thinkfast.verification import HeadRewardModel, LikelihoodRewardModel, ProcessRewardModel, load_reward_model


@pytest.fixture
def marked(tiny_teacher, tmp_path):
    def mark(judge, **values):
        folder = shutil.copytree(tiny_teacher, tmp_path / "_".join(["by", judge, *values.values()]))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "reward_judge": judge, **values}))
        return folder

    return mark


def test_the_config_decides(tiny_teacher, marked):
    assert type(load_reward_model(tiny_teacher)) is ProcessRewardModel
    assert type(load_reward_model(tiny_teacher, judge="likelihood")) is LikelihoodRewardModel
    assert type(load_reward_model(marked("likelihood"))) is LikelihoodRewardModel
    assert load_reward_model(marked("signs"), aggregation="min").aggregation == "min"
    by_head = marked("head")
    save_file({"weight": torch.zeros(1, 32), "bias": torch.zeros(1)}, by_head / "reward_head.safetensors")
    assert type(load_reward_model(by_head, aggregation="min")) is HeadRewardModel


PROBLEM = Problem("p", "What is 2 + 3?", "5")
TEXTS = ["a=2+3\na=5\nThe answer is 5.", "", "one line\n", "\n".join(["long"] * 800)]


def scores(model):
    return model.score([PROBLEM], [Completion("p", i, text, 1, 1, "stop", 0, 0) for i, text in enumerate(TEXTS)])


def test_an_outcome_model_reads_the_last_line_alone(tiny_teacher, marked):
    steps = scores(ProcessRewardModel(tiny_teacher, batch_size=1))
    folder = marked("signs", reward_scope="outcome")
    for aggregation in ("last", "product"):
        found = scores(load_reward_model(folder, aggregation=aggregation, batch_size=3))
        for whole, each in zip(found, steps, strict=True):
            assert whole.step_log_odds == pytest.approx(each.step_log_odds[-1:], abs=1e-5)
            assert whole.log_odds == pytest.approx(each.log_odds, abs=1e-5)
    assert len(steps[0].step_log_odds) == 3
    assert 1 < len(steps[3].step_log_odds) < 800


def test_a_head_adds_up_the_last_hidden_state(tiny_teacher, marked):
    """Prefix after prefix, in plain transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lit_thinkfast.data.prompts import render_prompt

    folder = marked("head")
    head = torch.nn.Linear(32, 1)
    save_file(head.state_dict(), folder / "reward_head.safetensors")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_teacher), AutoTokenizer.from_pretrained(tiny_teacher)
    expected, text = [], ""
    for line in TEXTS[0].split("\n"):
        text += line + "\n"
        ids = render_prompt(tokenizer, PROBLEM.question) + tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
            expected.append(head(states[0, -1]).item())
    assert scores(HeadRewardModel(folder))[0].step_log_odds == pytest.approx(expected, abs=1e-5)


def test_what_does_not_fit_is_refused_in_one_line(marked, tmp_path):
    by_likelihood = marked("likelihood")
    for load in (lambda: load_reward_model(by_likelihood, judge="signs"), ProcessRewardModel(by_likelihood).load):
        with pytest.raises(ValueError, match="was made to judge by likelihood, not by signs"):
            load()
    with pytest.raises(ValueError, match="aggregation 'min' is for signs, heads and other protocols"):
        load_reward_model(by_likelihood, aggregation="min")
    with pytest.raises(ValueError, match="unknown judge 'oracle'; choose one of signs, head, likelihood"):
        load_reward_model(marked("oracle"))
    with pytest.raises(ValueError, match="unknown judge 'oracle'; known: signs, head, likelihood"):
        load_reward_model(by_likelihood, judge="oracle")
    with pytest.raises(ValueError, match="unknown protocol 'oracle'; known: auto, signs, head, rlhflow-deepseek"):
        ProcessRewardModel(by_likelihood, protocol="oracle")
    with pytest.raises(ValueError, match="reward_scope 'half' of its config is not one of process, outcome"):
        load_reward_model(marked("signs", reward_scope="half"))
    headless = marked("head")
    with pytest.raises(FileNotFoundError, match=r"by_head .*reward_head.safetensors"):
        load_reward_model(headless)
    save_file({"weight": torch.zeros(1, 8), "bias": torch.zeros(1)}, headless / "reward_head.safetensors")
    with pytest.raises(
        ValueError, match=r"not a weight of shape \(1, 32\) and a bias of \(1,\); it is the head of another"
    ):
        load_reward_model(headless)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_reward_model(tmp_path / "nothing")
