"""Grading against math-verify: what each misses, how fast each is, and what hostile answers do to ours.

    python benchmarks/grading.py --gsm8k gsm8k_test.jsonl --math500 math500_test.jsonl --out build/bench-grading.json

Four sections, chosen with ``--only``. ``gold``: every gold answer of GSM8K's test set and of MATH-500, as published,
against itself and against 20 paraphrases (``paraphrases.py``); each pair goes to ours, with one worker, and to
math-verify in this process, and every disagreement is printed. Speeds are of processor time, that of the worker
included. It takes some four minutes; ``--part 1 3`` takes a third, here and below. ``wrong``: the same for gold answers
against those of other problems. ``hostile``: answers that mean harm (``hostile_answers.py``), graded one by one by the
clock. ``cores``: comparisons that take computer algebra, on one worker and on as many as cores. Exits with 1 if a bar
is missed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from hostile_answers import REAL, hostile
from paraphrases import paraphrases

from lit_thinkfast.generation.calibration import describe_machine
from lit_thinkfast.records import Completion, Problem
from lit_thinkfast.verification.grading import MathVerifier, gradable
from lit_thinkfast.verification.workers import WorkerPool, available_cores

PARAPHRASES = 20
Pair = tuple[str, str]


def completion(problem: str, text: str, sample: int = 0) -> Completion:
    return Completion(problem, sample, f"\\boxed{{{text}}}", 1, 1, "stop", 0.0, 0.0)


def golds(args: argparse.Namespace) -> dict[str, list[str]]:
    """Return the distinct gold answers of each set, in order of the file."""
    found = {}
    part, parts = args.part
    for name, path in (("gsm8k", args.gsm8k), ("math500", args.math500)):
        if path is not None:
            rows = [json.loads(line)["answer"] for line in Path(path).read_text(encoding="utf-8").splitlines() if line]
            found[name] = list(dict.fromkeys(row.rsplit("####", 1)[-1].strip() for row in rows))[part - 1 :: parts]
    return found


def algebra(pairs: list[Pair]) -> tuple[list[bool], float]:
    """Return math-verify's verdict on pairs of answer and gold, with its own time limits, and the processor seconds."""
    import math_verify

    logging.disable(logging.CRITICAL)

    def read(text: str) -> Any:
        return math_verify.parse(f"${text}$") or math_verify.parse(text)

    read_golds: dict[str, Any] = {}
    verdicts = []
    start = time.process_time()
    for answer, gold in pairs:
        if gold not in read_golds:
            read_golds[gold] = read(gold)
        verdicts.append(math_verify.verify(read_golds[gold], read(answer)))
    seconds = time.process_time() - start
    # a second chance for texts that bring dollar signs of their own; not on the clock
    for place, (answer, gold) in enumerate(pairs):
        if not verdicts[place]:
            verdicts[place] = math_verify.verify(read_golds[gold], math_verify.parse(answer))
    logging.disable(logging.NOTSET)
    return verdicts, seconds


def ours(pairs: list[Pair]) -> tuple[list[str], float, int]:
    """Return our outcomes, the processor seconds, and how many pairs took computer algebra."""
    names = {gold: str(index) for index, gold in enumerate(dict.fromkeys(gold for _, gold in pairs))}
    problems = [Problem(name, "", gold) for gold, name in names.items()]
    completions = [completion(names[gold], answer, sample) for sample, (answer, gold) in enumerate(pairs)]
    verifier = MathVerifier(num_workers=1)
    verifier.grade(
        Problem("warm", "", "x"), completion("warm", "\\sin x")
    )  # starts the worker, as math-verify's import
    asked, started = 0, worker_cpu(verifier)
    compare = verifier._pool.compare_all

    def counted(hard: list[Pair]) -> Any:
        nonlocal asked
        asked += len(hard)
        return compare(hard)

    verifier._pool.compare_all = counted  # type: ignore[method-assign]
    start = time.process_time()
    verdicts = verifier.grade_batch(problems, completions)
    seconds = time.process_time() - start + worker_cpu(verifier) - started
    verifier.close()
    return [verdict.outcome for verdict in verdicts], seconds, asked


def worker_cpu(verifier: MathVerifier) -> float:
    """Return the processor seconds that the worker and its forks have used."""
    total = 0.0
    for worker in verifier._pool._workers:
        if worker.process is not None:
            with open(f"/proc/{worker.process.pid}/stat") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
            total += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return total


def versus(name: str, pairs: list[Pair]) -> dict[str, Any]:
    """Grade pairs with both, print every pair that they do not both take for right or wrong, and return figures."""
    outcomes, seconds, asked = ours(pairs)
    theirs, their_seconds = algebra(pairs)
    graded = list(zip(pairs, (outcome == "correct" for outcome in outcomes), theirs, strict=True))
    figures = {
        "pairs": len(pairs),
        "outcomes": dict(Counter(outcomes)),
        "asked_algebra": asked,
        "seconds": seconds,
        "math_verify_seconds": their_seconds,
        "correct_to_both": sum(right and their for _, right, their in graded),
        "correct_to_ours_only": [pair for pair, right, their in graded if right and not their],
        "correct_to_math_verify_only": [pair for pair, right, their in graded if their and not right],
    }
    print(
        f"{name}: {len(pairs)} pairs; ours {len(pairs) / seconds:,.0f}/s ({asked} took algebra), math-verify "
        f"{len(pairs) / their_seconds:,.0f}/s, {their_seconds / seconds:.1f} times; "
        f"{figures['correct_to_both']} correct to both"
    )
    for label in ("correct_to_ours_only", "correct_to_math_verify_only"):
        print(f"  {label}: {len(figures[label])}")
        for text, gold in figures[label]:
            print(f"    {gold!r} <- {text!r}")
    return figures


def bench_gold(args: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, answers in golds(args).items():
        kept, removed = gradable([Problem(gold, "", gold) for gold in answers])
        pairs = [(text, p.answer) for p in kept for text in (p.answer, *paraphrases(p.answer, PARAPHRASES))]
        print(f"{name}: {len(answers)} different gold answers, {len(removed)} cannot be read")
        result[name] = {"golds": len(answers), "removed": [p.answer for p in removed], **versus(name, pairs)}
    if result:
        speedup = sum(r["math_verify_seconds"] for r in result.values()) / sum(r["seconds"] for r in result.values())
        misses = sum(len(r["correct_to_math_verify_only"]) for r in result.values())
        result["speedup"], result["bar_met"] = speedup, speedup >= 5 and misses == 0
        print(f"gold: {speedup:.1f} times math-verify's speed (bar 5), {misses} false negatives of ours alone (bar 0)")
    return result


def bench_wrong(args: argparse.Namespace) -> dict[str, Any]:
    result = {}
    for name, answers in golds(args).items():
        rng = random.Random(args.seed)
        pairs = [
            (other, gold) for gold in answers for other in rng.sample(answers, min(3, len(answers))) if other != gold
        ]
        result[name] = versus(f"wrong, {name}", pairs)
    return result


def bench_hostile(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        canary = Path(folder, "canary")
        os.chdir(folder)
        problems = [Problem(str(index), "", gold) for index, gold in enumerate(REAL)]
        verifier = MathVerifier(num_workers=1)
        start = time.perf_counter()
        verifier.grade(Problem("warm", "", "x"), completion("warm", "\\sin x"))
        start = time.perf_counter() - start
        seconds, outcomes, slow, worst = [], Counter[str](), Counter[str](), {}
        kinds: dict[str, Counter[str]] = {}
        part, parts = args.part
        texts = enumerate(hostile(args.answers, seed=args.seed, canary=str(canary)))
        for sample, (kind, text) in itertools.islice(texts, part - 1, None, parts):
            problem = problems[sample % len(problems)]
            began = time.perf_counter()
            outcome = verifier.grade(problem, completion(problem.id, text, sample)).outcome
            seconds.append(time.perf_counter() - began)
            outcomes[outcome] += 1
            kinds.setdefault(kind, Counter())[outcome] += 1
            if seconds[-1] > worst.get(kind, 0):
                worst[kind] = seconds[-1]
            slow[kind] += seconds[-1] > 0.5
        verifier.close()
        os.chdir("/")
        rss = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        executed = canary.exists()
    result = {
        "answers": len(seconds),
        "seed": args.seed,
        "outcomes": dict(outcomes),
        "kinds": {kind: dict(counts) for kind, counts in kinds.items()},
        "worst_seconds": max(seconds),
        "median_seconds": statistics.median(seconds),
        "p99_seconds": statistics.quantiles(seconds, n=100)[98],
        "total_seconds": sum(seconds),
        "start_seconds": start,
        "worker_rss_mib": rss,
        "executed": executed,
        "limits": verifier._pool.limits,
    }
    result["bar_met"] = max(seconds) <= 2 and result["median_seconds"] < 1e-3 and rss <= 1024 and not executed
    print(
        f"hostile: {len(seconds)} answers, seed {args.seed}: worst {max(seconds):.2f} s (bar 2), median "
        f"{1e6 * result['median_seconds']:.0f} us (bar 1000), p99 {1e3 * result['p99_seconds']:.0f} ms, "
        f"total {sum(seconds):.0f} s; "
        f"largest worker {rss:.0f} MiB (bar 1024); code run: {executed}; outcomes {dict(outcomes)}; start {start:.2f} s"
    )
    for kind, counts in kinds.items():
        print(f"  {kind:10s} worst {worst[kind]:.3f} s, over 0.5 s: {slow[kind]}, {dict(counts)}")
    return result


def bench_cores(args: argparse.Namespace) -> dict[str, Any]:
    pairs = [(rf"\sin({n}x)+\cos x", rf"\cos x+\sin({n}x)") for n in range(2, 2 + args.comparisons)]
    result: dict[str, Any] = {"cores": available_cores()}
    found = []
    for workers in dict.fromkeys((1, available_cores())):
        with WorkerPool(num_workers=workers) as pool:
            pool.compare_all(pairs[:64])
            start = time.perf_counter()
            found.append(pool.compare_all(pairs))
            seconds = time.perf_counter() - start
        result[f"{workers}_per_second"] = len(pairs) / seconds
        print(f"cores: {workers} workers, {len(pairs) / seconds:.0f} comparisons a second")
    result["bar_met"] = all(one == found[0] for one in found)
    return result


SECTIONS = {"gold": bench_gold, "wrong": bench_wrong, "hostile": bench_hostile, "cores": bench_cores}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gsm8k", help="GSM8K's test set, as published (JSON lines)")
    parser.add_argument("--math500", help="MATH-500, as published (JSON lines)")
    parser.add_argument("--part", type=int, nargs=2, default=(1, 1), metavar=("I", "N"), help="the I-th of N parts")
    parser.add_argument("--answers", type=int, default=10_000, help="hostile answers")
    parser.add_argument("--comparisons", type=int, default=300, help="comparisons of the section cores")
    parser.add_argument("--seed", type=int, default=0, help="seed of hostile answers")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--out", type=Path, help="file for the figures")
    args = parser.parse_args()
    here = Path.cwd()
    result: dict[str, Any] = {"machine": describe_machine(), "grader": MathVerifier(num_workers=1).grader()}
    for section in args.only:
        result[section] = SECTIONS[section](args)
        os.chdir(here)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0 if all(result[section].get("bar_met", True) for section in args.only) else 1


if __name__ == "__main__":
    sys.exit(main())
