"""The progress bar, speed, and what is shown in the log: names, text and figures."""

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from tensorboard.plugin_util import markdown_to_safe_html
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from lit_thinkfast.callbacks import LogSamples, Throughput, TokensProgress
from lit_thinkfast.callbacks.clock import context_tokens, document_tokens
from lit_thinkfast.callbacks.logs import reasoning_points, sample_markdown
from lit_thinkfast.callbacks.throughput import named_peak
from lit_thinkfast.distill import CrossEntropy, DistillationModule, HFTeacher, ReverseKL
from lit_thinkfast.distill.flops import training_flops_per_token
from lit_thinkfast.records import Completion, Problem, Verdict

from . import watching
from .conftest import llama_folder, loader, pack
from .test_callbacks import module
from .test_module import adamw, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_says_steps_tokens_speed_and_time_left(terminal, tmp_path, student_folder):
    progress = TokensProgress(refresh_seconds=0.0, line_seconds=0.0)
    screen = io.StringIO()
    progress._console = Console(file=screen, force_terminal=terminal, width=140, force_interactive=terminal)
    run = trainer(tmp_path, steps=4, callbacks=[progress], enable_progress_bar=True, val_check_interval=2)
    run.fit(module(student_folder), loader(16, 2), loader(4, 2))
    text = screen.getvalue()
    for part in ("4/4", "192/192 tokens", "tokens/s", "0:00 left", "loss "):
        assert part in text
    if not terminal:
        assert "step 1/4  48/192 tokens" in text
    assert ("validate" in text) == terminal
    assert progress._progress is None


def test_the_budget_does_not_waver_within_a_step_and_goes_on_after_a_resume(tmp_path, student_folder):
    def lines(folder, *, steps, **options):
        progress, screen = TokensProgress(line_seconds=0.0), io.StringIO()
        progress._console = Console(file=screen, force_terminal=False, width=140)
        save = ModelCheckpoint(dirpath=tmp_path / "ckpt", every_n_train_steps=2, save_top_k=-1)
        settings = {"enable_progress_bar": True, "enable_checkpointing": True, "accumulate_grad_batches": 3}
        run = trainer(folder, steps=steps, callbacks=[progress, save], **settings)
        run.fit(module(student_folder), loader(36, 2), weights_only=True, **options)
        return [line.split(" tokens ")[0] for line in screen.getvalue().splitlines()]

    whole = lines(tmp_path / "whole", steps=4)
    done = [0, 0, 144, 144, 144, 288, 288, 288, 432, 432, 432, 576]
    assert whole == [f"step {tokens // 144}/4  {tokens}/576" for tokens in done]
    assert lines(tmp_path / "rest", steps=4, ckpt_path=next((tmp_path / "ckpt").glob("*step=2.ckpt"))) == whole[6:]


def test_tokens_of_documents_and_of_context_are_those_of_a_count_by_hand():
    rows = [[9, 11], [24], [5, 6, 7], [3], [20, 4]]
    batch = pack(rows, prompt=2)
    assert int(document_tokens(batch)) == sum(map(sum, rows))
    filled = [[*row, 24 - sum(row)] for row in rows]
    assert int(context_tokens(batch)) == sum(n * (n + 1) // 2 for row in filled for n in row)
    batch["labels"][0, 9:20] = -100  # documents that fill a row are whole even where the last has few labels
    batch["labels"][0, 19] = 5
    assert int(document_tokens(batch)) == sum(map(sum, rows))


class Seen(Callback):
    """What is logged in training, at each step that logs."""

    def __init__(self):
        self.values = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._note(trainer)

    def on_train_end(self, trainer, pl_module):
        self._note(trainer)

    def _note(self, trainer):
        logged = {name: float(value) for name, value in trainer.logged_metrics.items() if name.startswith("train/")}
        if "train/tokens" in logged and (not self.values or self.values[-1]["train/tokens"] < logged["train/tokens"]):
            self.values.append(logged)


@pytest.mark.parametrize("with_teacher", [True, False])
def test_utilisation_is_operations_over_time_and_peak(with_teacher, tmp_path, student_folder):
    teacher = HFTeacher(llama_folder(tmp_path / "teacher", layers=3)) if with_teacher else None
    trained = DistillationModule(
        student_folder,
        losses={"kl": ReverseKL()} if with_teacher else {"ce": CrossEntropy()},
        teacher=teacher,
        optimizer=adamw(1e-2),
        trainable=r"layers\.",
        gradient_checkpointing=True,
    )
    seen = Seen()
    callbacks = [Throughput(peak_tflops=0.5), seen]
    trainer(tmp_path, steps=4, log_every_n_steps=2, callbacks=callbacks).fit(trained, loader(8, 2))
    config, tokens, lengths = trained.student.config, 2 * 24, [9, 11, 4]
    mean_context = sum(n * (n + 1) / 2 for n in lengths) / 24
    flops = training_flops_per_token(
        config, seq_len=2 * mean_context, teacher=teacher.config if teacher else None, trainable=r"layers\."
    )
    assert [values["train/tokens"] for values in seen.values] == [2 * tokens, 4 * tokens]
    for values in seen.values:
        speed = values["train/tokens_per_second"]
        assert values["train/mfu"] == pytest.approx(speed * flops / 0.5e12, rel=1e-5)
        assert values["train/useful_tokens_per_second"] == pytest.approx(speed * 20 / 24, rel=1e-5)
        assert values["train/steps_per_second"] == pytest.approx(speed / tokens, rel=1e-5)


def test_no_utilisation_without_a_peak_and_no_nonsense_as_peak(tmp_path, student_folder):
    seen = Seen()
    trainer(tmp_path, steps=2, callbacks=[Throughput(), seen]).fit(module(student_folder), loader(4, 2))
    assert "train/mfu" not in seen.values[-1]
    with pytest.raises(ValueError, match="peak_tflops 0 is not above 0"):
        Throughput(peak_tflops=0)
    names = {
        "NVIDIA H100 80GB HBM3": 989.4,
        "NVIDIA H100 PCIe": 756.0,
        "NVIDIA H100 NVL": 835.0,
        "NVIDIA H200": 989.4,
        "NVIDIA A100-SXM4-80GB": 312.0,
        "NVIDIA A100 80GB PCIe": 312.0,
        "NVIDIA L40S": 362.0,
        "NVIDIA L40": None,
        "Tesla T4": None,
    }
    assert {name: named_peak(name) for name in names} == names


def test_time_of_validations_and_checkpoints_is_not_that_of_training(tmp_path, student_folder):
    nap, batch_nap = 0.15, 0.05
    marks = []

    class Slow(Callback):
        def on_train_start(self, *_):
            marks.append(time.perf_counter())

        def on_train_batch_start(self, *_):
            time.sleep(batch_nap)

        def on_validation_batch_end(self, *_):
            time.sleep(nap)

        def on_save_checkpoint(self, *_):
            time.sleep(nap)

        def on_train_end(self, *_):
            marks.append(time.perf_counter())

    seen = Seen()
    save = ModelCheckpoint(dirpath=tmp_path / "ckpt", every_n_train_steps=3, save_top_k=-1)
    callbacks = [Slow(), Throughput(), Slow(), seen, save]  # work before and after the reading
    run = trainer(tmp_path, steps=8, callbacks=callbacks, enable_checkpointing=True, val_check_interval=4)
    run.fit(module(student_folder), loader(16, 2), loader(2, 2))
    seconds = sum(48 / values["train/tokens_per_second"] for values in seen.values)
    assert len(seen.values) == 8
    # Two validations and two checkpoints with two naps each. A batch has two naps, of which the first is not seen
    # where it comes before the clock is resumed: at the start, and after each of the pauses.
    assert 11 * batch_nap <= seconds <= max(marks) - min(marks) - 8 * nap


def test_tokens_go_on_where_the_checkpoint_was_and_count_what_was_trained(tmp_path, student_folder):
    """Epochs of 5 batches, two of which make a step: the last step of each has one."""

    def tokens(name, *, steps, callbacks, rows=2, **options):
        seen = Seen()
        save = ModelCheckpoint(dirpath=tmp_path / name, every_n_train_steps=4, save_top_k=-1, filename="{step}")
        settings = {"enable_checkpointing": True, "accumulate_grad_batches": 2, "max_epochs": -1}
        run = trainer(tmp_path, steps=steps, callbacks=[*callbacks, seen, save], **settings)
        run.fit(module(student_folder), loader(5 * rows, rows), weights_only=True, **options)
        return [values["train/tokens"] / 48 for values in seen.values]

    whole = [2, 4, 5, 7, 9, 10, 12, 14]
    assert tokens("whole", steps=8, callbacks=[Throughput()]) == whole
    checkpoint = {"ckpt_path": tmp_path / "whole" / "step=4.ckpt"}
    assert tokens("rest", steps=8, callbacks=[Throughput()], **checkpoint) == whole[4:]
    assert tokens("larger", steps=8, callbacks=[Throughput()], rows=4, **checkpoint) == [11, 13, 17, 21]
    tokens("without", steps=4, callbacks=[])
    checkpoint = {"ckpt_path": tmp_path / "without" / "step=4.ckpt"}
    assert tokens("late", steps=8, callbacks=[Throughput()], **checkpoint) == whole[4:]


@pytest.fixture(scope="module")
def arithmetic_student(tmp_path_factory):
    return llama_folder(tmp_path_factory.mktemp("arithmetic"), vocab_size=481)


@pytest.fixture(scope="module")
def watched(arithmetic_student, tmp_path_factory):
    out = tmp_path_factory.mktemp("watched")
    teacher = HFTeacher(arithmetic_student)
    losses = {"kl": ReverseKL(), "ce": CrossEntropy()}
    watching.run(arithmetic_student, out, module=watching.model(arithmetic_student, losses=losses, teacher=teacher))
    return watching.events(out)


def test_the_log_has_every_figure_under_a_plain_name(watched):
    training = {"loss", "loss_kl", "loss_ce", "grad_norm", "lr", "tokens", "mfu"}
    training |= {"tokens_per_second", "useful_tokens_per_second", "steps_per_second"}
    validation = {"loss_kl", "loss_ce", "kl", "top1_agreement", "problems"}
    validation |= {f"{rule}@{k}" for rule in ("coverage", "majority") for k in (1, 2)}
    names = {f"train/{name}" for name in training} | {f"val/{name}" for name in validation}
    scalars = set(watched.Tags()["scalars"])
    assert scalars == names | {"epoch"}
    assert [event.step for event in watched.Scalars("train/tokens")] == [1, 3]  # Lightning counts from 0
    assert watched.Tags()["images"] == ["val/reasoning"]
    assert watched.Images("val/reasoning")[0].encoded_image_string.startswith(b"\x89PNG")


def test_samples_show_question_gold_answer_and_verdict(watched):
    text = watching.text(watched, "val/samples")
    data = watching.data()
    data.setup("fit")
    for problem in data.problem_set[:2]:
        assert all(f"    {line}\n" in text for line in problem.question.splitlines())
        assert f"gold {problem.answer}\n" in text
    assert data.problem_set[2].question.splitlines()[0] not in text
    assert text.count("truncated: answer (none)") == 2
    assert text.count("sample 0, 6 tokens, cut off") == 2


def test_two_ranks_log_what_one_does(arithmetic_student, tmp_path):
    watching.run(arithmetic_student, tmp_path / "one")
    alone = watching.watchers(sharded=True)
    watching.run(arithmetic_student, tmp_path / "prompts", callbacks=alone, problems=None)
    command = [sys.executable, watching.__file__, arithmetic_student, str(tmp_path)]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("step 4/4  8.19k/8.19k tokens") == 2
    for one, two in (("one", "ddp"), ("prompts", "fsdp")):
        logs = [watching.events(tmp_path / name) for name in (one, two)]
        assert logs[0].Tags() == logs[1].Tags()
        fill = []
        for log in logs:
            assert [event.value for event in log.Scalars("train/tokens")] == [4 * 2 * 512, 8 * 2 * 512]
            every, useful = (
                [e.value for e in log.Scalars(f"train/{kind}tokens_per_second")] for kind in ("", "useful_")
            )
            fill.append([u / e for u, e in zip(useful, every, strict=True)])
        assert fill[0] == pytest.approx(fill[1], rel=1e-5)
        assert watching.text(logs[0], "val/samples") == watching.text(logs[1], "val/samples")
        assert logs[1].Tags()["images"] == (["val/reasoning"] if two == "ddp" else [])
        assert type(AutoModelForCausalLM.from_pretrained(tmp_path / two / "model")) is LlamaForCausalLM


def test_watching_changes_nothing(arithmetic_student, tmp_path):
    """The same bits with every callback as with none, drawn samples included."""
    weights = []
    sampling = watching.SamplingConfig(temperature=1.0, num_samples=2, max_new_tokens=6)
    for watched in (True, False):
        callbacks = [LogSamples(count=1, sampling=sampling), Throughput(peak_tflops=1.0)] if watched else []
        trained = watching.model(arithmetic_student, lr=0.1)
        watching.run(
            arithmetic_student, tmp_path, module=trained, callbacks=callbacks, val_check_interval=2, logger=False
        )
        weights.append(trained.student.state_dict())
    start = AutoModelForCausalLM.from_pretrained(arithmetic_student).state_dict()
    assert not torch.equal(weights[0]["lm_head.weight"], start["lm_head.weight"])
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


class WithText(CSVLogger):
    """A logger with the method of Lightning's for Weights & Biases."""

    def __init__(self, folder):
        super().__init__(folder)
        self.texts, self.images = [], []

    def log_text(self, key, columns=None, data=None, dataframe=None, step=None):
        self.texts.append((key, columns, data, step))

    def log_image(self, key, images, step=None):
        self.images.append((key, len(images), step))


def test_other_loggers_get_tables_or_are_passed_over(arithmetic_student, tmp_path):
    loggers = [WithText(tmp_path / "a"), CSVLogger(tmp_path / "b")]
    prompts = ["1 + 1?", "2 + 2?", "3 + 3?"]
    samples = LogSamples(prompts=prompts, sampling=watching.SHORT)
    watching.run(arithmetic_student, tmp_path, logger=loggers, callbacks=[*watching.watchers(), samples])
    by_problem, by_prompt = loggers[0].texts
    assert by_problem[0] == by_prompt[0] == "val/samples"
    assert by_problem[1] == ["problem", "question", "completion", "answer", "gold", "verdict"]
    assert [row[-1] for row in by_problem[2]] == ["truncated"] * 2
    assert [(row[1], row[3:]) for row in by_prompt[2]] == [(prompt, [None] * 3) for prompt in prompts]
    assert by_prompt[3] == 4
    assert loggers[0].images == [("val/reasoning", 1, 4)]


@pytest.mark.parametrize(
    "hostile",
    [
        "<script>alert(1)</script>",
        "ends\n\n# Heading\n\n- [x](javascript:alert(1)) ![i](http://e.vil/i.png)\n***\n",
        "```\nfence\n```\n\n<div>\n\n<img src=x onerror=alert(1)>\n</div>\n<!-- open",
        "a\rb\x0bc\x0cd\x1ce\x85f\u2028<b>g</b>\x02klzzwxh:0000\x03",
        "\t<pre>\n</code></pre>\n<b>out</b> & &lt; &amp;",
        "| a | b |\n|---|---|\n| 1 | 2 |\n\n[r]: http://e.vil\n[r]\n<?php ?>\n<![CDATA[",
    ],
)
def test_text_of_a_model_stays_text(hostile):
    problem = Problem(hostile, hostile, hostile)
    completion = Completion(hostile, 0, hostile, 1, 2, "stop", 0.1, 0.1)
    verdict = Verdict(hostile, 0, "incorrect", hostile)
    page = markdown_to_safe_html("\n\n".join([sample_markdown(problem, completion, verdict)] * 2))
    outside = "".join(part.split("</pre>")[-1] for part in page.split("<pre>"))
    assert outside.split() == ["<p><strong>Sample</strong></p>", "<p>Question</p>", "<p>Completion</p>"] * 2
    blocks = [part.split("</pre>")[0] for part in page.split("<pre>")[1:]]
    assert len(blocks) == 6
    for block in blocks:
        inside = block.removeprefix("<code>").strip().removesuffix("</code>")
        assert "<" not in inside


def test_what_cannot_be_sampled_is_told_before_training(arithmetic_student, student_folder, tmp_path):
    with pytest.raises(ValueError, match="count 0 is below 1"):
        LogSamples(count=0)
    with pytest.raises(ValueError, match="prompts is empty"):
        LogSamples(prompts=[])
    with pytest.raises(ValueError, match="nothing to sample from; give it prompts"):
        trainer(tmp_path, callbacks=[LogSamples()]).fit(module(student_folder), loader(4, 2))
    with pytest.raises(ValueError, match="needs the attribute tokenizer"):
        trainer(tmp_path, callbacks=[LogSamples(prompts=["?"])]).fit(module(student_folder), loader(4, 2))


def test_points_of_the_figure_are_the_logged_values():
    metrics = {f"val/{rule}@{k}": k / 10 for rule in ("majority", "coverage", "weighted_best_of_n") for k in (8, 1, 2)}
    points = reasoning_points(
        {**metrics, "val/problems": 7.0, "val/loss_kl": 1.0, "test/coverage@4": 0.9}, prefix="val/"
    )
    assert [(p.rule, p.k, p.value) for p in points] == [
        (rule, k, k / 10) for rule in ("coverage", "majority", "weighted_best_of_n") for k in (1, 2, 8)
    ]
    assert {p.num_problems for p in points} == {7}
