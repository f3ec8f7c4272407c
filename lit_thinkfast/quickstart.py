"""The whole job on the embedded models: distil, sample under a clock, grade, score, and report.

Two students are distilled before the reader's eyes, for as many steps as a coffee lasts. That shows the machinery and
how the divergence from the teacher falls; it does not make students worth sampling. The students that are sampled are
shipped with the package: same configs, more steps. The report says which is which.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lit_thinkfast.generation.journal import write_json

if TYPE_CHECKING:
    from lit_thinkfast.analysis import ModelRun
    from lit_thinkfast.records import Problem

ASSETS = Path(__file__).parent / "assets"


class Student(NamedTuple):
    """How a student is made. Attention is taken away step by step, as in arXiv:2408.15237.

    Attributes:
        teacher: Whom it is made from and taught by.
        attention_layers: The layers that keep attention.
        mixer_options: Of the mixers that are new.
    """

    teacher: str
    attention_layers: list[int]
    mixer_options: dict[str, float] | None = None


STUDENTS = {
    "hybrid": Student("teacher", [1]),
    # The mixer in the place of the last attention must remember hundreds of tokens, so it starts with slow decay.
    "mamba": Student("hybrid", [], {"a_min": 0.005, "a_max": 0.05}),
}
"""Configs have the names of students."""


def run(
    *,
    out: str = "runs/quickstart",
    problems: int = 30,
    num_samples: int = 64,
    batch_size: int = 256,
    temperature: float = 0.8,
    live_steps: int = 100,
    decode_batch_sizes: str = "1,4,16,64,256",
    seed: int = 0,
) -> None:
    """Run the whole job on the embedded teacher, end to end, and write a report.

    Args:
        out: Folder for students, completions, verdicts, benchmark and report.html.
        problems: Test problems, from the first.
        num_samples: Completions a problem and model.
        batch_size: Rows decoded together.
        temperature: Of the sampling.
        live_steps: Steps of distillation of each student; 0 leaves it out.
        decode_batch_sizes: Batch sizes at which decode speed and memory are measured.
        seed: Of everything random.
    """
    import rich

    from lit_thinkfast.analysis import table, write_bundle
    from lit_thinkfast.data.problems import load_problems
    from lit_thinkfast.evaluations import compare_runs
    from lit_thinkfast.generation import SamplingConfig
    from lit_thinkfast.jobs import numbers, sample_to_file
    from lit_thinkfast.records import write_jsonl

    sizes = numbers(decode_batch_sizes, option="decode_batch_sizes")
    if problems < 1 or live_steps < 0 or min(sizes) < 1:
        raise ValueError(
            f"problems and decode_batch_sizes must be at least 1 and live_steps at least 0, "
            f"got {problems}, {decode_batch_sizes} and {live_steps}"
        )
    sampling = SamplingConfig(
        num_samples=num_samples, temperature=temperature, max_new_tokens=1024, batch_size=batch_size, seed=seed
    )
    chosen = load_problems("arithmetic", split="test", limit=problems)
    started = time.monotonic()
    folder = Path(out)
    _check_settings(folder / "settings.json", {**dataclasses.asdict(sampling), "problems": problems})
    console = rich.get_console()
    notes = []

    if live_steps:
        console.rule("1/5  distilling two students from the embedded teacher")
        live = {name: _distil(name, folder / "live" / name, steps=live_steps, seed=seed) for name in STUDENTS}
        write_json(live, folder / "live" / "progress.json")
        notes.append(_told(live, live_steps))
        console.print(notes[-1])

    console.rule("2/5  sampling teacher and shipped students under a clock")
    write_jsonl(chosen, folder / "problems.jsonl")
    for name in ("teacher", *STUDENTS):
        sample_to_file(str(ASSETS / name), chosen, _completions(folder, name), sampling=sampling, device="cpu")

    console.rule("3/5  grading and scoring with the shipped reward model")
    runs = {name: _graded(chosen, _completions(folder, name)) for name in ("teacher", *STUDENTS)}

    console.rule("4/5  decode speed and memory against batch size")
    points = _benchmark(folder, sizes)

    console.rule("5/5  the report")
    notes.append(
        "The students whose curves are shown are shipped with the package; they were trained with the configs of the "
        "live distillation and more steps, as docs/teacher.md tells."
    )
    comparison = compare_runs(runs)
    page, *_ = write_bundle(
        comparison,
        folder / "report.html",
        benchmark=points,
        benchmark_meta=json.loads((folder / "benchmark.json").read_text(encoding="utf-8")),
        problems=chosen,
        notes=notes,
        title="lit-thinkfast quickstart",
    )
    console.print(table(comparison))
    console.print(f"{page} written after {(time.monotonic() - started) / 60:.1f} minutes", highlight=False)


def config_file(name: str) -> Path:
    """Return a config of the arithmetic world, from the wheel or, in a checkout, from ``configs/``."""
    for parent in (Path(__file__).parent, Path(__file__).parent.parent):
        path = parent / "configs" / "arithmetic" / f"{name}.yaml"
        if path.is_file():
            return path
    raise FileNotFoundError(f"the config arithmetic/{name}.yaml is not installed; install lit-thinkfast again")


def _distil(name: str, folder: Path, *, steps: int, seed: int) -> dict[str, float]:
    """Convert the student's teacher and train it for a while; return the held-out divergence before and after."""
    import shutil

    from lit_thinkfast.cli import instantiate
    from lit_thinkfast.models import convert_folder

    for made_before in ("start", "model"):
        if (folder / made_before / "config.json").is_file():
            shutil.rmtree(folder / made_before)
    teacher, kept, options = STUDENTS[name]
    convert_folder(ASSETS / teacher, folder / "start", attention_layers=kept, mixer_options=options, seed=seed)
    callbacks = [
        {"class_path": "lit_thinkfast.callbacks.TokensProgress"},
        {"class_path": "lit_thinkfast.callbacks.ExportStudent", "init_args": {"path": str(folder / "model")}},
    ]
    made = instantiate(
        [
            *("--config", str(config_file(name))),
            *("--model.init_args.student", str(folder / "start")),
            *("--model.init_args.teacher.init_args.path", str(ASSETS / teacher)),
            *("--data.init_args.tokenizer", "arithmetic"),
            *("--trainer.max_steps", str(steps)),
            *("--trainer.default_root_dir", str(folder)),
            *("--trainer.limit_val_batches", "8"),
            *("--trainer.val_check_interval", str(steps)),
            # in the place of the config's, which write where the full training does
            *("--trainer.callbacks", json.dumps(callbacks)),
            *("--trainer.enable_checkpointing", "false"),
            *("--seed_everything", str(seed)),
        ]
    )
    begun = time.monotonic()
    before = made.trainer.validate(made.model, made.datamodule, verbose=False)[0]
    made.trainer.fit(made.model, made.datamodule)
    after: dict[str, Any] = {key: float(value) for key, value in made.trainer.callback_metrics.items()}
    return {
        "steps": steps,
        "seconds": time.monotonic() - begun,
        "kl_before": before["val/kl"],
        "kl_after": after["val/kl"],
        "top1_before": before["val/top1_agreement"],
        "top1_after": after["val/top1_agreement"],
    }


def _told(live: dict[str, dict[str, float]], steps: int) -> str:
    parts = [
        f"the {name} student's divergence from the {STUDENTS[name].teacher} on held-out text went from "
        f"{v['kl_before']:.3f} to {v['kl_after']:.3f} nats a token, and it agreed on the likeliest token "
        f"{v['top1_before']:.1%} of the time before and {v['top1_after']:.1%} after ({v['seconds']:.0f} s)"
        for name, v in live.items()
    ]
    return f"Live distillation, {steps} steps each: {'; '.join(parts)}."


def _completions(folder: Path, name: str) -> Path:
    return folder / name / "completions.jsonl"


def _graded(problems: "Sequence[Problem]", completions: Path) -> "ModelRun":
    from lit_thinkfast.evaluations import grade_to_file, read_run
    from lit_thinkfast.verification import LikelihoodRewardModel

    verdicts = completions.with_name("verdicts.jsonl")
    reward_model = LikelihoodRewardModel(str(ASSETS / "reward_model"))
    grade_to_file(problems, completions, verdicts, reward_model=reward_model)
    return read_run(completions, verdicts)


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Check, before minutes are spent, that a folder is new or of a run with the same settings, and remember them.

    Raises:
        ValueError: It holds another run.
    """
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        for name, value in json.loads(json.dumps(settings)).items():
            if before.get(name) != value:
                raise ValueError(
                    f"{path.parent} holds a run with {name} {before.get(name)}, not {value}; "
                    "choose another --out or remove that folder"
                )
    write_json(settings, path)


def _benchmark(folder: Path, sizes: list[int]) -> Any:
    from lit_thinkfast.generation.benchmark import benchmark_to_file
    from lit_thinkfast.models import load_model
    from lit_thinkfast.terminal import progress_bar

    models = {name: load_model(ASSETS / name) for name in ("teacher", *STUDENTS)}
    with progress_bar("decoding") as update:
        return benchmark_to_file(
            models,
            folder / "benchmark.json",
            prompt_tokens=384,
            generate_tokens=64,
            batch_sizes=sizes,
            rounds=3,
            on_run=lambda done, total, name: update(done, total, name),
        )
