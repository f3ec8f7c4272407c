"""The body of the verb ``benchmark``: what can be measured, by name. Nothing heavy is imported at the top.

As in ``tools``: arguments are options, and the docstring is the help.
"""

# No postponed annotations: to resolve them, jsonargparse would import what is for type checkers only.
from typing import Literal

from lit_thinkfast.jobs import Backend, Dtype, check_place, device_named, load_on, numbers
from lit_thinkfast.terminal import decode_table, progress_bar

Preset = Literal["paper", "smollm2", "paper-regime"]


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
