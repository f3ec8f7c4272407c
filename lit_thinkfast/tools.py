"""The bodies of the tool verbs: typed functions that call into the rooms and say what came out.

Their arguments are the command line's options and their docstrings its help, so nothing heavy is imported before a
function runs. Whatever is wrong with an argument is a ``ValueError`` or ``FileNotFoundError`` of one line.
"""

# No postponed annotations: to resolve them, jsonargparse would import what is for type checkers only.
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_thinkfast.jobs import (
    Dtype,
    compare_runs,
    device_named,
    grade_to_file,
    load_on,
    measure_to_file,
    most_samples,
    must_exist,
    numbers,
    read_folder,
    sample_to_file,
)
from lit_thinkfast.terminal import decode_table, progress_bar

if TYPE_CHECKING:
    from lit_thinkfast.records import Problem
    from lit_thinkfast.verification import StepRewardModel

Split = Literal["train", "validation", "test"]
Aggregation = Literal["last", "min", "product", "mean"]
Judge = Literal["signs", "head", "likelihood"]


def generate(
    *,
    model: str,
    problems: str,
    out: str,
    problems_path: str | None = None,
    split: Split = "test",
    level: int | None = None,
    limit: int | None = None,
    name: str | None = None,
    num_samples: int = 64,
    temperature: float = 0.8,
    top_p: float = 1.0,
    max_new_tokens: int = 1024,
    batch_size: int = 64,
    system: str | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: Dtype = "float32",
) -> None:
    """Sample completions of problems under a clock, into a journal that a later call goes on with.

    Args:
        model: Folder or hub id of a student or of a Transformer.
        problems: gsm8k, math500, arithmetic, or a JSON-lines file of problems.
        out: JSON-lines file of completions; settings, machine and totals are written beside it.
        problems_path: Local file of gsm8k or math500 in their published format.
        split: Of the named evaluation set.
        level: Difficulty, of arithmetic and math500.
        limit: At most this many problems.
        name: Of the model in tables and figures; its folder's name if not given.
        num_samples: Completions a problem.
        temperature: 0 takes the likeliest token.
        top_p: Share of probability that is kept when sampling.
        max_new_tokens: Budget of a completion.
        batch_size: Rows decoded together.
        system: System prompt, or the name of one: boxed, search-and-learn.
        seed: Of the run; a sample depends on seed, problem and its index only.
        device: auto, cpu, cuda or cuda:1.
        dtype: Of the weights.
    """
    from lit_thinkfast.generation import SamplingConfig

    sampling = SamplingConfig(
        num_samples=num_samples,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        system=system,
        seed=seed,
    )
    chosen = _problems(problems, path=problems_path, split=split, level=level, limit=limit)
    sample_to_file(model, chosen, out, sampling=sampling, name=name, device=device, dtype=dtype)


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

    Args:
        problems: gsm8k, math500, arithmetic, or a JSON-lines file of problems.
        completions: JSON-lines file written by generate, or by another engine in the same form.
        out: JSON-lines file of verdicts.
        problems_path: Local file of gsm8k or math500 in their published format.
        split: Of the named evaluation set.
        level: Difficulty, of arithmetic and math500.
        limit: At most this many problems.
        reward_model: Folder of a reward model.
        judge: How it judges a line: by the sign, + or -, that it predicts at its end, by a head of its own, or by the
            likelihood of the text so far. By default what its config says, else signs.
        aggregation: From the scores of the steps, given by signs or a head, to that of the completion; the last by
            default.
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
    verdicts: str | None = None,
    ks: list[int] | str | None = None,
    problems_path: str | None = None,
    split: Split = "test",
    level: int | None = None,
    limit: int | None = None,
    reward_model: str | None = None,
    judge: Judge | None = None,
    aggregation: Aggregation | None = None,
    name: str | None = None,
    num_samples: int = 64,
    temperature: float = 0.8,
    top_p: float = 1.0,
    max_new_tokens: int = 1024,
    batch_size: int = 64,
    system: str | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: Dtype = "float32",
) -> None:
    """Generate, verify and measure in one; or measure completions, and verdicts, that are there already.

    Args:
        problems: gsm8k, math500, arithmetic, or a JSON-lines file of problems; not needed with verdicts.
        out: Folder for problems.jsonl, completions.jsonl, verdicts.jsonl and metrics.json.
        model: Folder or hub id of the model to sample from; or give completions.
        completions: JSON-lines file of completions to take instead of sampling.
        verdicts: JSON-lines file of their verdicts to take instead of grading.
        ks: Samples a problem to measure at, like 1,8,64; by default steps up to the number of samples.
        problems_path: Local file of gsm8k or math500 in their published format.
        split: Of the named evaluation set.
        level: Difficulty, of arithmetic and math500.
        limit: At most this many problems.
        reward_model: Folder of a reward model.
        judge: How it judges a line: by the sign, + or -, that it predicts at its end, by a head of its own, or by the
            likelihood of the text so far. By default what its config says, else signs.
        aggregation: From the scores of the steps, given by signs or a head, to that of the completion; the last by
            default.
        name: Of the model in tables and figures; its folder's name if not given.
        num_samples: Completions a problem.
        temperature: 0 takes the likeliest token.
        top_p: Share of probability that is kept when sampling.
        max_new_tokens: Budget of a completion.
        batch_size: Rows decoded together.
        system: System prompt, or the name of one: boxed, search-and-learn.
        seed: Of the run; a sample depends on seed, problem and its index only.
        device: auto, cpu, cuda or cuda:1.
        dtype: Of the weights.
    """
    if (model is None) == (completions is None):
        raise ValueError("evaluate needs a model to sample from, or completions to measure; give one of them")
    if verdicts is None and problems is None:
        raise ValueError("evaluate needs problems to grade against; give --problems, or --verdicts made before")
    if verdicts is not None and completions is None:
        raise ValueError("verdicts belong to completions; give both files")
    if verdicts is not None and reward_model is not None:
        raise ValueError("the verdicts are there already; a reward model cannot add to them: drop one of the two")
    if completions is not None and name is not None:
        raise ValueError("the name of a model that is not sampled stands in its completions; drop --name")
    from lit_thinkfast.generation import SamplingConfig
    from lit_thinkfast.records import write_jsonl

    wanted = None if ks is None else numbers(ks, option="ks")
    if wanted is not None and min(wanted, default=0) < 1:
        raise ValueError(f"ks {ks} must be numbers of samples from 1, like 1,8,64")
    chosen = _problems(problems, path=problems_path, split=split, level=level, limit=limit) if problems else []
    folder = Path(out)
    # What can be wrong is found before anything is written or a long computation starts.
    scorer = _reward_model(reward_model, judge=judge, aggregation=aggregation, batch_size=32, device=device)
    if model is not None:
        sampling = SamplingConfig(
            num_samples=num_samples,
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            system=system,
            seed=seed,
        )
        if wanted and max(wanted) > num_samples:
            largest = max(wanted)
            raise ValueError(
                f"k {largest} is larger than num_samples {num_samples}; use --num_samples {largest} or more"
            )
        completions = str(folder / "completions.jsonl")
        sample_to_file(model, chosen, completions, sampling=sampling, name=name, device=device, dtype=dtype)
    else:
        assert completions is not None
        most = most_samples(completions)
        if wanted and max(wanted) > most:
            raise ValueError(
                f"k {max(wanted)} is larger than the {most} samples a problem of {completions}; use {most} or less"
            )
    if verdicts is None:
        verdicts = str(folder / "verdicts.jsonl")
        grade_to_file(chosen, completions, verdicts, reward_model=scorer)
    if chosen:
        write_jsonl(chosen, folder / "problems.jsonl")
    measure_to_file(completions, verdicts, folder / "metrics.json", ks=wanted)


def benchmark(
    *,
    models: dict[str, str],
    out: str,
    prompt_tokens: int = 512,
    generate_tokens: int = 256,
    batch_sizes: list[int] | str = "1,8,32",
    rounds: int = 3,
    temperature: float = 0.8,
    seed: int = 0,
    device: str = "auto",
    dtype: Dtype = "float32",
) -> None:
    """Measure decode speed and memory of models against batch size, in turns, medians of rounds.

    Args:
        models: Name and folder of each model: --models.teacher DIR --models.student DIR.
        out: JSON file with the points, the machine and its calibration.
        prompt_tokens: Length of the prompts.
        generate_tokens: Tokens generated for each sequence.
        batch_sizes: Sequences decoded together, like 1,8,32.
        rounds: Repetitions.
        temperature: Of the sampling, which is part of the time.
        seed: Of prompts and sampling.
        device: auto, cpu, cuda or cuda:1.
        dtype: Of the weights.
    """
    import rich

    from lit_thinkfast.generation.benchmark import benchmark_to_file

    sizes = numbers(batch_sizes, option="batch_sizes")
    loaded = {name: load_on(path, device=device, dtype=dtype) for name, path in models.items()}
    with progress_bar("decoding") as update:
        points = benchmark_to_file(
            loaded,
            out,
            prompt_tokens=prompt_tokens,
            generate_tokens=generate_tokens,
            batch_sizes=sizes,
            rounds=rounds,
            temperature=temperature,
            seed=seed,
            on_run=lambda done, total, name: update(done, total, name),
        )
    rich.print(decode_table(points))
    print(f"written to {out}")


def report(
    *,
    runs: dict[str, str],
    out: str,
    benchmark: str | None = None,
    title: str = "Reasoning in a fixed time",
    notes: str = "",
) -> None:
    """Compare evaluations of several models: a table here, figures and samples in one HTML page.

    Args:
        runs: Name and folder of each evaluation, the baseline first: --runs.teacher DIR --runs.student DIR.
        out: HTML file.
        benchmark: JSON file written by the verb benchmark.
        title: Small line over the headline of the page, which is computed from the numbers.
        notes: A paragraph for the reader of the page.
    """
    import rich

    from lit_thinkfast.analysis import build_report, table
    from lit_thinkfast.generation.benchmark import read_points
    from lit_thinkfast.records import Problem, read_jsonl

    points = read_points(benchmark) if benchmark is not None else None
    loaded = {name: read_folder(Path(folder)) for name, folder in runs.items()}
    files = [path for folder in runs.values() if (path := Path(folder) / "problems.jsonl").is_file()]
    asked = {p.id: p for path in files for p in read_jsonl(Problem, path)}
    comparison = compare_runs(loaded)
    build_report(comparison, out, benchmark=points, problems=list(asked.values()), notes=notes, title=title)
    rich.print(table(comparison))
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
