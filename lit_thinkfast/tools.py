"""The bodies of the tool verbs: typed functions that call into the rooms and say what came out.

Their arguments are the command line's options and their docstrings its help, so nothing heavy is imported before a
function runs. Whatever is wrong with an argument is a ``ValueError`` or ``FileNotFoundError`` of one line.
"""

# No postponed annotations: to resolve them, jsonargparse would import what is for type checkers only.
from collections.abc import Sequence
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
    read_folder,
    sample_to_file,
)
from lit_thinkfast.terminal import decode_table, progress_bar

if TYPE_CHECKING:
    from lit_thinkfast.records import Problem
    from lit_thinkfast.verification import StepRewardModel

Split = Literal["train", "validation", "test"]
Aggregation = Literal["last", "min", "product", "mean"]
Judge = Literal["signs", "likelihood"]
ExportFormat = Literal["granite_hybrid", "bamba", "llama_cpp", "llamba", "mamba_in_llama"]


def convert_teacher(
    *,
    teacher: str,
    out: str,
    attention_layers: list[int] | str | None = None,
    attention_every: int | None = None,
    attention_ratio: float | None = None,
    mixer: str | None = None,
    init: Literal["attention", "mohawk", "random"] | None = None,
    mixer_options: dict[str, Any] | None = None,
    seed: int = 0,
    source: Literal["llamba", "mamba_in_llama"] | None = None,
    tokenizer: str | None = None,
    rope_scaling: Literal["none", "keep"] | None = None,
) -> None:
    """Make a student out of a teacher: some layers keep attention, the others get a mixer.

    Short: convert TEACHER OUT. With --from, which is --source, it is a checkpoint that another project released, and
    becomes a student as it is.

    Args:
        teacher: Folder or hub id of a decoder-only Transformer, or of a student whose mixers are kept.
        out: Folder of the student: model, tokenizer, chat template, generation settings.
        attention_layers: Layers, from 0, that keep attention, like 3,7; "none" for none of them, "published" for those
            of the paper's hybrid of this depth. To measure which ones matter: lit-thinkfast sensitivity.
        attention_every: Or the last of every so many layers.
        attention_ratio: Or their share, 0 to 1, spread evenly.
        mixer: What the other layers get, by its name in MIXERS; if not given mamba2, or what other layers of a student
            have.
        init: Start the mixers from the projections of the attention they replace, which they do if it is not given,
            neutrally as before MOHAWK's first stage, or at random.
        mixer_options: Options of the mixer, like --mixer_options.d_conv 3.
        seed: Of the random numbers.
        source: Or --from: format of a released checkpoint, Llamba, or MambaInLlama and M1.
        tokenizer: With --from, folder or hub id of the tokenizer, where the checkpoint comes without one.
        rope_scaling: With --from mamba_in_llama, leave out the scaling of RoPE in config.json as the published program
            does when it generates, or keep it.
    """
    from lit_thinkfast.models import convert_folder
    from lit_thinkfast.models.released import convert_released

    if source is None and (spare := _given(tokenizer=tokenizer, rope_scaling=rope_scaling)):
        raise ValueError(f"{spare} is for a released checkpoint; give its format with --from, or drop it")
    of_layers = _given(
        attention_layers=attention_layers,
        attention_every=attention_every,
        attention_ratio=attention_ratio,
        mixer=mixer,
        init=init,
        mixer_options=mixer_options,
    )
    if source is not None and of_layers:
        raise ValueError(f"--from takes a checkpoint with the layers that it has; drop {of_layers}")
    if source is not None:
        student = convert_released(
            teacher, out, source=source, tokenizer=tokenizer, rope_scaling=rope_scaling or "none"
        )
    else:
        student = convert_folder(
            teacher,
            out,
            attention_layers=_layers(attention_layers),
            attention_every=attention_every,
            attention_ratio=attention_ratio,
            mixer=mixer,
            init=init or "attention",
            mixer_options=mixer_options,
            seed=seed,
        )
    size = sum(parameter.numel() for parameter in student.parameters())
    print(f"{out}: {size:,} parameters, layers {' '.join(student.config.layer_mixers or [])}")


def export(
    *,
    model: str | None = None,
    out: str | None = None,
    to: ExportFormat | None = None,
    verify: str | None = None,
    dtype: Dtype | None = None,
    judge: Judge | None = None,
) -> None:
    """Write a model as a folder for others: weights in a type of your choice, tokenizer, chat template, settings.

    A model whose layers all have attention is written as the stock class of its family, which any program reads. With
    --to, a student is written in the format of another project; its folder says how to load it and is verified.

    Args:
        model: Folder or hub id of a student or of a Transformer.
        out: Folder to write.
        to: Format of another project; granite_hybrid and bamba are classes of transformers, llama_cpp a bamba for it.
        verify: Check a folder that was written with --to, instead of writing one.
        dtype: Of the weights in the file, as they are if not given; decay parameters of mixers stay in float32.
        judge: Mark it as a reward model that judges lines by signs, or by likelihood.
    """
    if verify is not None:
        given = {"model": model, "out": out, "to": to, "dtype": dtype, "judge": judge}
        if spare := [f"--{name}" for name, value in given.items() if value is not None]:
            raise ValueError(f"--verify checks a folder and writes none; drop {', '.join(spare)}")
        from lit_thinkfast.models.export import verify_export

        print(f"{verify}: gives the logits of its student, largest relative error {verify_export(verify):.1e}")
        return
    if model is None or out is None:
        raise ValueError("export needs --model and --out, or a folder to --verify")
    if to is not None and judge is not None:
        raise ValueError("--judge marks a reward model of this package, --to writes for others; drop one of them")
    import torch

    from lit_thinkfast.distill.students import only_attention
    from lit_thinkfast.models.convert import to_stock
    from lit_thinkfast.models.folders import check_free, save_folder
    from lit_thinkfast.models.loading import load_stock, load_tokenizer

    check_free(out)
    made = load_stock(model, dtype=None if dtype is None else getattr(torch, dtype))
    if to is not None:
        from lit_thinkfast.models.export import export_model

        error = export_model(made, load_tokenizer(model), out, to=to)  # type: ignore[arg-type]
        print(f"{out}: {to} in {made.dtype}, largest relative error {error:.1e}")
        return
    if only_attention(made):
        made = to_stock(made)  # type: ignore[arg-type]
    if judge is not None:
        made.config.reward_judge = judge
    save_folder(made, out, tokenizer=load_tokenizer(model))
    print(f"{out}: {type(made).__name__}, {sum(p.numel() for p in made.parameters()):,} parameters in {made.dtype}")


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
        judge: How it judges a line: by the sign, + or -, that it predicts at its end, or by the likelihood of the text
            so far. By default what its config says, else signs.
        aggregation: From the scores of the steps, given by signs, to that of the completion; the last by default.
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
        judge: How it judges a line: by the sign, + or -, that it predicts at its end, or by the likelihood of the text
            so far. By default what its config says, else signs.
        aggregation: From the scores of the steps, given by signs, to that of the completion; the last by default.
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


def _given(**options: Any) -> str:
    """Name the options that are not ``None``."""
    return ", ".join(f"--{name}" for name, value in options.items() if value is not None)


def _layers(given: list[int] | str | None) -> list[int] | Literal["published"] | None:
    if given == "none":
        return []
    if given == "published":
        return "published"
    return given if given is None else numbers(given, option="attention_layers")


def numbers(given: Sequence[int] | str, *, option: str) -> list[int]:
    """Read ``3,7`` as ``[3, 7]``; lists of a configuration file pass.

    >>> numbers("3, 7", option="layers")
    [3, 7]
    """
    try:
        return [int(part) for part in given.split(",")] if isinstance(given, str) else list(given)
    except ValueError:
        raise ValueError(f"{option} {given!r} is not a list of whole numbers; write it like 3,7") from None
