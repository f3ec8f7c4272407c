"""Scores of any make: positive weights, transforms, and how far they tie."""

import math
import random
from collections import Counter

import pytest
import torch

from lit_thinkfast.records import Completion, Problem, Verdict, from_json, to_json
from lit_thinkfast.verification import RewardModel, RewardScore
from lit_thinkfast.verification.files import with_scores
from lit_thinkfast.verification.saturation import Saturation, bf16, saturation_of
from lit_thinkfast.verification.scores import (
    NO_STEP,
    TransformedRewardModel,
    aggregate,
    identity_of,
    log_odds_of,
    name_of,
)

PROBLEMS = [Problem("p", "?", "1"), Problem("q", "?", "2")]


def samples(count, problem="p"):
    return [Completion(problem, i, f"text {i}", 1, 1, "stop", 0.0, 0.0) for i in range(count)]


class Numbers:
    name = "raw"

    def __init__(self, numbers):
        self.numbers = numbers

    def score(self, problems, completions):
        return self.numbers


def test_the_weight_of_a_vote_is_positive_whatever_the_log_odds():
    for log_odds in (-1e30, -800.0, -745.0, NO_STEP, 0.0, 40.0, 1e30):
        assert 0 < RewardScore((), log_odds).score <= 1
        (verdict,) = with_scores([Verdict("p", 0, "correct")], [RewardScore((), log_odds)], "toy")
        assert from_json(Verdict, to_json(verdict)).score > 0


@pytest.mark.parametrize(
    ("transform", "numbers", "weights"),
    [
        ("sigmoid", [-4.28, 0.0, 6.09], [1 / (1 + math.exp(4.28)), 0.5, 1 / (1 + math.exp(-6.09))]),
        ("exp", [-0.1, -3.0, 0.0], [math.exp(-0.1), math.exp(-3), 1.0]),
        ("identity", [0.25, 1.0, 0], [0.25, 1.0, 0.0]),
        ("identity", torch.tensor([0.25, 0.5, 0.0]), [0.25, 0.5, 0.0]),
        ("identity", [[0.5, 0.75], torch.tensor([0.1]), []], [0.75, 0.1, 1 / (1 + math.exp(-NO_STEP))]),
    ],
)
def test_raw_numbers_become_positive_weights(transform, numbers, weights):
    model = TransformedRewardModel(Numbers(numbers), transform=transform)
    scores = model.score(PROBLEMS, samples(3))
    assert [score.score for score in scores] == pytest.approx(weights, rel=1e-5, abs=1e-12)
    assert all(0 < score.score <= 1 and math.isfinite(score.log_odds) for score in scores)
    assert isinstance(model, RewardModel)
    assert name_of(model) == f"raw ({transform})"
    assert identity_of(model) == {
        "reward_model": f"raw ({transform})",
        "raw": {"reward_model": "raw"},
        "transform": transform,
        "aggregation": "last",
    }


def test_log_odds_of_probabilities_are_finite_and_in_their_order():
    rng = random.Random(0)
    some = [rng.random() for _ in range(5_000)] + [10 ** rng.uniform(-320, 0) for _ in range(5_000)]
    some += [1 - 10 ** rng.uniform(-16, 0) for _ in range(5_000)]
    neighbours = [math.nextafter(p, 1) for p in some]
    ordered = sorted({0.0, 5e-324, 0.5, math.nextafter(1, 0), 1.0, *some, *neighbours})
    assert ordered[-1] == 1.0
    log_odds = [log_odds_of(p) for p in ordered]
    assert log_odds == sorted(log_odds)
    assert all(map(math.isfinite, log_odds))
    assert log_odds[0] < log_odds[1] <= math.log(5e-324)
    assert log_odds[-2] < log_odds[-1]
    for p, x in zip(ordered, log_odds, strict=True):
        assert RewardScore((), x).score == pytest.approx(p, rel=2e-13, abs=5e-324)
    for wrong in (-1e-300, math.nextafter(1, 2), math.nan, math.inf):
        with pytest.raises(ValueError, match="is no probability"):
            log_odds_of(wrong)


@pytest.mark.parametrize("aggregation", ["last", "min", "product", "mean"])
def test_a_certain_solution_is_alone_at_exactly_one(aggregation):
    """Its log-odds are rounded to float32, and yet it is above the largest number below 1, which stays below 1."""
    for count in (1, 2, 50):
        certain, almost, no, hardly = (
            RewardScore((), aggregate([log_odds_of(p)] * count, aggregation))
            for p in (1.0, math.nextafter(1, 0), 0.0, 5e-324)
        )
        assert certain.score == 1.0
        assert almost.score < 1
        assert almost.log_odds < certain.log_odds
        assert no.log_odds < hardly.log_odds
        assert 0 < no.score <= hardly.score
    model = TransformedRewardModel(Numbers([[1.0], [math.nextafter(1, 0)], [0.5]]), transform="identity")
    assert [score.score for score in model.score(PROBLEMS, samples(3))] == [1.0, math.nextafter(1, 0), 0.5]


def test_steps_are_aggregated():
    model = TransformedRewardModel(Numbers([[0.5, 0.25]]), transform="identity", aggregation="product")
    (score,) = model.score(PROBLEMS, samples(1))
    assert score.score == pytest.approx(0.125)
    assert score.step_log_odds == pytest.approx((0.0, -math.log(3)))


@pytest.mark.parametrize(
    ("transform", "number", "words"),
    [
        ("exp", 0.5, "raw .exp. gives 0.5 for sample 1 of problem 'p', which is not a log-probability"),
        ("identity", -0.25, "gives -0.25 for sample 1 of problem 'p', which is not a probability"),
        ("identity", float("nan"), "gives nan for sample 1 of problem 'p', which is not a probability"),
        ("sigmoid", float("inf"), "gives inf for sample 1 of problem 'p', which is not finite"),
        ("sigmoid", "good", "gives 'good' for sample 1 of problem 'p', which is no number"),
        ("sigmoid", None, "gives None for sample 1 of problem 'p', which is no number"),
    ],
)
def test_a_number_of_another_kind_is_refused(transform, number, words):
    with pytest.raises(ValueError, match=words):
        TransformedRewardModel(Numbers([-0.0, number]), transform=transform).score(PROBLEMS, samples(2))


def test_a_transform_that_is_not_known_or_scores_that_are_too_few():
    with pytest.raises(ValueError, match="transform 'shift' is not one of sigmoid, exp, identity"):
        TransformedRewardModel(Numbers([]), transform="shift")
    with pytest.raises(ValueError, match="aggregation 'best' is not one of"):
        TransformedRewardModel(Numbers([]), transform="exp", aggregation="best")
    with pytest.raises(ValueError, match=r"raw \(exp\) gives 1 scores for 2 completions"):
        TransformedRewardModel(Numbers([-1.0]), transform="exp").score(PROBLEMS, samples(2))


def test_bf16_rounds_as_torch_does():
    rng = random.Random(0)
    values = [rng.random() ** rng.choice((0.01, 1, 20)) for _ in range(2000)] + [1.0, 1 - 2**-9, 1 - 2**-9 - 2**-20]
    expected = torch.tensor(values, dtype=torch.float32).bfloat16().double().tolist()
    assert [bf16(value) for value in values] == expected
    assert bf16(1 - 2**-9) == 1.0


def test_saturation_counts_what_a_naive_count_does():
    rng = random.Random(1)
    made = samples(40, "p") + samples(30, "q")
    log_odds = [rng.choice((9.0, 7.0, 6.5, 6.0, 2.0, rng.gauss(0, 3))) for _ in made]
    found = saturation_of([RewardScore((), x) for x in log_odds], made)
    ties, half_ties, distinct, ones = [], [], [], 0
    for start, end in ((0, 40), (40, 70)):
        own = torch.tensor(log_odds[start:end], dtype=torch.float64)
        halves = own.sigmoid().float().bfloat16()
        for values, shares in ((own, ties), (halves, half_ties)):
            top = Counter(values.tolist())[values.max().item()]
            shares.append(top / len(values) if top > 1 else 0.0)
        distinct.append(len(set(own.tolist())) / len(own))
        ones += int((halves == 1).sum())
    expected = Saturation(70, sum(ties) / 2, sum(half_ties) / 2, ones / 70, sum(distinct) / 2)
    assert found == expected
    assert found.warning
    assert 0 < found.share_tied_at_top < found.share_tied_at_top_bf16


def test_equal_texts_are_no_tie():
    text = samples(1)[0]
    found = saturation_of([RewardScore((), 1.0)] * 5, [text] * 5)
    assert (found.num_texts, found.share_tied_at_top, found.share_distinct) == (1, 0.0, 1.0)
    assert found.warning is None
    with pytest.raises(ValueError, match="no scores"):
        saturation_of([], [])
