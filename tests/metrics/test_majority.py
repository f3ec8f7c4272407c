"""The exact expectation of majority voting against brute force, exact integers and identities, for both rules of ties."""

import importlib.util
import itertools
import random
from fractions import Fraction
from math import comb
from pathlib import Path

import numpy as np
import pytest

from lit_thinkfast.metrics.hypergeometric import any_of, at_least, best_rank, binomial
from lit_thinkfast.metrics.majority import expected_majority
from lit_thinkfast.metrics.voting import vote

spec = importlib.util.spec_from_file_location("brute", Path(__file__).with_name("brute.py"))
brute = importlib.util.module_from_spec(spec)
spec.loader.exec_module(brute)


def found(samples, k, ties):
    correct = np.array([float(correct) for _, correct, _, _ in samples])
    return expected_majority(correct, np.array([answer for _, _, answer, _ in samples]), [k], ties=ties)[0]


@pytest.mark.parametrize("ties", ["split", "first"])
@pytest.mark.parametrize("consistent", [True, False])
def test_every_subset_of_small_problems(ties, consistent):
    rng = random.Random(11)
    for n in (1, 2, 3, 4, 6, 8, 10):
        for answers in (1, 2, 4, 10):
            samples = brute.random_samples(rng, n, answers=answers, consistent=consistent)
            for k in range(1, n + 1):
                expected = brute.over_subsets(samples, k, lambda s: brute.majority(s, ties))
                assert found(samples, k, ties) == pytest.approx(expected, abs=1e-12)


def exactly(labels, right, k, ties):
    """The probability that group ``right`` wins, in whole numbers: subsets are counted group by group."""
    members = [[i for i, other in enumerate(labels) if other == label] for label in sorted(set(labels) - {-1})]
    mine = next(group for group in members if labels[group[0]] == right)
    others = [group for group in members if group is not mine]
    total = Fraction(0)
    for x in range(1, min(len(mine), k) + 1):
        for j, position in enumerate(mine if ties == "first" else mine[:1]):
            ways = comb(len(mine) - 1 - j, x - 1) if ties == "first" else comb(len(mine), x)
            if not ways:
                continue
            counted = {(0, 0): 1}  # (drawn from others, ties with mine) -> ways
            for group in others:
                after = [i for i in group if i > position] if ties == "first" else group
                grown = {}
                for (drawn, tied), count in counted.items():
                    for take in range(min(len(group), x, k - x - drawn) + 1):
                        more = comb(len(after) if take == x else len(group), take) * count
                        key = (drawn + take, tied + (take == x and ties == "split"))
                        grown[key] = grown.get(key, 0) + more
                counted = grown
            silent = labels.count(-1)
            for (drawn, tied), count in counted.items():
                total += Fraction(ways * count * comb(silent, k - x - drawn), 1 + tied)
    return total / comb(len(labels), k)


@pytest.mark.parametrize("ties", ["split", "first"])
@pytest.mark.parametrize(
    "sizes",
    [[9, 8, 5, 2, 1, 1, 1], [4] * 7, [1] * 24, [15, 15], [12, 3, 3, 3, 3, 3], [20, 9, 1, 1, 1, 1, 1]],
    ids=str,
)
def test_middle_problems_in_whole_numbers(sizes, ties):
    labels = [label for label, size in enumerate(sizes) for _ in range(size)] + [-1, -1]
    random.Random(12).shuffle(labels)
    for k in (2, 3, 7, len(labels) // 2, len(labels) - 1):
        for right in (0, len(sizes) - 1):
            samples = [(i, label == right, label, 0.0) for i, label in enumerate(labels)]
            expected = float(exactly(labels, right, k, ties))
            assert found(samples, k, ties) == pytest.approx(expected, abs=1e-13, rel=1e-10)


@pytest.mark.parametrize(
    ("ties", "sizes", "k"),
    [
        ("split", [400, 380, 150] + [5] * 30 + [1] * 100, 24),
        ("split", [900, 60] + [10] * 40, 12),
        ("first", [80, 70, 40] + [2] * 20 + [1] * 26, 6),
    ],
)
def test_a_long_tail_in_whole_numbers(ties, sizes, k):
    labels = [label for label, size in enumerate(sizes) for _ in range(size)] + [-1] * 3
    random.Random(16).shuffle(labels)
    samples = [(i, label == 1, label, 0.0) for i, label in enumerate(labels)]
    assert found(samples, k, ties) == pytest.approx(float(exactly(labels, 1, k, ties)), abs=1e-13)


@pytest.mark.parametrize(
    ("ties", "sizes", "ks"),
    [
        ("split", [5000, 5000], (1, 7, 64, 9000)),
        ("split", [1000] * 10, (1, 8, 100, 9990)),
        ("split", [3000, 2900, 1500] + [20] * 100, (2, 16, 1000, 5000)),
        ("split", [1] * 10_000, (1, 2, 400, 9999)),
        ("first", [600, 600], (1, 7, 64, 900)),
        ("first", [100] * 5, (1, 8, 100, 490)),
        ("first", [300, 290, 150] + [5] * 10, (2, 16, 500)),
        ("first", [1] * 60, (1, 2, 39, 59)),
    ],
)
def test_large_problems_share_out_all_of_it(ties, sizes, ks):
    """Credits of all groups add up to 1 where someone always answers."""
    labels = np.random.default_rng(13).permutation(np.repeat(np.arange(len(sizes)), sizes))
    for k in ks:
        if ties == "split":  # groups of one size earn the same, and are summed up by the size
            alike = {size: (sizes.index(size), sizes.count(size)) for size in sizes}
            shares = [count * value(labels == label, labels, k, ties) for label, count in alike.values()]
            assert sum(shares) == pytest.approx(1, abs=1e-10)
        assert value(np.ones(len(labels)), labels, k, ties) == pytest.approx(1, abs=1e-11)


def value(correct, labels, k, ties):
    return expected_majority(np.asarray(correct, dtype=float), labels, [k], ties=ties)[0]


@pytest.mark.parametrize("ties", ["split", "first"])
def test_large_problems_agree_with_random_subsets(ties):
    rng = np.random.default_rng(14)
    labels = rng.choice(60, 2000, p=np.array([30, 28, 12] + [1] * 57) / 127)
    labels[rng.random(2000) < 0.05] = -1
    for k in (4, 30, 300):
        subsets = np.sort(np.argsort(rng.random((1500, 2000)), axis=1)[:, :k], axis=1)
        won = vote((labels == 1).astype(float), labels, np.ones(2000), subsets, ties=ties)
        assert value(labels == 1, labels, k, ties) == pytest.approx(won.mean(), abs=4 * won.std() / 38 + 1e-9)


def test_who_comes_first_wins_the_tie():
    labels = np.array([0, 1])
    for right in (0, 1):
        assert value(labels == right, labels, 2, "first") == float(right == 0)
        assert value(labels == right, labels, 2, "split") == 0.5
    # order is all that matters to ``first``, and nothing to ``split``
    labels = np.array([2, 0, 0, 1, 1, 2, 2, 0, 1])
    turned = labels[::-1].copy()
    assert value(labels == 2, labels, 4, "first") > value(turned == 2, turned, 4, "first") + 0.04
    assert value(labels == 2, labels, 4, "split") == value(turned == 2, turned, 4, "split")


def test_several_ks_are_each_of_them():
    labels = np.random.default_rng(15).integers(-1, 6, 50)
    correct = (labels == 2).astype(float)
    for ties in ("split", "first"):
        together = expected_majority(correct, labels, [1, 9, 50], ties=ties)
        assert together == [value(correct, labels, k, ties) for k in (1, 9, 50)]


@pytest.mark.parametrize(
    ("m", "k", "n"), [(5, 2, 9), (40, 3, 200), (300, 450, 1000), (7000, 9000, 10_000), (1, 1, 10**6)]
)
def test_windows_hold_the_binomial(m, k, n):
    window = binomial(m, k, n)
    p = Fraction(k, n)
    for x in {window.start, min((m + 1) * k // n, m), window.stop - 1, (window.start + window.stop) // 2}:
        exact = comb(m, x) * p**x * (1 - p) ** (m - x)
        assert window.at(np.array([x]))[0] == pytest.approx(float(exact), rel=1e-11)
    assert window.up_to(np.array([m]))[0] == pytest.approx(1)
    assert window.at(np.array([window.stop, window.start - 1])).tolist() == [0, 0]


def test_hypergeometric_sums_in_whole_numbers():
    for n, c, k in itertools.product((1, 2, 7, 40), (0, 1, 3, 38), (1, 2, 6, 39, 40)):
        if c > n or k > n:
            continue
        ways = [comb(c, j) * comb(n - c, k - j) for j in range(k + 1)]
        for m in {0, 1, k // 2, k}:
            exact = float(Fraction(sum(ways[m:]), comb(n, k)))
            assert at_least(m, n, c, k) == pytest.approx(exact, abs=1e-14)
        assert any_of(n, c, k) == pytest.approx(float(Fraction(sum(ways[1:]), comb(n, k))), rel=1e-15)
        ranks = [float(Fraction(comb(r - 1, k - 1), comb(n, k))) for r in range(1, n + 1)]
        assert best_rank(n, k) == pytest.approx(ranks, rel=1e-13)
