"""Folders say how they judge, and are not taken for something else."""

import json
import shutil

import pytest

from lit_thinkfast.verification import LikelihoodRewardModel, ProcessRewardModel, load_reward_model


@pytest.fixture
def marked(tiny_teacher, tmp_path):
    def mark(judge):
        folder = shutil.copytree(tiny_teacher, tmp_path / f"by_{judge}")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "reward_judge": judge}))
        return folder

    return mark


def test_the_config_decides(tiny_teacher, marked):
    assert type(load_reward_model(tiny_teacher)) is ProcessRewardModel
    assert type(load_reward_model(tiny_teacher, judge="likelihood")) is LikelihoodRewardModel
    assert type(load_reward_model(marked("likelihood"))) is LikelihoodRewardModel
    assert load_reward_model(marked("signs"), aggregation="min").aggregation == "min"


def test_what_does_not_fit_is_refused_in_one_line(marked, tmp_path):
    by_likelihood = marked("likelihood")
    for load in (lambda: load_reward_model(by_likelihood, judge="signs"), ProcessRewardModel(by_likelihood).load):
        with pytest.raises(ValueError, match="was made to judge by likelihood, not by signs"):
            load()
    with pytest.raises(ValueError, match="aggregation 'min' is for signs"):
        load_reward_model(by_likelihood, aggregation="min")
    with pytest.raises(ValueError, match="unknown judge 'oracle'"):
        load_reward_model(marked("oracle"))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_reward_model(tmp_path / "nothing")
