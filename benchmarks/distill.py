"""Speed and memory of distillation: ours against the textbook form, against stock transformers modules, and unpacked.

    python benchmarks/distill.py --out build/bench-distill.json

Four sections, chosen with ``--only``: ``kl``, the loss with its head product; ``step``, a whole training step;
``packing``, packed against padded rows; ``stage1``, matrix orientation. What is compared runs in turns in one process,
checked for equal results before it is timed; medians and ranges of rounds are reported. Peak memory is that of a child
process for each case, above what its inputs take. Shapes are those of SmolLM2-135M with four layers; lengths are those
of GSM8K with its tokenizer and chat template.

Other libraries' losses are measured too if ``--peers`` names a folder in which they lie
(``pip install --no-deps --target FOLDER liger-kernel trl``).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from distill_steps import GSM8K, PACKED, PADDED, Sizes, bench_packing, bench_step, documents, models
from mixers import compared, error, finish, quiet, status_kib
from torch import Tensor
from torch.nn import functional as F

from lit_thinkfast.data.rows import collate_rows
from lit_thinkfast.distill.chunked import against, forward_kl_rows, mean_over_rows
from lit_thinkfast.distill.layerwise import MatrixOrientation
from lit_thinkfast.distill.signals import read_signals
from lit_thinkfast.generation.calibration import calibrate, describe_machine
from lit_thinkfast.models import convert

# --- kl: the loss alone, from hidden states and heads to their gradients


def kl_inputs(rows: int, sizes: Sizes) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, theirs = (torch.randn(rows, sizes.hidden, generator=generator) for _ in range(2))
    head, their_head = (0.05 * torch.randn(sizes.vocab, sizes.hidden, generator=generator) for _ in range(2))
    return {
        "hidden": hidden.requires_grad_(),
        "head": head.requires_grad_(),
        "theirs": theirs,
        "their_head": their_head,
    }


def kl_ours(v: dict[str, Tensor], *, chunk_tokens: int | None = None) -> Tensor:
    return mean_over_rows(
        v["hidden"],
        v["head"],
        against(v["theirs"], v["their_head"], forward_kl_rows),
        chunk_tokens=chunk_tokens,
    )


def kl_textbook(v: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        teacher = F.log_softmax(v["theirs"] @ v["their_head"].T, dim=-1)
    student = F.log_softmax(v["hidden"] @ v["head"].T, dim=-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def kl_trl(v: dict[str, Tensor]) -> Tensor:
    from trl.experimental.gkd import GKDTrainer

    with torch.no_grad():
        teacher = v["theirs"] @ v["their_head"].T
    student = v["hidden"] @ v["head"].T
    return GKDTrainer.generalized_jsd_loss(student[None], teacher[None], beta=0.0, num_items_in_batch=len(student))


def kl_liger(v: dict[str, Tensor]) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    # its own chunk size; not compiled, because compiling takes minutes on a CPU
    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=False)
    targets = torch.zeros(len(v["hidden"]), dtype=torch.long)
    return loss(v["hidden"], v["head"], v["theirs"], v["their_head"], targets)


KL: dict[str, Callable[[dict[str, Tensor]], Tensor]] = {
    "ours": kl_ours,
    "textbook": kl_textbook,
    "liger-kernel": kl_liger,
    "trl": kl_trl,
}


def with_gradients(run: Callable[[dict[str, Tensor]], Tensor], v: dict[str, Tensor]) -> list[Tensor]:
    value = run(v)
    return [value.detach(), *torch.autograd.grad(value, [v["hidden"], v["head"]])]


def bench_kl(rows: list[int], rounds: int, peers: str | None, sizes: Sizes) -> list[dict[str, Any]]:
    """Forward KL of ``rows`` tokens with the gradients of hidden states and head, against each other form."""
    found = []
    for run in KL.values() if peers else (kl_ours, kl_textbook):
        with_gradients(run, kl_inputs(64, sizes))  # whatever is loaded once
    for count in rows:
        v, own_peak = kl_inputs(count, sizes), peak_memory("kl", "ours", count, None, sizes)
        for name in ["textbook", *(["liger-kernel", "trl"] if peers else [])]:
            results: dict[str, list[Tensor]] = {}

            def run_and_keep(form: str, v: Any = v, results: dict[str, list[Tensor]] = results) -> None:
                results.pop(form, None)
                results[form] = with_gradients(KL[form], v)

            case = {form: functools.partial(run_and_keep, form) for form in (name, "ours")}
            # fewer rounds of what takes long: of 4096 rows each takes half a minute
            time = compared(case, rounds=max(2, min(rounds, 3072 // count)), warm_up=False)
            peak = peak_memory("kl", name, count, peers, sizes)
            (value, *gradients), (own_value, *own_gradients) = results.values()
            found.append(
                {
                    "against": name,
                    "tokens": count,
                    "error": error(own_value, value),
                    "gradient_error": max(error(a, b) for a, b in zip(own_gradients, gradients, strict=True)),
                    "time": time,
                    "peak_mib": {name: peak, "ours": own_peak},
                    "peak_saved": round(1 - own_peak / peak, 3),
                }
            )
    return found


# --- stage1: the distance of mixing matrices


def stage1_inputs(tokens: int, sizes: Sizes) -> dict[str, Any]:
    """One layer of student and teacher on one row."""
    teacher, student = models(sizes._replace(layers=1, vocab=512))
    student = convert(teacher, mixer="mamba2").train()
    batch = collate_rows([documents([(1, tokens - 1)], sizes._replace(vocab=512))], seq_len=tokens, pad_token_id=0)
    loss = MatrixOrientation()
    with torch.no_grad():
        theirs = read_signals(convert(teacher, mixer="attention").eval(), batch, needs=loss.teacher_needs)
    return {"student": student, "batch": batch, "theirs": theirs, "loss": loss}


def stage1_streamed(v: dict[str, Any]) -> Tensor:
    value: Tensor = v["loss"](read_signals(v["student"], v["batch"], needs=v["loss"].needs), v["theirs"], v["batch"])
    return value


def stage1_whole(v: dict[str, Any]) -> Tensor:
    layers, inputs = read_signals(v["student"], v["batch"], needs=v["loss"].needs).layers, v["theirs"].hidden_states[0]
    tokens = inputs.shape[1]
    with torch.no_grad():
        target = v["theirs"].layers.matrix(0, inputs).rows(0, tokens)
    found = layers.matrix(0, inputs).rows(0, tokens)  # type: ignore[union-attr]
    return (found - target).square().sum((-1, -2)).sqrt().mean()


STAGE1 = {"ours": stage1_streamed, "whole matrices": stage1_whole}


def stage1_step(run: Callable[[dict[str, Any]], Tensor], v: dict[str, Any]) -> list[Tensor]:
    value = run(v)
    trained = [p for name, p in v["student"].named_parameters() if "in_proj" in name]
    return [value.detach(), *torch.autograd.grad(value, trained)]


def bench_stage1(lengths: list[int], rounds: int, sizes: Sizes) -> list[dict[str, Any]]:
    """Value and gradients of one layer's distance, a block of rows at a time and with whole matrices."""
    found = []
    for tokens in lengths:
        v = stage1_inputs(tokens, sizes)
        ours, whole = (stage1_step(STAGE1[name], v) for name in ("ours", "whole matrices"))
        case = {name: functools.partial(stage1_step, STAGE1[name], v) for name in ("whole matrices", "ours")}
        found.append(
            {
                "tokens": tokens,
                "error": max(error(a, b) for a, b in zip(ours, whole, strict=True)),
                "time": compared(case, rounds=rounds),
                "peak_mib": {
                    name: peak_memory("stage1", name, tokens, None, sizes) for name in ("whole matrices", "ours")
                },
            }
        )
    return found


# --- peak memory


PEAKS: dict[str, tuple[Callable[[int, Sizes], Any], Callable[[str, Any], Any]]] = {
    "kl": (kl_inputs, lambda name, v: with_gradients(KL[name], v)),
    "stage1": (stage1_inputs, lambda name, v: stage1_step(STAGE1[name], v)),
}


def peak_memory(section: str, name: str, size: int, peers: str | None, sizes: Sizes) -> float:
    """Return the highest memory of one run in a process of its own, above what was there before, in MiB."""
    command = [sys.executable, __file__, "--peak", section, name, str(size), json.dumps(sizes)]
    command += ["--peers", peers] if peers else []
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return float(done.stdout.split()[-1])


def print_peak(section: str, name: str, size: int, sizes: Sizes) -> None:
    make, run = PEAKS[section]
    run(name, make(32, sizes))  # whatever is loaded once
    v = make(size, sizes)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status_kib("VmRSS")
    run(name, v)
    print(round((status_kib("VmHWM") - before) / 1024, 1))


def show(result: dict[str, Any]) -> None:
    """Print a Markdown table: what we are compared with, then ours, and how often ours fits into it."""
    print("| theirs / ours | time | peak MiB | tokens/s | error |")
    print("| --- | --- | --- | --- | --- |")

    def row(name: str, found: dict[str, Any]) -> None:
        slow, fast = found["time"]["milliseconds"].values()
        low, high = found["time"]["ratio_range"]
        peak, rate = found.get("peak_mib"), found.get("tokens_per_second", found.get("useful_tokens_per_second"))
        cells = [
            name,
            f"{slow:.0f} / {fast:.0f} ms, **{found['time']['ratio']:.2f}x** ({low} to {high})",
            ""
            if peak is None
            else " / ".join(map(str, peak.values())) + f" ({peak['ours'] / max(1e-9, *peak.values()):.0%})",
            "" if rate is None else " / ".join(map(str, rate.values())),
            f"{found['error']:.0e}",
        ]
        print("| " + " | ".join(cells) + " |")

    for found in result.get("kl", []):
        row(f"KL, {found['against']}, {found['tokens']} tokens", found)
    for found in [result["step"]] if "step" in result else []:
        row(f"step, transformers, {found['tokens']} tokens of which {found['labelled']} labelled", found)
    for found in result.get("packing", []):
        full = " / ".join(f"{share:.0%}" for share in found["filled"].values())
        row(f"packing, {found['against']}, {full} full", found)
    for found in result.get("stage1", []):
        row(f"stage 1, whole matrices, T = {found['tokens']}", found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = ("kl", "step", "packing", "stage1")
    parser.add_argument("--out", type=Path, default=Path("build/bench-distill.json"))
    parser.add_argument("--only", nargs="+", choices=sections, default=sections)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024, 2048, 4096], help="of the section kl")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024, 2048], help="of the section stage1")
    parser.add_argument("--peers", help="folder with liger-kernel and trl")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet()
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    if options.peers:
        sys.path.append(options.peers)
    torch.set_num_threads(options.threads)
    if options.peak:
        section, name, size, sizes = options.peak
        return print_peak(section, name, int(size), Sizes(*json.loads(sizes)))
    sizes, rounds = Sizes(layers=options.layers), options.rounds
    before = calibrate()
    result: dict[str, Any] = {
        "machine": describe_machine(), "threads": options.threads, "rounds": rounds, "sizes": sizes._asdict(),
        "calibration": {"before": before},
    }  # fmt: skip
    run: dict[str, Callable[[], Any]] = {
        "kl": lambda: bench_kl(options.tokens, rounds, options.peers, sizes),
        "step": lambda: bench_step(4, (90, 100), min(rounds, 3), sizes),
        "packing": lambda: bench_packing(GSM8K, PACKED, PADDED, min(rounds, 2), sizes),
        "stage1": lambda: bench_stage1(options.lengths, min(rounds, 3), sizes),
    }
    for section in options.only:
        result[section] = run[section]()
    finish(result, options.out)
    show(result)


if __name__ == "__main__":
    main()
