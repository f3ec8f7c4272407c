"""Parameter groups and learning-rate schedules."""

import math

import pytest
import torch
from torch import nn

from lit_thinkfast.distill import Schedule, WarmupCosine, WarmupStableDecay, parameter_groups
from lit_thinkfast.distill.optim import lambda_lr, select_trainable
from lit_thinkfast.models import convert

from .conftest import llama_folder


@pytest.fixture
def hybrid(tmp_path):
    return convert(llama_folder(tmp_path / "llama"), attention_layers=[0])


def names(model, group):
    by_id = {id(p): name for name, p in model.named_parameters()}
    return {by_id[id(p)] for p in group["params"]}


def test_decay_is_for_matrices_alone(hybrid):
    matrices, others, spared = parameter_groups(hybrid, 0.1)
    assert [g["weight_decay"] for g in (matrices, others, spared)] == [0.1, 0.1, 0.0]
    every = {name for name, _ in hybrid.named_parameters()}
    found = [names(hybrid, group) for group in (matrices, others, spared)]
    assert set().union(*found) == every
    assert sum(map(len, found)) == len(every)
    assert {"A_log", "D", "dt_bias"} <= {name.split(".")[-1] for name in found[2]}
    assert all("norm" not in name and "bias" not in name for name in found[0] | found[1])
    assert "model.layers.0.mlp.up_proj.weight" in found[0]
    assert "model.layers.1.mixer.in_proj.weight" in found[0]
    assert {"model.embed_tokens.weight", "model.layers.1.mixer.conv1d.weight"} <= found[1]
    assert [g["matrix"] for g in (matrices, others, spared)] == [True, False, False]


def test_a_marked_matrix_does_not_decay():
    model = nn.Linear(3, 4)
    model.weight._no_weight_decay = True
    (group,) = parameter_groups(model, 0.1)
    assert group["weight_decay"] == 0
    assert len(group["params"]) == 2


def test_frozen_parameters_are_in_no_group(hybrid):
    select_trainable(hybrid, r"layers\.1\.mixer")
    chosen = set().union(*(names(hybrid, group) for group in parameter_groups(hybrid, 0.1)))
    assert chosen
    assert chosen == {name for name, _ in hybrid.named_parameters() if "layers.1.mixer" in name}


def test_errors(hybrid):
    with pytest.raises(ValueError, match=r"trainable='nothing' matches no parameter"):
        select_trainable(hybrid, "nothing")
    with pytest.raises(ValueError, match="must not be negative"):
        parameter_groups(hybrid, -1)
    hybrid.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter is trainable"):
        parameter_groups(hybrid, 0.1)
    with pytest.raises(ValueError, match=r"warmup is a number of steps .* got 1\.5"):
        WarmupCosine(warmup=1.5)
    with pytest.raises(ValueError, match="decay is a number of steps"):
        WarmupStableDecay(decay=-1)


def rates(schedule, steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = lambda_lr(optimizer, schedule, steps)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_warmup_stable_decay_as_written_in_the_recipe():
    seen = rates(WarmupStableDecay(warmup=0.1, decay=0.2, floor=0.1), 100)
    for step, rate in enumerate(seen):
        if step < 10:
            wanted = 2.0 * (step + 1) / 10
        elif step <= 80:
            wanted = 2.0
        else:
            wanted = 2.0 * (0.1 + 0.9 * (100 - step) / 20)
        assert rate == pytest.approx(wanted), step


def test_warmup_cosine_as_written_in_the_paper():
    seen = rates(WarmupCosine(warmup=5, floor=0.25), 50)
    for step, rate in enumerate(seen):
        wanted = (step + 1) / 5 if step < 5 else 0.25 + 0.375 * (1 + math.cos(math.pi * (step - 5) / 45))
        assert rate == pytest.approx(2.0 * wanted), step


@pytest.mark.parametrize("schedule", [WarmupStableDecay(), WarmupCosine(), WarmupStableDecay(warmup=0, decay=0)])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_short_runs_keep_a_positive_rate(schedule, steps):
    assert isinstance(schedule, Schedule)
    assert all(0 < schedule.multiplier(step, steps) <= 1 for step in range(steps))
    assert 0 <= schedule.multiplier(steps, steps) <= 1


def test_nothing_of_the_schedule_is_in_its_state():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    assert lambda_lr(optimizer, WarmupCosine(), 10).state_dict()["lr_lambdas"] == [None]
