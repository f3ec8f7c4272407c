"""Does distillation learn, and by what? The paper's claims, tried on the embedded teacher and its arithmetic world.

    python benchmarks/learning.py --table init --out build/learning
    python benchmarks/learning.py --table all --out build/learning --publish docs/assets/learning

Each table compares arms: students that differ in one thing and saw equally many tokens. An arm is a start, converted
from the teacher or the end of another arm, and stages that are chained by Hugging Face folders. All arms share
optimiser, schedule, batches and evaluation; nothing is tuned for one. A run of an arm with a seed leaves one JSON file
and is not repeated; tables share runs. Left out: speed, since nothing here is timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import shutil
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from learning_report import cells, summary, write
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

import lit_thinkfast as lt
from lit_thinkfast.callbacks import ExportStudent
from lit_thinkfast.data.corpora import ArithmeticCorpus
from lit_thinkfast.distill import Muon, WarmupStableDecay
from lit_thinkfast.distill.layerwise import HiddenStateLoss, MatrixOrientation
from lit_thinkfast.generation.journal import write_json
from lit_thinkfast.models import convert_folder
from lit_thinkfast.quickstart import ASSETS

MIXING = r"mixer\.(in_proj|conv1d|D$)|input_layernorm"  # what gets a gradient from mixing matrices
SLOW = {"a_min": 0.005, "a_max": 0.05}  # a memory of hundreds of tokens, which this world needs: docs/teacher.md
FIRST_RATE, LATER_RATE = 3.0e-3, 1.0e-3  # from a conversion, as in configs/arithmetic, and from a trained model


@dataclass(frozen=True)
class Conversion:
    """How a student is made from the embedded teacher.

    Attributes:
        attention_layers: The layers of four that keep attention.
        init: How the other layers start.
        mixer: Their kind.
        mixer_options: Of theirs.
    """

    attention_layers: tuple[int, ...]
    init: str = "attention"
    mixer: str = "mamba2"
    mixer_options: dict[str, float] = dataclasses.field(default_factory=lambda: dict(SLOW))


@dataclass(frozen=True)
class Stage:
    """A training with one loss.

    Attributes:
        loss: A name that :func:`loss` knows.
        share: Of the arm's steps.
        trainable: Pattern of the parameters that learn.
        weight_decay: Of matrices.
    """

    loss: str
    share: float = 1.0
    trainable: str = ".*"
    weight_decay: float = 0.05


@dataclass(frozen=True)
class Arm:
    """One way to make a student.

    Attributes:
        start: A conversion, ``teacher`` for the embedded one as it is, or the arm that it goes on from.
        stages: In order. None: the start as it is.
    """

    start: Conversion | str
    stages: tuple[Stage, ...] = ()


@dataclass(frozen=True)
class Table:
    """Arms that differ in one thing.

    Attributes:
        claim: What the literature says.
        arms: Keys of :data:`ARMS`, by what they are called in the table.
        seeds: Runs of each arm.
    """

    claim: str
    arms: dict[str, str]
    seeds: int = 1


KD, SFT = Stage("kl"), Stage("ce")
LLAMBA = Conversion((), init="mohawk", mixer="discrete_mamba2", mixer_options={})
# Decay would shrink those rows of the fused input projection that mixing matrices do not depend on.
MATRICES, HIDDEN = Stage("matrices", 0.1, MIXING, weight_decay=0.0), Stage("hidden", 0.35)

ARMS = {
    "llamba-123": Arm(LLAMBA, (MATRICES, HIDDEN, Stage("kl", 0.55))),
    "llamba-23": Arm(LLAMBA, (Stage("hidden", 0.45), Stage("kl", 0.55))),
    "llamba-3": Arm(LLAMBA, (KD,)),
    "hybrid-50": Arm(Conversion((1, 3)), (KD,)),
    "hybrid-25": Arm(Conversion((1,)), (KD,)),
    "pure": Arm(Conversion(()), (KD,)),
    "hybrid-25-random": Arm(Conversion((1,), init="random"), (KD,)),
    "hybrid-25-reverse": Arm(Conversion((1,)), (Stage("reverse_kl"),)),
    "hybrid-25-sft": Arm("hybrid-25", (SFT,)),
    "hybrid-25-kd": Arm("hybrid-25", (KD,)),
    "teacher": Arm("teacher"),
    "teacher-ft": Arm("teacher", (SFT,)),
}

TABLES = {
    "mohawk": Table(
        "MOHAWK: stages 1, 2, 3 beat 2, 3, which beat 3 alone, at an equal budget.",
        {"stages 1, 2, 3": "llamba-123", "stages 2, 3": "llamba-23", "stage 3 alone": "llamba-3"},
        seeds=2,
    ),
    "init": Table(
        "MambaInLlama: mixers that start from attention learn faster.",
        {"from attention": "hybrid-25", "random": "hybrid-25-random"},
        seeds=2,
    ),
    "divergence": Table(
        "M1 distils by the reverse divergence, others by the forward one.",
        {"forward KL": "hybrid-25", "reverse KL": "hybrid-25-reverse"},
    ),
    "attention": Table(
        "The more layers keep attention, the closer the student is to its teacher.",
        {"50 % (layers 1 and 3)": "hybrid-50", "25 % (layer 1)": "hybrid-25", "0 %": "pure"},
    ),
    "sft": Table(
        "SFT after distillation makes students better.",
        {"distilled": "hybrid-25", "then SFT": "hybrid-25-sft", "then as much KD again": "hybrid-25-kd"},
    ),
    "ft": Table(
        "Fine-tuning the teacher on what its students saw changes it little.",
        {"the teacher": "teacher", "fine-tuned": "teacher-ft"},
    ),
}


@dataclass(frozen=True)
class Settings:
    """What all runs of a folder share.

    Attributes:
        steps: Of an arm, over all its stages.
        batch_size: Rows a step.
        seq_len: Tokens a row.
        points: Held-out measurements an arm, about.
        val_batches: Held-out batches.
        problems: Test problems.
        samples: Answers to each, at temperature 0.8.
        max_new_tokens: Of an answer.
    """

    steps: int = 360
    batch_size: int = 2
    seq_len: int = 1408
    points: int = 9
    val_batches: int = 8
    problems: int = 64
    samples: int = 4
    max_new_tokens: int = 1024


def loss(name: str) -> lt.DistillLoss:
    """Return the loss of a stage."""
    if name == "matrices":
        return MatrixOrientation()
    if name == "hidden":
        return HiddenStateLoss(teacher_forced=True)
    return {"kl": lt.ForwardKL, "reverse_kl": lt.ReverseKL, "ce": lt.CrossEntropy}[name]()


class Recorder(Callback):
    """Keep each held-out measurement with the step of the arm."""

    def __init__(self, points: list[dict[str, float]], before: int) -> None:
        self.points, self.before = points, before

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = trainer.callback_metrics
        step = self.before + trainer.global_step
        if not self.points or self.points[-1]["step"] < step:
            values = {"kl": float(found["val/kl"]), "top1": float(found["val/top1_agreement"])}
            self.points.append({"step": step, **values})


def run(name: str, seed: int, out: Path, settings: Settings) -> dict[str, Any]:
    """Return what a run of an arm measured, running it if that was not done before."""
    arm, folder = ARMS[name], out / f"{name}-{seed}"
    identity = {"arm": dataclasses.asdict(arm), "seed": seed, "settings": dataclasses.asdict(settings)}
    identity = json.loads(json.dumps(identity))  # tuples become lists, as in a file
    record = folder.with_suffix(".json")
    if record.is_file():
        found: dict[str, Any] = json.loads(record.read_text())
        if {key: found[key] for key in identity} != identity:
            raise ValueError(f"{record} is of another arm or other settings; choose another --out, or remove it")
        return found
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
    place, before = start(name, seed, out, settings)
    begun, points = time.monotonic(), list[dict[str, float]]()
    shares = np.cumsum([0.0, *(stage.share for stage in arm.stages)])
    ends = [round(float(share) * settings.steps) for share in shares]
    if len(set(ends)) < len(ends):
        raise ValueError(f"{settings.steps} steps leave a stage of {name} without any; use more")
    rate = LATER_RATE if isinstance(arm.start, str) else FIRST_RATE
    for i, stage in enumerate(arm.stages):
        # other problems in every stage, and than the embedded models were trained on; the same in all arms
        corpus = ArithmeticCorpus(seed=1000 + 100 * seed + 10 * bool(before) + i)
        model = module(place, {stage.loss: loss(stage.loss)}, rate=rate, of=stage)
        target, steps = folder / f"{i}_{stage.loss}", ends[i + 1] - ends[i]
        callbacks = [Recorder(points, before + ends[i]), ExportStudent(str(target))]
        every = max(1, min(steps, settings.steps // settings.points))
        options = {"callbacks": callbacks, "gradient_clip_val": 1.0, "val_check_interval": every}
        seed_everything(seed, verbose=False)
        trainer, batches = quiet_trainer(folder, max_steps=steps, **options), data(corpus, settings, seed)
        if i == 0:
            trainer.validate(model, batches, verbose=False)
        trainer.fit(model, batches)
        place = target
    found = {**identity, **measure(place, settings), "curve": points, "model": str(place)}
    found["steps"], found["seconds"] = before + ends[-1], round(time.monotonic() - begun)
    write_json(found, record)
    return found


def start(name: str, seed: int, out: Path, settings: Settings) -> tuple[Path, int]:
    """Return the folder that an arm starts from, and the steps that were taken before."""
    origin = ARMS[name].start
    if isinstance(origin, Conversion):
        folder = out / f"{name}-{seed}" / "start"
        options = dataclasses.asdict(origin) | {"attention_layers": list(origin.attention_layers)}
        convert_folder(ASSETS / "teacher", folder, **options, seed=seed)
        return folder, 0
    if origin == "teacher":
        return ASSETS / "teacher", 0
    return Path(run(origin, seed, out, settings)["model"]), settings.steps


def module(place: Path, compared: dict[str, Any], *, rate: float, of: Stage, **options: Any) -> Any:
    """Return a training of the model in a folder by the embedded teacher."""
    return lt.DistillationModule(
        str(place),
        losses=compared,
        teacher=lt.HFTeacher(str(ASSETS / "teacher")),
        trainable=of.trainable,
        optimizer=lambda groups: Muon(groups, lr=rate, matrix_lr_scale=5.0),
        weight_decay=of.weight_decay,
        schedule=WarmupStableDecay(warmup=0.1, decay=0.6, floor=0.02),
        **options,
    )


def data(corpus: ArithmeticCorpus, settings: Settings, seed: int, *, problems: str | None = None) -> lt.MathDataModule:
    """Return the rows of a stage; what is held out is the same for all."""
    return HeldOutAlike(
        corpus,
        tokenizer="arithmetic",
        seq_len=settings.seq_len,
        batch_size=settings.batch_size,
        val_batches=settings.val_batches,
        problems=problems,
        problems_split="test",
        num_problems=settings.problems,
        problem_batch_size=settings.problems,
        seed=seed,
    )


class HeldOutAlike(lt.MathDataModule):
    """Hold out the same rows whatever the corpus that is trained on."""

    def held_out_batches(self) -> list[Any]:
        trained_on, self.corpus = self.corpus, ArithmeticCorpus(seed=0)
        try:
            return super().held_out_batches()
        finally:
            self.corpus = trained_on


def quiet_trainer(folder: Path, **options: Any) -> Trainer:
    """Return a trainer that writes nothing but models."""
    return Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        default_root_dir=folder,
        **options,
    )


def measure(place: Path, settings: Settings) -> dict[str, Any]:
    """Return the held-out figures of a model, and the share of right samples of each test problem."""
    sampling = lt.SamplingConfig(
        num_samples=settings.samples,
        batch_size=settings.samples * settings.problems,
        max_new_tokens=settings.max_new_tokens,
    )
    evaluator = lt.ReasoningEvaluator(sampling, ks=[1])
    model = module(place, {"kl": lt.ForwardKL(), "ce": lt.CrossEntropy()}, rate=0.0, of=KD, evaluator=evaluator)
    batches = data(ArithmeticCorpus(seed=0), settings, 0, problems="arithmetic")
    found = quiet_trainer(place).validate(model, batches, verbose=False)
    values = {key: value for part in found for key, value in part.items()}
    assert evaluator.grid is not None
    right = evaluator.grid.compute().correct.double().mean(1).tolist()
    return {
        "kl": values["val/kl"],
        "top1": values["val/top1_agreement"],
        "ce": values["val/loss_ce"],
        "right": right,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    defaults = Settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=[*TABLES, "all"], required=True)
    parser.add_argument("--out", type=Path, default=Path("build/learning"))
    parser.add_argument("--publish", type=Path, help="folder for curves and figures; by default --out")
    parser.add_argument("--seeds", type=int, help="runs of each arm, in the place of the table's own number")
    for field in dataclasses.fields(Settings):
        name = f"--{field.name.replace('_', '-')}"
        parser.add_argument(name, type=int, default=getattr(defaults, field.name))
    options = parser.parse_args(arguments)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    settings = Settings(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Settings)})
    tokens = settings.batch_size * settings.seq_len
    for name in TABLES if options.table == "all" else [options.table]:
        table, rows = TABLES[name], {}
        for label, arm in table.arms.items():
            seeds = range(options.seeds or table.seeds) if ARMS[arm].stages else range(1)
            rows[label] = summary([run(arm, seed, options.out, settings) for seed in seeds])
            print(f"{name}: {label}: {' | '.join(cells(rows[label]))}", flush=True)
        facts = {"claim": table.claim, "settings": dataclasses.asdict(settings)}
        text = write(name, rows, options.publish or options.out, facts=facts, tokens_per_step=tokens)
        (options.out / f"{name}.md").write_text(text)
        print(f"\n{table.claim}\n\n{text}")


if __name__ == "__main__":
    main()
