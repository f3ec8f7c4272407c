"""What other tools report for the same samples, to the last digit."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

from lit_thinkfast.metrics import COMPAT, Grid, accuracies_as, verdict_grid
from lit_thinkfast.metrics import functional as F
from lit_thinkfast.records import Completion, Verdict
from lit_thinkfast.verification import TransformedRewardModel
from lit_thinkfast.verification.files import with_scores

spec = importlib.util.spec_from_file_location("tools", Path(__file__).with_name("tools.py"))
tools = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tools)


def grid_of(problems, *, scored=True):
    shape = (len(problems), max(map(len, problems)))
    correct, answers = torch.full(shape, -1, dtype=torch.int8), torch.full(shape, -1)
    scores = torch.full(shape, -math.inf, dtype=torch.float64)
    for p, samples in enumerate(problems):
        for s, (right, answer, score) in enumerate(samples):
            correct[p, s], answers[p, s] = int(right), answer
            if scored:
                scores[p, s] = score
    return Grid(tuple(map(str, range(len(problems)))), correct, answers, scores)


@pytest.mark.parametrize(("tool", "seed"), tools.GOLDEN)
def test_numbers_are_those_of_the_tools_own_code(tool, seed):
    grid = grid_of(tools.world(seed, **tools.WORLDS[seed]))
    assert accuracies_as(tool, grid, tools.KS) == tools.GOLDEN[tool, seed]


@pytest.mark.parametrize("seed", range(20, 30))
@pytest.mark.parametrize("levels", [None, 3])
def test_numbers_are_those_of_plain_loops(seed, levels):
    for consistent in (True, False):
        problems = tools.world(seed, problems=7, samples=9, levels=levels, consistent=consistent)
        grid, ks = grid_of(problems), [1, 2, 3, 5, 9]
        assert accuracies_as("search-and-learn", grid, ks) == tools.search_and_learn(problems, ks)
        assert accuracies_as("nemo-skills", grid, ks) == tools.nemo_skills(problems, ks)
        assert accuracies_as("lm-evaluation-harness", grid, ks) == tools.lm_evaluation_harness(problems, ks)
    ragged = tools.world(seed, problems=7, samples=9, ragged=True)
    for tool, short in (("human-eval", None), ("large-language-monkeys", 1)):
        found, exact = (
            accuracies_as(tool, grid_of(ragged), [1, 3, 5, 9]),
            tools.exact_pass(ragged, [1, 3, 5, 9], short=short),
        )
        assert found == pytest.approx(exact, abs=1e-14)


def test_lm_evaluation_harness_as_it_is_installed():
    selection = pytest.importorskip("lm_eval.filters.selection")
    for seed in range(5):
        problems = tools.world(seed)
        said = [["[invalid]" if answer < 0 else str(answer) for _, answer, _ in samples] for samples in problems]
        for k in (3, 8, 16):
            chosen = selection.MajorityVoteFilter().apply(selection.TakeKFilter(k=k).apply(said, None), None)
            right = [
                float(
                    next(
                        correct
                        for correct, answer, _ in samples
                        if text in ("[invalid]" if answer < 0 else str(answer))
                    )
                )
                for samples, (text,) in zip(problems, chosen, strict=True)
            ]
            found = accuracies_as("lm-evaluation-harness", grid_of(problems), [k])
            assert found == {f"exact_match,maj@{k}": sum(right) / len(right)}


def test_switches_of_the_estimators_come_closest():
    """The table of docs/metrics.md: equal but for the order in which floats are added."""
    problems = tools.world(7, levels=4)
    grid, k = grid_of(problems), 8
    correct, answers, scores = grid[1:4]
    first = {"subsets": "prefix", "ties": "first"}
    learn, nemo = accuracies_as("search-and-learn", grid, [k]), accuracies_as("nemo-skills", grid, [k])
    harness = accuracies_as("lm-evaluation-harness", grid, [k])
    pairs = [
        (F.majority_vote_accuracy(correct, answers, k, invalid="vote", **first), learn["pred_maj@8"]),
        (F.majority_vote_accuracy(correct, answers, k, invalid="vote", **first), harness["exact_match,maj@8"]),
        (F.best_of_n_accuracy(correct, scores, k, **first), learn["pred_naive@8"]),
        (F.weighted_best_of_n_accuracy(correct, answers, scores, k, invalid="vote", **first), learn["pred_weighted@8"]),
        (F.coverage(correct, k), nemo["pass@8"] / 100),
        (F.majority_vote_accuracy(correct, answers, k, subsets="prefix"), nemo["majority@8"] / 100),
        (
            F.best_of_n_accuracy(correct, scores, k, answers=answers, invalid="abstain", **first),
            nemo["rm_best@8"] / 100,
        ),
        (F.weighted_best_of_n_accuracy(correct, answers, scores, k, **first), nemo["rm_majority@8"] / 100),
        (F.coverage(correct, k), accuracies_as("human-eval", grid, [k])["pass@8"]),
    ]
    for ours, theirs in pairs:
        assert ours.item() == pytest.approx(theirs, abs=1e-14)


def test_sums_that_differ_in_the_last_digit_do_not_tie_in_the_tools():
    problems = [[(True, 0, 0.3), (False, 1, 0.1), (False, 1, 0.2)]]  # 0.1 + 0.2 > 0.3 in floats
    grid = grid_of(problems)
    assert accuracies_as("search-and-learn", grid, [3])["pred_weighted@3"] == 0.0
    ours = F.weighted_best_of_n_accuracy(*grid[1:4], 3, ties="first")
    assert ours == 1.0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("tool", "transform", "low", "high"), [("search-and-learn", "identity", 0, 1), ("nemo-skills", "sigmoid", -5, 5)]
)
def test_scores_of_verdicts_keep_order_and_ties_and_raw_ones_keep_sums(tool, transform, low, high, seed):
    """What docs/metrics.md says of a grid of verdicts, and of the one with the tool's scores put in."""
    ks = [1, 2, 4, 8]
    problems = tools.world(seed, problems=60, samples=8, levels=9)
    problems = [[(c, a, low + (high - low) * s) for c, a, s in samples] for samples in problems]
    expected = accuracies_as(tool, grid_of(problems), ks)
    grid = verdict_grid(scored(problems, transform), by="answer")
    found = accuracies_as(tool, grid, ks)
    summed = {name for name in found if name.startswith(("pred_weighted", "rm_majority"))}
    assert len(summed) == len(ks)
    assert {k: v for k, v in found.items() if k not in summed} == {k: v for k, v in expected.items() if k not in summed}
    if tool == "nemo-skills":
        assert any(found[name] != expected[name] for name in summed)
    last = {str(p): [score for *_, score in samples] for p, samples in enumerate(problems)}
    raw = grid._replace(scores=torch.tensor([last[id] for id in grid.problem_ids], dtype=torch.float64), log_odds=None)
    assert accuracies_as(tool, raw, ks) == expected


def scored(problems, transform):
    """Verdicts on samples, with the scores that a file of verdicts has."""
    cells = [(str(p), s, *sample) for p, samples in enumerate(problems) for s, sample in enumerate(samples)]
    completions = [Completion(problem, s, "", 1, 1, "stop", 0.0, 0.0) for problem, s, *_ in cells]
    scores = TransformedRewardModel(Raw(problems), transform=transform).score([], completions)
    verdicts = [
        Verdict(problem, s, "unparsable")
        if answer < 0
        else Verdict(problem, s, "correct" if right else "incorrect", str(answer), str(answer))
        for problem, s, right, answer, _ in cells
    ]
    return with_scores(verdicts, scores, "raw")


class Raw:
    def __init__(self, problems):
        self.problems = problems

    def score(self, problems, completions):
        return [self.problems[int(c.problem_id)][c.sample][2] for c in completions]


def test_a_certain_sample_ties_with_two_that_are_even_as_in_search_and_learn():
    grid = verdict_grid(scored([[(True, 0, 1.0), (False, 1, 0.5), (False, 1, 0.5)]], "identity"))
    assert accuracies_as("search-and-learn", grid, [3])["pred_weighted@3"] == 1.0


def test_unscored_grids_and_negative_rewards():
    problems = tools.world(8, problems=3)
    unscored = grid_of(problems, scored=False)
    assert set(accuracies_as("search-and-learn", unscored, [2])) == {"pred_maj@2"}
    assert "rm_best@2" not in accuracies_as("nemo-skills", unscored, [2])
    lowered = [[(c, a, s - 2) for c, a, s in samples] for samples in problems]
    assert accuracies_as("nemo-skills", grid_of(lowered), [4]) == tools.nemo_skills(lowered, [4])
    silent = [[(False, -1, 0.5)] * 3]
    assert accuracies_as("nemo-skills", grid_of(silent), [2]) == tools.nemo_skills(silent, [2])


@pytest.mark.parametrize(
    ("tool", "ks", "message"),
    [
        ("lighteval", [1], "tool 'lighteval' is not one of human-eval, large-language-monkeys"),
        ("nemo-skills", [1], "same number of samples of every problem"),
        ("lm-evaluation-harness", [99], "refuses k 99"),
        ("human-eval", [], "numbers of samples from 1"),
        ("human-eval", [0, 1], "numbers of samples from 1"),
    ],
)
def test_what_a_tool_refuses_is_refused_in_one_line(tool, ks, message):
    grid = grid_of(tools.world(5, ragged=True))
    with pytest.raises(ValueError, match=message) as error:
        accuracies_as(tool, grid, ks)
    assert "\n" not in str(error.value)
    assert set(COMPAT) == {tool for tool, _ in tools.GOLDEN}
