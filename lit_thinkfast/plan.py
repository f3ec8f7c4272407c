"""``lit-thinkfast plan``: what a training run takes, before anyone rents a card for it.

The configuration is read as ``lit-thinkfast fit`` reads it, but nothing of it is made except the module, which costs
nothing until it is set up. Sizes come from ``config.json`` alone; no weights, data or network are needed.
"""

# No postponed annotations: jsonargparse reads those of ``plan``.
import dataclasses
import json as json_lines
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.table import Table

    from lit_thinkfast.distill.costs import Costs, Training
    from lit_thinkfast.models import HybridConfig

Card = Literal["a100-40", "a100-80", "h100", "h200", "l40s", "none"]
_NODE = 8  # devices where a configuration says auto
_PEERS = (
    "a utilisation of 0.4 takes fused kernels and packed rows; programs on plain transformers with DeepSpeed reach "
    "0.20 to 0.25"
)


def plan(
    arguments: Sequence[str],
    *,
    gpu: Card | None = None,
    utilisation: float = 0.4,
    devices: int | None = None,
    strategy: Literal["ddp", "fsdp"] | None = None,
    json: bool = False,
    out: str | None = None,
) -> dict[str, Any]:
    """Say what a training run takes: parameters, arithmetic, memory by part, hours on cards. Nothing is allocated.

    Takes the configuration of a training as lit-thinkfast fit does, with --config FILE and options with dots. Sizes
    are those of the student's and teacher's folders, or where these are not there yet, of the folders student and
    teacher beside the configuration.

    Args:
        arguments: As after ``lit-thinkfast fit``.
        gpu: Card to plan for: h100 if not given, or none where the configuration asks for a CPU.
        utilisation: Share of the card's peak arithmetic that is reached. 0.4 takes fused kernels and packed rows;
            0.2 to 0.25 is usual without.
        devices: How many; as the configuration says if not given, 8 where that is auto.
        strategy: Each device has all weights (ddp), or they are spread (fsdp); as the configuration says if not given.
        json: Print JSON instead of tables.
        out: File to write the JSON to.

    Returns:
        What is written as JSON.

    Raises:
        ValueError: A mistake in the configuration, or nothing in it to plan.
        FileNotFoundError: No folder says what student or teacher look like.
    """
    if not 0 < utilisation <= 1:
        raise ValueError(f"utilisation is a share above 0 and at most 1, got {utilisation}")
    if devices is not None and devices < 1:
        raise ValueError(f"devices must be at least 1, got {devices}")
    config, model = _read(arguments)
    from lit_thinkfast.distill.costs import GPUS, costs

    trainer = config["trainer"]
    on_cpu = trainer["accelerator"] == "cpu"
    name = gpu or ("none" if on_cpu else "h100")
    beside = [Path(str(path)).parent for path in config.get("config") or []]
    ranks = devices or _devices(trainer, on_cpu)
    training, folders = _training(config, model, beside, ranks=ranks, strategy=strategy, accelerator=name != "none")
    found = costs(training, gpu=GPUS.get(name), utilisation=utilisation)
    step = training.step
    record = {
        "folders": folders,
        "gpu": name,
        "utilisation": utilisation,
        "devices": ranks,
        "strategy": "fsdp" if step.sharded else "ddp",
        "precision": str(trainer["precision"]),
        "batch_size": step.batch_size,
        "seq_len": step.seq_len,
        "accumulate_grad_batches": training.micro_batches,
        "gradient_checkpointing": step.gradient_checkpointing,
        **dataclasses.asdict(found),
        "peak_phase": found.peak_phase,
        "peak_bytes": found.peak,
        "notes": _notes(training, found, name, trainer),
    }
    text = json_lines.dumps(record, indent=2)
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(text + "\n", encoding="utf-8")
    if json:
        print(text)
    else:
        _show(record)
    return record


def main(argv: Sequence[str]) -> None:
    """Run the verb: options of ``plan`` are taken out, all others are those of a training."""
    import inspect

    from jsonargparse import ArgumentParser

    from lit_thinkfast.cli import _OneLineErrors

    class PlanParser(_OneLineErrors, ArgumentParser):
        pass

    parser = PlanParser(prog="lit-thinkfast plan", description=inspect.getdoc(plan).split("\n\nArgs")[0])  # type: ignore[union-attr]
    parser.add_function_arguments(plan, skip={"arguments"})
    own = {f"--{name}" for name in inspect.signature(plan).parameters if name != "arguments"} | {"-h", "--help"}
    ours: list[str] = []
    theirs: list[str] = []
    target = theirs
    for argument in argv:
        if argument.startswith("-"):
            target = ours if argument.partition("=")[0] in own else theirs
        target.append(argument)
    ours = [f"{argument}=true" if argument == "--json" else argument for argument in ours]
    plan(theirs, **vars(parser.parse_args(ours)))


def _read(arguments: Sequence[str]) -> tuple[dict[str, Any], Any]:
    """Return the whole configuration as a dictionary, and the module that it describes."""
    if not any(argument.partition("=")[0] in ("--config", "-c") for argument in arguments):
        raise ValueError("plan needs the configuration of a training: --config FILE, see configs/")
    from lightning.pytorch import LightningDataModule
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

    import lit_thinkfast.data.module  # noqa: F401  classes that are imported may be named without their package
    from lit_thinkfast.cli import _OneLineErrors
    from lit_thinkfast.distill.module import DistillationModule

    class PlanParser(_OneLineErrors, LightningArgumentParser):
        pass

    class Parsed(LightningCLI):
        def instantiate_classes(self) -> None:
            """Make nothing."""

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*args parameter is intended to run from within Python")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        parsed = Parsed(
            DistillationModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_class=PlanParser,
            parser_kwargs={"prog": "lit-thinkfast plan"},
            seed_everything_default=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_callback=None,
            args=[*arguments, "--seed_everything", "false"],
            run=False,
        )
        config: Any = parsed.config
        whole = config.as_dict()
        for name in [name for name in config.keys(branches=True) if "." not in name and name != "model"]:
            del config[name]
        make = getattr(parsed.parser, "instantiate", None) or parsed.parser.instantiate_classes
        return whole, make(config).model


def _training(
    config: dict[str, Any], model: Any, beside: list[Path], *, ranks: int, strategy: str | None, accelerator: bool
) -> tuple["Training", dict[str, str | None]]:
    """Return the run, and the folders from which sizes are."""
    import torch

    from lit_thinkfast.distill.cached import CachedTeacher
    from lit_thinkfast.distill.costs import Training
    from lit_thinkfast.distill.memory import Step
    from lit_thinkfast.distill.module import DistillationModule
    from lit_thinkfast.distill.teachers import HFTeacher

    if not isinstance(model, DistillationModule):
        raise ValueError(f"plan knows how a DistillationModule trains, not a {type(model).__name__}")
    teacher = model.teacher.teacher if isinstance(model.teacher, CachedTeacher) else model.teacher
    if teacher is not None and not isinstance(teacher, HFTeacher):
        raise ValueError(f"plan knows what an HFTeacher takes, not a {type(teacher).__name__}")
    data, trainer = config["data"].get("init_args", {}), config["trainer"]
    for key in ("seq_len", "batch_size"):
        if not isinstance(data.get(key), int):
            raise ValueError(f"the configuration has no data.init_args.{key}, by which the step is planned; give it")
    precision = str(trainer["precision"] or "32-true")
    types: dict[str, tuple[torch.dtype | None, torch.dtype]] = {
        "32-true": (None, torch.float32),
        "bf16-mixed": (torch.bfloat16, torch.float32),
        "bf16-true": (None, torch.bfloat16),
    }
    precision = {"32": "32-true", "bf16": "bf16-mixed"}.get(precision, precision)
    if precision not in types:
        raise ValueError(f"trainer.precision {precision!r} is none of those that train here: {', '.join(types)}")
    student, of_student = _architecture("student", model.student_path, beside)
    taught, of_teacher = (None, None) if teacher is None else _architecture("teacher", teacher.path, beside)
    named: Any = trainer["strategy"]
    if not isinstance(named, dict):
        named = {"class_path": str(named)}
    sharded = "ModelParallel" in named["class_path"]
    micro_batches = int(trainer["accumulate_grad_batches"] or 1)
    step = Step(
        batch_size=data["batch_size"],
        seq_len=data["seq_len"],
        autocast=types[precision][0],
        dtype=types[precision][1],
        teacher_dtype=torch.float32 if teacher is None else teacher.dtype,
        gradient_checkpointing=model.gradient_checkpointing,
        accumulate=micro_batches > 1,
        ranks=ranks,
        sharded=(sharded if strategy is None else strategy == "fsdp") and ranks > 1,
        views=bool(named.get("init_args", {}).get("gradient_as_bucket_view")),
        accelerator=accelerator,
    )
    training = Training(
        student=student,
        teacher=taught,
        losses=dict(model.losses.items()),  # type: ignore[arg-type]
        step=step,
        micro_batches=micro_batches,
        steps=trainer["max_steps"] if trainer["max_steps"] and trainer["max_steps"] > 0 else None,
        optimizer=model.optimizer,
        trainable=model.trainable,
        weight_decay=model.weight_decay,
    )
    return training, {"student": of_student, "teacher": of_teacher}


def _architecture(role: str, path: str, beside: list[Path]) -> tuple["HybridConfig", str]:
    """Return how a model is built, from its folder or the one beside the configuration, and which it was."""
    from transformers import AutoConfig

    from lit_thinkfast.models import HybridConfig
    from lit_thinkfast.models.configuration import FAMILIES
    from lit_thinkfast.reading import told_in_one_line

    places = [Path(path), *(folder / role for folder in beside)]
    folder = next((place for place in places if (place / "config.json").is_file()), None)
    if folder is None:
        looked = " nor ".join(str(place / "config.json") for place in places)
        raise FileNotFoundError(f"no architecture of the {role}: there is neither {looked}; put its config.json there")
    with told_in_one_line(folder):
        config = AutoConfig.from_pretrained(folder)
    if not isinstance(config, HybridConfig):
        if config.model_type not in FAMILIES:
            known = ", ".join(FAMILIES)
            raise ValueError(f"{folder}: cannot plan a model of family {config.model_type!r}; known families: {known}")
        values = config.to_dict()
        family = values.pop("model_type")
        config = HybridConfig(**values | {"base_model_type": family})
    return config, str(folder)


def _devices(trainer: dict[str, Any], on_cpu: bool) -> int:
    nodes = int(trainer["num_nodes"] or 1)
    value = trainer["devices"]
    if isinstance(value, (list, tuple)):
        return len(value) * nodes
    count = str(value)
    return (int(count) if count.isdigit() and int(count) else 1 if on_cpu else _NODE) * nodes


def _notes(training: "Training", found: "Costs", gpu: str, trainer: dict[str, Any]) -> list[str]:
    from lit_thinkfast.distill.costs import GPUS, USABLE

    notes = []
    if gpu != "none":
        notes.append(_PEERS)
    if found.fits is False:
        limit = USABLE * GPUS[gpu].memory
        tried = "; ".join(
            f"{name}: {size / 1e9:.1f} GB{', fits' if size <= limit else ''}" for name, size in found.remedies.items()
        )
        notes.append(
            f"does not fit: {found.peak / 1e9:.1f} GB a device, and an {GPUS[gpu].name} has room for "
            f"{limit / 1e9:.1f} GB. Tried: {tried or 'nothing is left to try; take a larger card'}"
        )
    if found.tokens is None:
        notes.append("no trainer.max_steps: neither tokens nor hours")
    if any("layers" in loss.needs for loss in training.losses.values()):
        notes.append("losses that run layers by themselves: FLOPs, and so hours, are an upper estimate")
    return notes


def _show(record: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    for table in (_sizes(record), _memory(record)):
        console.print(table)
    for note in record["notes"]:
        console.print(note, markup=False)


def _sizes(record: dict[str, Any]) -> "Table":
    from rich.table import Table

    table = Table(title="run", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, folder in record["folders"].items():
        if folder is not None:
            table.add_row(f"{name}, from", folder)
    for name, count in record["parameters"].items():
        table.add_row("parameters" if name == "total" else f"  {name}", f"{count:,}")
    table.add_row("GFLOPs a token", f"{sum(record['flops'].values()) / 1e9:,.3f}")
    for name, value in record["flops"].items():
        table.add_row(f"  {name}", f"{value / 1e9:,.3f}")
    table.add_row("tokens a step", f"{record['tokens_per_step']:,}")
    if record["tokens"] is not None:
        table.add_row("tokens", f"{record['tokens']:,}")
    if record["tokens_per_second"] is not None:
        where = f"on {record['devices']} x {record['gpu']} at {record['utilisation']:.0%}"
        table.add_row(f"tokens/s {where}", f"{record['tokens_per_second']:,.0f}")
    if record["gpu_hours"] is not None:
        table.add_row("GPU-hours", f"{record['gpu_hours']:,.1f}")
        table.add_row("days", f"{record['days']:,.2f}")
    return table


def _memory(record: dict[str, Any]) -> "Table":
    from rich.table import Table

    from lit_thinkfast.distill.memory import PARTS

    title = (
        f"GB a device of {record['devices']} ({record['strategy']}, {record['precision']}), at the peak of each phase"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("part")
    for phase in record["memory"]:
        table.add_column(phase, justify="right")
    for part in PARTS:
        sizes = [parts.get(part, 0) for parts in record["memory"].values()]
        if any(sizes):
            table.add_row(part, *(f"{size / 1e9:,.2f}" for size in sizes))
    table.add_row("total", *(f"{sum(parts.values()) / 1e9:,.2f}" for parts in record["memory"].values()))
    return table
