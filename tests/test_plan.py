"""The verb plan: figures of the published runs, and of a toy run against what a trainer really took."""

import json
import logging
from pathlib import Path

import pytest
import torch

from lit_thinkfast.cli import instantiate
from lit_thinkfast.distill.costs import GPUS, Training, costs
from lit_thinkfast.distill.ledger import Ledger
from lit_thinkfast.distill.losses import ForwardKL
from lit_thinkfast.distill.memory import Step
from lit_thinkfast.models import HybridConfig, convert_folder
from lit_thinkfast.plan import main, plan

TOKENS = 8e9


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_teacher):
    """A configuration, with folders of student and teacher where it says."""
    folder = tmp_path_factory.mktemp("recipe")
    convert_folder(tiny_teacher, folder / "start", attention_layers=[1])
    file = folder / "kd.yaml"
    file.write_text(f"""
model:
  class_path: lit_thinkfast.DistillationModule
  init_args:
    student: {folder / "start"}
    teacher: {{class_path: lit_thinkfast.HFTeacher, init_args: {{path: {tiny_teacher}}}}}
    losses: {{kl: {{class_path: lit_thinkfast.ForwardKL}}}}
data:
  class_path: lit_thinkfast.MathDataModule
  init_args:
    corpus: {{class_path: lit_thinkfast.data.corpora.ArithmeticCorpus}}
    tokenizer: arithmetic
    seq_len: 512
    batch_size: 2
trainer:
  max_steps: 3
  accelerator: cpu
  precision: 32-true
  accumulate_grad_batches: 1
  limit_val_batches: 0
  num_sanity_val_steps: 0
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  default_root_dir: {folder}
""")
    return file


# Hours of cards for 8e9 tokens at 40 % of eight H100, by 2 P of the teacher and 6 or 8 P of the student: with and
# without checkpointing. Here the length of rows counts too, and recomputation leaves out the head.
@pytest.mark.parametrize(
    ("student", "teacher", "with_checkpointing", "without"),
    [("mamba_in_llama_1b", "llama32_1b", 72, 57), ("mamba_in_llama_3b", "llama32_3b", 190, 151)],
)
def test_hours_of_published_runs(student, teacher, with_checkpointing, without, monkeypatch):
    monkeypatch.setattr("lit_thinkfast.distill.costs.step_memory", lambda *_, **__: {"loss": {"weights": 1}})
    for checkpointing, expected in ((True, with_checkpointing), (False, without)):
        step = Step(
            4, 2048, gradient_checkpointing=checkpointing, autocast=torch.bfloat16, ranks=8, accelerator=True
        )  # fmt: skip
        training = Training(
            HybridConfig.published(student),
            HybridConfig.published(teacher),
            {"kl": ForwardKL()},
            step,
            steps=round(TOKENS / (8 * 4 * 2048)),
        )
        found = costs(training, gpu=GPUS["h100"], utilisation=0.4)
        assert found.tokens == pytest.approx(TOKENS, rel=1e-4)
        assert found.gpu_hours == pytest.approx(expected, rel=0.05)
        assert found.days == pytest.approx(found.gpu_hours / 8 / 24)
        assert found.tokens_per_second * found.days * 86400 == pytest.approx(found.tokens)


@pytest.mark.parametrize(
    ("name", "total"),
    [("mamba_in_llama_1b", 1_293_002_752), ("mamba_in_llama_3b", 3_447_874_560), ("llamba_1b", 1_405_159_936)],
)
def test_published_parameters(name, total, monkeypatch):
    monkeypatch.setattr("lit_thinkfast.distill.costs.step_memory", lambda *_, **__: {"loss": {"weights": 1}})
    training = Training(HybridConfig.published(name), None, {}, Step(1, 16), trainable="mixer")
    parameters = costs(training, gpu=None, utilisation=0.4).parameters
    mixer = next(part for part in parameters if "mamba" in part)
    assert parameters["total"] == total
    assert parameters["trainable"] == parameters[mixer]
    parts = {"trainable", "total"} ^ parameters.keys()
    assert sum(parameters[part] for part in parts) == total


@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_memory_is_what_a_trainer_takes(recipe, checkpointing, capsys):
    """Rows hold several documents, prompts are not labelled, and Lightning is around it all."""
    options = ["--config", str(recipe), "--model.init_args.gradient_checkpointing", checkpointing]
    planned = plan(options, json=True)
    assert json.loads(capsys.readouterr().out) == planned
    made = instantiate(options)
    with Ledger() as ledger:
        made.trainer.fit(made.model, made.datamodule)
    assert planned["peak_bytes"] == pytest.approx(ledger.peak(), rel=0.15)


def test_options(recipe, tmp_path, capsys):
    out = tmp_path / "new" / "plan.json"
    common = ["--config", str(recipe), "--gpu", "a100-80", "--out", str(out)]
    main([*common, "--data.init_args.batch_size=4", "--trainer.accumulate_grad_batches", "5", "--devices", "2"])
    shown = capsys.readouterr().out
    assert "GPU-hours" in shown
    assert "teacher weights" in shown
    found = json.loads(out.read_text())
    assert (found["batch_size"], found["devices"], found["strategy"], found["gpu"]) == (4, 2, "ddp", "a100-80")
    assert found["tokens_per_step"] == 512 * 4 * 5 * 2
    assert found["tokens"] == 3 * found["tokens_per_step"]
    assert found["fits"]
    main(
        [*common, "--json", "--strategy=fsdp", "--devices=4", "--utilisation", "0.2", "--trainer.precision=bf16-mixed"]
    )
    other = json.loads(capsys.readouterr().out)
    assert (other["strategy"], other["precision"]) == ("fsdp", "bf16-mixed")
    # 32-true runs at the card's speed in float32
    speed = other["tokens_per_second"] / found["tokens_per_second"]
    assert speed == pytest.approx(312 / 19.5 * 0.2 / 0.4 * 4 / 2)
    assert other["memory"]["loss"]["weights"] == found["memory"]["loss"]["weights"] // 4


def test_what_does_not_fit(recipe, monkeypatch, capsys):
    small = GPUS["a100-40"]
    peak = plan(["--config", str(recipe)], gpu="a100-40", json=True)["peak_bytes"]
    monkeypatch.setitem(GPUS, "a100-40", type(small)(small.name, small.bf16, small.fp32, 0.9 * peak))
    found = plan(["--config", str(recipe)], gpu="a100-40", devices=2)
    assert found["fits"] is False
    assert min(found["remedies"].values()) < peak
    assert "does not fit" in capsys.readouterr().out
    assert list(found["remedies"])[:2] == ["gradient_as_bucket_view true", "gradient_checkpointing true"]


def test_architectures_beside_the_configuration(recipe, tmp_path):
    from transformers import AutoConfig

    text = recipe.read_text()
    here = tmp_path / "kd.yaml"
    here.write_text(text.replace(str(recipe.parent / "start"), "runs/not/yet"))
    with pytest.raises(FileNotFoundError, match=r"no architecture of the student: .*runs/not/yet.*student"):
        plan(["--config", str(here)])
    AutoConfig.from_pretrained(recipe.parent / "start").save_pretrained(tmp_path / "student")
    assert plan(["--config", str(here)])["folders"]["student"] == str(tmp_path / "student")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpu", "h100"], "--config FILE"),
        (["--config", "FILE", "--gpu", "b52"], "h100"),
        (["--config", "FILE", "--utilisation", "1.5"], "at most 1"),
        (["--config", "FILE", "--devices", "0"], "at least 1"),
        (["--config", "FILE", "--trainer.precision", "16-mixed"], "16-mixed"),
        (["--config", "FILE", "--data.init_args.batchsize", "3"], "batchsize"),
    ],
)
def test_mistakes(options, message, recipe, capsys, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    with pytest.raises((ValueError, SystemExit)) as error:
        main([str(recipe) if option == "FILE" else option for option in options])
    assert message in f"{error.value} {capsys.readouterr().err}"


def test_published_configurations():
    """A stage of MOHAWK as it stands in configs/, every figure of which is from config.json alone."""
    configs = Path(__file__).parents[1] / "configs" / "llamba_1b"
    found = plan(["--config", str(configs / "3_kd.yaml")])
    assert found["devices"] == 8
    assert found["parameters"]["total"] == 1_405_159_936
    assert found["fits"]


def test_the_verb_takes_its_options_and_those_of_fit(cli):
    config = Path(__file__).parent.parent / "configs" / "arithmetic" / "teacher.yaml"
    code, out, err = cli("plan", "--config", config, "--data.init_args.batch_size", "4", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["tokens_per_step"] == 4 * 1408
    code, out, err = cli("plan", "--config", config.with_name("nowhere.yaml"))
    assert code == 2
    assert err.startswith("lit-thinkfast: error:")
    assert err.count("\n") == 1
