"""Causal convolution against its definition: values, gradients, documents, states, steps."""

import pytest
import torch

from lit_thinkfast.mixers.conv import CausalConv1d
from lit_thinkfast.mixers.reference import reference_conv


def make(channels=3, kernel=4):
    torch.manual_seed(0)
    return CausalConv1d(channels, kernel_size=kernel).double()


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("time", [1, 2, 3, 4, 13])
@pytest.mark.parametrize("kernel", [2, 4])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("stateful", [False, True])
def test_equals_reference(time, kernel, packed, stateful):
    conv = make(kernel=kernel)
    x = torch.randn(2, time, 3, dtype=torch.float64, requires_grad=True)
    state = torch.randn(2, 3, kernel - 1, dtype=torch.float64, requires_grad=True) if stateful else None
    seq_idx = (torch.rand(2, time) < 0.3).cumsum(1) if packed else None
    expected = reference_conv(x, conv.weight[:, 0], conv.bias, seq_idx=seq_idx, initial_state=state)
    actual = conv(x, seq_idx=seq_idx, initial_state=state)
    assert_close(actual, expected)
    leaves = [x, conv.weight, conv.bias] + ([state] if stateful else [])
    weights = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad((actual * weights).sum(), leaves),
        torch.autograd.grad((expected * weights).sum(), leaves),
        strict=True,
    ):
        assert_close(a, b)


def test_nothing_leaks_even_if_it_is_not_a_number():
    conv = make()
    x = torch.randn(1, 8, 3, dtype=torch.float64)
    x[:, :4] = torch.nan
    seq_idx = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])
    assert_close(conv(x, seq_idx=seq_idx)[:, 4:], conv(x[:, 4:]))


def test_steps_equal_sequence():
    conv = make()
    x = torch.randn(2, 9, 3, dtype=torch.float64)
    expected = conv(x)
    with torch.no_grad():
        state = conv.last_inputs(x[:, :2], initial_state=None, lengths=None).contiguous()
        assert state.shape == (2, 3, 3)
        for t in range(2, 9):
            assert_close(conv.step(x[:, t], state), expected[:, t])
        assert_close(state, x[:, -3:].transpose(1, 2))


def test_last_inputs_of_rows_padded_on_the_right():
    conv = make()
    x = torch.arange(10, dtype=torch.float64).view(2, 5, 1)
    window = conv.last_inputs(x, initial_state=None, lengths=torch.tensor([5, 2]))
    assert window[:, 0].tolist() == [[2.0, 3.0, 4.0], [0.0, 5.0, 6.0]]


@pytest.mark.parametrize("stateful", [False, True])
def test_the_reference_runs_in_float64(stateful):
    conv = make().float()
    x = torch.randn(2, 9, 3)
    state = torch.randn(2, 3, 3) if stateful else None
    expected = reference_conv(
        x.double(),
        conv.weight[:, 0].double(),
        conv.bias.double(),
        initial_state=None if state is None else state.double(),
    )
    conv.kernel = "reference"
    assert torch.equal(conv(x, initial_state=state), expected.float())
