"""Is the report quick to build, small and quick to open, and does nothing that a model wrote come alive in it?

    python benchmarks/report.py                      4 models, 500 problems, 64 samples: the bars below must hold
    python benchmarks/report.py --problems 40        smaller

The runs are made up: skills and costs are known, texts are about 1 kB, and some of them are hostile. Bars: built within
60 s, numbers included; under 20 MB; opened within 2 s by a headless Chromium; no script, handler or foreign link.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from browsing import Found, browser, examine

from lit_thinkfast.analysis import ModelRun, compare_models
from lit_thinkfast.analysis.bundle import write_bundle
from lit_thinkfast.records import Completion, Problem, Verdict

HOSTILE = (
    "<script>document.title = 'broken'</script>",
    '"><img src=x onerror="document.title = 1">',
    "</pre></div></details></style></title><iframe src='https://evil.example/'></iframe>",
    "<a href='javascript:alert(1)'>click</a> <svg/onload=alert(1)> ]]> <!-- &lt;b&gt;",
    "\x1b[31mred\x1b[0m \u202egnp.exe \x00 =cmd|' /C calc'!A0",
)
SUBJECTS = ("Algebra", "Counting & Probability", "Geometry", "Intermediate Algebra", "Number Theory", "Prealgebra")
_VISITS = 5  # the page is opened so often, each time in a fresh context; the median counts
# name, seconds of one sample, skill, parameters, attention layers of 16
MODELS = (
    ("Llama-1B", 1.0, 0.9, 1_235_814_400, 16),
    ("Hybrid-1B", 0.32, 0.45, 1_247_000_000, 4),
    ("Llamba-1B", 0.22, -0.1, 1_418_000_000, 0),
    ("Hybrid-3B", 0.62, 1.3, 3_212_749_824, 6),
)
SENTENCE = (
    "so that we have the number of all pairs is equal to twice the sum of their squares and therefore by the first "
    "step this gives one more solution which we check by putting it back into the equation"
)
WORDS = SENTENCE.split()


def make_problems(number: int, seed: int = 0) -> list[Problem]:
    """Return made-up problems with levels, subjects and now and then a hostile question."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(number):
        question = f"Problem {i}: " + " ".join(rng.choice(WORDS, 24)) + f", where $x^2 + {i}x = {rng.integers(99)}$?"
        if i % 17 == 5:
            question += " " + HOSTILE[i % len(HOSTILE)]
        made.append(
            Problem(
                f"test/{SUBJECTS[i % 6].lower()}/{i}.json",
                question,
                str(rng.integers(99)),
                level=1 + i * 5 // number,
                subject=SUBJECTS[i % 6],
                source="made up",
            )
        )
    return made


def make_runs(problems: list[Problem], *, samples: int = 64, seed: int = 0) -> dict[str, ModelRun]:
    """Return one run a model. Levels make problems harder, and a reward model that knows a little scores them."""
    rng = np.random.default_rng(seed)
    own = rng.normal(0, 1.6, len(problems))
    return {
        name: _run(name, problems, own, samples, cost, skill, size, attention, np.random.default_rng((seed, i)))
        for i, (name, cost, skill, size, attention) in enumerate(MODELS)
    }


def _run(name, problems, own, samples, cost, skill, size, attention, rng):
    completions, verdicts, clock = [], [], 0.0
    texts = [" ".join(rng.choice(WORDS, 30)) for _ in range(400)]
    for sample in range(samples):
        for i, problem in enumerate(problems):
            chance = 1 / (1 + np.exp(-(skill + own[i] + rng.normal(0, 0.3) - 1.1 * (problem.level - 3))))
            right, cut = rng.random() < chance, rng.random() < 0.03
            answer = problem.answer if right else str(rng.integers(5) + 100)
            lines = [f"Step {n + 1}. {texts[rng.integers(400)]}" for n in range(int(rng.integers(3, 8)))]
            if (i + sample) % 23 == 0:
                lines.insert(1, HOSTILE[(i + sample) % len(HOSTILE)])
            text = "\n".join([*lines, f"The answer is \\boxed{{{answer}}}."])
            outcome = "truncated" if cut and not right else "correct" if right else "incorrect"
            if outcome == "incorrect" and rng.random() < 0.04:
                outcome = "unparsable"
            tokens = len(text) // 4
            seconds = cost * tokens / 250
            clock += seconds
            completions.append(
                Completion(
                    problem.id, sample, text, 60, tokens, "length" if cut else "stop", seconds, seconds, 0, name, clock
                )
            )
            given = answer if outcome in ("correct", "incorrect") else None
            steps = tuple(float(x) for x in rng.normal(1.0 if right else -0.5, 1.5, len(lines) + 1).round(3))
            score = float(1 / (1 + np.exp(-min(steps))))
            verdicts.append(
                Verdict(problem.id, sample, outcome, given, given, "math-verify 0.9.0", score, steps, "a made-up PRM")
            )
    session = {
        "started": "2026-11-26T08:00:00+00:00",
        "finished": "2026-11-26T09:30:00+00:00",
        "batch_size": 256,
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "changed": False},
    }
    meta = {
        "model": name,
        "num_parameters": size,
        "layer_mixers": ["attention" if n < attention else "mamba2" for n in range(16)],
        "dtype": "bfloat16",
        "device": "cuda",
        "device_name": "a made-up accelerator",
        "threads": 8,
        "versions": {"python": "3.11.9", "torch": "2.6.0", "lit-thinkfast": "0.6.0"},
        "sampling": {"num_samples": samples, "temperature": 0.7, "top_p": 0.95, "max_new_tokens": 2048, "seed": 0},
        "sessions": [session],
    }
    return ModelRun(completions, verdicts, meta=meta, scoring_seconds=0.02 * len(completions))


def browser_checks(visits: list[Found]) -> list[tuple[str, str, bool]]:
    """Return (bar, what was found, whether it holds); the median visit counts."""
    found = visits[0]
    seconds = statistics.median(visit.load_seconds for visit in visits)
    slowest = max(visit.load_seconds for visit in visits)
    alive = found.scripts + found.handlers + found.embedded
    foreign = len(found.foreign_links) + len(found.requests)
    return [
        ("opens within 2 s", f"{seconds:.2f} s, at most {slowest:.2f} s; {found.elements:,} elements", seconds < 2),
        ("nothing alive", f"{alive} scripts, handlers, frames", alive == 0),
        ("nothing foreign", f"{foreign} links, requests", foreign == 0),
        ("no console error", f"{len(found.errors)} errors", not found.errors),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("runs/report-benchmark/report.html"))
    options = parser.parse_args()
    problems = make_problems(options.problems)
    runs = make_runs(problems, samples=options.samples)
    start, processor = time.perf_counter(), time.process_time()
    comparison = compare_models(runs)
    numbers = time.perf_counter() - start
    paths = write_bundle(comparison, options.out, problems=problems)
    built, processor = time.perf_counter() - start, time.process_time() - processor
    size = options.out.stat().st_size / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{len(runs)} models, {options.problems} problems, {options.samples} samples; peak {peak:.2f} GB")
    checks = [
        ("built within 60 s", f"{built:.1f} s ({numbers:.1f} s numbers), {processor:.1f} s of processor", built < 60),
        ("page under 20 MB", f"{size:.1f} MB", size < 20),
    ]
    for path in paths:
        print(f"  {path} {path.stat().st_size / 1e6:.2f} MB")
    with browser() as running:
        if running is None:
            print("no headless browser here: install chromium and the Python package playwright to open the page in it")
        else:
            checks += browser_checks([examine(options.out, running) for _ in range(_VISITS)])
    for name, value, holds in checks:
        print(f"{'ok  ' if holds else 'FAIL'} {name}: {value}")
    return 0 if all(holds for _, _, holds in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
