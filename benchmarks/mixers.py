"""Speed and memory of the mixers: ours against transformers' own torch code, and against the loops over time.

    python benchmarks/mixers.py --out build/bench-mixers.json

Everything that is compared runs in turns in one process, and medians of rounds are reported; every fast path is checked
against what it is compared with before it is timed. Peak memory is that of a child process for each case. Shapes are
those of SmolLM2-135M: 9 heads of width 64, 3 of them key/value heads, hidden size 576.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from lit_thinkfast.generation.calibration import calibrate, describe_machine, drift
from lit_thinkfast.mixers.reference import reference_selective_scan
from lit_thinkfast.mixers.scan import chunked_scan
from lit_thinkfast.mixers.selective import selective_scan

HEADS, WIDTH, HIDDEN, KV_HEADS = 9, 64, 576, 3
STOCK_CHUNK = 256  # the default of Bamba and GraniteMoeHybrid
OUR_CHUNK = 64  # what our mixers take for heads of this width
Case = dict[str, Callable[[], Any]]


def mamba2_inputs(time_steps: int) -> dict[str, Tensor]:
    """Inputs of a Mamba-2 scan, leaves with gradients; the step is before its softplus."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    values = {name: draw(1, time_steps, HEADS, WIDTH) for name in ("x", "B", "C")}
    values |= {"dt": draw(1, time_steps, HEADS) - 3, "A": -1 - 15 * draw(HEADS).sigmoid(), "D": draw(HEADS)}
    return {name: value.requires_grad_() for name, value in values.items()}


def run_ours(v: dict[str, Tensor]) -> Tensor:
    return chunked_scan(v["x"], softplus(v["dt"]), v["A"], v["B"], v["C"], D=v["D"], chunk_size=OUR_CHUNK)[0]


def run_stock(v: dict[str, Tensor], chunk_size: int = STOCK_CHUNK) -> Tensor:
    from transformers.models.bamba.modeling_bamba import mamba2_chunk_scan

    y: Tensor = mamba2_chunk_scan(
        v["x"], v["dt"], v["A"], v["B"], v["C"], chunk_size=chunk_size, D=v["D"], dt_softplus=True,
        return_final_states=True,
    )[0]  # fmt: skip
    return y


def run_stock_in_our_chunks(v: dict[str, Tensor]) -> Tensor:
    return run_stock(v, OUR_CHUNK)


OURS, STOCK, STOCK_OURS = "ours", f"transformers, chunks of {STOCK_CHUNK}", "transformers, chunks of 64"
SCANS = {OURS: run_ours, STOCK: run_stock, STOCK_OURS: run_stock_in_our_chunks}


def with_gradients(run: Callable[[dict[str, Tensor]], Tensor], values: dict[str, Tensor]) -> list[Tensor]:
    y = run(values)
    return [y, *torch.autograd.grad(y.square().sum(), list(values.values()))]


def quiet() -> None:
    """Keep transformers from telling that it falls back to torch: that is what is measured."""
    from transformers.utils import logging

    logging.set_verbosity_error()


def peak_of(name: str, time_steps: int, queue: Any) -> None:
    """In a process of its own: the highest memory in forward and backward, above what was there before, in MiB."""
    quiet()
    torch.set_num_threads(1)
    with_gradients(SCANS[name], mamba2_inputs(STOCK_CHUNK))  # whatever is loaded once
    values = mamba2_inputs(time_steps)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status_kib("VmRSS")
    with_gradients(SCANS[name], values)
    queue.put((status_kib("VmHWM") - before) / 1024)


def status_kib(key: str) -> float:
    """Return a memory size of this process, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(key)).split()[1])


def peak_memory(name: str, time_steps: int) -> float:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=peak_of, args=(name, time_steps, queue))
    child.start()
    peak: float = queue.get()
    child.join()
    return peak


def in_turns(case: Case, *, rounds: int, repeats: int = 1, warm_up: bool = True) -> dict[str, list[float]]:
    """Seconds a call, for each function and round, the functions taking turns."""
    for function in case.values() if warm_up else ():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in case}
    for _ in range(rounds):
        for name, function in case.items():
            start = time.perf_counter()
            for _ in range(repeats):
                function()
            seconds[name].append((time.perf_counter() - start) / repeats)
    return seconds


def compared(case: Case, *, rounds: int, repeats: int = 1, warm_up: bool = True) -> dict[str, Any]:
    """The slower one first: medians in milliseconds, and the median, least and greatest ratio of a round."""
    seconds = in_turns(case, rounds=rounds, repeats=repeats, warm_up=warm_up)
    (slow, fast) = seconds.values()
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return {
        "milliseconds": {name: round(1000 * statistics.median(values), 3) for name, values in seconds.items()},
        "ratio": round(statistics.median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def error(actual: Tensor, expected: Tensor) -> float:
    return float(f"{((actual - expected).abs().max() / expected.abs().max()).item():.1e}")


def bench_scan(lengths: list[int], rounds: int) -> list[dict[str, Any]]:
    """Training (forward and backward) and prefill (forward) of a Mamba-2 scan, with the peak memory of training.

    transformers' code runs as its models run it, and again in chunks as short as ours, which suits it better on a CPU.
    """
    rows = []
    for time_steps in lengths:
        v = mamba2_inputs(time_steps)
        expected, peak = with_gradients(run_ours, v), round(peak_memory(OURS, time_steps), 1)
        for name in (STOCK, STOCK_OURS):
            run = SCANS[name]
            worst = max(error(a, b) for a, b in zip(expected, with_gradients(run, v), strict=True))
            case = {name: lambda v=v, run=run: with_gradients(run, v), OURS: lambda v=v: with_gradients(run_ours, v)}
            trained = compared(case, rounds=rounds)
            with torch.no_grad():
                case = {name: lambda v=v, run=run: run(v), OURS: lambda v=v: run_ours(v)}
                filled = compared(case, rounds=rounds)
            peaks = {name: round(peak_memory(name, time_steps), 1), OURS: peak}
            rows.append(
                {
                    "against": name,
                    "tokens": time_steps,
                    "error": worst,
                    "forward_backward": trained,
                    "forward": filled,
                    "peak_mib": peaks,
                    "peak_ratio": round(peak / peaks[name], 2),
                }
            )
    return rows


def bench_step(batches: list[int], rounds: int) -> list[dict[str, Any]]:
    """One token through a whole mamba2 layer, projections included, and through what lies between them."""
    from transformers import BambaConfig, DynamicCache
    from transformers.models.bamba.modeling_bamba import BambaMixer

    from lit_thinkfast.models import HybridCache, HybridConfig, HybridForCausalLM
    from lit_thinkfast.models.granite import to_bamba

    config = HybridConfig(
        vocab_size=8, hidden_size=HIDDEN, intermediate_size=8, num_hidden_layers=1, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, layer_mixers=["mamba2"], rms_norm_eps=1e-5,
    )  # fmt: skip
    model = HybridForCausalLM(config)
    foreign = to_bamba(model)
    stock_config = BambaConfig(**foreign.config)
    index = next(i for i, kind in enumerate(stock_config.layer_types) if kind in ("mamba", "linear_attention"))
    ours, stock = model.model.layers[0].mixer, BambaMixer(stock_config, index)
    prefix = f"model.layers.{index}.mamba."
    stock.load_state_dict({n.removeprefix(prefix): w for n, w in foreign.weights.items() if n.startswith(prefix)})
    rows = []
    for batch in batches:
        prompt, token = torch.randn(batch, 6, HIDDEN), torch.randn(batch, 1, HIDDEN)
        caches = DynamicCache(config=stock_config), HybridCache(config, batch, 1 << 20)

        def step_stock(x: Tensor, cache: Any = caches[0]) -> Tensor:
            y: Tensor = stock(x, cache_params=cache)
            return y

        def step_ours(x: Tensor, cache: Any = caches[1]) -> Tensor:
            y: Tensor = ours(x, past_key_values=cache)
            return y

        step_stock(prompt), step_ours(prompt)
        worst = error(step_ours(token), step_stock(token))
        repeats = max(2, 40 // batch)
        layer = compared(
            {"transformers": lambda x=token: step_stock(x), "ours": lambda x=token: step_ours(x)},
            rounds=rounds,
            repeats=repeats,
        )
        own = in_turns(
            {
                name: lambda m=m, x=token: m.out_proj(m.in_proj(x)[..., :HIDDEN])
                for name, m in (("s", stock), ("o", ours))
            },
            rounds=rounds,
            repeats=repeats,
        )
        between = [
            layer["milliseconds"][name] - 1000 * statistics.median(own[key])
            for name, key in (("transformers", "s"), ("ours", "o"))
        ]
        rows.append(
            {"batch": batch, "error": worst, "layer": layer, "between_ratio": round(between[0] / between[1], 2)}
        )
    return rows


def bench_mamba1(channels: list[int], time_steps: int, rounds: int) -> list[dict[str, Any]]:
    """A Mamba-1 scan in float32 against its loop over time, in float32 and as ``kernel: reference`` runs it."""
    rows = []
    for width in channels:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int, generator: torch.Generator = generator) -> Tensor:
            return torch.randn(shape, generator=generator)

        v = {
            "x": draw(1, time_steps, width),
            "dt": softplus(draw(1, time_steps, width) - 3),
            "A": -torch.arange(1.0, 17.0).repeat(width, 1),
            "B": draw(1, time_steps, width // 16, 16),
            "C": draw(1, time_steps, width // 16, 16),
        }
        v = {name: value.detach().requires_grad_() for name, value in v.items()}

        def ours(v: dict[str, Tensor]) -> Tensor:
            return selective_scan(**v)[0]

        def loop(v: dict[str, Tensor]) -> Tensor:
            return reference_selective_scan(**v)[0]

        def loop64(v: dict[str, Tensor]) -> Tensor:
            return reference_selective_scan(**{name: value.double() for name, value in v.items()})[0].float()

        for name, run in (("the loop", loop), ("the loop in float64", loop64)):
            worst = max(error(a, b) for a, b in zip(with_gradients(ours, v), with_gradients(run, v), strict=True))
            case = {name: lambda v=v, run=run: with_gradients(run, v), OURS: lambda v=v, f=ours: with_gradients(f, v)}
            trained = compared(case, rounds=rounds)
            with torch.no_grad():
                case = {name: lambda v=v, run=run: run(v), OURS: lambda v=v, f=ours: f(v)}
                filled = compared(case, rounds=rounds)
            sizes = {"against": name, "channels": width, "tokens": time_steps}
            rows.append(sizes | {"error": worst, "forward_backward": trained, "forward": filled})
    return rows


def show(result: dict[str, Any]) -> None:
    """Print a Markdown table: what we are compared with, then ours, and how often ours fits into it."""

    def cell(found: dict[str, Any]) -> str:
        slow, fast = found["milliseconds"].values()
        low, high = found["ratio_range"]
        return f"{slow:.2f} / {fast:.2f} ms, **{found['ratio']:.1f}x** ({low} to {high})"

    def row(*cells: str) -> None:
        print("| " + " | ".join(cells) + " |")

    row("theirs / ours", "forward and backward", "forward, or a step", "peak MiB", "error")
    row(*["---"] * 5)
    for found in result["mamba2_scan"]:
        theirs, ours = found["peak_mib"].values()
        peak = f"{theirs} / {ours} ({found['peak_ratio']:.0%})"
        name = f"mamba2 scan, {found['against']}, T = {found['tokens']}"
        row(name, cell(found["forward_backward"]), cell(found["forward"]), peak, f"{found['error']:.0e}")
    for found in result["mamba2_step"]:
        step = f"{cell(found['layer'])}; between projections **{found['between_ratio']}x**"
        row(f"mamba2 layer step, transformers, batch {found['batch']}", "", step, "", f"{found['error']:.0e}")
    for found in result["mamba1_scan"]:
        name = f"mamba1 scan, {found['against']}, T = {found['tokens']}, {found['channels']} channels"
        row(name, cell(found["forward_backward"]), cell(found["forward"]), "", f"{found['error']:.0e}")


def finish(result: dict[str, Any], out: Path) -> None:
    """Calibrate again, note the drift, and write the result."""
    before, after = result["calibration"]["before"], calibrate()
    result["calibration"] |= {"after": after, "drift": drift(before, after)}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"load {before['load_average']} before and {after['load_average']} after, drift {drift(before, after):.0%}")
    print(f"written to {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/bench-mixers.json"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    before = calibrate()
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "rounds": options.rounds,
        "calibration": {"before": before},
    }
    result["mamba2_scan"] = bench_scan(options.lengths, options.rounds)
    with torch.no_grad():
        result["mamba2_step"] = bench_step([1, 8, 64], options.rounds)
    result["mamba1_scan"] = bench_mamba1([64, 128, HIDDEN], 1024, options.rounds)
    finish(result, options.out)
    show(result)


if __name__ == "__main__":
    main()
