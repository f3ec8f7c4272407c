"""Intervals and tests over problems, against enumeration and textbook values."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from lit_thinkfast.metrics.statistics import (
    bootstrap_interval,
    difference_interval,
    interval,
    paired_bootstrap,
    paired_permutation_test,
    resample_weights,
    sign_test,
    weighted_means,
)


def test_every_resample_draws_as_many_problems_and_seeds_repeat():
    weights = resample_weights(7, resamples=50, seed=3)
    assert weights.shape == (50, 7)
    assert (weights.sum(axis=1) == 7).all()
    assert (weights == resample_weights(7, resamples=50, seed=3)).all()
    assert (weights != resample_weights(7, resamples=50, seed=4)).any()


def test_means_leave_out_what_is_not_known():
    values = np.array([[1.0, math.nan], [3.0, math.nan], [math.nan, 5.0]])
    weights = np.array([[1.0, 1.0, 1.0], [2.0, 0.0, 5.0], [0.0, 0.0, 1.0]])
    np.testing.assert_array_equal(weighted_means(values, weights), [[2.0, 5.0], [1.0, 5.0], [math.nan, 5.0]])


def test_the_interval_is_that_of_all_resamples():
    """Of three problems all 27 resamples can be listed: random ones find the same ends."""
    values = np.array([0.0, 0.3, 1.0])
    every = np.array([np.mean(values[list(draw)]) for draw in itertools.product(range(3), repeat=3)])
    found = bootstrap_interval(values, resamples=20_000, level=0.8)
    low, high = interval(every[:, None], level=0.8)
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(low[0])
    assert found.high == pytest.approx(high[0])


def test_a_curve_has_an_interval_at_every_point_and_its_own_problems():
    curve = np.random.default_rng(0).random((40, 3))
    curve[:5, 2] = math.nan
    found = bootstrap_interval(curve)
    assert found.mean.shape == (3,)
    for i in range(3):
        alone = bootstrap_interval(curve[:, i])
        assert found.mean[i] == pytest.approx(alone.mean)
        assert (float(found.low[i]), float(found.high[i])) == pytest.approx((float(alone.low), float(alone.high)))
    assert found.mean[2] == pytest.approx(np.nanmean(curve[:, 2]))


def test_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(200):
        found = bootstrap_interval((rng.random(60) < 0.3).astype(float), resamples=400, seed=seed, level=0.9)
        hits += found.low <= 0.3 <= found.high
    assert 0.82 <= hits / 200 <= 0.97


def test_a_paired_difference_cancels_what_is_hard_for_both():
    rng = np.random.default_rng(2)
    hard = rng.random(80)
    a, b = hard + 0.03 + 0.01 * rng.random(80), hard
    found = paired_bootstrap(a, b)
    assert found.difference == pytest.approx((a - b).mean())
    assert 0.03 <= found.low <= found.difference <= found.high <= 0.04
    assert found.p_value < 0.001
    alone = bootstrap_interval(a), bootstrap_interval(b)
    assert alone[0].low < alone[1].high  # unpaired, nothing would be seen
    turned = paired_bootstrap(b, a)
    assert turned.p_value == found.p_value
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


def test_no_difference_has_no_significance():
    a = np.random.default_rng(3).random(20)
    assert paired_bootstrap(a, a).p_value == 1.0
    assert paired_permutation_test(a, a) == 1.0
    assert sign_test(a, a) == 1.0


@pytest.mark.parametrize("n", [2, 5, 40])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_what_all_problems_have_is_not_certain(n, share):
    """Wilson's interval by its definition: the shares from which the observed one is z standard errors away."""
    z = 1.959963984540054
    found = bootstrap_interval(np.full((n, 2), share))
    inner = float(found.low[0]) if share else float(found.high[0])
    assert abs(share - inner) == pytest.approx(z * math.sqrt(inner * (1 - inner) / n))
    assert (found.high if share else found.low).tolist() == pytest.approx([share, share])


def test_equal_differences_may_be_otherwise_in_either_direction():
    z2, n = 1.959963984540054**2, 8
    for d in (-1.0, 0.0, 0.3, 1.0):
        found = paired_bootstrap(np.full(n, max(d, 0.0)), np.full(n, max(-d, 0.0)))
        unseen = z2 / (n + z2)
        assert (found.low, found.high) == pytest.approx((d * (1 - unseen) - unseen, d * (1 - unseen) + unseen))
    varied = np.array([0.0, 0.1, 0.4])
    assert difference_interval(varied, np.linspace(0, 1, 41)) == pytest.approx((0.025, 0.975))  # those of the draws


def test_one_problem_has_no_interval():
    found = bootstrap_interval(np.array([[0.5, math.nan], [math.nan, math.nan]]))
    assert found.mean[0] == 0.5
    assert np.isnan([*found.low, *found.high]).all()
    alone = paired_bootstrap(np.array([1.0]), np.array([0.0]))
    assert math.isnan(alone.low)
    assert math.isnan(alone.high)


@pytest.mark.parametrize("n", [1, 3, 5, 9])
def test_the_bootstrap_is_never_surer_than_coins(n):
    a, b = np.concatenate([np.ones(n), np.full(20, 0.5)]), np.concatenate([np.zeros(n), np.full(20, 0.5)])
    found = paired_bootstrap(a, b)
    assert found.p_value >= paired_permutation_test(a, b) == 2 / 2**n


def test_the_noise_of_floats_is_no_difference():
    a, b = np.full(10, 0.1 + 0.2), np.full(10, 0.3)
    assert (a != b).all()
    assert (sign_test(a, b), paired_permutation_test(a, b), paired_bootstrap(a, b).p_value) == (1.0, 1.0, 1.0)


def test_problems_without_a_value_of_both_are_left_out():
    a, b = np.array([0.1, math.nan, 0.5, 0.7]), np.array([0.0, 0.3, math.nan, 0.9])
    found = paired_bootstrap(a, b)
    assert found.problems == 2
    assert found.difference == pytest.approx(-0.05)


def test_the_permutation_test_is_the_list_of_all_signs():
    rng = np.random.default_rng(4)
    for n in (1, 3, 8):
        a, b = rng.integers(0, 5, n) / 4, rng.integers(0, 5, n) / 4
        means = [
            abs(sum(sign * (x - y) for sign, x, y in zip(signs, a, b, strict=True)))
            for signs in itertools.product((1, -1), repeat=n)
        ]
        least = abs((a - b).sum())
        assert paired_permutation_test(a, b) == pytest.approx(np.mean([m >= least - 1e-12 for m in means]))


def test_random_signs_agree_with_all_signs_and_repeat():
    rng = np.random.default_rng(5)
    a, b = rng.random(12) + 0.1, rng.random(12)
    exact = paired_permutation_test(a, b, permutations=4096)
    drawn = paired_permutation_test(a, b, permutations=4095)
    assert drawn == pytest.approx(exact, abs=0.03)
    assert drawn == paired_permutation_test(a, b, permutations=4095)
    assert paired_permutation_test(np.ones(200), np.zeros(200), permutations=999) == 1 / 1000


def test_false_alarms_are_as_rare_as_the_level_says():
    rng = np.random.default_rng(6)
    pairs = [(rng.random(15), rng.random(15)) for _ in range(300)]
    assert np.mean([paired_permutation_test(a, b, permutations=500) <= 0.1 for a, b in pairs]) == pytest.approx(
        0.1, abs=0.05
    )
    assert np.mean([sign_test(a, b) <= 0.1 for a, b in pairs]) < 0.12


def test_the_sign_test_counts_the_coins_that_are_as_uneven():
    rng = np.random.default_rng(7)
    for n in (1, 5, 40, 900):
        a, b = rng.integers(0, 2, n), rng.integers(0, 2, n)
        wins, coins = int((a > b).sum()), int((a != b).sum())
        uneven = sum(math.comb(coins, i) for i in range(coins + 1) if abs(2 * i - coins) >= abs(2 * wins - coins))
        assert sign_test(a, b) == pytest.approx(float(Fraction(uneven, 2**coins)), rel=1e-12)


@pytest.mark.parametrize("test", [paired_bootstrap, paired_permutation_test, sign_test])
def test_what_cannot_be_compared_is_refused_in_one_line(test):
    with pytest.raises(ValueError, match=r"shapes \(3,\) and \(2,\)"):
        test(np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="none of the 2 problems"):
        test(np.array([1.0, math.nan]), np.array([math.nan, 1.0]))
