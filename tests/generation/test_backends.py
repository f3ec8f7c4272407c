"""Decoders of few shapes against the step as it is, with stand-ins for what only a GPU or a compiler has."""

import copy
import functools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from lit_thinkfast.generation import backends
from lit_thinkfast.generation import engine as engine_module
from lit_thinkfast.generation.backends import BucketedDecoder, bucket, make_decoder
from lit_thinkfast.generation.config import SamplingConfig
from lit_thinkfast.generation.rows import Prompt
from lit_thinkfast.models.slots import AttentionSlots, SlotCache

from .naive import Work, make_engine, run, texts


def ask(length, samples, **settings):
    tokens = [2 + (7 * length + 5 * at * at) % 43 for at in range(length)]
    return Prompt(tokens, length, range(samples), SamplingConfig(**{"num_samples": 1, "temperature": 0.9, **settings}))


# In five slots: 5 rows, then 4, 3 and 2, of whom two go beyond 12 tokens, to 18
MIXED = [ask(3, 1, max_new_tokens=5), ask(6, 2, max_new_tokens=13), ask(1, 3, max_new_tokens=3)]
SHAPES = {(5, 12), (4, 12), (2, 12), (2, 18)}


def tensors(cache):
    found = [cache.lengths]
    for layer in cache.layers:
        found += [layer.keys, layer.values] if isinstance(layer, AttentionSlots) else [layer.conv, layer.state]
    return found


class Recorder(TorchDispatchMode):
    """Notes every operation that reaches the device."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, out))
        return out


class Tape:
    """What a CUDA graph does: a capture computes nothing, a replay repeats its operations on the same memory.

    No Python runs in a replay, so whatever depends on the host is as it was at the capture. All share a pool, so what
    one has given is gone when the next is replayed.
    """

    def __init__(self, cache):
        self.cache, self.captures, self.replays, self.given = cache, 0, 0, None

    def __call__(self, function):
        self.captures += 1
        before = [tensor.clone() for tensor in tensors(self.cache)]
        with Recorder() as recorder:
            result = function()
        for tensor, value in zip(tensors(self.cache), before, strict=True):
            tensor.copy_(value)

        def replay():
            self.replays += 1
            if self.given is not None:
                self.given.fill_(float("nan"))
            new = {}

            def renew(part):
                return new.get(id(part), part)

            for operation, args, kwargs, out in recorder.calls:
                again = operation(*tree_map(renew, args), **tree_map(renew, kwargs))
                new |= {id(old): part for old, part in zip(tree_leaves(out), tree_leaves(again), strict=True)}
            self.given = new[id(result)]
            return self.given

        return replay


@pytest.mark.parametrize("kind", ["everything", "recurrent"])
def test_replays_say_what_the_step_says(small, everything, monkeypatch, kind):
    model = everything if kind == "everything" else small("llama recurrent mamba2")
    monkeypatch.setattr(backends, "_REACH", 12)
    expected = texts(run(make_engine(model, MIXED, slots=5), MIXED))
    tapes = []

    def make(model, cache, *, backend, aside):
        tapes.append(Tape(cache))
        return BucketedDecoder(model, cache, capture=tapes[-1], aside=aside)

    monkeypatch.setattr(engine_module, "make_decoder", make)
    engine = make_engine(model, MIXED, slots=5)
    assert texts(run(engine, MIXED)) == expected
    assert texts(run(engine, MIXED)) == expected
    assert engine._decoder._ready.keys() == (SHAPES if kind == "everything" else {(5, 18), (4, 18), (2, 18)})
    assert tapes[0].captures == len(engine._decoder._ready)
    assert tapes[0].captures + tapes[0].replays == engine.times.steps


def test_shapes_are_few():
    for slots in (1, 7, 48, 64):
        made = {bucket(rows, slots) for rows in range(1, slots + 1)}
        assert all(rows <= bucket(rows, slots) <= min(slots, 2 * rows) for rows in range(1, slots + 1))
        assert len(made) <= slots.bit_length() + 1


def test_slots_that_nobody_uses_stay_within_their_capacity(small):
    model = small("llama hybrid mamba2")
    cache = SlotCache(model.config, 8, 16, dtype=torch.float64)
    seen = []

    def step(model, tokens, cache, *, longest):
        seen.append((len(tokens), longest, cache.lengths.clone()))
        cache.lengths[: len(tokens)] += 1
        return torch.zeros(len(tokens), 45)

    decoder = BucketedDecoder(model, cache, capture=None, step=step)
    cache.lengths.fill_(15)
    for at in range(3000):
        cache.lengths[:5] = at % 16
        assert decoder(torch.zeros(5, dtype=torch.int64), at % 16 + 1).shape == (5, 45)
    assert {(rows, longest) for rows, longest, _ in seen} == {(8, 16)}
    assert all(lengths[:5].eq(at % 16).all() and not lengths[5:].any() for at, (*_, lengths) in enumerate(seen))


@pytest.mark.parametrize("compiles", [False, True])
def test_what_is_made_once_is_on_no_bill(small, monkeypatch, compiles):
    """A capture, or a first step that compiles, takes 1,000 seconds."""
    model = small("llama attention")
    monkeypatch.setattr(backends, "_REACH", 12)
    monkeypatch.setattr(Work, "step_cost", staticmethod(lambda rows, step: 1.0 + step))
    with monkeypatch.context() as patch:
        work = Work(patch, model)
        plain = run(make_engine(model, MIXED, slots=5, watch=work.watch), MIXED)
        whole = work.watch.elapsed
    work = Work(monkeypatch, model)
    made = []

    def step(*args, **kwargs):
        if compiles and (shape := (len(args[1]), kwargs["longest"])) not in made:
            made.append(shape)
            work.time += 1000
        return backends.decode_step(*args, **kwargs)

    def capture(function):
        made.append(function)
        work.time += 1000
        return function

    def make(model, cache, *, backend, aside):
        return BucketedDecoder(model, cache, capture=None if compiles else capture, step=step, aside=aside)

    monkeypatch.setattr(engine_module, "make_decoder", make)
    engine = make_engine(model, MIXED, slots=5, watch=work.watch)
    found = run(engine, MIXED)
    times = engine.times
    assert texts(found) == texts(plain)
    assert engine._decoder._ready.keys() == SHAPES
    assert len(made) == 4
    assert sum(row.seconds for row in found) == pytest.approx(work.watch.elapsed)
    assert times.prefill_seconds + times.decode_seconds == pytest.approx(work.watch.elapsed)
    assert times.overhead_seconds == pytest.approx(0.125 * times.steps)
    if compiles:  # and with it that step
        first = times.warmup_seconds - 1000 * len(made)
        assert 4 <= first < 4 * times.steps
        assert work.watch.elapsed == pytest.approx(whole - first)
    else:
        assert times.warmup_seconds == pytest.approx(1000 * len(made))
        assert [row.seconds for row in found] == pytest.approx([row.seconds for row in plain])
        assert [row.finished for row in found] == pytest.approx([row.finished for row in plain])


@pytest.mark.parametrize("mixer", ["mamba1", "discrete_mamba2"])
def test_steps_of_the_other_mixers_compile_without_a_break(small, mixer):
    layer = small(f"llama hybrid {mixer}").model.layers[0].mixer
    cache = SlotCache(small(f"llama hybrid {mixer}").config, 9, 1, dtype=torch.float64)
    x = torch.randn(9, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch._dynamo.reset()
    with torch.inference_mode():
        compiled = torch.compile(layer.step, fullgraph=True, dynamic=False, backend="eager")
        out, states = compiled(x, cache.layers[0]), [part.clone() for part in cache.layers[0]]
        for part in cache.layers[0]:
            part.zero_()
        torch.testing.assert_close(out, layer.step(x, cache.layers[0]))
        assert torch.equal(states[1], cache.layers[0].state)
    torch._dynamo.reset()


def test_compiled_for_every_shape_without_a_break(small, monkeypatch):
    """By torch's tracer with nothing behind it, which is what can fail; torch itself gives up after a few shapes."""
    model = small("mistral hybrid mamba2")
    monkeypatch.setattr(backends, "_REACH", 4)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    tokens = torch.tensor([5, 9, 30])
    plain, cache = (SlotCache(model.config, 3, 12, dtype=torch.float64) for _ in range(2))
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=1), torch.inference_mode():
        decoder, twin = make_decoder(model, cache, backend="compile"), make_decoder(model, plain, backend="eager")
        for count, longest in ((3, 1), (3, 2), (2, 5)):
            plain.lengths[:] = cache.lengths[:] = longest - 1
            found, expected = decoder(tokens[:count], longest), twin(tokens[:count], longest)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert decoder._ready.keys() == {(3, 4), (2, 8)}
    torch._dynamo.reset()


def test_backends_that_are_not_here_are_one_clear_line(small, monkeypatch):
    model = small("llama hybrid mamba2")
    cache = SlotCache(model.config, 2, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"'cuda_graphs' needs a model on CUDA, this one is on cpu; use 'eager'"):
        make_decoder(model, cache, backend="cuda_graphs")
    with pytest.raises(ValueError, match=r"unknown backend 'fast'"):
        make_decoder(model, cache, backend="fast")
    steps = []
    monkeypatch.setattr(backends, "decode_step", lambda *args, longest: steps.append(longest))
    make_decoder(model, cache, backend="auto")(torch.tensor([3]), 1)
    assert steps == [1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_all_backends_say_the_same(everything):
    model = copy.deepcopy(everything).cuda()
    expected = texts(run(make_engine(everything, MIXED, slots=5), MIXED))
    for backend in ("eager", "cuda_graphs"):
        engine = make_engine(model, MIXED, slots=5, backend=backend)
        assert texts(run(engine, MIXED)) == texts(run(engine, MIXED)) == expected
