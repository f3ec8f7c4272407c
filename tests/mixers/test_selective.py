"""The Mamba-1 scan and its step against the loop over time, however the sequence is cut."""

import pytest
import torch
from torch.nn.functional import softplus

from lit_thinkfast.mixers import selective
from lit_thinkfast.mixers.reference import reference_selective_scan
from lit_thinkfast.mixers.selective import selective_scan, selective_step


def make_inputs(batch=2, time=23, channels=12, groups=3, size=5):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    values = {
        "x": draw(batch, time, channels),
        "dt": softplus(draw(batch, time, channels)),
        "A": -draw(channels, size).exp(),
        "B": draw(batch, time, groups, size),
        "C": draw(batch, time, groups, size),
        "D": draw(channels),
        "initial_state": draw(batch, channels, size),
    }
    return {name: value.requires_grad_() for name, value in values.items()}


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def run(scan, values, seq_idx, *, stateful=True):
    values = dict(values) if stateful else {**values, "initial_state": None}
    y, last = scan(**values, seq_idx=seq_idx)
    loss = (y * torch.sin(torch.arange(y.numel())).view_as(y)).sum()
    loss = loss + (last * torch.cos(torch.arange(last.numel())).view_as(last)).sum()
    return y, last, *torch.autograd.grad(loss, [value for value in values.values() if value is not None])


@pytest.mark.parametrize("time", [1, 2, 23])
@pytest.mark.parametrize(("kept", "at_once"), [(1, 1), (700, 500), (1 << 23, 1 << 18), (1 << 23, 1)])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("stateful", [False, True])
def test_equals_reference(monkeypatch, time, kept, at_once, packed, stateful):
    """Stretches of one token or several, chunks one after the other or side by side: 120 state entries a token here."""
    monkeypatch.setattr(selective, "_ELEMENTS_KEPT", kept)
    monkeypatch.setitem(selective._ELEMENTS_AT_ONCE, "cpu", at_once)
    values = make_inputs(time=time)
    seq_idx = (torch.rand(2, time, generator=torch.Generator().manual_seed(1)) < 0.2).cumsum(1) if packed else None
    expected = run(reference_selective_scan, values, seq_idx, stateful=stateful)
    for ours, theirs in zip(run(selective_scan, values, seq_idx, stateful=stateful), expected, strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize(("time", "stretch", "chunks"), [(23, 100, 4), (23, 6, 4), (1, 8, 8), (40, 7, 3)])
def test_stretches_cover_every_token_once(time, stretch, chunks):
    at = 0
    for start, end, beside in selective._stretches(time, stretch, chunks):
        assert start == at < end <= start + stretch
        assert beside <= chunks
        assert (end - start) % beside == 0
        at = end
    assert at == time


def test_steps_equal_reference():
    values = {name: value.detach() for name, value in make_inputs(time=7).items()}
    y, last = reference_selective_scan(**values)
    state = values.pop("initial_state").clone()
    A, D = values.pop("A"), values.pop("D")
    pointer = state.data_ptr()
    for t in range(7):
        x, dt, B, C = (values[name][:, t] for name in ("x", "dt", "B", "C"))
        assert_close(selective_step(state, x, dt, A, B, C, D=D), y[:, t])
    assert_close(state, last)
    assert state.data_ptr() == pointer


def test_strong_decay_stays_finite_in_float32():
    values = {name: value.detach().float().requires_grad_() for name, value in make_inputs(time=70).items()}
    with torch.no_grad():
        values["A"].fill_(-1e4)
    y, last = selective_scan(**values)
    (y.sum() + last.sum()).backward()
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(value.grad).all() for value in values.values())


@pytest.mark.parametrize(("batch", "time"), [(1, 256), (64, 256), (3, 300)])
def test_what_is_kept_for_the_backward_pass(monkeypatch, batch, time):
    """Inputs, and less than a state for every ten tokens, also where a batch is too large for a long stretch."""
    monkeypatch.setattr(selective, "_ELEMENTS_KEPT", 1 << 15)
    monkeypatch.setitem(selective._ELEMENTS_AT_ONCE, "cpu", 1 << 10)
    values = make_inputs(batch=batch, time=time)
    saved = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.setdefault((t.data_ptr(), t.shape), t) is None or t, lambda t: t
    ):
        y, last = selective_scan(**values)
    inputs = batch * time * (3 * 12 + 2 * 3 * 5)
    states = sum(t.numel() for t in saved.values()) - inputs
    assert states < batch * 12 * 5 * time / 10 + inputs
    (y.sum() + last.sum()).backward()


@pytest.mark.parametrize("packed", [False, True])
def test_a_large_batch_goes_a_few_rows_at_a_time(monkeypatch, packed):
    values = make_inputs(batch=5)
    seq_idx = (torch.rand(5, 23, generator=torch.Generator().manual_seed(1)) < 0.2).cumsum(1) if packed else None
    expected = run(reference_selective_scan, values, seq_idx)
    monkeypatch.setattr(selective, "_ELEMENTS_KEPT", 2 * 23 * 60)
    for ours, theirs in zip(run(selective_scan, values, seq_idx), expected, strict=True):
        assert_close(ours, theirs)
