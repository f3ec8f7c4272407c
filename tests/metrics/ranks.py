"""Ranks of a distributed evaluation, run as a script: ``ranks.py FOLDER`` starts 2, then 3 gloo processes.

Every rank knows the whole truth of each scenario but feeds its metrics only its own share; what the ranks compute together
must equal, bit for bit, what one process computes from everything.
"""

import datetime
import multiprocessing
import random
import sys

import pytest
import torch
import torch.distributed as dist

import lit_thinkfast.generation.sampler
from lit_thinkfast.generation.config import SamplingConfig
from lit_thinkfast.metrics import (
    BestOfNAccuracy,
    Coverage,
    MajorityVoteAccuracy,
    ReasoningEvaluator,
    SampleGrid,
    WeightedBestOfNAccuracy,
    accuracy_metrics,
)
from lit_thinkfast.records import Completion, Problem
from lit_thinkfast.verification import RewardScore


def world(seed, problems, samples):
    """Cells (problem, sample, correct, answer, score) of a ragged evaluation."""
    rng = random.Random(seed)
    for p in range(problems):
        for s in sorted(rng.sample(range(samples), rng.randint(2, samples))):
            answer = rng.randrange(-1, 3)
            yield p, s, answer == 0, answer, rng.random()


def metrics(problems, samples):
    size = {"num_problems": problems, "num_samples": samples}
    return [
        Coverage(2, **size),
        MajorityVoteAccuracy(2, **size),
        MajorityVoteAccuracy(2, ties="first", **size),
        BestOfNAccuracy(2, **size),
        WeightedBestOfNAccuracy(2, num_subsets=5, **size),
    ]


def collection(problems, samples):
    rules = ("coverage", "majority", "weighted_best_of_n", "best_of_n")
    return accuracy_metrics([1, 2], num_problems=problems, num_samples=samples, rules=rules)


def feed(metric, cells):
    for chunk in (cells[:5], cells[5:]):
        if chunk:
            p, s, y, a, r = zip(*chunk, strict=True)
            metric.update(*(torch.tensor(column) for column in (p, s, y, a, r)))


def share(rank, world_size, problems, layout):
    """The problems of a rank."""
    if layout == "empty ranks":
        return set(range(problems)) if rank == world_size - 1 else set()
    if layout == "uneven":
        return {p for p in range(problems) if (p == 0) == (rank == 0)}
    return {p for p in range(problems) if (p % world_size == rank) or p < 2}  # duplicates, as padding samplers make


class ScriptedSampler:
    """Completions that are a function of problem and sample, as of the real sampler."""

    def __init__(self, model, tokenizer, config):
        self.config = config

    def sample(self, problems):
        for problem in problems:
            for s in range(self.config.num_samples):
                answer = random.Random(f"{problem.id}/{s}").choice(["4", "4.0", "5", "6", None])
                text = f"\\boxed{{{answer}}}" if answer else "no idea"
                yield Completion(problem.id, s, text, 1, 1, "stop", 0.0, 0.0)


class ScriptedRewards:
    def score(self, problems, completions):
        return [RewardScore((), random.Random(f"{c.problem_id}-{c.sample}").gauss(0, 2)) for c in completions]


def evaluate(indices, num_problems):
    lit_thinkfast.generation.sampler.Sampler = ScriptedSampler
    evaluator = ReasoningEvaluator(SamplingConfig(num_samples=6), ks=[1, 3, 6], reward_model=ScriptedRewards())
    evaluator.setup(num_problems)
    for i in sorted(indices):
        evaluator.evaluate(None, None, [Problem(f"p{i}", "2 + 2?", "4")], [i])
    return evaluator


def compare_collections(cells, mine):
    together, alone = collection(7, 4), collection(7, 4)
    for metric in alone.values():
        metric.sync_on_compute = False
    feed(alone, cells)
    feed(together, mine)
    if not mine:
        together.update(*(torch.empty(0, dtype=torch.long) for _ in range(4)))
    assert together.compute() == alone.compute()


def main(rank, world_size, rendezvous):
    dist.init_process_group(
        "gloo", f"file://{rendezvous}", rank=rank, world_size=world_size, timeout=datetime.timedelta(seconds=60)
    )
    for problems in (1, 2, 7):
        for layout in ("empty ranks", "uneven", "duplicates"):
            cells = list(world(problems, problems, 4))
            mine = [cell for cell in cells if cell[0] in share(rank, world_size, problems, layout)]
            for together, alone in zip(metrics(problems, 4), metrics(problems, 4), strict=True):
                feed(together, mine)
                if not mine:
                    together.update(*(torch.empty(0, dtype=torch.long) for _ in range(4)))
                alone.sync_on_compute = False
                feed(alone, cells)
                assert together.compute().item() == alone.compute().item(), (rank, problems, layout, together)
            if problems == 7:
                compare_collections(cells, mine)
            together = evaluate(share(rank, world_size, problems, layout), problems)
            alone = evaluate(range(problems), problems)
            alone.grid.sync_on_compute = False
            assert together.compute() == alone.compute(), (rank, problems, layout)
    nothing = SampleGrid(2, num_samples=2)
    nothing.update(*(torch.empty(0, dtype=torch.long) for _ in range(4)))
    with pytest.raises(ValueError, match="none of the 2 problems"):
        nothing.compute()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    fork = multiprocessing.get_context("fork")  # imports take seconds: make them once
    for size in (2, 3):
        ranks = [fork.Process(target=main, args=(r, size, f"{sys.argv[1]}/rendezvous-{size}")) for r in range(size)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        if any(process.exitcode for process in ranks):
            sys.exit(f"{size} ranks ended with {[process.exitcode for process in ranks]}")
