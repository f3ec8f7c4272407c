"""Filters and draws against brute force, one row and one token at a time, and against the warpers of transformers."""

import itertools
import math

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lit_thinkfast.generation import picking
from lit_thinkfast.generation.config import SamplingConfig
from lit_thinkfast.generation.picking import RowSettings, nucleus, pick_tokens, token_weights

GREEDY = SamplingConfig(temperature=0.0, num_samples=1)
# numbers that float32 holds exactly, so that the twins can compute in float64
FILTERS = [
    {},
    {"top_k": 1},
    {"top_k": 5},
    {"top_p": 0.0625},
    {"top_p": 0.5},
    {"top_p": 0.9375},
    {"min_p": 0.125},
    {"top_k": 40, "top_p": 0.875},
    {"top_k": 3, "min_p": 0.25},
    {"top_p": 0.75, "min_p": 0.0625},
    {"top_k": 30, "top_p": 0.96875, "min_p": 0.03125},
    {"top_k": 10_000},
]
CONFIGS = [SamplingConfig(temperature=t, **filters) for t in (0.25, 0.75, 1.75) for filters in FILTERS]


def kept_twin(logits, config):
    """Weights of the tokens that are kept, by token, in plain Python."""
    highest = max(logits)
    weights = {token: math.exp((x - highest) / config.temperature) for token, x in enumerate(logits)}
    order = sorted(weights, key=lambda token: -weights[token])
    if config.top_k:
        order = order[: config.top_k]
    total, mass, kept = sum(weights[token] for token in order), 0.0, []
    for token in order:
        if mass >= config.top_p * total:
            break
        mass += weights[token]
        kept.append(token)
    return {token: weights[token] for token in sorted(kept) if weights[token] >= config.min_p * weights[order[0]]}


def pick_twin(logits, uniform, config):
    if config.temperature == 0:
        return max(range(len(logits)), key=lambda token: logits[token])
    kept = kept_twin(logits, config)
    target, reached = uniform * sum(kept.values()), 0.0
    for token, weight in kept.items():
        reached += weight
        if reached > target:
            return token
    raise AssertionError("no token")


def draws(rows, vocabulary, *, seed=0, spread=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.rand(rows, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("vocabulary", [1, 2, 37, 700, 1056, 2500, 4096])
def test_each_row_equals_brute_force_under_its_own_settings(vocabulary):
    configs = [*CONFIGS, GREEDY]
    logits, uniform = draws(len(configs), vocabulary, seed=vocabulary)
    found = pick_tokens(logits, uniform, RowSettings.of(configs))
    assert found.dtype == torch.int64
    assert found.tolist() == list(map(pick_twin, logits.tolist(), uniform.tolist(), configs))


@pytest.mark.parametrize("filters", FILTERS)
def test_rows_of_one_setting_equal_brute_force(filters):
    for vocabulary, temperature in ((300, 0.75), (1500, 1.25)):
        config = SamplingConfig(temperature=temperature, **filters)
        logits, uniform = draws(24, vocabulary, seed=7)
        found = pick_tokens(logits, uniform, RowSettings.repeat(config, 24))
        assert found.tolist() == [
            pick_twin(*row, config) for row in zip(logits.tolist(), uniform.tolist(), strict=True)
        ]


@pytest.mark.parametrize("config", CONFIGS)
def test_keeps_what_transformers_keeps_with_the_same_probabilities(config):
    logits, _ = draws(16, 50, seed=5)
    stock = LogitsProcessorList([TemperatureLogitsWarper(config.temperature)])
    if config.top_k:
        stock.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        stock.append(TopPLogitsWarper(config.top_p))
    if config.min_p > 0:
        stock.append(MinPLogitsWarper(config.min_p))
    expected = torch.softmax(stock(None, logits.clone()), -1)
    weights = token_weights(logits, RowSettings.repeat(config, 16))
    assert torch.equal(weights > 0, expected > 0)
    torch.testing.assert_close(weights / weights.sum(-1, keepdim=True), expected, rtol=1e-12, atol=0)


def test_a_greedy_row_weighs_its_tokens_as_at_temperature_1():
    logits, _ = draws(2, 50)
    weights = token_weights(logits, RowSettings.of([GREEDY, SamplingConfig(temperature=1.0)]))
    torch.testing.assert_close(weights / weights.sum(-1, keepdim=True), torch.softmax(logits, -1))


def test_equally_likely_tokens_are_kept_or_left_out_together():
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]]).expand(3, 5)
    configs = [
        SamplingConfig(temperature=1.0, **f) for f in ({"top_k": 2}, {"top_p": 0.5}, {"min_p": math.exp(-1.001)})
    ]
    assert (token_weights(logits, RowSettings.of(configs)) > 0).tolist() == [[True, True, True, True, False]] * 3
    both = RowSettings.repeat(SamplingConfig(temperature=1.0, top_k=2, top_p=0.9), 3)
    assert (token_weights(logits, both) > 0).tolist() == [[True, True, True, True, False]] * 3


def test_a_nucleus_that_reaches_its_share_exactly_is_complete():
    weights = torch.tensor([[1.0, 4.0, 1.0, 2.0, 0.0]]).expand(4, 5)
    least = nucleus(weights, torch.tensor([0.5, 0.75, 0.7500001, 1.0]))
    assert least.flatten().tolist() == [4.0, 2.0, 1.0, 0.0]
    known = nucleus(weights, torch.tensor([0.5, 0.75, 0.7500001, 1.0]), ordered=weights.sort(descending=True).values)
    assert torch.equal(known, least)


def test_in_float32_a_large_vocabulary_differs_by_rounding_only():
    logits, uniform = draws(40, 49_152, dtype=torch.float32)
    for config in (SamplingConfig(), SamplingConfig(top_k=50), SamplingConfig(top_p=0.5)):
        settings = RowSettings.repeat(config, 40)
        found = pick_tokens(logits, uniform, settings).unsqueeze(-1)
        probabilities = torch.softmax(logits.double() / settings.temperature.unsqueeze(-1).double(), -1)
        kept = probabilities * (token_weights(logits, settings) > 0)
        kept /= kept.sum(-1, keepdim=True)
        after = kept.cumsum(-1).gather(-1, found).squeeze(-1)
        before = after - kept.gather(-1, found).squeeze(-1)
        assert bool((kept.gather(-1, found) > 0).all())
        assert bool(((before - 1e-6 <= uniform) & (uniform <= after + 1e-6)).all())


def test_short_lists_give_what_a_full_sort_gives(monkeypatch):
    peaked, flat = (torch.softmax(draws(8, 6000, spread=s)[0], -1) for s in (5.0, 0.01))
    top_p = torch.tensor([0.9, 0.5, 1.0, 0.99] * 2, dtype=torch.float64)
    short = [nucleus(weights, top_p) for weights in (peaked, flat)]
    monkeypatch.setattr(picking, "_SHORT_LISTS", ())
    full = [nucleus(weights, top_p) for weights in (peaked, flat)]
    assert all(torch.equal(a, b) for a, b in zip(short, full, strict=True))
    sizes = [(weights >= least).sum(-1) for weights, least in zip((peaked, flat), full, strict=True)]
    assert int(sizes[0].min()) < 32
    assert 5000 < int(sizes[1][0]) < 6000 == int(sizes[1][2])


def test_rows_without_top_p_do_not_lengthen_the_search(monkeypatch):
    widths = []
    stock = picking._largest
    monkeypatch.setattr(picking, "_largest", lambda weights, count: widths.append(count) or stock(weights, count))
    nucleus(torch.softmax(draws(2, 6000, spread=5.0)[0], -1), torch.tensor([0.5, 1.0]))
    assert widths == [32]


def test_rows_taken_a_few_at_a_time_are_the_same_rows(monkeypatch):
    configs = [*CONFIGS, GREEDY]
    for vocabulary in (90, 3000):
        logits, uniform = draws(len(configs), vocabulary, dtype=torch.float32)
        together = pick_tokens(logits, uniform, RowSettings.of(configs))
        with monkeypatch.context() as patch:
            patch.setattr(picking, "_CPU_CHUNK", 4 * vocabulary)
            assert torch.equal(pick_tokens(logits, uniform, RowSettings.of(configs)), together)
        alone = [
            pick_tokens(logits[i : i + 1], uniform[i : i + 1], RowSettings.repeat(config, 1))
            for i, config in enumerate(configs)
        ]
        assert torch.equal(torch.cat(alone), together)


@pytest.mark.parametrize("vocabulary", [4, 2000])
def test_frequencies_follow_the_distribution(vocabulary):
    logits = torch.full((vocabulary,), -20.0)
    logits[[0, 1, -2, -1]] = torch.tensor([0.0, 1.0, -1.0, 2.0])
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens = pick_tokens(
        logits.expand(20_000, -1), uniform, RowSettings.repeat(SamplingConfig(temperature=0.75), 20_000)
    )
    expected = 20_000 * torch.softmax(logits.double() / 0.75, -1)[[0, 1, -2, -1]]
    counts = tokens.bincount(minlength=vocabulary)[[0, 1, -2, -1]]
    assert int(counts.sum()) == 20_000
    assert float(((counts - expected) ** 2 / expected).sum()) < 16.3  # chi-square of 3 degrees at 0.001


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("vocabulary", [6, 2006])
def test_impossible_tokens_are_never_drawn(dtype, vocabulary):
    logits = torch.full((4, vocabulary), -float("inf"), dtype=dtype)
    logits[:, [1, 2, vocabulary - 2]] = 0.0
    extremes = torch.tensor([0.0, 2.0**-53, 1 - 2.0**-53, 0.5], dtype=torch.float64)
    for config in (SamplingConfig(temperature=1.0), SamplingConfig(temperature=1e300), SamplingConfig(top_p=0.99)):
        settings = RowSettings.repeat(config, 4)
        assert pick_tokens(logits, extremes, settings).tolist() == [1, 1, vocabulary - 2, 2]
        assert pick_tokens(logits, extremes.float().clamp(max=1 - 2.0**-24), settings).tolist()[2] == vocabulary - 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_at_the_edge_of_a_block_draw_possible_tokens(dtype):
    """There the sums over a block and over its tokens, rounded differently, may disagree on which side they are."""
    logits = draws(1, 4096, dtype=dtype)[0]
    logits.view(-1, 64)[:, [0, 1, -2, -1]] = -float("inf")
    weights = token_weights(logits, RowSettings.repeat(SamplingConfig(), 1))
    edges = weights.view(64, 64).sum(-1).double().cumsum(-1)
    edges = torch.cat([edges[:-1] / edges[-1] * (1 + ulps * 2.0**-53) for ulps in range(-8, 9)])
    tokens = pick_tokens(logits.expand(len(edges), -1), edges, RowSettings.repeat(SamplingConfig(), len(edges)))
    assert bool((weights[0, tokens] > 0).all())


@pytest.mark.parametrize("vocabulary", [3, 512, 1999, 8192])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_greedy_takes_the_first_of_equals_without_a_random_number(vocabulary, dtype):
    logits = draws(64, vocabulary, dtype=dtype)[0].round()
    settings = RowSettings.repeat(GREEDY, 64)
    assert not settings.wants_uniform
    assert pick_tokens(logits, None, settings).tolist() == [row.index(max(row)) for row in logits.tolist()]
    with pytest.raises(ValueError, match="uniform None"):
        pick_tokens(logits, None, RowSettings.of([GREEDY] * 63 + [SamplingConfig()]))


def test_logits_that_are_no_numbers_still_give_a_token_of_the_vocabulary():
    for vocabulary in (5, 2005):
        logits = torch.full((2, vocabulary), float("nan"))
        for config in (GREEDY, *CONFIGS[:12]):
            token = pick_tokens(logits, torch.tensor([0.0, 0.9]), RowSettings.repeat(config, 2))
            assert 0 <= int(token.min()) <= int(token.max()) < vocabulary


def test_logits_are_left_alone():
    logits, uniform = draws(3, 2048)
    before = logits.clone()
    for config in CONFIGS[:12]:
        pick_tokens(logits, uniform, RowSettings.repeat(config, 3))
    assert torch.equal(logits, before)


def test_a_slot_takes_the_settings_of_its_new_row():
    old = [SamplingConfig(), GREEDY, SamplingConfig(top_k=3), SamplingConfig(top_p=0.5)]
    new = [SamplingConfig(min_p=0.5), SamplingConfig(temperature=1.5)]
    settings = RowSettings.of(old)
    address = settings.temperature.data_ptr()
    settings = settings.put(torch.tensor([3, 1]), RowSettings.of(new))
    assert settings.temperature.data_ptr() == address
    configs = [old[0], new[1], old[2], new[0]]
    logits, uniform = draws(4, 200)
    expected = pick_tokens(logits, uniform, RowSettings.of(configs))
    assert torch.equal(pick_tokens(logits, uniform, settings), expected)
    taken = settings.take(torch.tensor([2, 0]))
    assert torch.equal(pick_tokens(logits[[2, 0]], uniform[[2, 0]], taken), expected[[2, 0]])
    assert torch.equal(pick_tokens(logits[1:3], uniform[1:3], settings.take(slice(1, 3))), expected[1:3])


def test_facts_change_with_the_rows_of_a_batch():
    logits, uniform = draws(8, 400, spread=0.1)
    kinds = [SamplingConfig(), GREEDY, SamplingConfig(min_p=0.9375), SamplingConfig(top_k=200, top_p=0.9)]
    kinds += [SamplingConfig(top_k=2, top_p=0.9), SamplingConfig(top_p=0.5)]
    for first, second in itertools.permutations(kinds, 2):
        settings = RowSettings.repeat(first, 8).put(slice(4, 8), RowSettings.repeat(second, 4))
        expected = list(map(pick_twin, logits.tolist(), uniform.tolist(), [first] * 4 + [second] * 4))
        assert pick_tokens(logits, uniform, settings).tolist() == expected
        assert settings.wants_uniform


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    for vocabulary in (500, 5000):
        logits, uniform = draws(32, vocabulary, dtype=dtype)
        settings = RowSettings.repeat(SamplingConfig(top_k=300), 32)
        assert torch.equal(pick_tokens(logits, uniform, settings), pick_tokens(logits.float(), uniform, settings))


def test_greedy_rows_have_no_nucleus_to_wait_for():
    assert not RowSettings.repeat(SamplingConfig(temperature=0.0, num_samples=1, top_p=0.9), 2).waits


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p", "greedy"), itertools.product((0, 9), (1.0, 0.9), (0.0, 0.1), (0, 1, 2))
)
def test_waits_for_the_device_only_where_it_says_so(top_k, top_p, min_p, greedy):
    config = SamplingConfig(top_k=top_k, top_p=top_p, min_p=min_p)
    settings = RowSettings.of([GREEDY] * greedy + [config] * (2 - greedy))
    with FakeTensorMode() as mode:
        # tensors without values: to ask for one is an error
        rows = [mode.from_tensor(t) for t in (settings.temperature, settings.top_k, settings.top_p, settings.min_p)]
        settings = RowSettings(*rows, settings.facts)
        logits, uniform = torch.empty(2, 4096), torch.empty(2, dtype=torch.float64)
        if settings.waits:
            with pytest.raises(DataDependentOutputException):
                pick_tokens(logits, uniform, settings)
        else:
            assert pick_tokens(logits, uniform, settings).shape == (2,)
    # a row without a top-k has to search its nucleus; greedy rows have none
    assert settings.waits == (top_p < 1 and greedy < 2 and (top_k == 0 or greedy > 0))
