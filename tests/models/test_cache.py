"""The preallocated cache: sharing, dropping, sizes, limits."""

import pytest
import torch

from lit_thinkfast.models import HybridCache
from lit_thinkfast.models.cache import GrowingCache


def decode(student, ids, cache):
    with torch.no_grad():
        return torch.cat([student(ids[:, t : t + 1], past_key_values=cache).logits for t in range(ids.shape[1])], 1)


def test_shared_prompts_and_dropped_rows(helpers, layout):
    student = helpers.student(layout, torch.float64)
    prompts, more = helpers.tokens(2, 6), helpers.tokens(6, 8, seed=1)
    mask = torch.ones_like(prompts)
    mask[1, :3] = 0
    cache = HybridCache(student.config, batch_size=2, max_length=6, dtype=torch.float64)
    with torch.no_grad():
        student(prompts, attention_mask=mask, past_key_values=cache)
    shared = cache.repeat_interleave(3, max_length=14)
    assert (shared.batch_size, shared.max_length, shared.get_seq_length()) == (6, 14, 6)
    first = decode(student, more[:, :4], shared)
    rows = torch.tensor([0, 4, 5])
    kept = shared.keep(rows)
    second = decode(student, more[rows, 4:], kept)
    with torch.no_grad():
        for row in range(6):
            start = 0 if row < 3 else 3
            whole = torch.cat([prompts[row // 3, start:], more[row]])[None]
            expected = student(whole, use_cache=False).logits[0, 6 - start :]
            torch.testing.assert_close(first[row], expected[:4], rtol=1e-6, atol=1e-6)
            if row in rows:
                again = second[rows.tolist().index(row)]
                torch.testing.assert_close(again, expected[4:], rtol=1e-6, atol=1e-6)


def test_dropping_the_padded_rows_drops_the_mask(helpers):
    student = helpers.student()
    cache = HybridCache(student.config, batch_size=2, max_length=8)
    student(helpers.tokens(2, 4), attention_mask=torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]]), past_key_values=cache)
    assert cache.valid is not None
    assert cache.keep(torch.tensor([True, False])).valid is None
    assert cache.keep(torch.tensor([1])).valid is not None


def test_decoding_writes_in_place(helpers):
    student = helpers.student()
    cache = HybridCache(student.config, batch_size=2, max_length=8)

    def pointers():
        layers = cache.layers
        return [
            layers[1].keys.data_ptr(),
            layers[0].conv_states[0].data_ptr(),
            layers[0].recurrent_states[0].data_ptr(),
        ]

    before = pointers()
    with torch.no_grad():
        student(helpers.tokens(2, 3), past_key_values=cache)
    decode(student, helpers.tokens(2, 5), cache)
    assert pointers() == before


def test_bytes_are_exact(helpers):
    config = helpers.student().config
    cache = HybridCache(config, batch_size=5, max_length=11)
    heads, kv_heads, width, kernel = 4, 2, 8, 4
    keys_and_values = 2 * kv_heads * width * 11
    states = heads * width * width + (heads + 2 * kv_heads) * width * (kernel - 1)
    assert cache.nbytes == 5 * 4 * (keys_and_values + 2 * states)
    assert cache.keep(torch.tensor([0])).nbytes == cache.nbytes // 5


@pytest.mark.parametrize("growing", [False, True])
def test_reset(helpers, layout, growing):
    student = helpers.student(layout)
    cache = GrowingCache(student.config) if growing else HybridCache(student.config, batch_size=2, max_length=8)
    ids = helpers.tokens(2, 6)
    with torch.no_grad():
        first = student(ids, past_key_values=cache).logits
        cache.reset()
        assert cache.get_seq_length() == 0
        assert torch.equal(student(ids, past_key_values=cache).logits, first)
    assert cache.get_seq_length() == 6


def test_limits(helpers):
    student = helpers.student()
    cache = HybridCache(student.config, batch_size=2, max_length=5)
    with torch.no_grad():
        student(helpers.tokens(2, 5), past_key_values=cache)
        with pytest.raises(ValueError, match=r"holds 5 tokens, but 6 are needed"):
            student(helpers.tokens(2, 1), past_key_values=cache)
    with pytest.raises(ValueError, match="less than the 5 tokens stored"):
        cache.keep(torch.tensor([0]), max_length=4)
    with pytest.raises(ValueError, match="holds nothing"):
        HybridCache(student.config, batch_size=0, max_length=5)
