"""One step of rows at lengths of their own against ``forward`` over the whole text of each."""

import copy

import pytest
import torch
from torch import nn

from lit_thinkfast.mixers import kernels
from lit_thinkfast.mixers import scan as scan_module
from lit_thinkfast.models import HybridCache
from lit_thinkfast.models.decoding import decode_step
from lit_thinkfast.models.slots import FlashSlots, SlotCache, TimeFirstSlots

LENGTHS = (4, 0, 9, 1, 6, 2, 7, 3, 5, 5, 8, 1, 0)
CAPACITY = 14


def filled(student, lengths, slots):
    """A cache with a prompt of each length in the slot of that place."""
    cache = SlotCache(student.config, slots, CAPACITY, dtype=student.dtype)
    texts = []
    for row, length in enumerate(lengths):
        texts.append(torch.randint(3, 50, (length,), generator=torch.Generator().manual_seed(length)))
        own = HybridCache(student.config, 1, max(length, 1), dtype=student.dtype)
        if length:
            with torch.no_grad():
                student(texts[-1][None], past_key_values=own)
        cache.admit(torch.tensor([row]), own)
    return cache, texts


@torch.no_grad()
def compare(student, *, rows, tolerance, steps=4):
    """Say some tokens after texts of all lengths; the logits are those of the whole texts."""
    cache, texts = filled(student, LENGTHS[:rows], slots=rows + 2)
    generator = torch.Generator().manual_seed(1)
    others = [part.clone() for part in unused(cache, rows)]
    for step in range(steps):
        tokens = torch.randint(3, 50, (rows,), generator=generator)
        longest = CAPACITY if step % 2 else max(len(text) for text in texts) + 1
        logits = decode_step(student, tokens, cache, longest=longest)
        texts = [torch.cat([text, token[None]]) for text, token in zip(texts, tokens, strict=True)]
        for row, text in enumerate(texts):
            expected = student(text[None], use_cache=False, logits_to_keep=1).logits[0, 0]
            torch.testing.assert_close(logits[row], expected, rtol=tolerance, atol=tolerance)
        assert cache.lengths.tolist() == [*map(len, texts), 0, 0]
    assert all(torch.equal(part, other) for part, other in zip(unused(cache, rows), others, strict=True))


def unused(cache, rows):
    for layer in cache.layers:
        yield from (part[rows:] for part in (layer if isinstance(layer, tuple) else (layer.keys, layer.values)))


@pytest.mark.parametrize("rows", [2, 13])
def test_a_step_is_forward_for_rows_of_mixed_lengths(helpers, layout, rows):
    """Two rows, and as many as take the products for few rows; nine take others, in the next test."""
    compare(helpers.student(layout, torch.float64).eval(), rows=rows, tolerance=1e-6, steps=3 if rows == 2 else 1)


@pytest.mark.parametrize("family", ["llama_bias", "llama3_rope", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("kept", ["attention", "hybrid discrete_mamba2"])
def test_in_all_families(helpers, family, kept):
    """Biases, scaled angles, windows in all or in some layers, norms of queries and keys."""
    compare(helpers.student(kept, torch.float64, family).eval(), rows=9, tolerance=1e-6, steps=1)


@pytest.mark.parametrize("kind", ["time first", "flash"])
@pytest.mark.parametrize("family", ["mistral", "qwen3"])
def test_with_the_memory_of_an_accelerator(helpers, monkeypatch, kind, family):
    from lit_thinkfast.models import slots

    def attention(q, k, v, keys, values, *, lengths, scale, window):
        """What ``find_cached_attention`` finds: its layout is (slots, capacity, kv_heads, width)."""
        other = TimeFirstSlots(*keys.shape[:1], keys.shape[2], keys.shape[3], keys.shape[1], dtype=keys.dtype)
        other.keys, other.values = keys.transpose(1, 2), values.transpose(1, 2)
        at = slots.reach(lengths, keys.shape[1], dtype=keys.dtype, window=window)
        return other.step(q, k, v, at, scale=scale).view_as(q)

    def make(config, rows, capacity, *, device, dtype):
        sizes = (rows, config.num_key_value_heads, config.head_dim, capacity)
        return FlashSlots(attention, *sizes, dtype=dtype) if kind == "flash" else TimeFirstSlots(*sizes, dtype=dtype)

    monkeypatch.setattr(slots, "attention_slots", make)
    compare(helpers.student("attention", torch.float64, family).eval(), rows=5, tolerance=1e-6)


@pytest.mark.parametrize("layout", ["attention", "hybrid mamba2", "recurrent mamba1"])
def test_in_float32_and_in_half_precision(helpers, layout):
    compare(helpers.student(layout).eval(), rows=9, tolerance=1e-3, steps=2)
    half = helpers.student(layout).to(torch.bfloat16).eval()
    cache, _ = filled(half, LENGTHS[:9], slots=9)
    logits = decode_step(half, torch.arange(3, 12), cache, longest=10)
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("layout", ["attention", "hybrid mamba2", "recurrent mamba1"])
def test_under_autocast_it_is_forward_under_autocast(helpers, layout):
    student = helpers.student(layout).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cache, texts = filled(student, LENGTHS[:9], slots=9)
        tokens = torch.arange(3, 12)
        logits = decode_step(student, tokens, cache, longest=CAPACITY)
        for row, text in enumerate(texts):
            whole = torch.cat([text, tokens[row : row + 1]])[None]
            expected = student(whole, use_cache=False).logits[0, -1]
            assert logits.dtype == expected.dtype
            scale = expected.abs().max()
            torch.testing.assert_close(logits[row], expected, rtol=0, atol=float(0.06 * scale))


@torch.no_grad()
@pytest.mark.parametrize("mixer", ["mamba1", "mamba2", "discrete_mamba2"])
def test_reference_operators_are_asked_for_steps_too(helpers, monkeypatch, mixer):
    """``kernel="reference"`` is for looking what is wrong: a step must not run what is looked at."""
    student = helpers.student(f"recurrent {mixer}", torch.float64).eval()
    reference = copy.deepcopy(student)
    for module in reference.modules():
        if hasattr(module, "kernel"):
            module.kernel = "reference"
    (one, _), (two, _) = (filled(model, LENGTHS[:9], slots=9) for model in (student, reference))
    tokens = torch.arange(3, 12)
    expected = decode_step(student, tokens, one, longest=CAPACITY)

    def refuse(*args, **kwargs):
        raise AssertionError("not the reference")

    for module, name in ((kernels, "scan_step"), (kernels, "selective_step"), (scan_module, "in_blocks")):
        monkeypatch.setattr(module, name, refuse)
    found = decode_step(reference, tokens, two, longest=CAPACITY)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for mine, other in zip(two.layers, one.layers, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("layout", ["hybrid mamba2", "recurrent mamba1", "hybrid discrete_mamba2"])
def test_adapters_and_hooks_take_part(helpers, layout):
    """Every projection may be wrapped, as peft does, or watched; nine rows would else take their weights alone."""

    class Adapted(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base
            self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

        def forward(self, x):
            return self.base(x) + self.up(self.down(x))

        in_features = property(lambda self: self.base.in_features)
        out_features = property(lambda self: self.base.out_features)

    torch.manual_seed(0)
    student = helpers.student(layout, torch.float64).eval()
    linears = [(parent, name) for parent in student.model.layers.modules() for name, child in parent.named_children() if type(child) is nn.Linear]  # fmt: skip
    before = {name for _, name in linears}
    for parent, name in linears:
        setattr(parent, name, Adapted(getattr(parent, name)).double())
    calls = []
    for module in student.modules():
        if isinstance(module, Adapted):
            module.base.register_forward_hook(lambda *_: calls.append(1))
    student.lm_head.register_forward_pre_hook(lambda *_: calls.append(1))
    cache, _ = filled(student, LENGTHS[:9], slots=9)
    calls.clear()
    decode_step(student, torch.arange(3, 12), cache, longest=CAPACITY)
    assert len(calls) == len(linears) + 1
    assert before >= {"gate_proj", "up_proj", "down_proj"}
    compare(student, rows=9, tolerance=1e-6, steps=1)
