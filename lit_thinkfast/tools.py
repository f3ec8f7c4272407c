"""The bodies of the tool verbs: typed functions that call into the rooms and say what came out.

Their arguments are the command line's options and their docstrings its help, so nothing heavy is imported before a
function runs. Whatever is wrong with an argument is a ``ValueError`` or ``FileNotFoundError`` of one line.
"""

# No postponed annotations: to resolve them, jsonargparse would import what is for type checkers only.
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_thinkfast.jobs import (
    Backend,
    Dtype,
    check_place,
    compare_runs,
    device_named,
    grade_to_file,
    load_on,
    measure_to_file,
    merge_to_file,
    most_samples,
    must_exist,
    numbers,
    read_folder,
    run_sampling,
    sampling_job,
)
from lit_thinkfast.terminal import decode_table, progress_bar

if TYPE_CHECKING:
    from lit_thinkfast.records import Problem
    from lit_thinkfast.verification import StepRewardModel

Split = Literal["train", "validation", "test"]
Aggregation = Literal["last", "min", "product", "mean"]
Judge = Literal["signs", "head", "likelihood"]
Preset = Literal["paper", "smollm2", "paper-regime"]


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
    **sampling: Any,
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
        sampling: See :func:`lit_thinkfast.jobs.sampling_job`.
    """
    job = sampling_job(**sampling)
    if (model is None) == (completions is None):
        raise ValueError("evaluate needs a model to sample from, or completions to measure; give one of them")
    if verdicts is None and problems is None:
        raise ValueError("evaluate needs problems to grade against; give --problems, or --verdicts made before")
    if verdicts is not None and completions is None:
        raise ValueError("verdicts belong to completions; give both files")
    if verdicts is not None and reward_model is not None:
        raise ValueError("the verdicts are there already; a reward model cannot add to them: drop one of the two")
    if completions is not None and job.name is not None:
        raise ValueError("the name of a model that is not sampled stands in its completions; drop --name")
    from lit_thinkfast.records import write_jsonl

    wanted = None if ks is None else numbers(ks, option="ks")
    if wanted is not None and min(wanted, default=0) < 1:
        raise ValueError(f"ks {ks} must be numbers of samples from 1, like 1,8,64")
    chosen = _problems(problems, path=problems_path, split=split, level=level, limit=limit) if problems else []
    folder = Path(out)
    # What can be wrong is found before anything is written or a long computation starts.
    device = job.device if reward_model is None else job.placed()
    scorer = _reward_model(reward_model, judge=judge, aggregation=aggregation, batch_size=32, device=device)
    if model is not None:
        num_samples = job.config.num_samples
        if wanted and max(wanted) > num_samples:
            largest = max(wanted)
            raise ValueError(
                f"k {largest} is larger than num_samples {num_samples}; use --num_samples {largest} or more"
            )
        completions = str(folder / "completions.jsonl")
        if not run_sampling(model, chosen, completions, job=job):
            return
    else:
        assert completions is not None
        if job.quiet:  # of several processes, one is enough
            return
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


def decode(
    *,
    out: str,
    models: dict[str, str] | None = None,
    preset: Preset | None = None,
    prompt_tokens: int = 512,
    generate_tokens: int = 512,
    batch_sizes: list[int] | str = "1,2,4,8,16,32,64,128,256,512",
    memory_budget_gib: float | None = None,
    rounds: int = 5,
    temperature: float = 0.8,
    seed: int = 0,
    backend: Backend = "auto",
    prefill_chunk: int = 512,
    threads: int | None = None,
    device: str = "auto",
    dtype: Dtype | None = None,
) -> None:
    """Measure decode seconds and memory of models against batch size, in turns, medians of rounds, beside the roofline.

    Figure 2 of the paper: a prompt and an output of fixed lengths, prefill not counted. The machine is calibrated
    before and after; what its rates allow stands beside every time.

    Args:
        out: JSON file with the points, the machine and its calibration; figures are written beside it.
        models: Name and folder of each model, the baseline first: --models.teacher DIR --models.student DIR.
        preset: Shapes with random weights instead of folders. paper: Llama-3.2-1B and 3B, their hybrids and Llamba, for
            a card of 80 GB. smollm2: SmolLM2-135M. paper-regime: a small model whose balance on a CPU is that of the
            paper's on its card.
        prompt_tokens: Length of the prompt.
        generate_tokens: Tokens generated for each sequence.
        batch_sizes: Sequences decoded together, like 1,8,32.
        memory_budget_gib: For weights and caches; a batch that does not fit is decoded in the fewest equal parts that
            do. No limit if not given, on a GPU what is free.
        rounds: Repetitions.
        temperature: Of the sampling, which is part of the time.
        seed: Of prompts and sampling.
        backend: How a step is run; auto is the fastest for device and model.
        prefill_chunk: Tokens of the prompt encoded at a time.
        threads: Of the CPU; what torch takes if not given.
        device: auto, cpu, cuda or cuda:1.
        dtype: Of the weights; float32, of the preset paper bfloat16.
    """
    import rich

    sizes = numbers(batch_sizes, option="batch_sizes")
    if (models is None) == (preset is None):
        raise ValueError("benchmark decode needs models, like --models.teacher DIR, or a --preset; give one of them")
    if memory_budget_gib is not None and not 0 < memory_budget_gib < float("inf"):
        raise ValueError(f"memory_budget_gib {memory_budget_gib} is not a positive number of GiB; give one, like 1.5")
    if threads is not None and threads < 1:
        raise ValueError(f"threads {threads} is below 1; use at least 1")
    check_place(out)
    placed = device_named(device)
    import torch

    from lit_thinkfast.analysis import save_decode_figures
    from lit_thinkfast.generation.benchmark import benchmark_to_file
    from lit_thinkfast.generation.shapes import preset_baselines, preset_configs, random_model

    if threads is not None:
        torch.set_num_threads(threads)
    kind = dtype or ("bfloat16" if preset == "paper" else "float32")
    if preset is not None:
        shapes = preset_configs(preset)
        loaded = {n: random_model(shape, device=placed, dtype=getattr(torch, kind)) for n, shape in shapes.items()}
    else:
        assert models is not None
        loaded = {name: load_on(path, device=placed, dtype=kind) for name, path in models.items()}
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
            memory_budget_bytes=None if memory_budget_gib is None else int(memory_budget_gib * 2**30),
            prefill_chunk=prefill_chunk,
            backend=backend,
            baselines=None if preset is None else preset_baselines(preset),
            on_run=lambda done, total, name: update(done, total, name),
        )
    figures = save_decode_figures(points, out)
    rich.print(decode_table(points))
    print(f"written to {out}, figures to {', '.join(path.name for path in figures if path.suffix == '.svg')} and .png")


BENCHMARKS = {"decode": decode}
"""What the verb benchmark can measure."""


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
