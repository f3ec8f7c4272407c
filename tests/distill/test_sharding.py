"""A sharded model on a mesh of one process against the same model as it is."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from lit_thinkfast.distill import DistillationModule, ForwardKL, HFTeacher
from lit_thinkfast.distill.losses import CrossEntropy
from lit_thinkfast.distill.sharding import full_student, is_sharded, shard, within
from lit_thinkfast.distill.signals import read_signals
from lit_thinkfast.models import convert

from .conftest import llama_folder, pack


@pytest.fixture
def mesh(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    finally:
        dist.destroy_process_group()


@pytest.fixture
def models(tmp_path):
    teacher = llama_folder(tmp_path / "teacher", seed=1)
    return [
        convert(teacher, attention_layers=[1], mixer="mamba1", mixer_options={"d_state": 2}) for _ in range(2)
    ], teacher


def loss_of(student, teacher, batch):
    theirs = teacher.signals(batch, frozenset({"logits"}))
    return within(
        student, lambda: ForwardKL()(read_signals(student, batch, needs=frozenset({"logits"})), theirs, batch)
    )


@pytest.mark.parametrize("first", ["training", "inference"])
def test_a_sharded_step_is_that_of_the_whole_model(first, mesh, models):
    """Also where a validation in inference mode comes first, as Lightning's sanity check does."""
    (plain, sharded), path = models
    plain_teacher, sharded_teacher, batch = HFTeacher(path), HFTeacher(path), pack([[9, 11], [20]])
    plain_teacher.load(torch.device("cpu"))
    sharded_teacher.load(torch.device("cpu"), mesh=mesh["data_parallel"])
    shard(sharded, mesh["data_parallel"])
    assert is_sharded(sharded)
    assert is_sharded(sharded_teacher._model)
    if first == "inference":
        with torch.inference_mode():
            torch.testing.assert_close(
                *(loss_of(*pair, batch) for pair in ((plain, plain_teacher), (sharded, sharded_teacher)))
            )
    losses = [loss_of(*pair, batch) for pair in ((plain, plain_teacher), (sharded, sharded_teacher))]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for (name, a), b in zip(plain.named_parameters(), sharded.parameters(), strict=True):
        torch.testing.assert_close(b.grad.full_tensor(), a.grad, msg=name)
        assert getattr(a, "_no_weight_decay", False) == getattr(b, "_no_weight_decay", False), name
    for (name, a), b in zip(plain.state_dict().items(), full_student(sharded).state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_mesh_of_tensor_parallel_ranks_is_refused(tmp_path):
    module = DistillationModule(llama_folder(tmp_path / "student"), losses={"ce": CrossEntropy()})
    sizes = {"data_parallel": SimpleNamespace(size=lambda: 1), "tensor_parallel": SimpleNamespace(size=lambda: 2)}
    module._device_mesh = sizes
    with pytest.raises(
        ValueError, match="set tensor_parallel_size to 1 and data_parallel_size to the number of devices"
    ):
        module.configure_model()
