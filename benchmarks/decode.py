"""Speed and memory of sampling: ours against transformers, against the roofline, and against static batches.

    python benchmarks/decode.py --out build/bench-decode.json

Sections, chosen with ``--only``: ``gates``, that all ways of decoding say the same; ``hybrid``, a decode step against
transformers' GraniteMoeHybrid with the same weights; ``llama``, against its ``generate`` with dynamic and static cache;
``regime``, students against their teacher and the roofline, at 1k tokens; ``serving``, 64 samples of 32 problems whose
lengths have a long tail against batches that wait for their longest; ``memory``, the largest batch in 1 GiB;
``overhead``, what a sampling run spends outside the model; ``backends``, eager against compiled.

What is compared takes turns in one process, and says the same tokens, which is checked; medians and ranges of rounds
are reported, and a calibration of the machine before and after. Weights are random: only shapes matter for time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from decode_rivals import (
    Decoded,
    agreement,
    as_static,
    encoded,
    generate_stock,
    ours,
    static_batches,
    step_stock,
    stock_granite,
    stock_llama,
)
from mixers import quiet, status_kib

from lit_thinkfast.generation.benchmark import benchmark_decode
from lit_thinkfast.generation.calibration import calibrate, describe_machine, disturbed, drift
from lit_thinkfast.generation.config import SamplingConfig
from lit_thinkfast.generation.engine import Engine
from lit_thinkfast.generation.journal import write_json
from lit_thinkfast.generation.memory import model_bytes, plan_rows
from lit_thinkfast.generation.picking import RowSettings, pick_tokens
from lit_thinkfast.generation.rng import uniforms
from lit_thinkfast.generation.rows import Prompt
from lit_thinkfast.generation.run import generate_to_file
from lit_thinkfast.generation.sampler import Sampler
from lit_thinkfast.generation.shapes import preset_configs, random_model
from lit_thinkfast.models.cache import HybridCache
from lit_thinkfast.models.configuration import HybridConfig
from lit_thinkfast.models.modeling import HybridForCausalLM
from lit_thinkfast.records import Problem

SECTIONS = ("gates", "hybrid", "llama", "regime", "serving", "memory", "overhead", "backends")


def random_prompt(config: HybridConfig, tokens: int, *, seed: int = 0) -> list[int]:
    ids: list[int] = torch.randint(
        2, config.vocab_size, (tokens,), generator=torch.Generator().manual_seed(seed)
    ).tolist()
    return ids


def in_turns(cases: dict[str, Callable[[], Decoded]], *, rounds: int, steps: int) -> dict[str, Any]:
    """Milliseconds a step of each case, and how much longer each takes than the last, round by round."""
    tokens = {name: run().tokens for name, run in cases.items()}  # also warms up
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, run in cases.items():
            seconds[name].append(run().seconds / steps)
    *rivals, mine = cases
    found: dict[str, Any] = {
        "ms_per_step": {name: round(1e3 * statistics.median(values), 2) for name, values in seconds.items()},
        "range_ms": {name: [round(1e3 * min(v), 2), round(1e3 * max(v), 2)] for name, v in seconds.items()},
        "rows_with_equal_tokens": {name: agreement(tokens[name], tokens[mine]) for name in rivals},
    }
    for name in rivals:
        ratios = [theirs / own for theirs, own in zip(seconds[name], seconds[mine], strict=True)]
        found.setdefault("ratio", {})[name] = round(statistics.median(ratios), 2)
        found.setdefault("ratio_range", {})[name] = [round(min(ratios), 2), round(max(ratios), 2)]
    return found


# --- gates: the same tokens, however they are decoded


@torch.inference_mode()
def reference_tokens(model: HybridForCausalLM, prompt: Prompt, sample: int) -> list[int]:
    """The slow path: the whole text so far through the model for every token."""
    ids, settings = list(prompt.tokens), RowSettings.repeat(prompt.config, 1)
    for position in range(prompt.config.max_new_tokens):
        logits = model(input_ids=torch.tensor([ids])).logits[:, -1]
        at = torch.tensor([prompt.key]), torch.tensor([sample]), torch.tensor([position])
        ids.append(int(pick_tokens(logits, uniforms(*at, seed=prompt.config.seed), settings)))
    return ids[len(prompt.tokens) :]


@torch.inference_mode()
def left_padded_tokens(model: HybridForCausalLM, prompts: Sequence[Prompt], sample: int) -> list[list[int]]:
    """All prompts in one batch, padded on the left, through the model's own forward and cache."""
    config, longest = prompts[0].config, max(len(prompt.tokens) for prompt in prompts)
    ids = torch.tensor([[0] * (longest - len(p.tokens)) + list(p.tokens) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p.tokens)) + [1] * len(p.tokens) for p in prompts])
    cache = HybridCache(model.config, len(prompts), longest + config.max_new_tokens, dtype=model.dtype)
    settings, keys = RowSettings.repeat(config, len(prompts)), torch.tensor([prompt.key for prompt in prompts])
    said: list[torch.Tensor] = []
    for position in range(config.max_new_tokens):
        given = {"input_ids": ids, "attention_mask": mask} if position == 0 else {"input_ids": said[-1][:, None]}
        logits = model(past_key_values=cache, use_cache=True, logits_to_keep=1, **given).logits[:, -1]
        drawn = uniforms(keys, torch.tensor(sample), torch.tensor(position), seed=config.seed)
        said.append(pick_tokens(logits, drawn, settings))
    rows: list[list[int]] = torch.stack(said, dim=1).tolist()
    return rows


def engine_tokens(model: HybridForCausalLM, prompts: Sequence[Prompt], *, rows: int, **options: Any) -> dict[Any, Any]:
    longest, new = max(len(prompt.tokens) for prompt in prompts), prompts[0].config.max_new_tokens
    engine = Engine(model, rows=rows, capacity=longest - 1 + new, max_new_tokens=new, **options)
    return {(row.prompt, row.sample): row.tokens for ended in engine.run(prompts) for row in ended}


def bench_gates(configs: dict[str, HybridConfig], new: int = 24) -> dict[str, Any]:
    """Tokens of each way of decoding against the slow path: alone, batched, refilled, left-padded, resumed."""
    found: dict[str, Any] = {}
    for name, config in configs.items():
        model = random_model(config)
        sampling = SamplingConfig(temperature=0.8, max_new_tokens=new, seed=7)
        lengths = (5, 40, 17, 1, 64)
        prompts = [
            Prompt(random_prompt(config, length, seed=length), 100 + length, range(3), sampling) for length in lengths
        ]
        expected = {
            (index, sample): reference_tokens(model, prompt, sample)
            for index, prompt in enumerate(prompts)
            for sample in prompt.samples
        }
        half = [dataclasses.replace(prompt, samples=[2]) for prompt in prompts]
        rest = [dataclasses.replace(prompt, samples=[0, 1]) for prompt in prompts]
        ways = {
            "alone": engine_tokens(model, prompts, rows=1),
            "in a batch": engine_tokens(model, prompts, rows=15),
            "slots refilled": engine_tokens(model, prompts, rows=8, prefill_chunk=16),
            "resumed": engine_tokens(model, half, rows=4) | engine_tokens(model, rest, rows=3),
            "left-padded": {
                (index, sample): row
                for sample in range(3)
                for index, row in enumerate(left_padded_tokens(model, prompts, sample))
            },
        }
        found[name] = {way: sum(tokens[key] == expected[key] for key in expected) for way, tokens in ways.items()}
        found[name]["of"] = len(expected)
    return found


# --- hybrid and llama: against transformers on the same weights


def bench_hybrid(config: HybridConfig, batches: Sequence[int], rounds: int, prompt: int, new: int) -> list[Any]:
    model = random_model(config)
    stock, tokens = stock_granite(model), random_prompt(config, prompt)
    cache = encoded(stock, tokens, 1)
    rows = []
    for batch in batches:
        theirs = encoded(stock, tokens, batch) if batch > 1 else cache

        def rival(cache: Any = theirs, batch: int = batch) -> Decoded:
            return step_stock(stock, cache, tokens, batch, new)

        def mine(batch: int = batch) -> Decoded:
            return ours(model, tokens, batch, new)

        times = in_turns({"transformers": rival, "ours": mine}, rounds=rounds, steps=new)
        rows.append({"batch": batch, "tokens": prompt + new, **times})
        progress("hybrid", rows[-1])
    return rows


def bench_llama(config: HybridConfig, batches: Sequence[int], rounds: int, prompt: int, new: int) -> list[Any]:
    model = random_model(config)
    stock, tokens = stock_llama(model), random_prompt(config, prompt)
    rows = []
    for batch in batches:
        dynamic = encoded(stock, tokens, batch)
        static = as_static(dynamic, stock, prompt + new)
        cases: dict[str, Callable[[], Decoded]] = {
            "generate, dynamic cache": lambda c=dynamic, b=batch: generate_stock(stock, c, tokens, b, new),
            "generate, static cache": lambda c=static, b=batch: generate_stock(stock, c, tokens, b, new),
            "ours": lambda b=batch: ours(model, tokens, b, new),
        }
        rows.append({"batch": batch, "tokens": prompt + new, **in_turns(cases, rounds=rounds, steps=new)})
        progress("llama", rows[-1])
    return rows


# --- regime: students, teacher and roofline


def bench_regime(
    configs: dict[str, HybridConfig], batches: Sequence[int], rounds: int, prompt: int, new: int
) -> list[dict[str, Any]]:
    models = {name: random_model(config) for name, config in configs.items()}
    points = benchmark_decode(
        models, prompt_tokens=prompt, generate_tokens=new, batch_sizes=list(batches), rounds=rounds
    )
    return [dataclasses.asdict(point) | {"fraction": point.fraction} for point in points]


# --- serving: continuous batching and a prompt encoded once, against static batches


def smaller(config: HybridConfig) -> HybridConfig:
    """Half the width and depth, so that 2,048 samples take seconds: the shape of the models of ``make learning``."""
    mixers = (config.layer_mixers or [])[::2] if not config.attention_layers else (config.layer_mixers or [])[1::2]
    return HybridConfig(
        vocab_size=config.vocab_size, hidden_size=128, intermediate_size=256, num_hidden_layers=4, layer_mixers=mixers,
        num_attention_heads=4, num_key_value_heads=4, head_dim=32, tie_word_embeddings=True,
        max_position_embeddings=4096,
    )  # fmt: skip


def bench_serving(
    config: HybridConfig, *, problems: int, samples: int, prompt: int, new: int, ends: int, rounds: int
) -> dict[str, Any]:
    """Lengths are those at which a random model says an end token, one of ``ends``: exponential, cut at ``new``."""
    model = random_model(config)
    sampling = SamplingConfig(temperature=1.0, max_new_tokens=new, seed=3)
    prompts = [Prompt(random_prompt(config, prompt, seed=i), i, range(samples), sampling) for i in range(problems)]
    end_tokens = list(range(2, 2 + ends))
    seconds: dict[str, list[float]] = {"static": [], "ours": []}
    for _ in range(rounds):
        expected, took = static_batches(model, prompts, batch=samples, end_tokens=end_tokens)
        seconds["static"].append(took)
        engine = Engine(model, rows=samples, capacity=prompt - 1 + new, max_new_tokens=new, end_tokens=end_tokens)
        start = time.perf_counter()
        found = {(row.prompt, row.sample): row.tokens for ended in engine.run(prompts) for row in ended}
        seconds["ours"].append(time.perf_counter() - start)
        progress("serving", {name: values[-1] for name, values in seconds.items()})
    lengths = sorted(len(tokens) for tokens in found.values())
    ratios = [a / b for a, b in zip(seconds["static"], seconds["ours"], strict=True)]
    return {
        "problems": problems,
        "samples": samples,
        "prompt": prompt,
        "lengths": {
            "mean": round(statistics.mean(lengths), 1),
            "median": lengths[len(lengths) // 2],
            "p95": lengths[int(0.95 * len(lengths))],
            "max": lengths[-1],
        },
        "seconds": {name: round(statistics.median(values), 2) for name, values in seconds.items()},
        "ratio": round(statistics.median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
        "equal_completions": sum(found[key] == expected[key] for key in expected),
        "of": len(expected),
    }


# --- memory: the largest batch in a budget, and what a process that runs it really takes


def bench_memory(configs: dict[str, HybridConfig], *, gib: float, prompt: int, new: int, run: bool) -> dict[str, Any]:
    budget, length = int(gib * 2**30), prompt - 1 + new
    found: dict[str, Any] = {}
    for name, config in configs.items():
        with torch.device("meta"):
            model = HybridForCausalLM(config)
        costs = model_bytes(config, dtype=torch.float32)
        rows = plan_rows(model, length=length, prompt=prompt - 1, budget_bytes=budget)
        found[name] = {
            "rows": rows,
            "row_mib": round(costs.row(length) / 2**20, 3),
            "by_state_sizes": (budget - costs.weights) // costs.row(length),
        }
        if run:
            found[name]["measured_mib"] = measured_memory(config, rows=rows, prompt=prompt, new=new)
    first = next(iter(found.values()))
    for values in found.values():
        values["over_teacher"] = round(values["rows"] / first["rows"], 3)
        values["over_teacher_by_state_sizes"] = round(values["by_state_sizes"] / first["by_state_sizes"], 3)
    return found


def measured_memory(config: HybridConfig, *, rows: int, prompt: int, new: int) -> float:
    """Peak memory, in MiB, of a process of its own that fills the batch, above what Python and torch take."""
    given = json.dumps({"config": config.to_dict(), "rows": rows, "prompt": prompt, "new": new})
    done = subprocess.run(
        [sys.executable, __file__, "--peak", given], capture_output=True, text=True, check=True, timeout=1800
    )
    return float(done.stdout.split()[-1])


def print_peak(given: str) -> None:
    """In a child: decode a full batch, every token of its capacity touched, and print the peak in MiB."""
    values = json.loads(given)
    config = HybridConfig(**{k: v for k, v in values["config"].items() if k not in ("model_type", "layer_types")})
    a = torch.ones(64, 64)
    torch.mm(a, a)  # libraries are loaded before anything is counted
    tiny = HybridConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    ours(random_model(tiny), [1, 2, 3], 1, 2)
    before = status_kib("VmRSS")
    model, rows, length = random_model(config), values["rows"], values["prompt"] - 1 + values["new"]
    sampling = SamplingConfig(max_new_tokens=2)
    engine = Engine(model, rows=rows, capacity=length, max_new_tokens=2)
    for _ in engine.run([Prompt(random_prompt(config, length - 1), 0, range(rows), sampling)]):
        pass
    print((status_kib("VmHWM") - before) / 1024)


# --- overhead: a whole sampling run, journal and all


class Characters:
    """The least that the sampler asks of a tokenizer: a token is a character."""

    eos_token_id = chat_template = None

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = {chr(0x4E00 + i): i for i in range(vocabulary)}
        self._characters = list(self._vocabulary)

    def get_vocab(self) -> dict[str, int]:
        return self._vocabulary

    def batch_decode(self, rows: Sequence[Sequence[int]], **options: Any) -> list[str]:
        return ["".join(self._characters[token] for token in row) for row in rows]


def bench_overhead(configs: dict[str, HybridConfig], *, problems: int, prompt: int, new: int) -> dict[str, Any]:
    """Seconds of a run of ``generate_to_file`` at batch 64 that are neither the model's step nor its prefill."""
    found: dict[str, Any] = {}
    for name, config in configs.items():
        model = random_model(config)
        model.generation_config.eos_token_id = [2, 3, 4, 5]  # ends at random: rows come and go
        sampler = Sampler(
            model,
            Characters(config.vocab_size),  # type: ignore[arg-type]
            SamplingConfig(temperature=1.0, num_samples=64, batch_size=64, max_new_tokens=new),
            name=name,
            render=lambda problem: random_prompt(config, prompt, seed=int(problem.id)),  # noqa: B023
        )
        asked = [Problem(id=str(i), question="", answer="") for i in range(problems)]
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            meta = generate_to_file(sampler, asked, Path(folder) / "samples.jsonl")
            wall = time.perf_counter() - start
        stats, calibration = sampler.stats, 2 * calibration_seconds()
        model_seconds = stats.decode_seconds - stats.overhead_seconds
        around = max(0.0, wall - stats.engine_seconds - stats.warmup_seconds - calibration)
        found[name] = {
            "samples": meta["total_samples"],
            "wall_seconds": round(wall, 2),
            "model_seconds": round(model_seconds, 2),
            "prefill_seconds": round(stats.prefill_seconds, 2),
            "engine_overhead_seconds": round(stats.overhead_seconds, 3),
            "journal_and_texts_seconds": round(around, 3),
            "share": round((stats.overhead_seconds + around) / (stats.engine_seconds + around), 4),
        }
        progress("overhead", found[name])
    return found


def calibration_seconds() -> float:
    start = time.perf_counter()
    calibrate()
    return time.perf_counter() - start


# --- backends


def bench_backends(config: HybridConfig, *, batch: int, rounds: int, prompt: int, new: int) -> dict[str, Any]:
    model, tokens = random_model(config), random_prompt(config, prompt)
    cases: dict[str, Callable[[], Decoded]] = {
        "compile": lambda: ours(model, tokens, batch, new, backend="compile"),
        "eager": lambda: ours(model, tokens, batch, new),
    }
    return {"batch": batch, "tokens": prompt + new, **in_turns(cases, rounds=rounds, steps=new)}


def progress(section: str, values: Any) -> None:
    print(f"{section}: {json.dumps(values)}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/bench-decode.json"))
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(options.threads)
    if options.peak:
        return print_peak(options.peak)
    smollm2, regime = preset_configs("smollm2"), preset_configs("paper-regime")
    rounds = options.rounds
    result: dict[str, Any] = {"machine": describe_machine(), "threads": options.threads, "rounds": rounds}
    run: dict[str, Callable[[], Any]] = {
        "gates": lambda: bench_gates(regime),
        "hybrid": lambda: bench_hybrid(smollm2["hybrid"], (1, 8, 32), rounds, 128, 8),
        "llama": lambda: bench_llama(smollm2["transformer"], (1, 8, 32), rounds, 1016, 8),
        "regime": lambda: [
            *bench_regime(regime, (64, 256), rounds, 1016, 8),
            *bench_regime(smollm2, (32,), rounds, 1016, 6),
        ],
        "serving": lambda: bench_serving(
            smaller(regime["hybrid"]), problems=32, samples=64, prompt=128, new=256, ends=12, rounds=rounds
        ),
        "memory": lambda: {
            "regime": bench_memory(regime, gib=1, prompt=512, new=512, run=True),
            "smollm2": bench_memory(smollm2, gib=1, prompt=512, new=512, run=True),
        },
        "overhead": lambda: bench_overhead(regime, problems=4, prompt=128, new=256),
        "backends": lambda: bench_backends(smollm2["hybrid"], batch=1, rounds=rounds, prompt=128, new=8),
    }  # fmt: skip
    for section in options.only:
        start, before = time.perf_counter(), calibrate()
        found = run[section]()
        after = calibrate()
        result[section] = {
            "found": found,
            "calibration": {"before": before, "after": after, "drift": drift(before, after)},
            "disturbed": disturbed(before, after),
        }
        write_json(result, options.out)  # what is there stays there if a later section fails
        progress(section, {"seconds": round(time.perf_counter() - start), "disturbed": result[section]["disturbed"]})
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
