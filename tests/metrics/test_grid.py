import copy
import itertools
import math
import pickle
import warnings

import pytest
import torch
from torchmetrics import MetricCollection

from lit_thinkfast.metrics import (
    AccuracyAtK,
    BestOfNAccuracy,
    Coverage,
    MajorityVoteAccuracy,
    SampleGrid,
    WeightedBestOfNAccuracy,
    accuracies,
    accuracy_curves,
    accuracy_intervals,
    accuracy_metrics,
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
    _, correct, answers, scores, _ = grid.compute()
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


@pytest.mark.parametrize("invalid", ["abstain", "vote", "drop"])
def test_samples_without_an_answer_are_switched_as_in_the_functions(invalid):
    grid = SampleGrid(**SIZE)
    grid.update(*cells())
    _, correct, answers, scores, _ = grid.compute()
    weighted = WeightedBestOfNAccuracy(2, transform="sigmoid", invalid=invalid, **SIZE)
    pairs = [
        (
            MajorityVoteAccuracy(2, invalid=invalid, **SIZE),
            F.majority_vote_accuracy(correct, answers, 2, invalid=invalid),
        ),
        (
            BestOfNAccuracy(2, invalid=invalid, **SIZE),
            F.best_of_n_accuracy(correct, scores, 2, answers=answers, invalid=invalid),
        ),
        (weighted, F.weighted_best_of_n_accuracy(correct, answers, torch.sigmoid(scores), 2, invalid=invalid)),
    ]
    for metric, expected in pairs:
        metric.update(*cells())
        assert metric.compute() == expected


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


def test_a_collection_of_every_rule_and_k_fills_one_grid(monkeypatch):
    updates = []
    filled = SampleGrid.update
    monkeypatch.setattr(SampleGrid, "update", lambda self, *cells: (updates.append(self), filled(self, *cells)))
    rules = ("coverage", "majority", "weighted_best_of_n", "best_of_n")
    metrics = accuracy_metrics(torch.tensor([3, 1, 2, 3]), rules=rules, transform="sigmoid", **SIZE)
    assert set(metrics) == {f"{rule}@{k}" for rule in rules for k in (1, 2, 3)}
    columns = cells()
    for chunk in (slice(0, 3), slice(3, 7)):
        metrics.update(*(column[chunk] for column in columns))
    assert len(updates) == 2
    assert list(metrics.compute_groups) == [0]
    grid = SampleGrid(**SIZE)
    grid.update(*columns)
    seen = grid.compute()
    expected = accuracies(seen._replace(scores=torch.sigmoid(seen.scores)), [1, 2, 3])
    found = metrics.compute()
    assert {name: found[name].item() for name in expected} == expected
    assert all(value.shape == () and value.dtype == torch.float64 for value in found.values())
    for twin in (copy.deepcopy(metrics), pickle.loads(pickle.dumps(metrics)), metrics.clone()):
        assert twin.compute() == found
    of_batch = metrics(*(column[3:] for column in columns))
    assert of_batch["coverage@1"] == 0.5
    metrics.reset()
    metrics.update(*(column[3:] for column in columns))
    assert metrics.compute() == of_batch


@pytest.mark.parametrize(
    ("ks", "rules", "message"),
    [
        ([], ("coverage",), "name at least one k"),
        ([1], (), "name at least one k"),
        ([1], ("median",), "some of coverage, majority"),
        ([5], ("coverage",), r"k 5 is not in 1\.\.4"),
        ([2.0], ("coverage",), "k 2.0 is no whole number"),
    ],
)
def test_a_collection_that_cannot_be_made(ks, rules, message):
    with pytest.raises(ValueError, match=message) as error:
        accuracy_metrics(ks, rules=rules, **SIZE)
    assert "\n" not in str(error.value)


def test_one_default_for_what_scores_are_and_for_samples_without_an_answer():
    """A class, the collection and the functions agree on the same cells, whatever way they are made."""
    size = {"num_problems": 1, "num_samples": 4}
    correct, answers = torch.tensor([[1, 0, 0, 0]]), torch.tensor([[0, 1, 1, -1]])
    scores = torch.tensor([[0.8, 0.3, 0.3, 0.9]])
    cells = (torch.zeros(4).long(), torch.arange(4), correct[0], answers[0], scores[0])
    together = accuracy_metrics([4], rules=["best_of_n", "weighted_best_of_n"], **size)
    alone = {"best_of_n@4": BestOfNAccuracy(4, **size), "weighted_best_of_n@4": WeightedBestOfNAccuracy(4, **size)}
    functions = {
        "best_of_n@4": F.best_of_n_accuracy(correct, scores, 4, answers=answers),
        "weighted_best_of_n@4": F.weighted_best_of_n_accuracy(correct, answers, scores, 4),
    }
    together.update(*cells)
    assert together.compute() == functions == {"best_of_n@4": 0, "weighted_best_of_n@4": 1}
    for name, metric in alone.items():
        metric.update(*cells)
        assert metric.compute() == functions[name]


def test_probabilities_taken_for_log_odds_bring_a_warning():
    size = {"num_problems": 1, "num_samples": 3}
    cells = [torch.zeros(3).long(), torch.arange(3), torch.tensor([1, 0, 0]), torch.tensor([0, 1, 1])]
    for scores, looks in (([0.0, 0.5, 1.0], True), ([0.0, 0.5, 1.5], False), ([-0.1, 0.5, 1.0], False)):
        metric = WeightedBestOfNAccuracy(2, transform="sigmoid", **size)
        metric.update(*cells, torch.tensor(scores))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            metric.compute()
        assert [str(each.message)[:19] for each in told] == ["transform='sigmoid'"] * looks
    metrics = accuracy_metrics([1, 2, 3], rules=["weighted_best_of_n"], transform="sigmoid", **size)
    metrics.update(*cells, torch.tensor([0.0, 0.5, 1.0]))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        metrics.compute()
    assert len(told) == 1, "once, however many ks"


def test_states_are_small_and_can_be_gathered_by_nccl():
    small, large = SampleGrid(2, num_samples=127), SampleGrid(2, num_samples=128)
    assert small.answer.dtype == torch.int8
    assert large.answer.dtype == torch.int32
    for grid, most in ((small, 126), (large, 127)):
        grid.update(torch.tensor([1]), torch.tensor([most]), torch.tensor([True]), torch.tensor([most]))
        assert grid.compute().answers[0, most] == most
        assert grid.compute().answers.dtype == torch.int64


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.double(),
        lambda m: m.to(torch.float16),
        lambda m: m.to("cpu", torch.bfloat16),
        lambda m: m.set_dtype(torch.float16),
        lambda m: m.type(torch.float16),
        lambda m: torch.nn.ModuleList([m]).half()[0],
    ],
    ids=["half", "bfloat16", "double", "to half", "to bfloat16", "set_dtype", "type", "parent"],
)
def test_scores_survive_half_precision(change):
    close = torch.tensor([3.0, 3.0001, -1.0])
    metric = BestOfNAccuracy(3, num_problems=1, num_samples=4)
    metric.update(torch.zeros(3).long(), torch.arange(3), torch.tensor([False, True, False]), torch.arange(3), close)
    metric = change(metric)
    assert (metric.correct.dtype, metric.score.dtype) == (torch.int8, torch.float32)
    assert metric.compute() == 1.0
    metric.reset()
    metric.update(torch.zeros(3).long(), torch.arange(3), torch.tensor([False, True, False]), torch.arange(3), close)
    assert metric.compute() == 1.0


def test_a_grid_moves_to_a_device_and_back():
    metric = Coverage(2, **SIZE)
    metric.update(*cells())
    away = copy.deepcopy(metric).to("meta")
    assert away.correct.device.type == "meta"
    assert metric.to("cpu").compute() == copy.deepcopy(metric).compute()


def test_one_cell_keeps_its_shape():
    grid = SampleGrid(1, num_samples=1)
    grid.update(torch.tensor([0]), torch.tensor([0]), torch.tensor([True]), torch.tensor([0]), torch.tensor([0.5]))
    for twin in (grid, pickle.loads(pickle.dumps(grid)), copy.deepcopy(grid)):
        assert [cells.shape for cells in twin.compute()[1:4]] == [(1, 1)] * 3
        assert accuracies(twin.compute(), [1])["majority@1"] == 1.0
    assert Coverage(1, num_problems=1, num_samples=1)(*(torch.tensor([v]) for v in (0, 0, 1, 0))) == 1.0


def test_plots_are_those_of_torchmetrics():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    metric = Coverage(2, **SIZE)
    metric.update(*cells())
    figure, axis = metric.plot()
    assert axis.get_ylim()[0] >= -0.2
    assert metric.plot([metric.compute(), metric.compute()], ax=axis)[1] is axis or figure is not None
    metrics = accuracy_metrics([1, 2], **SIZE)
    metrics.update(*cells())
    assert len(metrics.plot()) == 4
    plt.close("all")


def test_a_rule_of_ones_own():
    class FirstIsRight(AccuracyAtK):
        def accuracy(self, grid):
            return (grid.correct[:, : self.k] == 1).double().mean()

    metric = FirstIsRight(2, **SIZE)
    metric.update(*cells())
    assert metric.compute() == 0.75
    without = AccuracyAtK(1, **SIZE)
    without.update(*cells())
    with pytest.raises(NotImplementedError, match="AccuracyAtK has no rule"):
        without.compute()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Coverage(5, **SIZE), "k 5 is not in 1..4"),
        (lambda: Coverage(2.0, **SIZE), "k 2.0 is no whole number"),
        (lambda: SampleGrid(0, num_samples=1), "num_problems 0 is below 1"),
        (lambda: WeightedBestOfNAccuracy(1, transform="exp", **SIZE), "transform 'exp'"),
        (lambda: updated(Coverage(1, **SIZE), 3, torch.full((7,), 4)), r"answers 4\.\.4 are outside -1\.\.3"),
        (lambda: updated(Coverage(1, **SIZE), 3, torch.full((7,), -2)), "answers -2..-2 are outside"),
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


def test_equal_answers_are_equal_forms_or_equal_texts():
    assert verdict_grid(verdicts(), by="answer").answers.tolist() == [[0, -1, 2], [0, -1, 2]]
    with pytest.raises(ValueError, match="by 'text' is not one of"):
        verdict_grid(verdicts(), by="text")


def test_every_point_of_every_curve_has_an_interval():
    made = [
        Verdict(f"p{p}", s, "correct" if (p * s) % 3 == 1 else "incorrect", str(s % 2), str(s % 2), score=0.1 + s / 10)
        for p, s in itertools.product(range(12), range(4))
    ]
    grid = verdict_grid(made)
    table, sure = accuracies(grid, [4, 1, 2]), accuracy_intervals(grid, [1, 2, 4], resamples=500)
    curves = accuracy_curves(grid, [1, 2, 4])
    assert list(table) == list(sure)
    for name, (mean, low, high) in sure.items():
        assert mean == pytest.approx(table[name])
        assert 0 <= low <= mean <= high <= 1
    assert sure["coverage@1"].low < sure["coverage@1"].mean < sure["coverage@1"].high
    assert curves["majority"].shape == (12, 3)
    assert not any(math.isnan(value) for value in curves["best_of_n"].flatten().tolist())


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
