"""The books of the rows against a list of dictionaries, over a long random history."""

import random

import pytest
import torch

from lit_thinkfast.generation.config import SamplingConfig
from lit_thinkfast.generation.rng import uniforms
from lit_thinkfast.generation.rows import Prompt, Rows, Waiting

SLOTS, BUDGET = 7, 90
CPU = torch.device("cpu")


def prompt(index, samples, **settings):
    config = SamplingConfig(**{"num_samples": 1, "temperature": 0.5 + index / 10, "max_new_tokens": BUDGET, **settings})
    return Prompt(list(range(2, 3 + index % 5)), 1000 + index, samples, config)


class Twin:
    """Rows as dictionaries in a list with a place for each slot."""

    def __init__(self):
        self.slots = [None] * SLOTS

    def admit(self, rows, index, asked, samples):
        for row, sample in zip(rows, samples, strict=True):
            assert self.slots[row] is None
            self.slots[row] = {"index": index, "asked": asked, "sample": sample, "said": [], "seconds": 0.0}

    def shrink(self, moves):
        for source, target in moves:
            assert self.slots[target] is None
            self.slots[target], self.slots[source] = self.slots[source], None
        assert all(row is None for row in self.slots[self.active :])

    @property
    def rows(self):
        return [row for row in self.slots if row is not None]

    @property
    def active(self):
        return len(self.rows)

    def uniforms(self):
        facts = [(row["asked"].key, row["sample"], len(row["said"])) for row in self.rows]
        by_seed = [row["asked"].config.seed for row in self.rows]
        found = {seed: uniforms(*torch.tensor(facts).T, seed=seed) for seed in set(by_seed)}
        return [float(found[seed][i]) for i, seed in enumerate(by_seed)]


@pytest.mark.parametrize("seed", range(2))
def test_a_long_history(seed):
    """Full for a hundred steps, then fewer and fewer rows, and once more from the start."""
    chance = random.Random(seed)
    rows, twin, index, filling, starts = Rows(SLOTS, BUDGET, CPU), Twin(), 0, 100, 1
    for step in range(260):
        filling -= 1
        while rows.free and filling > 0:
            samples = [chance.randrange(100) for _ in range(chance.randint(1, len(rows.free)))]
            asked = prompt(
                index, samples, seed=chance.choice([0, 5, 2**62]), top_k=chance.choice([0, 3]),
                top_p=chance.choice([1.0, 0.5]), max_new_tokens=chance.randint(1, BUDGET),
            )  # fmt: skip
            where = rows.admit(index, asked, samples, began=float(step))
            assert where == sorted(where)
            twin.admit(where, index, asked, samples)
            rows.charge_rows(where, 0.5)
            for row in where:
                twin.slots[row]["seconds"] += 0.5
                twin.slots[row]["began"] = step
            index += 1
        if not twin.active:
            rows.clear()
            filling, starts = 100, starts + 1
            continue
        if rows.free:
            source, target = rows.shrink()
            assert len(source) == len(target) <= SLOTS // 2
            twin.shrink(list(zip(source.tolist(), target.tolist(), strict=True)))
        count = twin.active
        assert (rows.count, rows.active, rows.free) == (count, count, [])
        own = twin.slots[:count]
        assert rows.token[:count].tolist() == [
            row["said"][-1] if row["said"] else row["asked"].tokens[-1] for row in own
        ]
        assert rows.longest == max(len(row["asked"].tokens) + len(row["said"]) for row in own)
        settings = rows.settings()
        for name in ("temperature", "top_k", "top_p", "min_p"):
            wanted = torch.tensor([getattr(row["asked"].config, name) for row in own])
            assert torch.equal(getattr(settings, name), wanted.to(getattr(settings, name).dtype)), name
        assert rows.next_uniforms().tolist() == twin.uniforms()

        words = [chance.randrange(45) for _ in own]
        assert rows.say(torch.tensor(words)).tolist() == words
        lap = chance.random()
        rows.charge(lap)
        for row, word in zip(own, words, strict=True):
            row["said"].append(word)
            row["seconds"] += lap / count
        assert rows.tokens_in_flight == sum(len(row["said"]) for row in own)
        over = [i for i, row in enumerate(own) if len(row["said"]) == row["asked"].config.max_new_tokens]
        assert rows.out_of_budget() == over
        for i in sorted({*over, *(i for i in range(count) if chance.random() < 0.05)}, key=lambda i: chance.random()):
            row, twin.slots[i] = own[i], None
            tokens = rows.said(i)
            done = rows.close(i, tokens=tokens, stopped=i not in over, cut=None, elapsed=step + 0.25)
            assert (done.prompt, done.sample, done.tokens) == (row["index"], row["sample"], row["said"])
            assert done.seconds == pytest.approx(row["seconds"], abs=1e-12)
            assert (done.latency, done.finished) == (step + 0.25 - row["began"], step + 0.25)
        assert rows.free == [i for i in range(count) if twin.slots[i] is None]
    assert index > 30
    assert starts > 1


@pytest.mark.parametrize("count", range(1, 7))
def test_gaps_are_closed_with_the_fewest_moves(count):
    for pattern in range(2**count):
        rows = Rows(count, 3, CPU)
        rows.admit(0, prompt(0, range(count)), range(count), began=0.0)
        kept = [row for row in range(count) if not pattern >> row & 1]
        for row in set(range(count)) - set(kept):
            rows.close(row, tokens=[], stopped=True, cut=None, elapsed=0.0)
        source, target = rows.shrink()
        order = list(range(count))
        for old, new in zip(source.tolist(), target.tolist(), strict=True):
            order[new] = old
        assert sorted(order[: rows.count]) == kept
        assert len(source) == sum(row >= len(kept) for row in kept)


def test_samples_wait_in_their_order():
    asked = [prompt(0, []), prompt(1, [4, 2, 9]), prompt(2, ()), prompt(3, range(2))]
    waiting, taken = Waiting(asked), []
    for most in (2, 5, 1, 1):
        index, found = waiting.current
        assert found is asked[index]
        waiting.encoded = index
        taken.append((index, waiting.take(most)))
        waiting.advance()
        left = index if len(taken) in (1, 3) else None
        assert waiting.encoded == left
    assert taken == [(1, [4, 2]), (1, [9]), (3, [0]), (3, [1])]
    assert waiting.current is None
    assert Waiting([prompt(0, [])]).current is None
