"""Layer losses against stock models run one document at a time, with matrices formed whole, in float64."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from lit_thinkfast.distill import DistillationModule, HFTeacher
from lit_thinkfast.distill.layerwise import HiddenStateLoss, MatrixOrientation, MixerOutputLoss
from lit_thinkfast.distill.signals import read_signals
from lit_thinkfast.models import convert

from .conftest import llama_folder, loader, pack
from .test_module import adamw, trainer

LAYERS = 3
ROWS = [[9, 11], [20], [5, 6, 7]]  # of 24 tokens, so that every row ends in padding


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    folder = llama_folder(tmp_path_factory.mktemp("teacher") / "t", seed=1, layers=LAYERS)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()


def student_of(stock, **options):
    torch.manual_seed(3)
    student = convert(stock, **options)
    for parameter in student.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return student.double()


def signals_of(student, stock, batch, loss):
    teacher = convert(stock, mixer="attention").double().eval()
    with torch.no_grad():
        theirs = read_signals(teacher, batch, needs=loss.teacher_needs)
    return read_signals(student, batch, needs=loss.needs), theirs


def documents(batch, row):
    """Slices of a row's documents, without the padding."""
    seq = batch["seq_idx"][row]
    for number in range(int(seq.max())):
        where = torch.nonzero(seq == number).flatten()
        yield slice(int(where[0]), int(where[-1]) + 1)


class Seen:
    """What the stock model computes for one document: inputs, outputs, attention weights and outputs of each layer."""

    def __init__(self, stock, ids):
        self.inputs, self.outputs, self.mixed, hooks = [], [], [], []
        for layer in stock.model.layers:
            hooks.append(layer.register_forward_pre_hook(lambda _, args: self.inputs.append(args[0])))
            hooks.append(layer.register_forward_hook(lambda _, args, out: self.outputs.append(out)))
            hooks.append(layer.self_attn.register_forward_hook(lambda _, args, out: self.mixed.append(out[0])))
        with torch.no_grad():
            self.matrices = stock(ids[None], output_attentions=True).attentions
        for hook in hooks:
            hook.remove()


def compare(loss_value, expected, parameters):
    # norms, and the softmax of eager attention, are in float32 in transformers
    torch.testing.assert_close(loss_value, expected, rtol=1e-7, atol=0)
    ours = torch.autograd.grad(2 * loss_value, parameters, allow_unused=True)
    wanted = torch.autograd.grad(2 * expected, parameters, allow_unused=True)
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in wanted)
    for gradient, want in zip(ours, wanted, strict=True):
        if want is None:
            assert gradient is None or not gradient.any()
        else:
            assert (gradient - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize("mixer", ["mamba2", "discrete_mamba2"])
@pytest.mark.parametrize(("heads", "block"), [("each", 5), ("mean", 128)])
def test_matrix_orientation_is_the_norm_of_whole_matrices(mixer, heads, block, stock):
    batch, student = pack(ROWS), student_of(stock, mixer=mixer, attention_layers=[1])
    loss = MatrixOrientation(heads=heads, query_block=block)
    value = loss(*signals_of(student, stock, batch, loss), batch)
    expected = torch.zeros((), dtype=torch.float64)
    for layer in (0, 2):
        ours = student.model.layers[layer]
        squares = torch.zeros(len(ROWS), 4 if heads == "each" else 1, dtype=torch.float64)
        for row in range(len(ROWS)):
            for piece in documents(batch, row):
                seen = Seen(stock, batch["input_ids"][row, piece])
                M, A = ours.mixer.matrix(ours.input_layernorm(seen.inputs[layer])), seen.matrices[layer]
                if heads == "mean":
                    M, A = M.mean(1, keepdim=True), A.mean(1, keepdim=True)
                squares[row] = squares[row] + (M - A).square().sum((-1, -2))[0]
        expected = expected + squares.sqrt().mean()
    compare(value, expected, list(student.parameters()))


@pytest.mark.parametrize("gap", [1, 2])
def test_teacher_forced_hidden_states_are_those_of_layers_run_alone(gap, stock):
    batch, student = pack(ROWS), student_of(stock, attention_layers=[1])
    loss = HiddenStateLoss(teacher_forced=True, gap=gap)
    value = loss(*signals_of(student, stock, batch, loss), batch)
    distances = {}
    for row in range(len(ROWS)):
        for piece in documents(batch, row):
            seen = Seen(stock, batch["input_ids"][row, piece])
            alone = {name: values[row : row + 1, piece] for name, values in batch.items()}
            arguments = student.model.layer_arguments(alone)
            for last in range(LAYERS - 1, -1, -gap):
                first = max(0, last + 1 - gap)
                out = seen.inputs[first]
                for i in range(first, last + 1):
                    out = student.model.layers[i](out, **arguments[i])
                distances.setdefault(last, []).append((out - seen.outputs[last]).norm(dim=-1).flatten())
    assert sorted(distances) == ([0, 1, 2] if gap == 1 else [0, 2])
    compare(value, sum(torch.cat(d).mean() for d in distances.values()), list(student.parameters()))


def test_mixer_outputs_are_those_before_the_residual(stock):
    batch, student = pack(ROWS), student_of(stock, mixer="mamba1", mixer_options={"d_state": 2}, attention_layers=[1])
    loss = MixerOutputLoss()
    value = loss(*signals_of(student, stock, batch, loss), batch)
    distances = {0: [], 2: []}
    for row in range(len(ROWS)):
        for piece in documents(batch, row):
            seen = Seen(stock, batch["input_ids"][row, piece])
            for i, found in distances.items():
                ours = student.model.layers[i]
                out = ours.mixer(ours.input_layernorm(seen.inputs[i]))
                found.append((out - seen.mixed[i]).norm(dim=-1).flatten())
    compare(value, sum(torch.cat(d).mean() for d in distances.values()), list(student.parameters()))


def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(stock):
    batch, student = pack(ROWS), convert(stock, mixer="attention").double()
    loss = HiddenStateLoss(teacher_forced=True)
    value = loss(*signals_of(student, stock, batch, loss), batch)
    value.backward()
    assert value.item() < 1e-12
    assert all(p.grad is None or not p.grad.isnan().any() for p in student.parameters())
    loss = MatrixOrientation()
    with pytest.raises(ValueError, match="nothing to compare: all layers of the student are attention"):
        loss(*signals_of(student, stock, batch, loss), batch)


def test_never_a_whole_matrix(stock):
    """Nothing as large as (b, h, t, t) is formed, forward or backward."""
    time, block = 96, 8
    batch, student = pack([[time]], seq_len=time), student_of(stock, mixer="discrete_mamba2", init="mohawk")
    loss = MatrixOrientation(query_block=block)
    signals = signals_of(student, stock, batch, loss)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max(
                [largest, *(x.untyped_storage().nbytes() for x in tree_leaves(out) if isinstance(x, torch.Tensor))]
            )
            return out

    with Watch():
        loss(*signals, batch).backward()
    assert largest < 4 * time * time * 8 / 2
    assert largest >= 4 * block * time * 8


def test_other_heads_are_refused_with_ways_out_that_work(tmp_path):
    teacher = llama_folder(tmp_path / "teacher", seed=1)
    ways = {
        "as_many_heads": ({"num_heads": 4}, MatrixOrientation()),
        "means_over_heads": ({"num_heads": 8, "d_state": 4}, MatrixOrientation(heads="mean")),
        "skip_the_stage": ({"num_heads": 8, "d_state": 4}, HiddenStateLoss(teacher_forced=True)),
    }

    def fit(options, loss):
        folder = str(tmp_path / "student")
        convert(teacher, mixer="discrete_mamba2", init="mohawk", mixer_options=options).save_pretrained(folder)
        only = r"layers\..*(mixer|norm)"
        module = DistillationModule(
            folder,
            teacher=HFTeacher(teacher),
            losses={"stage": loss},
            trainable=only,
            optimizer=adamw(1e-2),
            weight_decay=0.0,
        )
        run = trainer(tmp_path, steps=20)
        run.fit(module, loader(80, 4), loader(4, 2))
        return module, run

    with pytest.raises(ValueError, match="8 heads and the teacher's attention with 4") as error:
        fit({"num_heads": 8, "d_state": 4}, MatrixOrientation())
    assert "\n" not in str(error.value)
    for part in ("num_heads 4", "heads: mean", "HiddenStateLoss"):
        assert part in str(error.value)
    for options, loss in ways.values():
        module, run = fit(options, loss)
        before = DistillationModule(str(tmp_path / "student"), teacher=HFTeacher(teacher), losses={"stage": loss})
        (start,) = trainer(tmp_path).validate(before, loader(4, 2), verbose=False)
        assert run.callback_metrics["val/loss_stage"] < start["val/loss_stage"]
        assert module.needs == {"layers"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MatrixOrientation(heads="all"), "neither 'each' nor 'mean'"),
        (lambda: MatrixOrientation(query_block=0), "query_block must be at least 1"),
        (lambda: HiddenStateLoss(gap=2), "gap is for teacher-forced layers"),
        (lambda: HiddenStateLoss(teacher_forced=True, gap=0), "gap must be at least 1"),
    ],
)
def test_options_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_mixer_without_a_matrix_is_one_line(stock):
    batch, student = pack(ROWS), student_of(stock, mixer="mamba1", mixer_options={"d_state": 2})
    loss = MatrixOrientation()
    with pytest.raises(ValueError, match="Mamba1Mixer has no matrix for each head; match hidden states instead"):
        loss(*signals_of(student, stock, batch, loss), batch)


def test_layers_that_do_not_exist_or_differ_in_number(stock, tmp_path):
    batch, student = pack(ROWS), student_of(stock)
    loss = MixerOutputLoss(layers=[7])
    with pytest.raises(ValueError, match="layer 7 does not exist"):
        loss(*signals_of(student, stock, batch, loss), batch)
    shorter = convert(llama_folder(tmp_path / "short", layers=2)).double()
    for loss in (MixerOutputLoss(), HiddenStateLoss(teacher_forced=True)):
        with pytest.raises(ValueError, match="the student has 2"):
            loss(*signals_of(shorter, stock, batch, loss), batch)


def test_gradient_checkpointing_changes_nothing(stock):
    batch = pack(ROWS)
    for loss in (MatrixOrientation(query_block=7), HiddenStateLoss(teacher_forced=True), MixerOutputLoss()):
        found = []
        for checkpointing in (False, True):
            student = student_of(stock, attention_layers=[1]).train()
            if checkpointing:
                student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            value = loss(*signals_of(student, stock, batch, loss), batch)
            found.append((value, torch.autograd.grad(value, student.model.layers[0].mixer.in_proj.weight)[0]))
        torch.testing.assert_close(*found)
