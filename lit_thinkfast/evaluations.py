"""An evaluation as a folder: completions, verdicts, problems and metrics of one model, and steps from one to the next.

Each step takes files to files, shows a progress bar and says what came out; verbs and the quickstart are made of them.
"""

import dataclasses
import hashlib
import itertools
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_thinkfast.terminal import progress_bar

if TYPE_CHECKING:
    from lit_thinkfast.analysis import Comparison, ModelRun
    from lit_thinkfast.layouts import Layout, Samples
    from lit_thinkfast.records import Completion, Problem
    from lit_thinkfast.verification import RewardModel, RewardScore
    from lit_thinkfast.verification.reward import Aggregation

COMPLETIONS, VERDICTS, PROBLEMS, METRICS = "completions.jsonl", "verdicts.jsonl", "problems.jsonl", "metrics.json"


def read_completions(
    path: str | Path,
    *,
    layout: "Layout | None" = None,
    name: str | None = None,
    fallback_name: str = "",
    engine_seconds: float | None = None,
) -> "Samples":
    """Read completions, ours or those of another program, with the name and the seconds that their file lacks.

    Args:
        path: File, or folder of another program.
        layout: See :func:`~lit_thinkfast.layouts.read_samples`.
        name: Of the model, where the file does not know it.
        fallback_name: Where nobody knows it.
        engine_seconds: Of the whole run, where the file does not know them.

    Raises:
        ValueError: A name, or seconds, for completions that have them.
    """
    from lit_thinkfast.layouts import read_samples, with_engine_seconds

    samples = read_samples(path, layout=layout, model=name or fallback_name)
    if name is not None and any(c.model != name for c in samples.completions):
        raise ValueError(f"{path}: the name of a model that is not sampled stands in its completions; drop --name")
    if engine_seconds is None:
        return samples
    if any(c.seconds > 0 for c in samples.completions):
        raise ValueError(f"{path}: these completions carry engine seconds of their own; drop --engine-seconds")
    return dataclasses.replace(samples, completions=with_engine_seconds(samples.completions, engine_seconds))


def keep_completions(samples: "Samples", path: str | Path, folder: Path, *, engine_seconds: float | None) -> None:
    """Write completions into an evaluation folder, with a meta file that says where they are from.

    A file of ours that nothing was added to is copied as it is, its meta file too.
    """
    from lit_thinkfast.generation.journal import meta_path, write_json
    from lit_thinkfast.layouts import read_samples
    from lit_thinkfast.records import write_jsonl

    source, target = Path(path), folder / COMPLETIONS
    if source.is_file() and samples.layout == "native" and read_samples(source).completions == samples.completions:
        keep_file(source, target)
        return
    write_jsonl(samples.completions, target)
    write_json(
        {
            "taken_from": {"layout": samples.layout, "name": source.name, "sha256": _digest(source)},
            "engine_seconds_given": engine_seconds,
        },
        meta_path(target),
    )


def keep_file(source: str | Path, target: Path) -> None:
    """Copy a file with its meta file, unless it is there already; a meta file of what was there before goes."""
    from lit_thinkfast.generation.journal import meta_path

    if Path(source).resolve() == target.resolve():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    for own, copy in ((meta_path(source), meta_path(target)), (Path(source), target)):
        if not own.is_file():
            copy.unlink(missing_ok=True)
            continue
        partial = copy.with_name(f".{copy.name}.{os.getpid()}.partial")
        try:
            shutil.copyfile(own, partial)
            os.replace(partial, copy)
        finally:
            partial.unlink(missing_ok=True)


class RecordedRewards:
    """The rewards that another program's reward model has given, as a reward model. What they took is not known.

    Args:
        samples: Completions with rewards.
        aggregation: From steps to completion.

    Raises:
        ValueError: Some completions have none.
    """

    def __init__(self, samples: "Samples", *, aggregation: "Aggregation" = "last") -> None:
        missing = [c for c in samples.completions if (c.problem_id, c.sample) not in samples.rewards]
        if missing:
            first = missing[0]
            raise ValueError(
                f"{len(missing)} completions have no score, the first is problem {first.problem_id!r} sample "
                f"{first.sample}; score all of them, or none"
            )
        self._rewards = samples.rewards
        self.timed = False
        self.aggregation: Aggregation = aggregation
        self.name = f"recorded by {samples.layout} ({aggregation})"

    def score(self, problems: "Sequence[Problem]", completions: "Sequence[Completion]") -> "list[RewardScore]":
        """Return the rewards of completions."""
        from lit_thinkfast.verification.reward import RewardScore, aggregate

        steps = [self._rewards[c.problem_id, c.sample] for c in completions]
        return [RewardScore(own, aggregate(own, self.aggregation)) for own in steps]


def grade_to_file(
    problems: "Sequence[Problem]",
    completions: str | Path,
    out: str | Path,
    *,
    reward_model: "RewardModel | None" = None,
) -> None:
    """Grade, and score, completions into verdicts, with a progress bar, and say what came out."""
    from lit_thinkfast.generation.journal import meta_path, write_json
    from lit_thinkfast.verification import grade_files

    with progress_bar("grading" if reward_model is None else "grading and scoring") as update:
        summary = grade_files(problems, completions, out, reward_model=reward_model, progress=update)
    write_json(dataclasses.asdict(summary), meta_path(out))
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(summary.outcomes.items()))
    print(f"{out}: {summary.verdicts} verdicts, {counts}")
    if summary.removed_problems:
        print(f"left out: {len(summary.removed_problems)} problems whose gold answer cannot be read")
    if (ties := summary.saturation) is not None:
        print(f"of a problem's samples, {ties.share_tied_at_top:.1%} tie for its best score")


def compare_runs(runs: "Mapping[str, ModelRun]", **options: Any) -> "Comparison":
    """Measure all runs and compare them with the first, with a progress bar."""
    from lit_thinkfast.analysis import compare_models

    with progress_bar("measuring") as update:
        done = itertools.count(1)
        return compare_models(
            runs,
            baseline=next(iter(runs)),
            on_step=lambda model, rule: update(next(done), None, f"{model}, {rule}"),
            **options,
        )


def measure_to_file(folder: Path, *, ks: Sequence[int] | None) -> None:
    """Write the value of every rule at every k, with intervals and seconds, and show them."""
    import rich

    from lit_thinkfast.analysis import table
    from lit_thinkfast.generation.journal import write_json

    run = read_folder(folder)
    comparison = compare_runs({run.completions[0].model or folder.resolve().name: run}, ks=ks)
    points = [dataclasses.asdict(point) for point in comparison.points]
    write_json([{name: _known(value) for name, value in point.items()} for point in points], folder / METRICS)
    rich.print(table(comparison))
    print(f"written to {folder / METRICS}")


def most_samples(completions: "Iterable[Completion]") -> int:
    """Return the most samples that a problem has."""
    return max(Counter(c.problem_id for c in completions).values())


def read_folder(folder: Path) -> "ModelRun":
    """Read the run in a folder that evaluate has written."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no evaluation folder {folder}; make one with lit-thinkfast evaluate --out {folder}")
    for name in (COMPLETIONS, VERDICTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} lacks {name}; make it with lit-thinkfast evaluate --out {folder}")
    return read_run(folder / COMPLETIONS, folder / VERDICTS, problems=folder / PROBLEMS)


def read_run(completions: str | Path, verdicts: str | Path, *, problems: Path | None = None) -> "ModelRun":
    """Read a run, with the seconds that scoring took where verify has written them, and its problems where they are."""
    from lit_thinkfast.analysis import ModelRun
    from lit_thinkfast.generation.journal import read_meta

    asked = problems if problems is not None and problems.is_file() else None
    run = ModelRun.from_files(completions, verdicts, problems=asked)
    return dataclasses.replace(run, scoring_seconds=(read_meta(verdicts) or {}).get("scoring_seconds"))


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's files of lines one after the other."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(path.glob("*.jsonl")):
        with open(file, "rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
