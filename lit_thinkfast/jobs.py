"""What verbs and the quickstart share: a step from files to files, with a progress bar, that says what came out."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lit_thinkfast.terminal import progress_bar, sampling_progress

if TYPE_CHECKING:
    from lit_thinkfast.analysis import Comparison, ModelRun
    from lit_thinkfast.generation import SamplingConfig
    from lit_thinkfast.models import HybridForCausalLM
    from lit_thinkfast.records import Problem
    from lit_thinkfast.verification import StepRewardModel

Dtype = Literal["float32", "bfloat16", "float16"]


def sample_to_file(
    model: str,
    problems: "Sequence[Problem]",
    out: str | Path,
    *,
    sampling: "SamplingConfig",
    name: str | None = None,
    device: str = "auto",
    dtype: Dtype = "float32",
) -> None:
    """Sample completions into a journal, with a progress bar, and say what came out."""
    from lit_thinkfast.generation import Sampler, generate_to_file
    from lit_thinkfast.models import load_tokenizer

    student = load_on(model, device=device, dtype=dtype)
    sampler = Sampler(student, load_tokenizer(model), sampling, name=name or Path(model).resolve().name)
    with progress_bar(f"sampling {sampler.name}") as update:
        meta = generate_to_file(sampler, problems, out, on_batch=lambda progress: update(*sampling_progress(progress)))
    print(
        f"{out}: {meta['total_samples']} completions, {meta['total_tokens']:,} tokens in {meta['total_seconds']:.1f} s"
    )


def grade_to_file(
    problems: "Sequence[Problem]",
    completions: str | Path,
    out: str | Path,
    *,
    reward_model: "StepRewardModel | None" = None,
) -> None:
    """Grade, and score, completions into verdicts, with a progress bar, and say what came out."""
    from lit_thinkfast.generation.journal import meta_path, write_json
    from lit_thinkfast.verification import grade_files

    with progress_bar("grading" if reward_model is None else "grading and scoring") as update:
        summary = grade_files(problems, completions, out, reward_model=reward_model, progress=update)
    write_json(dataclasses.asdict(summary), meta_path(out))
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(summary.outcomes.items()))
    print(f"{out}: {summary.verdicts} verdicts, {counts}")


def compare_runs(runs: "dict[str, ModelRun]") -> "Comparison":
    """Measure all runs and compare them with the first, with a progress bar."""
    from lit_thinkfast.analysis import compare_models

    with progress_bar("measuring") as update:
        done = itertools.count(1)
        return compare_models(
            runs, baseline=next(iter(runs)), on_step=lambda model, rule: update(next(done), None, f"{model}, {rule}")
        )


def measure_to_file(completions: str, verdicts: str, out: Path, *, ks: Sequence[int] | None) -> None:
    """Write the value of every rule at every k, with intervals and seconds, and show them."""
    import rich

    from lit_thinkfast.analysis import compare_models, table
    from lit_thinkfast.generation.journal import write_json

    run = read_run(completions, verdicts)
    runs = {run.completions[0].model or Path(completions).parent.name: run}
    with progress_bar("measuring"):
        comparison = compare_models(runs, ks=ks)
    write_json([dataclasses.asdict(point) for point in comparison.points], out)
    rich.print(table(comparison))
    print(f"written to {out}")


def most_samples(completions: str) -> int:
    """Return the most samples that a problem has in a file."""
    from lit_thinkfast.records import Completion, read_jsonl

    must_exist(completions)
    counts = Counter(c.problem_id for c in read_jsonl(Completion, completions))
    if not counts:
        raise ValueError(f"{completions}: there are no completions in this file; generate some first")
    return max(counts.values())


def read_folder(folder: Path) -> "ModelRun":
    """Read the run in a folder that evaluate has written."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no evaluation folder {folder}; make one with lit-thinkfast evaluate --out {folder}")
    for name in ("completions.jsonl", "verdicts.jsonl"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} lacks {name}; make it with lit-thinkfast evaluate --out {folder}")
    return read_run(folder / "completions.jsonl", folder / "verdicts.jsonl")


def read_run(completions: str | Path, verdicts: str | Path) -> "ModelRun":
    """Read a run, with the seconds that scoring took where verify has written them."""
    from lit_thinkfast.analysis import ModelRun
    from lit_thinkfast.generation.journal import read_meta

    run = ModelRun.from_files(completions, verdicts)
    return dataclasses.replace(run, scoring_seconds=(read_meta(verdicts) or {}).get("scoring_seconds"))


def load_on(path: str, *, device: str, dtype: Dtype) -> "HybridForCausalLM":
    """Load a model on a device of :func:`device_named`."""
    import torch

    from lit_thinkfast.models import load_model

    return load_model(path, dtype=getattr(torch, dtype), device=device_named(device))


def device_named(name: str) -> str:
    """Return the device to use; ``auto`` is the first CUDA device, or the CPU where there is none."""
    import torch

    from lit_thinkfast.models.loading import check_device

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return str(check_device(name))


def must_exist(path: str) -> None:
    """Raise ``FileNotFoundError`` unless there is such a file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}; name one that is there")


def numbers(given: Sequence[int] | str, *, option: str) -> list[int]:
    """Read ``3,7`` as ``[3, 7]``; lists of a configuration file pass.

    >>> numbers("3, 7", option="layers")
    [3, 7]
    """
    try:
        return [int(part) for part in given.split(",")] if isinstance(given, str) else list(given)
    except ValueError:
        raise ValueError(f"{option} {given!r} is not a list of whole numbers; write it like 3,7") from None
