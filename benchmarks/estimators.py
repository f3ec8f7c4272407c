"""Speed of the estimators on one core, and agreement with a real run of search-and-learn.

    OMP_NUM_THREADS=1 python benchmarks/estimators.py --out build/bench-estimators.json
    python benchmarks/estimators.py --only agreement --search-and-learn RUN.jsonl --search-and-learn-source src

Sections, chosen with ``--only``: ``large``, 10,000 samples of 1,000 problems at 14 k; ``small``, 64 samples of 500
problems at 7 k, weighted best-of-N included; ``first``, the first-seen rule of ties at several n; ``worst``, majority
votes that are hard for the exact method; ``agreement``, whether our first-seen choice among the first k samples is the
one that search-and-learn wrote down.

Answers are drawn as models give them: per problem two to four frequent answers and a long tail of hundreds of rare
ones. Scores are continuous, or rounded so that many tie. CPU seconds of the process are what counts on a shared
machine; wall seconds are given beside them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_thinkfast.generation.calibration import describe_machine
from lit_thinkfast.generation.journal import write_json
from lit_thinkfast.metrics.functional import (
    best_of_n_accuracy,
    coverage,
    majority_vote_accuracy,
    weighted_best_of_n_estimate,
)

SECTIONS = ("large", "small", "first", "worst", "agreement")


def world(problems: int, samples: int, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return correct, answers and scores: frequent answers, one of which is right in most problems, and a long tail."""
    rng = np.random.default_rng(seed)
    answers = np.empty((problems, samples), dtype=np.int64)
    correct = np.empty((problems, samples), dtype=bool)
    for p in range(problems):
        frequent = rng.dirichlet(np.ones(rng.integers(2, 5))) * rng.uniform(0.3, 0.95)
        tail = 1 / np.arange(1, rng.integers(300, 900)) ** rng.uniform(0.6, 1.2)
        shares = np.concatenate((frequent, tail * (1 - frequent.sum()) / tail.sum()))
        answers[p] = rng.choice(len(shares), samples, p=shares / shares.sum())
        correct[p] = answers[p] == rng.integers(0, len(frequent) + 1)  # now and then only a rare answer is right
        answers[p, rng.random(samples) < 0.02] = -1
    correct &= answers >= 0
    scores = 1 / (1 + np.exp(-rng.normal(correct * 1.5, 1.0)))
    return torch.from_numpy(correct), torch.from_numpy(answers), torch.from_numpy(scores)


def timed(call: Callable[[], Any]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return {"cpu_s": round(time.process_time() - cpu, 3), "wall_s": round(time.perf_counter() - wall, 3)}


def bench_large(problems: int, samples: int) -> dict[str, Any]:
    correct, answers, scores = world(problems, samples)
    tied = (scores * 20).round() / 20
    ks = [1 << i for i in range(14) if 1 << i <= samples]
    found = {
        "coverage": timed(lambda: coverage(correct, ks)),
        "majority": timed(lambda: majority_vote_accuracy(correct, answers, ks)),
        "best_of_n": timed(lambda: best_of_n_accuracy(correct, scores, ks)),
        "best_of_n, tied scores": timed(lambda: best_of_n_accuracy(correct, tied, ks)),
    }
    total = {unit: round(sum(found[rule][unit] for rule in list(found)[:3]), 1) for unit in ("cpu_s", "wall_s")}
    return {"problems": problems, "samples": samples, "ks": ks, **found, "three rules": total}


def bench_small() -> dict[str, Any]:
    correct, answers, scores = world(500, 64, seed=1)
    ks = [1 << i for i in range(7)]
    return {
        "problems": 500,
        "samples": 64,
        "ks": ks,
        "coverage": timed(lambda: coverage(correct, ks)),
        "majority": timed(lambda: majority_vote_accuracy(correct, answers, ks)),
        "majority, first seen": timed(lambda: majority_vote_accuracy(correct, answers, ks, ties="first")),
        "best_of_n": timed(lambda: best_of_n_accuracy(correct, scores, ks)),
        "weighted_best_of_n, 1000 subsets": timed(lambda: weighted_best_of_n_estimate(correct, answers, scores, ks)),
        "largest standard error of weighted_best_of_n": float(
            weighted_best_of_n_estimate(correct, answers, scores, ks)[1].max()
        ),
    }


def bench_first() -> dict[str, Any]:
    """CPU milliseconds a problem and k of the exact first-seen rule."""
    found: dict[str, Any] = {}
    for samples, problems in ((64, 50), (256, 20), (1024, 5), (10_000, 3)):
        correct, answers, _ = world(problems, samples, seed=2)
        for k in (2, 8, 32, 128, 512, 2048, 8192):
            if k <= samples:
                spent = timed(lambda c=correct, a=answers, k=k: majority_vote_accuracy(c, a, k, ties="first"))
                found.setdefault(str(samples), {})[str(k)] = round(1e3 * spent["cpu_s"] / problems, 1)
    return found


def bench_worst(samples: int = 10_000) -> dict[str, Any]:
    """CPU milliseconds of one problem and k, and how far the shares of all answers are from adding up to 1."""
    sizes = {
        "two answers": [samples // 2] * 2,
        "ten answers": [samples // 10] * 10,
        "500 answers of 20": [20] * (samples // 20),
        "all different": [1] * samples,
    }
    found: dict[str, Any] = {}
    for name, groups in sizes.items():
        answers = torch.arange(len(groups)).repeat_interleave(torch.tensor(groups))
        answers = answers[torch.randperm(samples, generator=torch.Generator().manual_seed(0))][None]
        for k in (8, 512, 4096):
            for ties in ("split", "first"):
                one = answers == 0
                spent = timed(lambda o=one, a=answers, k=k, t=ties: majority_vote_accuracy(o, a, k, ties=t))
                found.setdefault(name, {})[f"k {k}, {ties}"] = round(1e3 * spent["cpu_s"], 1)
            share = majority_vote_accuracy(one, answers, k).item() * len(groups)
            found[name][f"k {k}, error"] = abs(share - 1) / len(groups)
    return found


def bench_agreement(run: Path, source: Path | None) -> dict[str, Any]:
    """Share of search-and-learn's predictions that the switches for it choose.

    A prediction is taken for the right answer: then the accuracy of our choice is 1 exactly if we choose the same.
    """
    found: dict[str, Any] = {"groups": "of the tool's own code" if source else "ours, by canonical form"}
    counts = {rule: [0, 0] for rule in ("maj", "naive", "weighted")}
    misses = []
    switches: dict[str, Any] = {"ties": "first", "subsets": "prefix"}
    for line in run.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        keys, key_of = (_their_groups if source else _our_groups)(record["completions"], source)
        answers = torch.tensor([[-1 if key is None else keys.index(key) for key in keys]])
        scores = torch.tensor([record["agg_scores"]], dtype=torch.float64)
        for k in (1 << i for i in range(len(keys).bit_length())):
            for rule in counts:
                told = record[f"pred_{rule}@{k}"]
                key = key_of(told.removeprefix("\\boxed{").removesuffix("}"))
                correct = torch.tensor([[other == key for other in keys]])
                if rule == "maj":
                    same = majority_vote_accuracy(correct, answers, k, invalid="vote", **switches)
                elif rule == "naive":
                    same = best_of_n_accuracy(correct, scores, k, **switches)
                else:
                    same = weighted_best_of_n_estimate(correct, answers, scores, k, invalid="vote", **switches)[0]
                counts[rule][0] += int(same.item())
                counts[rule][1] += 1
                if same != 1:
                    misses.append(f"{record['unique_id']} pred_{rule}@{k} {told}")
    return {**found, **{rule: f"{same} of {of}" for rule, (same, of) in counts.items()}, "misses": misses}


def _our_groups(completions: Sequence[str], _: Path | None) -> tuple[list[str | None], Callable[[str], str | None]]:
    from lit_thinkfast.verification import canonical, extract_answer

    said = [extract_answer(text) for text in completions]
    return [None if text is None else canonical(text) for text in said], canonical


def _their_groups(completions: Sequence[str], source: Path | None) -> tuple[list[str], Callable[[str], str | None]]:
    """Extract and group by the tool's own code, whose latex2sympy2 lives on as latex2sympy2_extended."""
    import latex2sympy2_extended

    sys.path.insert(0, str(source))
    stand_in: Any = types.ModuleType("latex2sympy2")
    stand_in.latex2sympy = latex2sympy2_extended.latex2sympy
    sys.modules.setdefault("latex2sympy2", stand_in)
    from sal.utils.math import extract_completion_answers, memoized_canonical_form

    said = extract_completion_answers({"completions": list(completions)})["preds"]
    return [memoized_canonical_form(text) for text in said], memoized_canonical_form


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/bench-estimators.json"), help="where figures are kept")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--problems", type=int, default=1000, help="of the section large")
    parser.add_argument("--samples", type=int, default=10_000, help="of the section large")
    parser.add_argument("--search-and-learn", type=Path, help="JSON lines that its score step wrote")
    parser.add_argument("--search-and-learn-source", type=Path, help="its folder src: group answers by its own code")
    given = parser.parse_args()
    sections: dict[str, Callable[[], dict[str, Any]]] = {
        "large": lambda: bench_large(given.problems, given.samples),
        "small": bench_small,
        "first": bench_first,
        "worst": bench_worst,
        "agreement": lambda: bench_agreement(given.search_and_learn, given.search_and_learn_source),
    }
    torch.set_num_threads(1)
    figures: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    for name in given.only:
        if name == "agreement" and given.search_and_learn is None:
            print("agreement is left out: name a file with --search-and-learn")
            continue
        figures[name] = {"machine": describe_machine(), **sections[name]()}
        print(json.dumps({name: figures[name]}, indent=1), flush=True)
        write_json(figures, given.out)


if __name__ == "__main__":
    main()
