"""Temperature, nucleus and the inverse distribution against brute force, one row and one token at a time."""

import pytest
import torch

from lit_thinkfast.generation import picking
from lit_thinkfast.generation.picking import nucleus, pick_tokens


def pick_twin(logits, uniform, temperature, top_p):
    """One row in plain Python."""
    highest = max(logits)
    weights = [2.718281828459045 ** ((x - highest) / temperature) for x in logits]
    weights = [w / sum(weights) for w in weights]
    kept, mass = set(), 0.0
    for token in sorted(range(len(weights)), key=lambda t: -weights[t]):
        if mass >= top_p:
            break
        kept.add(token)
        mass += weights[token]
    target, reached = uniform * sum(weights[t] for t in sorted(kept)), 0.0
    for token in sorted(kept):
        reached += weights[token]
        if reached > target:
            return token
    raise AssertionError("no token")


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("temperature", [0.3, 0.8, 1.7])
@pytest.mark.parametrize("vocabulary", [2, 37, 700])
def test_equals_brute_force(top_p, temperature, vocabulary):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = 3 * torch.randn(40, vocabulary, generator=generator, dtype=torch.float64)
    uniform = torch.rand(40, generator=generator, dtype=torch.float64)
    found = pick_tokens(logits, uniform, temperature=temperature, top_p=top_p)
    twin = [pick_twin(l, float(u), temperature, top_p) for l, u in zip(logits.tolist(), uniform, strict=True)]  # noqa: E741
    assert found.tolist() == twin


def test_the_short_list_gives_what_the_full_sort_gives(monkeypatch):
    peaked = torch.softmax(5 * torch.randn(8, 600, generator=torch.Generator().manual_seed(0)), -1)
    flat = torch.full((8, 600), 1 / 600) + 1e-6 * torch.rand(8, 600, generator=torch.Generator().manual_seed(1))
    flat /= flat.sum(-1, keepdim=True)
    short = [nucleus(p, 0.9) for p in (peaked, flat)]
    monkeypatch.setattr(picking, "_SHORT_LIST", 10**9)
    full = [nucleus(p, 0.9) for p in (peaked, flat)]
    assert all(torch.equal(a, b) for a, b in zip(short, full, strict=True))
    assert 500 < int((full[1] > 0).sum(-1).min()) < 600


def test_agrees_with_the_top_p_of_transformers():
    from transformers import TopPLogitsWarper

    logits = torch.randn(16, 50, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    kept = TopPLogitsWarper(0.8)(None, logits.clone()).isfinite()
    assert torch.equal(nucleus(torch.softmax(logits, -1), 0.8) > 0, kept)


def test_frequencies_follow_the_distribution():
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    uniform = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    tokens = pick_tokens(logits.expand(10_000, 4), uniform, temperature=0.7)
    assert torch.allclose(tokens.bincount(minlength=4) / 10_000, torch.softmax(logits / 0.7, -1), atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_impossible_tokens_are_never_drawn(dtype):
    logits = torch.zeros(4, 6, dtype=dtype)
    logits[:, [0, 3, 5]] = -float("inf")
    extremes = torch.tensor([0.0, 2.0**-53, 1 - 2.0**-53, 0.5], dtype=torch.float64)
    assert pick_tokens(logits, extremes, temperature=1.0).tolist() == [1, 1, 4, 2]


def test_greedy_needs_no_random_number_and_sampling_does():
    logits = torch.tensor([[0.0, 2.0, 2.0], [3.0, 2.0, 2.0]])
    assert pick_tokens(logits, None, temperature=0).tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"temperature 0\.5"):
        pick_tokens(logits, None, temperature=0.5)
