"""The LightningModule under the Trainer: training, resuming, exporting, what checkpoints hold."""

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers.logger import Logger
from transformers import AutoConfig, AutoModelForCausalLM

from lit_thinkfast.callbacks import ExportStudent
from lit_thinkfast.data.loader import Batches
from lit_thinkfast.distill import (
    CrossEntropy,
    DistillationModule,
    DistillLoss,
    ForwardKL,
    HFTeacher,
    HiddenStateLoss,
    ReverseKL,
    WarmupStableDecay,
)
from lit_thinkfast.models import convert
from lit_thinkfast.records import Problem

from .conftest import llama_folder, loader, pack

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


def adamw(lr):
    return lambda groups: torch.optim.AdamW(groups, lr=lr)


def trainer(tmp_path, *, steps=4, **options):
    settings = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": steps,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "default_root_dir": tmp_path,
    }
    return Trainer(**{**settings, **options})


def distil(student, teacher, **options):
    settings = {
        "losses": {"kl": ReverseKL()},
        "teacher": HFTeacher(teacher),
        "optimizer": adamw(1e-2),
        "schedule": WarmupStableDecay(warmup=2, decay=2),
    }
    return DistillationModule(student, **{**settings, **options})


class Recorder(Callback):
    def __init__(self):
        self.losses, self.modes = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())
        self.modes.append(pl_module.student.training)


def test_a_fresh_student_learns_from_labels(tmp_path):
    folder = llama_folder(tmp_path / "fresh", weights=False)
    module = DistillationModule(folder, losses={"ce": CrossEntropy()}, optimizer=adamw(1e-2))
    seen = Recorder()
    trainer(tmp_path, steps=30, callbacks=[seen]).fit(module, loader(120, 4))
    assert set(module.student.config.layer_mixers) == {"attention"}
    assert seen.losses[-1] < seen.losses[0] - 0.5


def test_a_fresh_student_depends_on_its_seed_alone(tmp_path):
    folder = llama_folder(tmp_path / "fresh", weights=False)
    states = []
    for seed in (3, 3, 4):
        torch.rand(5)
        before = torch.get_rng_state()
        module = DistillationModule(folder, losses={"ce": CrossEntropy()}, seed=seed)
        module.configure_model()
        assert torch.equal(before, torch.get_rng_state())
        states.append(module.student.model.embed_tokens.weight.detach())
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_reverse_kl_brings_a_hybrid_towards_its_teacher(tmp_path, teacher_folder):
    student = str(tmp_path / "hybrid")
    convert(teacher_folder, attention_layers=[0]).save_pretrained(student)
    module = distil(student, teacher_folder)
    run = trainer(tmp_path, steps=40)
    held_out = loader(4, 2, seed=9)
    (before,) = run.validate(module, held_out, verbose=False)
    run.fit(module, loader(160, 4))
    (after,) = run.validate(module, held_out, verbose=False)
    assert set(before) == {"val/loss_kl", "val/kl", "val/top1_agreement"}
    assert after["val/kl"] < 0.5 * before["val/kl"]
    assert after["val/loss_kl"] < before["val/loss_kl"]


def test_validation_is_the_token_mean_over_the_held_out_set(tmp_path, teacher_folder, student_folder):
    batches = Batches([pack([[9, 11]], seed=1), pack([[4], [20]], seed=2)])
    module = distil(student_folder, teacher_folder, losses={"ce": CrossEntropy()})
    (logged,) = trainer(tmp_path).validate(module, batches, verbose=False)
    total, kl, same, count = 0.0, 0.0, 0, 0
    student, teacher = (AutoModelForCausalLM.from_pretrained(f).eval() for f in (student_folder, teacher_folder))
    for batch in batches.batches:
        # With a cache transformers does not see the documents in the positions.
        inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "use_cache": False}
        with torch.no_grad():
            s, t = (m(**inputs).logits[:, :-1].double().log_softmax(-1) for m in (student, teacher))
        labels = batch["labels"][:, 1:]
        mask = labels != -100
        total -= s.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)[mask].sum()
        kl += (t.exp() * (t - s)).sum(-1)[mask].sum()
        same += (s.argmax(-1) == t.argmax(-1))[mask].sum()
        count += mask.sum()
    assert logged["val/loss_ce"] == pytest.approx(float(total / count), rel=1e-5)
    assert logged["val/kl"] == pytest.approx(float(kl / count), rel=1e-5)
    assert logged["val/top1_agreement"] == pytest.approx(float(same / count), rel=1e-5)


def test_weights_scale_and_add_the_losses(tmp_path, teacher_folder, student_folder):
    losses = {"kl": ForwardKL(), "hidden": HiddenStateLoss(), "ce": CrossEntropy()}
    module = distil(student_folder, teacher_folder, losses=losses, weights={"hidden": 0.25, "ce": 0.0})
    run = trainer(tmp_path, steps=1)
    run.fit(module, loader(2, 2))
    logged = {name: float(value) for name, value in run.callback_metrics.items()}
    expected = logged["train/loss_kl"] + 0.25 * logged["train/loss_hidden"]
    assert logged["train/loss"] == pytest.approx(expected)
    assert logged["train/grad_norm"] > 0
    assert logged["train/lr"] == pytest.approx(0.005)


def test_what_is_logged_every_few_steps_is_of_the_step_it_is_logged_at(tmp_path, teacher_folder, student_folder):
    written = {}

    class Log(Logger):
        name = version = "log"

        def log_hyperparams(self, *args, **kwargs):
            pass

        def log_metrics(self, metrics, step=None):
            written.setdefault(step, {}).update(metrics)

    def logged(every):
        written.clear()
        module = distil(student_folder, teacher_folder, schedule=WarmupStableDecay(warmup=12))
        run = trainer(tmp_path, steps=6, logger=Log(), log_every_n_steps=every)
        run.fit(module, loader(12, 2))
        return {step: (v["train/lr"], v["train/grad_norm"]) for step, v in written.items() if "train/lr" in v}

    each = logged(1)
    assert len({lr for lr, _ in each.values()}) == 6
    assert logged(3) == {step: pytest.approx(each[step]) for step in (2, 5)}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiling_changes_neither_names_nor_numbers(tmp_path, teacher_folder, monkeypatch):
    """Traced for autograd, without the compiler's own code, which would need a C++ compiler.

    Rows with any number of documents are one graph: compiling anew for each would soon be given up.
    """
    student = tmp_path / "hybrid"
    convert(teacher_folder, attention_layers=[1]).save_pretrained(student)
    batches = [pack([[2] * count, [3] * (count % 8)], seed=count, prompt=1) for count in range(1, 12)]
    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda layer: original(layer, backend="aot_eager"))
    torch.compiler.reset()
    losses, names = [], []
    for compiled in (False, True):
        seen = Recorder()
        module = distil(str(student), teacher_folder, compile=compiled)
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            trainer(tmp_path, steps=len(batches), callbacks=[seen]).fit(module, Batches(batches))
        assert all((layer._compiled_call_impl is not None) is compiled for layer in module.student.model.layers)
        losses.append(seen.losses)
        names.append(list(module.state_dict()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert names[0] == names[1]


class Projected(DistillLoss):
    """Hidden states compared through a projection that is learnt along, as between models of different width."""

    needs = frozenset({"logits", "hidden_states"})

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = torch.nn.Linear(width, width)

    def forward(self, student, teacher, batch):
        return (self.projection(student.hidden_states[-1]) - teacher.hidden_states[-1]).square().mean()


def test_a_loss_with_parameters_learns_them(tmp_path, teacher_folder, student_folder):
    width = AutoConfig.from_pretrained(teacher_folder).hidden_size
    module = distil(student_folder, teacher_folder, losses={"projected": Projected(width)})
    before = module.losses["projected"].projection.weight.detach().clone()
    trainer(tmp_path, steps=2).fit(module, loader(4, 2))
    assert not torch.equal(before, module.losses["projected"].projection.weight)
    own = {id(p): name for name, p in module.losses.named_parameters()}
    groups = module.configure_optimizers()["optimizer"].param_groups
    decay = {own[id(p)]: group["weight_decay"] for group in groups for p in group["params"] if id(p) in own}
    assert decay == {"projected.projection.weight": 0.1, "projected.projection.bias": 0.0}


def test_a_teacher_that_is_a_torch_module_is_no_part_of_the_checkpoint(student_folder, teacher_folder):
    class Wrapped(torch.nn.Module, HFTeacher):
        def __init__(self, path):
            torch.nn.Module.__init__(self)
            HFTeacher.__init__(self, path)
            self.weight = torch.nn.Parameter(torch.zeros(3))

    module = DistillationModule(student_folder, teacher=Wrapped(teacher_folder), losses={"kl": ForwardKL()})
    module.configure_model()
    assert isinstance(module.teacher, Wrapped)
    assert not [name for name in module.state_dict() if "teacher" in name]
    assert not [p for p in module.parameters() if p.shape == (3,)]


def test_the_student_trains_in_training_mode_also_after_validation(tmp_path, teacher_folder, student_folder):
    seen = Recorder()
    module = distil(student_folder, teacher_folder)
    trainer(tmp_path, steps=4, callbacks=[seen], val_check_interval=2).fit(module, loader(16, 2), loader(2, 2))
    assert seen.modes == [True] * 4


def test_the_teacher_is_in_no_checkpoint_and_does_not_move(tmp_path, teacher_folder, student_folder):
    module = distil(student_folder, teacher_folder)
    run = trainer(tmp_path, steps=2, enable_checkpointing=True)
    run.fit(module, loader(8, 2))
    path = str(tmp_path / "run.ckpt")
    run.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    stock = AutoModelForCausalLM.from_pretrained(student_folder)
    assert set(checkpoint["state_dict"]) == {f"student.{name}" for name in stock.state_dict()}
    assert "hyper_parameters" not in checkpoint
    assert not any("teacher" in name for name, _ in module.named_modules())
    original = AutoModelForCausalLM.from_pretrained(teacher_folder)
    for kept, was in zip(module.teacher._model.parameters(), original.parameters(), strict=True):
        assert torch.equal(kept, was)
        assert kept.grad is None


def test_only_the_named_parameters_move(tmp_path, teacher_folder, student_folder):
    module = distil(student_folder, teacher_folder, trainable=r"layers\.1\.self_attn")
    trainer(tmp_path, steps=2).fit(module, loader(8, 2))
    original = dict(AutoModelForCausalLM.from_pretrained(student_folder).named_parameters())
    for name, parameter in module.student.named_parameters():
        assert torch.equal(parameter, original[name]) == ("layers.1.self_attn" not in name), name


@pytest.mark.parametrize("option", [{"gradient_checkpointing": True}, {}])
def test_resuming_equals_the_uninterrupted_run(option, tmp_path, teacher_folder, student_folder):
    """Bitwise: same losses after the cut, same final weights."""

    def run(name, steps, **fit):
        # The schedule's length is that of the whole run; a limit on batches stops the first half.
        module, seen = distil(student_folder, teacher_folder, **option), Recorder()
        run = trainer(tmp_path / name, steps=8, callbacks=[seen, Stop(steps)])
        run.fit(module, Resumable(16, 2), **fit)
        return module, seen, run

    whole, everything, _ = run("whole", 8)
    _, first, half = run("half", 3)
    checkpoint = str(tmp_path / "half.ckpt")
    half.save_checkpoint(checkpoint)
    resumed, rest, _ = run("rest", 8, ckpt_path=checkpoint, weights_only=True)
    assert first.losses + rest.losses == everything.losses
    for name, parameter in whole.student.state_dict().items():
        assert torch.equal(parameter, resumed.student.state_dict()[name]), name


class Resumable:
    """Batches of known number with a position that is saved."""

    def __init__(self, count, batch_size):
        self.batches, self.position = list(loader(count, batch_size)), 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        while self.position < len(self):
            self.position += 1
            yield self.batches[self.position - 1]

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class Stop(Callback):
    def __init__(self, steps):
        self.steps = steps

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.global_step >= self.steps


def test_accumulation_is_the_mean_over_tokens(tmp_path, teacher_folder, student_folder):
    """Micro-batches of unequal token counts move the weights as one batch of all their rows would, to the last one."""
    micro = [pack([[20]], seed=1), pack([[5]], seed=2), pack([[9, 11]], seed=3)]
    sgd = {"optimizer": lambda groups: torch.optim.SGD(groups, lr=0.1), "schedule": None, "weight_decay": 0.0}
    seen, moved = [], []
    whole = {name: torch.cat([batch[name] for batch in micro]) for name in micro[0]}
    for batches, accumulate in ((micro, 3), ([whole], 1)):
        module = distil(student_folder, teacher_folder, losses={"ce": CrossEntropy(), "kl": ReverseKL()}, **sgd)
        run = trainer(tmp_path, steps=1, accumulate_grad_batches=accumulate, gradient_clip_val=0.5)
        run.fit(module, Batches(batches))
        moved.append(module.student.state_dict())
        seen.append({name: value for name, value in run.callback_metrics.items() if name.startswith("train/")})
    assert seen[0]["train/grad_norm"] > 0.5, "the norm is that before clipping"
    assert {"train/loss", "train/loss_ce", "train/loss_kl"} <= seen[0].keys()
    torch.testing.assert_close(*seen)
    for name, parameter in moved[0].items():
        torch.testing.assert_close(parameter, moved[1][name], msg=name)


def test_an_epoch_that_ends_in_a_smaller_step_is_told(tmp_path, teacher_folder, student_folder, caplog):
    for batches, told in ((3, True), (4, False)):
        caplog.clear()
        module = distil(student_folder, teacher_folder)
        trainer(tmp_path, steps=2, accumulate_grad_batches=2).fit(module, loader(2 * batches, 2))
        assert ("a step of 1 instead of 2" in caplog.text) is told


def test_held_out_losses_are_means_over_what_each_averages(tmp_path, teacher_folder, student_folder):
    """Batches of very different masks against one batch of all their rows."""
    parts = [pack([[24], [9, 11]], prompt=2), pack([[20], [23]], seed=1, prompt=18), pack([[4], [5]], seed=2)]
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    losses = {"kl": ReverseKL(), "own": HiddenStateLoss(), "forced": HiddenStateLoss(teacher_forced=True)}
    module = distil(student_folder, teacher_folder, losses=losses)
    (apart,), (together,) = (
        trainer(tmp_path).validate(module, Batches(batches), verbose=False) for batches in (parts, [whole])
    )
    assert apart == pytest.approx(together, rel=1e-5)


def test_a_gradient_that_is_not_finite_ends_the_run(tmp_path, teacher_folder, student_folder):
    class Broken(ReverseKL):
        def forward(self, student, teacher, batch):
            return super().forward(student, teacher, batch) * float("nan")

    module, out = distil(student_folder, teacher_folder, losses={"kl": Broken()}), tmp_path / "out"
    with pytest.raises(ValueError, match="the gradient is not finite at step 1, and weights are lost"):
        trainer(tmp_path, callbacks=[ExportStudent(str(out))]).fit(module, loader(8, 2))
    unseen = trainer(tmp_path, log_every_n_steps=0, callbacks=[ExportStudent(str(out))])
    with pytest.raises(ValueError, match=r"weights are not finite .*is left as it was"):
        unseen.fit(distil(student_folder, teacher_folder, losses={"kl": Broken()}), loader(8, 2))
    assert not out.exists()


def test_another_vocabulary_is_one_line(tmp_path, student_folder):
    module = distil(student_folder, llama_folder(tmp_path / "wide", vocab_size=50))
    with pytest.raises(
        ValueError, match=r"wide has a vocabulary of 50 and the student of 48; .* rows for the same tokens"
    ) as e:
        trainer(tmp_path).fit(module, loader(2, 2))
    assert "\n" not in str(e.value)


class Misspelt(CrossEntropy):
    needs = frozenset({"logit"})


def test_a_loss_that_is_no_number_is_one_line(tmp_path, student_folder):
    class Rows(CrossEntropy):
        def forward(self, student, teacher, batch):
            return student.logits()

    module = DistillationModule(student_folder, losses={"rows": Rows()}, optimizer=adamw(1e-2))
    with pytest.raises(ValueError, match=r"the loss 'rows' \(Rows\) gave a tensor of shape \(2, 24, 48\)"):
        trainer(tmp_path).fit(module, loader(2, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"losses": {}}, "losses is empty"),
        ({"losses": {"kl": ReverseKL()}}, r"the loss 'kl' \(ReverseKL\) needs a teacher and none was given"),
        ({"losses": {"ce": CrossEntropy()}, "weights": {"kl": 1.0}}, "weights names 'kl', which is not among"),
        ({"losses": {"ce": CrossEntropy()}, "trainable": "(mix"}, r"trainable='\(mix' is not a regular expression"),
        ({"losses": {"x": Misspelt()}}, r"the loss 'x' \(Misspelt\) needs 'logit'; there are logits"),
    ],
)
def test_contradictions_are_found_at_construction(options, message):
    with pytest.raises(ValueError, match=message):
        DistillationModule("anywhere", **options)


def test_a_schedule_without_a_number_of_steps_is_one_line(tmp_path, teacher_folder, student_folder):
    module = distil(student_folder, teacher_folder)
    with pytest.raises(ValueError, match=r"set trainer\.max_steps"):
        trainer(tmp_path, steps=-1, max_epochs=1).fit(module, loader(2, 2))


def test_a_missing_student_is_one_line(tmp_path):
    module = DistillationModule(str(tmp_path / "nowhere"), losses={"ce": CrossEntropy()})
    with pytest.raises(FileNotFoundError, match="nowhere"):
        trainer(tmp_path).fit(module, loader(2, 2))


class FakeEvaluator:
    def __init__(self):
        self.calls = []

    def setup(self, num_problems):
        self.calls.append(("setup", num_problems))

    def reset(self):
        self.calls.append(("reset",))

    def evaluate(self, model, tokenizer, problems, ids):
        self.calls.append((type(model).__name__, tokenizer, [p.id for p in problems], ids))

    def compute(self):
        return {"coverage@4": 0.5}


class WithProblems(LightningDataModule):
    tokenizer = "the tokenizer"
    problem_set = [Problem(id=name, question="?", answer="1") for name in "abc"]  # noqa: RUF012

    def train_dataloader(self):
        return loader(8, 2)

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch

    def val_dataloader(self):
        return [loader(2, 2), Batches([self.problem_set[:2], self.problem_set[2:]])]

    test_dataloader = val_dataloader


def test_problems_go_to_the_evaluator(tmp_path, teacher_folder, student_folder):
    evaluator = FakeEvaluator()
    module = distil(student_folder, teacher_folder, evaluator=evaluator)
    (*_, logged) = trainer(tmp_path).validate(module, datamodule=WithProblems(), verbose=False)
    assert evaluator.calls == [
        ("setup", 3),
        ("reset",),
        ("HybridForCausalLM", "the tokenizer", ["a", "b"], [0, 1]),
        ("HybridForCausalLM", "the tokenizer", ["c"], [2]),
    ]
    assert logged["val/coverage@4"] == 0.5
    assert all(name.startswith("student.") for name in module.state_dict())


def test_a_test_measures_what_validation_does_under_its_own_name(tmp_path, teacher_folder, student_folder):
    logged = []
    for verb in ("validate", "test"):
        module = distil(student_folder, teacher_folder, evaluator=FakeEvaluator())
        run = trainer(tmp_path)
        logged.append(getattr(run, verb)(module, datamodule=WithProblems(), verbose=False))
    assert logged[1] == [{name.replace("val/", "test/"): value for name, value in part.items()} for part in logged[0]]
    assert "test/coverage@4" in logged[1][-1]


def test_problems_without_an_evaluator_are_an_error(tmp_path, teacher_folder, student_folder):
    seen = Recorder()
    for verb in ("validate", "fit"):
        with pytest.raises(ValueError, match="no evaluator is set"):
            getattr(trainer(tmp_path, callbacks=[seen]), verb)(
                distil(student_folder, teacher_folder), datamodule=WithProblems()
            )
    assert not seen.losses, "before the first step"
