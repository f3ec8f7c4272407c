"""Time budgets, against sums written out by hand and runs that really were shorter."""

from dataclasses import dataclass

import pytest

from lit_thinkfast.generation.budgets import (
    Throughput,
    best_point,
    finished_by,
    parse_duration,
    samples_by,
    throughput,
    tokens_per_sample,
)
from lit_thinkfast.records import Completion

from .fake_sampler import PROBLEMS, FakeSampler


@dataclass(frozen=True)
class Point:
    batch_size: int
    tokens_per_second: float
    memory_bytes: int


POINTS = [Point(1, 50.0, 100), Point(8, 300.0, 170), Point(32, 500.0, 410), Point(64, 450.0, 730)]


def completion(problem, sample, tokens, finished=None):
    return Completion(
        problem_id=problem, sample=sample, text="", num_prompt_tokens=3, num_tokens=tokens, finish_reason="stop",
        seconds=1.0, latency_seconds=1.0, finished_seconds=finished,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("60s", 60), ("10m", 600), ("2h", 7200), ("90", 90), (" 1.5 h ", 5400), (0.5, 0.5), (7, 7), (".5m", 30)],
)
def test_durations(given, seconds):
    assert parse_duration(given) == seconds


@pytest.mark.parametrize("given", ["", "0", "0s", "-5", "5d", "1h30m", "nan", "inf", "1e3", "s", "1,5m", "60 s s"])
def test_what_is_no_duration(given):
    with pytest.raises(ValueError, match="is not a duration above 0; write it like 60s") as caught:
        parse_duration(given)
    assert "\n" not in str(caught.value)


def test_the_best_batch_is_the_fastest_that_fits():
    assert best_point(POINTS).batch_size == 32
    assert best_point(POINTS, memory_budget_bytes=409).batch_size == 8
    assert best_point(POINTS, memory_budget_bytes=410).batch_size == 32
    with pytest.raises(ValueError, match="no measurement fits memory_budget_bytes 99: the smallest takes 100"):
        best_point(POINTS, memory_budget_bytes=99)
    with pytest.raises(ValueError, match="no measurements"):
        best_point([])


def test_lengths_are_a_mean_over_problems():
    made = [completion("a", 0, 10), completion("a", 1, 30), completion("b", 0, 100)]
    assert tokens_per_sample(made) == (20 + 100) / 2
    with pytest.raises(ValueError, match="no completions"):
        tokens_per_sample([])


@pytest.mark.parametrize("prefill", [0.0, 0.25])
def test_seconds_of_k_samples(prefill):
    made = [completion("a", 0, 100), completion("b", 0, 50)]
    cost = throughput(POINTS, made, memory_budget_bytes=200, prefill_seconds=prefill)
    assert cost == Throughput(8, 300.0, 75.0, prefill)
    for k in (1, 2, 64):
        assert cost.decode_seconds(k) == pytest.approx(sum(75.0 / 300.0 for _ in range(k)))
        assert cost.seconds(k) == pytest.approx(prefill + cost.decode_seconds(k))
        assert cost.samples_within(cost.seconds(k)) == k
        assert cost.samples_within(cost.seconds(k) - 1e-6) == k - 1
    assert cost.samples_within(0.0) == 0


@pytest.mark.parametrize("seconds", [0, 1, 5, 11, 17, 40, 100])
def test_a_long_run_answers_for_every_shorter_one(seconds):
    """Twin: samplers that really were stopped."""
    long = list(FakeSampler(num_samples=40).sample(PROBLEMS, time_budget=100.0))
    short = list(FakeSampler(num_samples=40).sample(PROBLEMS, time_budget=seconds)) if seconds else []
    assert finished_by(long, seconds) == short
    counts = samples_by(long, seconds, [p.id for p in PROBLEMS])
    assert counts == {p.id: sum(c.problem_id == p.id for c in short) for p in PROBLEMS}


def test_completions_that_do_not_say_when():
    with pytest.raises(ValueError, match="sample 3 of problem 'a' has no finished_seconds"):
        finished_by([completion("a", 3, 5)], 10.0)
