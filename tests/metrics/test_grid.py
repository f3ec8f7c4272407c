import copy
import pickle

import pytest
import torch
from torchmetrics import MetricCollection

from lit_thinkfast.metrics import (
    BestOfNAccuracy,
    Coverage,
    MajorityVoteAccuracy,
    SampleGrid,
    WeightedBestOfNAccuracy,
    accuracies,
    verdict_grid,
)
from lit_thinkfast.metrics import functional as F
from lit_thinkfast.records import Verdict

SIZE = {"num_problems": 3, "num_samples": 4}


def cells():
    problem = torch.tensor([2, 2, 2, 0, 0, 0, 0])
    sample = torch.tensor([1, 0, 3, 0, 1, 2, 3])
    correct = torch.tensor([1, 0, 0, 1, 1, 0, 0])
    answer = torch.tensor([1, 0, -1, 0, 0, 2, 2])
    score = torch.tensor([2.0, -1.0, 0.5, 0.0, 1.5, 0.25, 3.0])
    return problem, sample, correct, answer, score


def test_cells_land_in_their_place_and_problems_not_seen_are_left_out():
    metric = SampleGrid(**SIZE)
    metric.update(*cells())
    grid = metric.compute()
    assert grid.problem_ids == ("0", "2")
    assert grid.correct.tolist() == [[1, 1, 0, 0], [0, 1, -1, 0]]
    assert grid.answers.tolist() == [[0, 0, 2, 2], [0, 1, -1, -1]]
    assert grid.scores.tolist() == [[0.0, 1.5, 0.25, 3.0], [-1.0, 2.0, -torch.inf, 0.5]]
    assert grid.scored


def test_classes_return_what_functions_return():
    torch_cells = cells()
    grid = SampleGrid(**SIZE)
    grid.update(*torch_cells)
    _, correct, answers, scores = grid.compute()
    weights = torch.sigmoid(scores)
    for k in (1, 2, 3):
        for ties in ("split", "first"):
            pairs = [
                (Coverage(k, **SIZE), F.coverage(correct, k)),
                (MajorityVoteAccuracy(k, ties=ties, **SIZE), F.majority_vote_accuracy(correct, answers, k, ties=ties)),
                (BestOfNAccuracy(k, ties=ties, **SIZE), F.best_of_n_accuracy(correct, scores, k, ties=ties)),
                (
                    WeightedBestOfNAccuracy(k, ties=ties, transform="sigmoid", **SIZE),
                    F.weighted_best_of_n_accuracy(correct, answers, weights, k, ties=ties),
                ),
            ]
            for metric, expected in pairs:
                metric.update(*torch_cells)
                assert metric.compute() == expected
                assert metric.compute().dtype == torch.float64


def test_order_and_repetition_of_updates_change_nothing():
    once, often = Coverage(2, **SIZE), Coverage(2, **SIZE)
    once.update(*cells())
    order = torch.tensor([6, 0, 3, 1, 5, 2, 4])
    for _ in range(2):
        for chunk in (order[:2], order[2:]):
            often.update(*(column[chunk] for column in cells()))
    assert torch.equal(once.correct, often.correct)
    assert torch.equal(once.answer, often.answer)
    assert once.compute() == often.compute()


def test_an_update_leaves_shared_memory_alone():
    metric = SampleGrid(**SIZE)
    before = metric.correct
    metric.update(*cells())
    assert (before == -1).all()


def test_a_collection_keeps_one_grid_and_forward_gives_the_value_of_the_batch():
    collection = MetricCollection(
        {
            "coverage@1": Coverage(1, **SIZE),
            "coverage@2": Coverage(2, **SIZE),
            "majority@2": MajorityVoteAccuracy(2, **SIZE),
        }
    )
    collection.update(*cells())
    collection.update(*cells())
    assert len(collection.compute_groups) == 1
    assert collection.compute()["coverage@1"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    metric = Coverage(1, **SIZE)
    assert metric(*(column[3:] for column in cells())) == 0.5
    assert metric(*(column[:3] for column in cells())) == pytest.approx(1 / 3)
    assert metric.compute() == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_reset_copy_and_pickle():
    metric = MajorityVoteAccuracy(2, **SIZE)
    metric.update(*cells())
    for twin in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        assert twin.compute() == metric.compute()
    metric.reset()
    assert (metric.correct == -1).all()
    assert metric.state_dict() == {}


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Coverage(5, **SIZE), "k 5 is not in 1..4"),
        (lambda: SampleGrid(0, num_samples=1), "num_problems 0 is below 1"),
        (lambda: WeightedBestOfNAccuracy(1, transform="exp", **SIZE), "transform 'exp'"),
        (lambda: Coverage(1, **SIZE).compute(), "none of the 3 problems has a sample"),
        (lambda: updated(Coverage(1, **SIZE), 0, torch.tensor([3] * 7)), "problem 3..3 is outside the grid's 0..2"),
        (lambda: updated(Coverage(1, **SIZE), 1, torch.tensor([-1] * 7)), "sample -1..-1 is outside"),
        (lambda: updated(Coverage(1, **SIZE), 2, torch.ones(6)), "correct has shape"),
        (lambda: updated(Coverage(1, **SIZE), 4, torch.full((7,), torch.nan)), "score 0 is NaN"),
        (lambda: updated(BestOfNAccuracy(1, **SIZE), 4, None).compute(), "7 samples have no score"),
        (lambda: updated(WeightedBestOfNAccuracy(1, **SIZE), 4, cells()[4]).compute(), "torch.sigmoid"),
    ],
)
def test_misuse_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def updated(metric, place, value):
    arguments = list(cells())
    arguments[place] = value
    metric.update(*arguments)
    return metric


def verdicts():
    return [
        Verdict("a", 2, "correct", "4.0", "4", score=0.9),
        Verdict("a", 0, "correct", "4", "4", score=0.4),
        Verdict("a", 1, "truncated", score=0.1),
        Verdict("b", 0, "incorrect", "5", "5", score=0.2),
        Verdict("b", 2, "incorrect", "5.0", "5", score=0.3),
    ]


def test_verdicts_make_a_grid():
    grid = verdict_grid([*verdicts(), verdicts()[0]])
    assert grid.problem_ids == ("a", "b")
    assert grid.correct.tolist() == [[1, 0, 1], [0, -1, 0]]
    assert grid.answers.tolist() == [[0, -1, 0], [0, -1, 0]]
    assert grid.scores.tolist() == [[0.4, 0.1, 0.9], [0.2, -torch.inf, 0.3]]
    table = accuracies(grid, [2, 1])
    assert list(table)[:4] == ["coverage@1", "majority@1", "weighted_best_of_n@1", "best_of_n@1"]
    assert table["coverage@1"] == pytest.approx(1 / 3)
    assert table["coverage@2"] == 0.5
    unscored = verdict_grid([*verdicts(), Verdict("b", 1, "crashed", "x", "x")])
    assert list(accuracies(unscored, [1])) == ["coverage@1", "majority@1"]


def test_verdicts_that_make_no_grid():
    with pytest.raises(ValueError, match="there are no verdicts"):
        verdict_grid([])
    with pytest.raises(ValueError, match="sample 0 has two verdicts that differ"):
        verdict_grid([*verdicts(), Verdict("a", 0, "incorrect", "4", "4", score=0.4)])
    for sample in (-1, 10**12):
        with pytest.raises(ValueError, match="out of range"):
            verdict_grid([Verdict("a", sample, "correct", "4", "4")])
    with pytest.raises(ValueError, match="ks is empty"):
        accuracies(verdict_grid(verdicts()), [])
