"""Chunked scan and step against the loop over time: values, gradients, odd lengths, documents, states."""

import pytest
import torch

from lit_thinkfast.mixers import chunked, scan
from lit_thinkfast.mixers.matrices import decay_matrix
from lit_thinkfast.mixers.reference import reference_decay_scan, reference_scan
from lit_thinkfast.mixers.scan import chunked_scan, decay_scan, scan_step


def make_inputs(batch=2, time=37, heads=3, width=5, size=4, seed=0, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    values = {
        "x": draw(batch, time, heads, width),
        "dt": torch.nn.functional.softplus(draw(batch, time, heads)),
        "A": -draw(heads).exp(),
        "B": draw(batch, time, heads, size),
        "C": draw(batch, time, heads, size),
        "D": draw(heads),
        "initial_state": draw(batch, heads, width, size),
    }
    if requires_grad:
        values = {name: value.requires_grad_() for name, value in values.items()}
    return values


def documents(batch, time, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, time, generator=generator) < 0.15).cumsum(1)


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("time", [1, 2, 7, 8, 16, 37])
@pytest.mark.parametrize("chunk_size", [1, 8, 64])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("stateful", [False, True])
def test_chunked_equals_reference(time, chunk_size, packed, stateful):
    gradients = []
    for run in (reference_scan, chunked_scan):
        values = make_inputs(time=time, requires_grad=True)
        leaves = list(values.values()) if stateful else [v for k, v in values.items() if k != "initial_state"]
        if not stateful:
            values["initial_state"] = None
        options = {"chunk_size": chunk_size} if run is chunked_scan else {}
        y, last = run(**values, seq_idx=documents(2, time) if packed else None, **options)
        weights = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
        loss = (y * weights).sum() + (last * torch.cos(torch.arange(last.numel(), dtype=y.dtype)).view_as(last)).sum()
        gradients.append((y, last, torch.autograd.grad(loss, leaves, allow_unused=True)))
    (y, last, grads), (y2, last2, grads2) = gradients
    assert_close(y2, y)
    assert_close(last2, last)
    for grad, grad2 in zip(grads, grads2, strict=True):
        zero = torch.zeros(())
        assert_close(*torch.broadcast_tensors(zero if grad2 is None else grad2, zero if grad is None else grad))


def test_steps_equal_reference():
    values = make_inputs(time=11)
    y, last = reference_scan(**values)
    state = values.pop("initial_state").clone()
    A, D = values.pop("A"), values.pop("D")
    pointer = state.data_ptr()
    for t in range(11):
        x, dt, B, C = (values[name][:, t] for name in ("x", "dt", "B", "C"))
        assert_close(scan_step(state, x, dt, A, B, C, D=D), y[:, t])
    assert_close(state, last)
    assert state.data_ptr() == pointer


def test_zero_step_leaves_the_state_alone():
    values = make_inputs(time=9)
    values["dt"] = torch.zeros_like(values["dt"])
    _, last = chunked_scan(**values, chunk_size=4)
    assert_close(last, values["initial_state"])


def test_strong_decay_stays_finite_in_float32():
    values = {name: value.float().requires_grad_() for name, value in make_inputs(time=70).items()}
    with torch.no_grad():
        values["A"].fill_(-1e4)
    y, last = chunked_scan(**values, seq_idx=documents(2, 70), chunk_size=32)
    (y.sum() + last.sum()).backward()
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(value.grad).all() for value in values.values())


def test_linear_attention_identity():
    """Decay one, step one and D zero: un-normalised causal linear attention, y_t = sum_s (q_t . k_s) v_s."""
    values = make_inputs(time=19)
    q, k, v = values["C"], values["B"], values["x"]
    ones = torch.ones_like(values["dt"])
    y, _ = chunked_scan(v, ones, torch.zeros(3, dtype=torch.float64), k, q, chunk_size=8)
    scores = torch.einsum("bthn,bshn->bhts", q, k).tril()
    assert_close(y, torch.einsum("bhts,bshp->bthp", scores, v))


def test_large_states_step_in_blocks(monkeypatch):
    values = make_inputs(batch=5, time=1)
    state = values.pop("initial_state")
    A, D = values.pop("A"), values.pop("D")
    x, dt, B, C = (values[name][:, 0] for name in ("x", "dt", "B", "C"))
    results = []
    for entries in (1 << 20, 2 * state[0].numel(), 1):
        monkeypatch.setattr(scan, "_STATE_ENTRIES_AT_ONCE", entries)
        own = state.clone()
        results.append((scan_step(own, x, dt, A, B, C, D=D), own))
    for y, own in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(own, results[0][1])


@pytest.mark.parametrize("strong", [-20.0, -1e3, -1e4])
def test_weak_decays_beside_strong_ones_are_not_lost(strong):
    """Of large cumulative sums the differences matter: float32 against the loop in float64, and the matrix too."""
    values = make_inputs(time=512, heads=2)
    log_decay = torch.where(torch.rand(2, 512, 2, generator=torch.Generator().manual_seed(0)) < 0.5, strong, -0.01)
    x, B, C = (values[name] for name in ("x", "B", "C"))
    expected, _ = reference_decay_scan(x, log_decay.double(), B, C)
    actual, _ = decay_scan(x.float(), log_decay, B.float(), C.float())
    assert (actual - expected).abs().max() < 1e-6 * expected.abs().max()
    M = decay_matrix(log_decay, B.float(), C.float(), D=torch.zeros(log_decay.shape[-1])).rows(0, log_decay.shape[1])
    assert (torch.einsum("bhls,bshp->blhp", M, x.float()) - expected).abs().max() < 2e-6 * expected.abs().max()


def test_small_types_and_autocast_do_not_round_decays():
    values = {name: value.bfloat16() for name, value in make_inputs(time=300).items()}
    log_decay = torch.full((2, 300, 3), -1e-3).bfloat16()
    x, B, C = (values[name] for name in ("x", "B", "C"))
    with torch.autocast("cpu", torch.bfloat16):
        y, state = decay_scan(x, log_decay, B, C)
    expected, last = reference_decay_scan(*(part.double() for part in (x, log_decay, B, C)))
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert (state - last).abs().max() < 1e-5 * last.abs().max()
    assert (y - expected).abs().max() < 0.01 * expected.abs().max()


@pytest.mark.parametrize("packed", [False, True])
def test_chunks_come_a_few_at_a_time(monkeypatch, packed):
    """One chunk at a time, two, or all: the same values and gradients as the loop."""
    values = make_inputs(time=37, requires_grad=True)
    seq_idx = documents(2, 37) if packed else None
    results = []
    for entries in (None, 1, 2 * 2 * 3 * 25, 1 << 20):
        if entries is not None:
            monkeypatch.setattr(chunked, "_ENTRIES_AT_ONCE", entries)
        options = {} if entries is None else {"chunk_size": 5}
        y, last = (reference_scan if entries is None else chunked_scan)(**values, seq_idx=seq_idx, **options)
        gradients = torch.autograd.grad(y.square().sum() + last.square().sum(), list(values.values()))
        results.append((y, last, *gradients))
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            assert_close(actual, expected)


def test_only_inputs_and_states_between_chunks_are_kept():
    values = {name: value.requires_grad_() for name, value in make_inputs(time=64, width=8, size=8).items()}
    saved = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.setdefault(t.data_ptr(), t) is None or t, lambda t: t
    ):
        chunked_scan(**values, chunk_size=16)
    inputs = 2 * 64 * 3 * (8 + 8 + 8 + 1)  # x, B, C and dt; of x and dt also the products that the recurrence reads
    states = 2 * 4 * 3 * 8 * 8
    assert sum(t.numel() for t in saved.values()) <= inputs + 2 * 64 * 3 * (8 + 1 + 1) + states + 100
