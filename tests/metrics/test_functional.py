import importlib.util
import itertools
import math
import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_thinkfast.metrics.functional import (
    FewerSamplesWarning,
    best_of_n_accuracy,
    coverage,
    g_pass,
    majority_vote_accuracy,
    weighted_best_of_n_accuracy,
    weighted_best_of_n_estimate,
)

spec = importlib.util.spec_from_file_location("brute", Path(__file__).with_name("brute.py"))
brute = importlib.util.module_from_spec(spec)
spec.loader.exec_module(brute)


def tensors(problems, width=None):
    """Grids of several problems, ragged ones filled with -1; holes are spread by shuffling columns."""
    width = width or max(map(len, problems))
    correct = torch.full((len(problems), width), -1, dtype=torch.int8)
    answers = torch.full((len(problems), width), -1)
    scores = torch.full((len(problems), width), math.nan, dtype=torch.float64)
    for p, samples in enumerate(problems):
        columns = sorted(random.Random(p).sample(range(width), len(samples)))
        for column, (_, y, a, s) in zip(columns, samples, strict=True):
            correct[p, column], answers[p, column], scores[p, column] = int(y), a, s
    return correct, answers, scores


def worlds(consistent=True):
    rng = random.Random(3)
    return [brute.random_samples(rng, n, consistent=consistent) for n in (1, 2, 5, 7, 8, 9, 10)]


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8, 10])
@pytest.mark.parametrize("subsets", ["all", "prefix"])
def test_coverage_is_the_mean_over_all_subsets(k, subsets):
    problems = worlds()
    found = coverage(tensors(problems)[0], k, reduction="none", subsets=subsets)
    expected = [brute.over_subsets(p, k, brute.coverage, subsets) for p in problems]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-14, equal_nan=True)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8, 10])
@pytest.mark.parametrize("subsets", ["all", "prefix"])
@pytest.mark.parametrize("ties", ["split", "first"])
@pytest.mark.parametrize("consistent", [True, False])
def test_selection_rules_are_the_mean_over_all_subsets(k, subsets, ties, consistent):
    problems = worlds(consistent)
    correct, answers, scores = tensors(problems)
    options = {"reduction": "none", "subsets": subsets, "ties": ties}
    found = {
        "best_of_n": best_of_n_accuracy(correct, scores, k, **options),
        "majority": majority_vote_accuracy(correct, answers, k, **options),
        "weighted": weighted_best_of_n_accuracy(correct, answers, scores, k, **options),
    }
    for name, values in found.items():
        rule = getattr(brute, name)
        expected = [brute.over_subsets(p, k, lambda s, rule=rule: rule(s, ties), subsets) for p in problems]
        expected = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-12, equal_nan=True, msg=lambda m, n=name: n + m)


def test_coverage_keeps_its_digits_where_products_lose_them():
    for n, c, k in [(10_000, 1, 5_000), (10_000, 3, 100), (2_000, 1_000, 2), (64, 1, 64), (9_999, 9_998, 1)]:
        correct = torch.zeros(1, n, dtype=torch.bool)
        correct[0, :c] = True
        exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
        assert coverage(correct, k).item() == pytest.approx(float(exact), rel=4e-16, abs=0)


@pytest.mark.parametrize(("sizes", "silent"), [((3, 3, 2, 1, 1, 1), 2), ((5, 1, 1, 1, 1, 1, 1), 0), ((4, 4, 4), 1)])
def test_majority_for_every_k_and_every_right_group(sizes, silent):
    labels = [g for g, size in enumerate(sizes) for _ in range(size)] + [-1] * silent
    for right in range(len(sizes)):
        samples = [(i, a == right, a, 0.0) for i, a in enumerate(labels)]
        correct, answers, _ = tensors([samples])
        for k in range(1, len(labels) + 1):
            expected = brute.over_subsets(samples, k, lambda s: brute.majority(s, "split"))
            assert majority_vote_accuracy(correct, answers, k).item() == pytest.approx(expected, abs=1e-13)


def test_majority_of_many_samples_agrees_with_sampling_and_sums_to_one():
    # Credits of all groups together are 1: a check of the dynamic programme where nothing can be enumerated.
    torch.manual_seed(0)
    answers = torch.distributions.Geometric(0.15).sample((1, 256)).long()
    for k in (1, 2, 3, 16, 100, 255, 256):
        total = sum(majority_vote_accuracy(answers == a, answers, k).item() for a in answers.unique())
        assert total == pytest.approx(1.0, abs=1e-11)
    draws = torch.stack([answers[0, torch.randperm(256)[:32]] for _ in range(4000)])
    counts = torch.nn.functional.one_hot(draws, int(answers.max()) + 1).sum(1)
    top = counts == counts.max(1, keepdim=True).values
    sampled = (top[:, 0] / top.sum(1)).mean().item()
    assert majority_vote_accuracy(answers == 0, answers, 32).item() == pytest.approx(sampled, abs=0.03)


def test_identities():
    problems = [brute.random_samples(random.Random(i), 12) for i in range(20)]
    correct, answers, scores = tensors(problems)
    share = (correct == 1).double().mean()
    torch.testing.assert_close(coverage(correct, 1), share)
    torch.testing.assert_close(best_of_n_accuracy(correct, torch.ones_like(scores), 5), share)
    torch.testing.assert_close(best_of_n_accuracy(correct, correct.double(), 5), coverage(correct, 5))
    torch.testing.assert_close(
        weighted_best_of_n_accuracy(correct, answers, torch.ones_like(scores), 4, num_subsets=10**6),
        majority_vote_accuracy(correct, answers, 4),
    )
    spoken = torch.where(answers < 0, 9, answers)  # the identities at k = 2 need an answer from everyone
    torch.testing.assert_close(majority_vote_accuracy(correct, spoken, 1), majority_vote_accuracy(correct, spoken, 2))
    torch.testing.assert_close(
        weighted_best_of_n_accuracy(correct, spoken, scores, 2), best_of_n_accuracy(correct, scores, 2)
    )
    for k in (1, 3, 7, 12):
        most = coverage(correct, k)
        assert majority_vote_accuracy(correct, answers, k) <= most + 1e-12
        assert best_of_n_accuracy(correct, scores, k) <= most + 1e-12
        assert weighted_best_of_n_accuracy(correct, answers, scores, k) <= most + 1e-12
    values = [coverage(correct, k).item() for k in range(1, 13)]
    gains = [b - a for a, b in itertools.pairwise(values)]
    assert all(g >= -1e-15 for g in gains)
    assert all(b <= a + 1e-15 for a, b in itertools.pairwise(gains))


def test_averaging_rules_do_not_depend_on_order():
    correct, answers, scores = tensors([brute.random_samples(random.Random(5), 9)])
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    turned = correct[:, order], answers[:, order], scores[:, order]
    assert coverage(turned[0], 4) == coverage(correct, 4)
    torch.testing.assert_close(best_of_n_accuracy(turned[0], turned[2], 4), best_of_n_accuracy(correct, scores, 4))
    assert majority_vote_accuracy(*turned[:2], 4) == majority_vote_accuracy(correct, answers, 4)
    torch.testing.assert_close(
        weighted_best_of_n_accuracy(*turned, 4), weighted_best_of_n_accuracy(correct, answers, scores, 4)
    )


def test_random_subsets_come_with_an_honest_error_and_repeat():
    problems = [brute.random_samples(random.Random(i), 14) for i in range(6)]
    grids = tensors(problems)
    exact, no_error = weighted_best_of_n_estimate(*grids, 5, num_subsets=10**5)
    assert no_error == 0
    off = []
    for seed in range(40):
        value, error = weighted_best_of_n_estimate(*grids, 5, num_subsets=100, seed=seed)
        off.append(((value - exact) / error).item())
    assert sum(abs(z) < 2 for z in off) >= 34  # 95 % of 40 would be 38
    assert weighted_best_of_n_accuracy(*grids, 5, num_subsets=100) == weighted_best_of_n_accuracy(
        *grids, 5, num_subsets=100
    )
    alone = weighted_best_of_n_accuracy(*(g[2:3] for g in grids), 5, num_subsets=100)
    together = weighted_best_of_n_accuracy(*grids, 5, num_subsets=100, reduction="none")
    assert alone == together[2]


@pytest.mark.parametrize("subsets", ["all", "prefix"])
@pytest.mark.parametrize("ties", ["split", "first"])
def test_several_k_make_a_last_axis(subsets, ties):
    correct, answers, scores = tensors(worlds())
    ks = [5, 1, 8]
    calls = [
        lambda k, r: coverage(correct, k, subsets=subsets, reduction=r),
        lambda k, r: g_pass(correct, k, threshold=0.5, subsets=subsets, reduction=r),
        lambda k, r: majority_vote_accuracy(correct, answers, k, ties=ties, subsets=subsets, reduction=r),
        lambda k, r: best_of_n_accuracy(correct, scores, k, ties=ties, subsets=subsets, reduction=r),
        lambda k, r: weighted_best_of_n_accuracy(correct, answers, scores, k, ties=ties, subsets=subsets, reduction=r),
        lambda k, r: weighted_best_of_n_estimate(correct, answers, scores, k, subsets=subsets, reduction=r)[1],
    ]
    for call in calls:
        each = torch.stack([call(k, "none") for k in ks], dim=-1)
        torch.testing.assert_close(call(ks, "none"), each, rtol=0, atol=0, equal_nan=True)
        with pytest.warns(FewerSamplesWarning):
            together = call(ks, "mean")
        with pytest.warns(FewerSamplesWarning):
            assert together.tolist() == [call(k, "mean").item() for k in ks]


@pytest.mark.parametrize("invalid", ["abstain", "vote", "drop"])
@pytest.mark.parametrize("ties", ["split", "first"])
@pytest.mark.parametrize("k", [1, 2, 4, 6])
def test_samples_without_an_answer_abstain_vote_or_drop_out(invalid, ties, k):
    rng = random.Random(21)
    problems = [brute.random_samples(rng, n) for n in (7, 8, 9)] + [[(0, False, -1, 0.5)] * 7]
    correct, answers, scores = tensors(problems)

    def seen(samples):
        if invalid == "vote":
            return [(i, c, 99 if a < 0 else a, s) for i, c, a, s in samples]
        return [sample for sample in samples if invalid == "abstain" or sample[2] >= 0]

    def best(subset):
        answered = [sample for sample in subset if sample[2] >= 0]
        return brute.best_of_n(answered, ties) if answered else 0.0

    options = {"ties": ties, "invalid": invalid, "reduction": "none"}
    found = {
        best: best_of_n_accuracy(correct, scores, k, answers=answers, **options),
        lambda s: brute.majority(s, ties): majority_vote_accuracy(correct, answers, k, **options),
        lambda s: brute.weighted(s, ties): weighted_best_of_n_accuracy(correct, answers, scores, k, **options),
    }
    for rule, values in found.items():
        expected = torch.tensor([brute.over_subsets(seen(p), k, rule) for p in problems], dtype=torch.float64)
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-12, equal_nan=True)


def test_a_score_of_minus_infinity_beats_no_answer():
    correct, answers = torch.tensor([[0, 1]]), torch.tensor([[-1, 0]])
    scores = torch.tensor([[-torch.inf, -torch.inf]])
    assert best_of_n_accuracy(correct, scores, 2, answers=answers, invalid="abstain") == 1.0
    assert best_of_n_accuracy(correct, scores, 2) == 0.5


def test_best_of_n_chooses_among_all_samples_unless_told_otherwise():
    correct, answers = torch.tensor([[1, 0, 0, 0]]), torch.tensor([[0, -1, 1, 1]])
    scores = torch.tensor([[0.5, 0.9, 0.2, 0.3]])
    assert best_of_n_accuracy(correct, scores, 4) == best_of_n_accuracy(correct, scores, 4, answers=answers) == 0
    assert best_of_n_accuracy(correct, scores, 4, answers=answers, invalid="abstain") == 1
    for invalid in ("abstain", "drop"):
        with pytest.raises(ValueError, match=f"invalid '{invalid}' of best-of-N needs to know .* give answers"):
            best_of_n_accuracy(correct, scores, 4, invalid=invalid)


def test_several_k_come_as_a_list_a_tensor_or_an_array():
    correct, answers, scores = tensors([brute.random_samples(random.Random(i), 4) for i in range(2)])
    rules = (
        lambda k: coverage(correct, k),
        lambda k: best_of_n_accuracy(correct, scores, k, reduction="none"),
        lambda k: majority_vote_accuracy(correct, answers, k),
        lambda k: weighted_best_of_n_estimate(correct, answers, scores, k, reduction="none")[1],
    )
    for rule in rules:
        expected = rule([1, 3])
        for k in ((1, 3), range(1, 4, 2), torch.tensor([1, 3]), np.array([1, 3]), [np.int64(1), torch.tensor(3)]):
            assert rule(k).tolist() == expected.tolist()
        for k in (np.int64(3), torch.tensor(3), np.array(3)):
            assert rule(k).tolist() == rule(3).tolist() == expected[..., 1].tolist()
        assert rule(torch.tensor([3])).tolist() == expected[..., 1:].tolist(), "one number with an axis keeps it"


@pytest.mark.parametrize("threshold", [0.01, 0.5, 0.75, 1.0])
def test_g_pass_is_the_mean_over_all_subsets(threshold):
    problems = worlds()
    for k in (1, 2, 3, 4, 8):
        least = max(math.ceil(threshold * k), 1)
        found = g_pass(tensors(problems)[0], k, threshold=threshold, reduction="none")

        def steady(subset, least=least):
            return float(sum(correct for _, correct, *_ in subset) >= least)

        expected = [brute.over_subsets(p, k, steady) for p in problems]
        expected = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-14, equal_nan=True)
        if least == 1:
            torch.testing.assert_close(found, coverage(tensors(problems)[0], k, reduction="none"), equal_nan=True)


def test_random_subsets_are_no_longer_asked_for():
    correct, answers, _ = tensors([brute.random_samples(random.Random(1), 6)])
    with pytest.warns(FutureWarning, match="have no effect"):
        majority_vote_accuracy(correct, answers, 2, ties="first", num_subsets=10)


@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_small_problem_is_the_mean_over_its_subsets(data):
    n = data.draw(st.integers(1, 7))
    cell = st.tuples(st.booleans(), st.integers(-1, 3), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
    samples = [(i, c and a >= 0, a, s) for i, (c, a, s) in enumerate(data.draw(st.lists(cell, min_size=n, max_size=n)))]
    k, ties = data.draw(st.integers(1, n)), data.draw(st.sampled_from(["split", "first"]))
    correct, answers, scores = tensors([samples], width=n + data.draw(st.integers(0, 2)))
    pairs = [
        (majority_vote_accuracy(correct, answers, k, ties=ties), lambda s: brute.majority(s, ties)),
        (best_of_n_accuracy(correct, scores, k, ties=ties), lambda s: brute.best_of_n(s, ties)),
        (weighted_best_of_n_accuracy(correct, answers, scores, k, ties=ties), lambda s: brute.weighted(s, ties)),
        (coverage(correct, k), brute.coverage),
    ]
    for value, rule in pairs:
        assert value.item() == pytest.approx(brute.over_subsets(samples, k, rule), abs=1e-12)


def test_a_problem_with_too_few_samples_is_left_out_and_counted():
    correct = torch.tensor([[1, 0, 1], [1, -1, -1]], dtype=torch.int8)
    assert coverage(correct, 2, reduction="none").isnan().tolist() == [False, True]
    with pytest.warns(FewerSamplesWarning, match="1 of 2 problems; 1 have fewer than 2 samples"):
        assert coverage(correct, 2) == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, a, s: coverage(c, 5), "k 5 is larger than the 4 samples of any of the 2 problems"),
        (lambda c, a, s: coverage(c[:0], 1), "the 0 samples of any of the 0 problems"),
        (lambda c, a, s: coverage(c, 0), "k 0 is below 1"),
        (lambda c, a, s: coverage(c[0], 1), "expected \\(problems, samples\\)"),
        (lambda c, a, s: coverage(c.float(), 1), "expected bool"),
        (lambda c, a, s: coverage(c.long() * 2, 1), "expected 1, 0 and -1"),
        (lambda c, a, s: coverage(c, 1, subsets="some"), "subsets 'some' is not one of all, prefix"),
        (lambda c, a, s: coverage(c, 1, reduction="sum"), "reduction 'sum'"),
        (lambda c, a, s: majority_vote_accuracy(c, a[:, :2], 1), "they must be equal"),
        (lambda c, a, s: majority_vote_accuracy(c, s, 1), "expected integers"),
        (lambda c, a, s: majority_vote_accuracy(c, a, 1, ties="last"), "ties 'last'"),
        (lambda c, a, s: best_of_n_accuracy(c, s * math.nan, 1), "score NaN"),
        (lambda c, a, s: weighted_best_of_n_accuracy(c, a, s * math.nan, 1), "score NaN"),
        (lambda c, a, s: weighted_best_of_n_accuracy(c, a, -s, 1), "torch.sigmoid"),
        (lambda c, a, s: weighted_best_of_n_accuracy(c, a, s / 0, 1), "finite"),
        (lambda c, a, s: weighted_best_of_n_accuracy(c, a, -s, 1), "problem 0 sample [0-3] has -0"),
        (lambda c, a, s: weighted_best_of_n_accuracy(c, a, s, 1, num_subsets=0), "num_subsets 0"),
        (lambda c, a, s: coverage(c, []), "ks is empty"),
        (lambda c, a, s: coverage(c, torch.tensor([], dtype=torch.int64)), "ks is empty"),
        (lambda c, a, s: coverage(c, 2.0), "k 2.0 is no whole number; give an int, or several in a list"),
        (lambda c, a, s: coverage(c, [1, 2.0]), "k 2.0 is no whole number"),
        (lambda c, a, s: coverage(c, torch.tensor([1.0])), r"k tensor\(1.\) is no whole number"),
        (lambda c, a, s: coverage(c, np.array([[1], [2]])), r"k array\(\[1\]\) is no whole number"),
        (lambda c, a, s: coverage(c, torch.tensor([[1], [2]])), r"k tensor\(\[1\]\) is no whole number"),
        (lambda c, a, s: coverage(c, True), "k True is no whole number"),
        (lambda c, a, s: coverage(c, torch.tensor(True)), r"k tensor\(True\) is no whole number"),
        (lambda c, a, s: coverage(c, "12"), "k '12' is no whole number"),
        (lambda c, a, s: weighted_best_of_n_estimate(c, a, s, 2.5), "k 2.5 is no whole number"),
        (lambda c, a, s: coverage(c, [1, 5]), "k 5 is larger than the 4 samples"),
        (lambda c, a, s: majority_vote_accuracy(c, a, 1, invalid="ignore"), "invalid 'ignore' is not one of"),
        (lambda c, a, s: majority_vote_accuracy(c, a * 0 - 1, 1, invalid="drop"), "larger than the 0 samples"),
        (lambda c, a, s: g_pass(c, 1, threshold=0.0), "threshold 0.0 is not above 0"),
    ],
)
def test_what_cannot_be_estimated_is_refused_in_one_line(call, message):
    correct, answers, scores = tensors([brute.random_samples(random.Random(i), 4) for i in range(2)])
    with pytest.raises(ValueError, match=message) as error:
        call(correct, answers, scores)
    assert "\n" not in str(error.value)


def test_extremes():
    none = torch.full((1, 4), -1)
    wrong = torch.zeros(1, 4, dtype=torch.bool)
    assert majority_vote_accuracy(wrong, none, 3) == 0
    assert weighted_best_of_n_accuracy(wrong, none, torch.ones(1, 4), 3) == 0
    assert weighted_best_of_n_accuracy(~wrong, none * 0, torch.zeros(1, 4), 3) == 1  # zero weights still answer
    assert best_of_n_accuracy(torch.tensor([[True, False]]), torch.tensor([[-torch.inf, torch.inf]]), 2) == 0
    many = torch.arange(100_000)[None]
    assert coverage(many == 7, 1000).item() == pytest.approx(0.01)
    assert majority_vote_accuracy(many % 10 == 3, many % 10, 100_000).item() == pytest.approx(0.1)
    assert best_of_n_accuracy(many >= 50_000, many.float(), 1).item() == pytest.approx(0.5)
