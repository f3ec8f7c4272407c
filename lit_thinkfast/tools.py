"""The bodies of the tool verbs: typed functions that call into the rooms and say what came out.

Their arguments are the command line's options and their docstrings its help, so nothing heavy is imported before a
function runs. Whatever is wrong with an argument is a ``ValueError`` or ``FileNotFoundError`` of one line.
"""

# No postponed annotations: to resolve them, jsonargparse would import what is for type checkers only.
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_thinkfast.evaluations import (
    COMPLETIONS,
    PROBLEMS,
    VERDICTS,
    RecordedRewards,
    compare_runs,
    grade_to_file,
    keep_completions,
    keep_file,
    measure_to_file,
    most_samples,
    read_completions,
    read_folder,
)
from lit_thinkfast.jobs import (
    check_place,
    device_named,
    merge_to_file,
    must_exist,
    numbers,
    run_sampling,
    sampling_job,
)
from lit_thinkfast.layouts import Layout
from lit_thinkfast.terminal import progress_bar
from lit_thinkfast.verification.detection import Judge
from lit_thinkfast.verification.scores import Aggregation

if TYPE_CHECKING:
    from lit_thinkfast.records import Problem
    from lit_thinkfast.verification import RewardModel, StepRewardModel

Split = Literal["train", "validation", "test"]


def generate(
    *,
    model: str,
    problems: str,
    out: str,
    problems_path: str | None = None,
    split: Split = "test",
    level: int | None = None,
    limit: int | None = None,
    **sampling: Any,
) -> None:
    """Sample completions of problems under a clock, into a journal that a later call goes on with.

    Started by torchrun or srun, each process samples a share on a GPU of its own, and the last one merges them.

    Args:
        model: Folder or hub id of a student or of a Transformer.
        problems: gsm8k, math500, arithmetic, or a JSON-lines file of problems.
        out: JSON-lines file of completions; settings, machine and totals are written beside it.
        problems_path: Local file of gsm8k or math500 in their published format.
        split: Of the named evaluation set.
        level: Difficulty, of arithmetic and math500.
        limit: At most this many problems.
        sampling: See :func:`lit_thinkfast.jobs.sampling_job`.
    """
    job = sampling_job(**sampling)
    chosen = _problems(problems, path=problems_path, split=split, level=level, limit=limit)
    run_sampling(model, chosen, out, job=job)


def merge(*, out: str) -> None:
    """Merge what the processes of a run that did not finish have sampled, so that it can be graded as it is.

    Processes that finish do this by themselves, and so does the next call of generate.

    Args:
        out: JSON-lines file of completions that was given to generate.
    """
    merge_to_file(out)


def verify(
    *,
    problems: str,
    completions: str,
    out: str,
    problems_path: str | None = None,
    split: Split = "test",
    level: int | None = None,
    limit: int | None = None,
    reward_model: str | None = None,
    judge: Judge | None = None,
    aggregation: Aggregation | None = None,
    batch_size: int = 32,
    device: str = "auto",
) -> None:
    """Grade completions against the gold answers, and score them if a reward model is given.

    Scores are kept as they are made: interrupted, the same command goes on where it was.

    Args:
        problems: gsm8k, math500, arithmetic, or a JSON-lines file of problems.
        completions: JSON-lines file written by generate, or by another engine in the same form.
        out: JSON-lines file of verdicts.
        problems_path: Local file of gsm8k or math500 in their published format.
        split: Of the named evaluation set.
        level: Difficulty, of arithmetic and math500.
        limit: At most this many problems.
        reward_model: Folder of a reward model.
        judge: How it judges. Ours by the sign, + or -, predicted at the end of a line, by a head of their own, or by
            the likelihood of the text so far; published ones by the protocol of that name. By default what its config,
            architecture or name tells, else signs.
        aggregation: From the scores of the steps to that of the completion; the last by default.
        batch_size: Completions scored together.
        device: Of the reward model: auto, cpu, cuda or cuda:1.
    """
    must_exist(completions)
    chosen = _problems(problems, path=problems_path, split=split, level=level, limit=limit)
    scorer = _reward_model(reward_model, judge=judge, aggregation=aggregation, batch_size=batch_size, device=device)
    grade_to_file(chosen, completions, out, reward_model=scorer)


def evaluate(
    *,
    problems: str | None = None,
    out: str,
    model: str | None = None,
    completions: str | None = None,
    layout: Layout | None = None,
    engine_seconds: float | None = None,
    verdicts: str | None = None,
    ks: list[int] | str | None = None,
    problems_path: str | None = None,
    split: Split = "test",
    level: int | None = None,
    limit: int | None = None,
    reward_model: str | None = None,
    judge: Judge | None = None,
    aggregation: Aggregation | None = None,
    **sampling: Any,
) -> None:
    """Generate, verify and measure in one; or measure completions that are there already, ours or of another program.

    Args:
        problems: gsm8k, math500, arithmetic, or a JSON-lines file of problems; not needed with verdicts, nor where the
            completions of another program tell their problems.
        out: Folder for problems.jsonl, completions.jsonl, verdicts.jsonl and metrics.json.
        model: Folder or hub id of the model to sample from; or give completions.
        completions: JSON-lines file of completions to take instead of sampling, or a folder of NeMo-Skills or
            lm-evaluation-harness. All are graded anew.
        layout: Of the completions; by default that of the first line.
        engine_seconds: What all completions together took, where their file does not know; shared out by tokens.
        verdicts: JSON-lines file of their verdicts to take instead of grading.
        ks: Samples a problem to measure at, like 1,8,64; by default steps up to the number of samples.
        problems_path: Local file of gsm8k or math500 in their published format.
        split: Of the named evaluation set.
        level: Difficulty, of arithmetic and math500.
        limit: At most this many problems.
        reward_model: Folder of a reward model; without one, scores in the file of another program are taken over.
        judge: How it judges. Ours by the sign, + or -, predicted at the end of a line, by a head of their own, or by
            the likelihood of the text so far; published ones by the protocol of that name. By default what its config,
            architecture or name tells, else signs.
        aggregation: From the scores of the steps to that of the completion; the last by default.
        sampling: See :func:`lit_thinkfast.jobs.sampling_job`.
    """
    from lit_thinkfast.analysis import ModelRun
    from lit_thinkfast.records import Verdict, read_jsonl, write_jsonl

    job = sampling_job(**sampling)
    if (model is None) == (completions is None):
        raise ValueError("evaluate needs a model to sample from, or completions to measure; give one of them")
    if verdicts is not None and completions is None:
        raise ValueError("verdicts belong to completions; give both files")
    if verdicts is not None and reward_model is not None:
        raise ValueError("the verdicts are there already; a reward model cannot add to them: drop one of the two")
    if completions is None and (layout is not None or engine_seconds is not None):
        raise ValueError("layout and engine_seconds are of completions that are there already; drop them")
    wanted = None if ks is None else numbers(ks, option="ks")
    if wanted is not None and min(wanted, default=0) < 1:
        raise ValueError(f"ks {ks} must be numbers of samples from 1, like 1,8,64")
    if completions is not None and job.quiet:  # of several processes, one is enough
        return
    if problems is None and completions is None:
        raise ValueError("evaluate needs problems to sample from; give --problems")
    chosen = _problems(problems, path=problems_path, split=split, level=level, limit=limit) if problems else []
    folder = Path(out)
    # What can be wrong is found before anything is written or a long computation starts.
    device = job.device if reward_model is None else job.placed()
    scorer: RewardModel | None = None
    if reward_model is not None or completions is None or judge is not None:
        scorer = _reward_model(reward_model, judge=judge, aggregation=aggregation, batch_size=32, device=device)
    if model is not None:
        num_samples = job.config.num_samples
        if wanted and max(wanted) > num_samples:
            largest = max(wanted)
            raise ValueError(
                f"k {largest} is larger than num_samples {num_samples}; use --num_samples {largest} or more"
            )
        if not run_sampling(model, chosen, str(folder / COMPLETIONS), job=job):
            return
    else:
        assert completions is not None
        samples = read_completions(
            completions,
            layout=layout,
            name=job.name,
            fallback_name=folder.resolve().name,
            engine_seconds=engine_seconds,
        )
        chosen = chosen or samples.problems
        if verdicts is None and not chosen:
            raise ValueError(
                f"{completions} does not tell its problems, and evaluate needs them to grade; give --problems, or "
                "--verdicts made before"
            )
        most = most_samples(samples.completions)
        if wanted and max(wanted) > most:
            raise ValueError(
                f"k {max(wanted)} is larger than the {most} samples a problem of {completions}; use {most} or less"
            )
        if scorer is None and samples.rewards:
            scorer = RecordedRewards(samples, aggregation=aggregation or "last")
        elif scorer is None and aggregation is not None:
            raise ValueError(f"{completions} holds no scores to aggregate; drop --aggregation, or add --reward-model")
        if verdicts is not None:
            must_exist(verdicts)
            ModelRun(samples.completions, list(read_jsonl(Verdict, verdicts)))  # do they belong together?
        keep_completions(samples, completions, folder, engine_seconds=engine_seconds)
    if chosen:
        write_jsonl(chosen, folder / PROBLEMS)
    elif completions is not None and Path(completions).resolve() != (folder / COMPLETIONS).resolve():
        (folder / PROBLEMS).unlink(missing_ok=True)  # those of other completions
    if verdicts is None:
        grade_to_file(chosen, folder / COMPLETIONS, folder / VERDICTS, reward_model=scorer)
    else:
        keep_file(verdicts, folder / VERDICTS)
    measure_to_file(folder, ks=wanted)


def report(
    *,
    runs: dict[str, str],
    out: str,
    benchmark: str | None = None,
    price_per_hour: float | dict[str, float] | None = None,
    title: str = "Reasoning in a fixed time",
    notes: str = "",
) -> None:
    """Compare evaluations of several models: a table here, figures and samples in one HTML page.

    In a folder beside the page, with its name and -files, stand the figures of the paper as PNG and SVG, a table for
    LaTeX, a summary in Markdown, and all numbers as CSV and JSON. All of it is made from what is on disk.

    Args:
        runs: Name and folder of each evaluation, the baseline first: --runs.teacher DIR --runs.student DIR.
        out: HTML file.
        benchmark: JSON file written by the verb benchmark.
        price_per_hour: Of the device, in dollars, to tell costs; or one for each run: {"teacher": 2.5, "student": 1}.
        title: Small line over the headline of the page, which is computed from the numbers.
        notes: A paragraph for the reader of the page.
    """
    import rich

    from lit_thinkfast.analysis import table, write_bundle
    from lit_thinkfast.generation.benchmark import read_points

    check_place(out)
    points = read_points(benchmark) if benchmark is not None else None
    about = json.loads(Path(benchmark).read_text(encoding="utf-8")) if benchmark is not None else None
    loaded = {name: read_folder(Path(folder)) for name, folder in runs.items()}
    comparison = compare_runs(loaded, prices=price_per_hour)
    paths = write_bundle(comparison, out, benchmark=points, benchmark_meta=about, notes=notes, title=title)
    rich.print(table(comparison))
    print(f"written to {out}, and {len(paths) - 1} files to {paths[1].parent}")


def compare(
    *,
    first: str,
    second: str,
    out: str | None = None,
    names: list[str] | str | None = None,
    ks: list[int] | str | None = None,
    examples: int = 3,
    seed: int = 0,
) -> None:
    """Compare two evaluations, paired by problem: who wins what, how surely, and which problems flipped.

    At equal samples, at equal time and, where both were sampled in rounds, at equal deadlines; with 95 % intervals, and
    p-values adjusted for the number of rows.

    Args:
        first: Folder that evaluate has written.
        second: Another one, on the same problems.
        out: JSON file with every row and every flipped problem.
        names: Of the two models, like teacher,student; by default those of their completions, or of the folders.
        ks: Samples a problem to compare at, like 1,8,64; by default steps up to what both have.
        examples: Flipped problems shown each way.
        seed: Of bootstrap and permutations.
    """
    import rich

    from lit_thinkfast.analysis import compare_pair, pair_table
    from lit_thinkfast.generation.journal import write_json

    if examples < 0:
        raise ValueError(f"examples {examples} is below 0; use 0 for none")
    if out is not None:
        check_place(out)
    wanted = None if ks is None else numbers(ks, option="ks")
    folders = Path(first), Path(second)
    runs = [read_folder(folder) for folder in folders]
    given = names.split(",") if isinstance(names, str) else names
    if given is not None and len(given) != 2:
        raise ValueError(f"names {names!r} are not two; write them like teacher,student")
    found = given or [run.completions[0].model for run in runs]
    if given is None and (found[0] == found[1] or not all(found)):
        found = [str(folder) for folder in folders]
    with progress_bar("comparing"):
        pair = compare_pair(*runs, names=(found[0], found[1]), ks=wanted, seed=seed)
    if out is not None:
        write_json(pair.to_dict(), out)
    rich.print(pair_table(pair, examples=examples))
    if out is not None:
        print(f"written to {out}")


def _problems(source: str, **options: Any) -> "list[Problem]":
    from lit_thinkfast.data.problems import load_problems

    return load_problems(source, **{name: value for name, value in options.items() if value is not None})


def _reward_model(
    path: str | None, *, judge: Judge | None, aggregation: Aggregation | None, batch_size: int, device: str
) -> "StepRewardModel | None":
    """Return the reward model, loaded, if one is asked for."""
    from lit_thinkfast.verification import load_reward_model

    if path is None:
        if judge is not None or aggregation is not None:
            raise ValueError("judge and aggregation are of a reward model; name one with --reward-model")
        return None
    return load_reward_model(
        path, judge=judge, aggregation=aggregation, batch_size=batch_size, device=device_named(device)
    )
