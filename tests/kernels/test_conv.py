"""The convolution against causal-conv1d: its own twin in torch on a CPU, its compiled kernels on a GPU."""

import pytest
import torch
from torch.func import functional_call

from lit_thinkfast.mixers.conv import CausalConv1d

CHANNELS, TAPS = 24, 4
DOCUMENTS = torch.tensor([[0] * 5 + [1] + [2] * 31, [0] * 20 + [1] * 17], dtype=torch.int32)


def weights(draw):
    return {"weight": draw(CHANNELS, 1, TAPS), "bias": draw(CHANNELS)}


@pytest.fixture
def conv(device):
    return CausalConv1d(CHANNELS, kernel_size=TAPS, kernel="torch").to(device)


@pytest.mark.parametrize(("packed", "continued"), [(False, False), (True, False), (False, True), (True, True)])
def test_sequence(device, draw, parity, conv, packed, continued):
    from causal_conv1d.causal_conv1d_interface import causal_conv1d_fn, causal_conv1d_ref

    on_cpu = device.type == "cpu"
    inputs = {"x": draw(2, 37, CHANNELS), **weights(draw)}
    if continued:
        inputs["past"] = draw(2, CHANNELS, TAPS - 1)
    if continued and packed and not on_cpu:
        pytest.skip("the compiled kernel takes documents or a past, not both")
    seq_idx = DOCUMENTS.to(device) if packed else None

    def ours(x, weight, bias, past=None):
        y = functional_call(conv, {"weight": weight, "bias": bias}, (x,), {"seq_idx": seq_idx, "initial_state": past})
        return {"y": y}

    def theirs(x, weight, bias, past=None):
        kernel = causal_conv1d_ref if on_cpu else causal_conv1d_fn
        if past is not None:  # channels last, as the kernel wants it
            past = past.transpose(1, 2).contiguous().transpose(1, 2)
        y = kernel(x.transpose(1, 2), weight[:, 0], bias, initial_states=past, seq_idx=seq_idx)
        return {"y": y.transpose(1, 2)}

    parts = [name for name, given in (("seq_idx", packed), ("initial state", continued)) if given]
    kernel = "causal_conv1d_ref" if on_cpu else "causal_conv1d_fn"
    parity(kernel, ", ".join(["37 tokens", *parts]), ours, theirs, inputs)


def test_step(device, draw, parity, conv):
    from causal_conv1d.causal_conv1d_interface import causal_conv1d_update, causal_conv1d_update_ref

    inputs = {"x": draw(3, CHANNELS), "state": draw(3, CHANNELS, TAPS - 1), **weights(draw)}
    kernel = causal_conv1d_update_ref if device.type == "cpu" else causal_conv1d_update

    def ours(x, state, weight, bias):
        conv.weight.copy_(weight)
        conv.bias.copy_(bias)
        return {"y": conv.step(x, state), "state": state}

    def theirs(x, state, weight, bias):
        return {"y": kernel(x, state, weight[:, 0], bias), "state": state}

    parity(kernel.__name__, "one token", ours, theirs, inputs, backward=False)


def test_what_the_next_token_needs(device, draw, parity, conv):
    """The last inputs of documents of several lengths, one of them shorter than the window (a Triton kernel)."""
    from causal_conv1d.causal_conv1d_varlen import causal_conv1d_varlen_states

    lengths = torch.tensor([7, 2, 12], device=device)

    def ours(x):
        return {"state": conv.last_inputs(x, initial_state=None, lengths=lengths)}

    def theirs(x):
        joined = torch.cat([row[:length] for row, length in zip(x, lengths.tolist(), strict=True)])
        edges = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()
        return {"state": causal_conv1d_varlen_states(joined, edges, TAPS - 1)}

    inputs = {"x": draw(3, 12, CHANNELS)}
    parity("causal_conv1d_varlen_states", "7, 2 and 12 tokens", ours, theirs, inputs, backward=False)
