"""Rows at lengths of their own against softmax attention written out, row by row and head by head."""

import functools
import math

import pytest
import torch

from lit_thinkfast.mixers import kernels
from lit_thinkfast.models import HybridCache, slots
from lit_thinkfast.models.slots import (
    AttentionSlots,
    FlashSlots,
    SlotCache,
    TimeFirstSlots,
    TimeLastSlots,
    attention_slots,
    reach,
)

LENGTHS = torch.tensor([0, 5, 11, 3, 8])
CAPACITY = 12


def attend(query, keys, values, *, scale, window=None):
    """One row: query (heads, p), keys and values (kv_heads, t, p) -> (heads * p), in plain Python."""
    heads, groups = len(query), len(query) // len(keys)
    first = 0 if window is None else max(0, keys.shape[1] - window)
    out = []
    for head in range(heads):
        key, value = keys[head // groups, first:].tolist(), values[head // groups, first:]
        scores = [scale * math.fsum(q * k for q, k in zip(query[head].tolist(), one, strict=True)) for one in key]
        weights = [math.exp(score - max(scores)) for score in scores]
        out.append(sum(w * v for w, v in zip(weights, value, strict=True)) / sum(weights))
    return torch.cat(out)


def flash_attn_with_kvcache(q, k_cache, v_cache, k=None, v=None, *, cache_seqlens=None, softmax_scale=None,
                            causal=False, window_size=(-1, -1)):  # fmt: skip
    """What flash-attn does under this name, by its documentation, in plain torch."""
    (batch, queries, heads, width), kv_heads = q.shape, k_cache.shape[2]
    assert k.shape == v.shape == (batch, queries, kv_heads, width)
    assert k_cache.shape == v_cache.shape
    assert k_cache.shape[0] == batch
    assert k_cache.shape[3] == width
    assert q.dtype == k_cache.dtype == v_cache.dtype == k.dtype == v.dtype
    assert all(part.stride(-1) == 1 for part in (q, k, v, k_cache, v_cache))
    assert heads % kv_heads == 0
    assert cache_seqlens.dtype == torch.int32
    assert cache_seqlens.shape == (batch,)
    assert cache_seqlens.is_contiguous()
    rows = torch.zeros_like(q)
    for row, stored in enumerate(cache_seqlens.tolist()):
        end = stored + queries
        assert end <= k_cache.shape[1]
        k_cache[row, stored:end], v_cache[row, stored:end] = k[row], v[row]
        at = torch.arange(end)
        query_at = torch.arange(stored, end)[:, None]  # aligned to the last key
        seen = at <= query_at if causal else torch.ones(queries, end, dtype=torch.bool)
        left, right = window_size
        seen &= (at >= query_at - left) if left >= 0 else seen
        seen &= (at <= query_at + right) if right >= 0 else seen
        keys, values = (part[row, :end].repeat_interleave(heads // kv_heads, 1) for part in (k_cache, v_cache))
        scores = torch.einsum("qhp,khp->hqk", q[row], keys) * softmax_scale
        weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
        rows[row] = torch.einsum("hqk,khp->qhp", weights, values)
    return rows


KINDS = {
    "time last": TimeLastSlots,
    "time first": TimeFirstSlots,
    "flash": functools.partial(FlashSlots, functools.partial(kernels._cached_attention, flash_attn_with_kvcache)),
}


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spoil(memory):
    """What earlier rows have left everywhere."""
    for part in (memory.keys, memory.values):
        part.copy_(1e3 * draw(*part.shape, seed=9))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(2, 2, 12), (2, 1, 48), (6, 2, 80), (4, 1, 7), (3, 3, 37)])
@pytest.mark.parametrize("window", [None, 1, 4])
def test_a_step_is_softmax_attention_over_what_the_row_has(kind, heads, kv_heads, width, window):
    batch, scale = len(LENGTHS), 0.3
    memory = KINDS[kind](batch + 2, kv_heads, width, CAPACITY, dtype=torch.float64)
    spoil(memory)
    before = memory.keys[batch:].clone()
    stored = [(draw(kv_heads, n, width, seed=n), draw(kv_heads, n, width, seed=n + 50)) for n in LENGTHS.tolist()]
    for row, (keys, values) in enumerate(stored):
        memory.admit(torch.tensor([row]), keys, values)
    lengths = LENGTHS.clone()
    lengths[2] = 9  # a row that is shorter than what it was given
    stored[2] = tuple(part[:, :9] for part in stored[2])
    for step in range(3):
        query, key, value = (draw(batch, n, width, seed=100 * step + n) for n in (heads, kv_heads, kv_heads + 9))
        value = value[:, :kv_heads]
        for longest in (12, int(lengths.max()) + 1):  # once more over the same: nothing has changed
            at = reach(lengths, longest, dtype=torch.float64, window=window)
            out = memory.step(query, key, value, at, scale=scale)
            assert out.shape == (batch, heads * width)
            for row, (keys, values) in enumerate(stored):
                both = torch.cat([keys, key[row, :, None]], 1), torch.cat([values, value[row, :, None]], 1)
                twin = attend(query[row], *both, scale=scale, window=window)
                torch.testing.assert_close(out[row], twin, rtol=1e-9, atol=1e-9)
        stored = [
            (torch.cat([keys, key[row, :, None]], 1), torch.cat([values, value[row, :, None]], 1))
            for row, (keys, values) in enumerate(stored)
        ]
        lengths = lengths + 1
    assert torch.equal(memory.keys[batch:], before)


@pytest.mark.parametrize("window", [None, 1, 3, 20])
def test_what_is_seen(window):
    at = reach(LENGTHS, CAPACITY, dtype=torch.float32, window=window)
    for row, length in enumerate(LENGTHS.tolist()):
        seen = [t for t in range(CAPACITY) if t <= length and (window is None or t > length - window)]
        assert (at.bias[row, 0, 0] == 0).nonzero()[:, 0].tolist() == seen
        assert at.bias[row, 0, 0].isinf().sum() == CAPACITY - len(seen)
    assert at.bias.shape == (len(LENGTHS), 1, 1, CAPACITY)
    assert (at.longest, at.window, at.bias.dtype) == (CAPACITY, window, torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_let_in_and_moved(kind):
    """A prompt in several slots at once, an empty one, and rows that close the gaps."""
    memory = KINDS[kind](6, 2, 5, CAPACITY, dtype=torch.float64)
    spoil(memory)
    axes = {"time last": (0, 1, 3, 2), "time first": (0, 1, 2, 3), "flash": (0, 2, 1, 3)}[kind]
    seen = [memory.keys.permute(axes), memory.values.permute(axes)]  # (slots, kv_heads, t, width) of the same memory
    twin = [part.clone() for part in seen]
    prompts = {(4, 0, 3): 7, (1,): CAPACITY, (5, 2): 0}
    for rows, time in prompts.items():
        new = draw(2, 2, time, 5, seed=time)
        memory.admit(torch.tensor(rows), new[0], new[1])
        for part, own in zip(twin, new, strict=True):
            part[list(rows), :, :time] = own
    assert all(torch.equal(part, own) for part, own in zip(seen, twin, strict=True))
    memory.move(torch.tensor([5, 3]), torch.tensor([0, 2]))
    assert all(torch.equal(part, own[[5, 1, 3, 3, 4, 5]]) for part, own in zip(seen, twin, strict=True))
    assert memory.nbytes == 2 * 6 * 2 * 5 * CAPACITY * 8


def test_the_kind_of_memory_is_that_of_the_device(helpers, monkeypatch):
    config = helpers.student("attention").config
    here = attention_slots(config, 2, 5, device=torch.device("cpu"), dtype=torch.float32)
    assert isinstance(here, TimeLastSlots)
    away = torch.device("meta")  # any that is not a CPU
    assert isinstance(attention_slots(config, 2, 5, device=away, dtype=torch.float32), TimeFirstSlots)
    asked = []
    monkeypatch.setattr(slots, "find_cached_attention", lambda *facts: asked.append(facts) or attend)
    assert isinstance(attention_slots(config, 2, 5, device=away, dtype=torch.bfloat16), FlashSlots)
    assert asked == [(away, torch.bfloat16)]
    config.kernel = "torch"
    assert isinstance(attention_slots(config, 2, 5, device=away, dtype=torch.bfloat16), TimeFirstSlots)


def test_cached_attention_is_for_16_bits_on_cuda(monkeypatch):
    monkeypatch.setattr(kernels, "_load", lambda *names: names)
    find = kernels.find_cached_attention
    cuda, half = torch.device("cuda"), (torch.float16, torch.bfloat16)
    assert all(find(cuda, dtype).args == (("flash_attn", "flash_attn_with_kvcache"),) for dtype in half)
    assert all(find(cuda, dtype) is None for dtype in (torch.float32, torch.float64))
    assert all(find(torch.device("cpu"), dtype) is None for dtype in half)
    monkeypatch.setattr(kernels, "_load", lambda *names: None)
    assert find(cuda, torch.float16) is None


def encode(student, *lengths):
    """Caches of prompts of these lengths, and one with all of them as rows, as far as the longest goes."""
    caches = []
    for length in lengths:
        cache = HybridCache(student.config, 1, max(length, 1), dtype=student.dtype)
        if length:
            with torch.no_grad():
                student(a_prompt(length), past_key_values=cache)
        caches.append(cache)
    return caches


def a_prompt(length):
    return torch.randint(3, 50, (1, length), generator=torch.Generator().manual_seed(length))


def parts(cache):
    found = [cache.lengths]
    for layer in cache.layers:
        found += [layer.keys, layer.values] if isinstance(layer, AttentionSlots) else list(layer)
    return found


def test_a_cache_holds_what_it_was_given(helpers, layout):
    """Admitted and moved, against the gathered caches; slots that were used before, and a prompt without tokens."""
    student = helpers.student(layout, torch.float64)
    cache = SlotCache(student.config, 7, 9, dtype=torch.float64)
    for part in parts(cache):
        part.copy_(1e3 * draw(*part.shape, seed=3))
    short, long, empty = encode(student, 2, 9, 0)
    cache.admit(torch.tensor([5, 0, 2]), short)
    cache.admit(torch.tensor([4]), long)
    cache.admit(torch.tensor([6, 1]), empty)
    cache.admit(torch.tensor([3]), short)
    owners = [short, empty, short, short, long, short, empty]
    for moves in (None, ([4, 6], [0, 3])):
        if moves:
            cache.move(*map(torch.tensor, moves))
            owners[0], owners[3] = owners[4], owners[6]
        assert cache.lengths.tolist() == [owner.get_seq_length() for owner in owners]
        for row, owner in enumerate(owners):
            time = owner.get_seq_length()
            for mine, theirs in zip(cache.layers, owner.layers, strict=True):
                if isinstance(mine, TimeLastSlots):
                    assert torch.equal(mine.keys[row, :, :, :time].mT, theirs.keys[0, :, :time])
                    assert torch.equal(mine.values[row, :, :, :time].mT, theirs.values[0, :, :time])
                else:
                    assert torch.equal(mine.conv[row], theirs.conv_states[0][0])
                    assert torch.equal(mine.state[row], theirs.recurrent_states[0][0])
                    assert time or not mine.state[row].any()
                    assert time or not mine.conv[row].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_bytes_are_exact(helpers, layout, dtype):
    student = helpers.student(layout)
    cache = SlotCache(student.config, 5, 11, dtype=dtype)
    assert cache.nbytes == HybridCache(student.config, 5, 11, dtype=dtype).nbytes
    assert cache.nbytes == sum(part.nbytes for part in parts(cache)[1:])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for layer in cache.layers:
        if not isinstance(layer, AttentionSlots):
            assert (layer.conv.dtype, layer.state.dtype) == (dtype, wide)
            assert layer.conv.mT.is_contiguous()
        else:
            assert layer.keys.dtype == layer.values.dtype == dtype
    if not student.config.attention_layers:
        assert SlotCache(student.config, 5, 10_000, dtype=dtype).nbytes == cache.nbytes


def test_limits(helpers):
    student = helpers.student("hybrid")
    for sizes in ((0, 5), (5, 0)):
        with pytest.raises(ValueError, match="hold nothing; both must be at least 1"):
            SlotCache(student.config, *sizes)
    cache = SlotCache(student.config, 2, 5)
    (long,) = encode(student, 6)
    with pytest.raises(ValueError, match="slots of 5 tokens take one prompt without padding at a time, but 1 of 6 "):
        cache.admit(torch.tensor([0]), long)
    two, padded = HybridCache(student.config, 2, 4), HybridCache(student.config, 1, 4)
    with torch.no_grad():
        student(helpers.tokens(2, 4), past_key_values=two)
        student(helpers.tokens(1, 4), attention_mask=torch.tensor([[0, 1, 1, 1]]), past_key_values=padded)
    for wrong in (two, padded):
        with pytest.raises(ValueError, match="without padding"):
            cache.admit(torch.tensor([0]), wrong)
    assert not cache.lengths.any()
