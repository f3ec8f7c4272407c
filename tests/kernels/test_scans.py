"""The scans and their single steps against mamba-ssm: chunk scan, selective scan, state update."""

import pytest
import torch
from torch.nn.functional import softplus

from lit_thinkfast.mixers.scan import chunked_scan, scan_step
from lit_thinkfast.mixers.selective import selective_scan, selective_step

HEADS, WIDTH = 2, 16


def documents(time):
    """Documents that begin inside chunks, at their edges, and one of a single token."""
    seq_idx = torch.zeros(2, time, dtype=torch.int32)
    for row, starts in enumerate(((5, 16, 17), (32,))):
        for start in starts:
            seq_idx[row, start:] += 1
    return seq_idx


@pytest.mark.parametrize("chunk", [16, 64])
@pytest.mark.parametrize(
    ("time", "direct", "packed", "continued"),
    [
        (48, False, False, False),
        (37, True, False, False),
        (48, True, True, False),
        (37, True, False, True),
        (37, True, True, True),
    ],
)
def test_chunk_scan(device, draw, parity, time, direct, packed, continued, chunk):
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    inputs = {name: draw(2, time, HEADS, WIDTH) for name in "xBC"}
    inputs["dt"] = softplus(draw(2, time, HEADS) - 1)
    inputs["A"] = -torch.linspace(0.5, 4, HEADS)
    if direct:
        inputs["D"] = draw(HEADS)
    if continued:
        inputs["state"] = draw(2, HEADS, WIDTH, WIDTH)
    seq_idx = documents(time).to(device) if packed else None

    def ours(x, dt, A, B, C, D=None, state=None):
        y, last = chunked_scan(x, dt, A, B, C, D=D, seq_idx=seq_idx, initial_state=state, chunk_size=12)
        return {"y": y, "last state": last}

    def theirs(x, dt, A, B, C, D=None, state=None):
        y, last = mamba_chunk_scan_combined(
            x, dt, A, B, C, chunk, D=D, seq_idx=seq_idx, initial_states=state, return_final_states=True
        )
        return {"y": y, "last state": last}

    parts = [name for name, given in (("D", direct), ("seq_idx", packed), ("initial state", continued)) if given]
    parity("mamba_chunk_scan_combined", ", ".join([f"{time} tokens", f"chunk {chunk}", *parts]), ours, theirs, inputs)


@pytest.mark.parametrize("time", [37, 48])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("direct", [False, True])
def test_selective_scan(device, draw, parity, time, groups, direct):
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn, selective_scan_ref

    channels, size = 12, 16
    on_cpu = device.type == "cpu"
    inputs = {
        "x": draw(2, time, channels),
        "dt": softplus(draw(2, time, channels) - 1),
        "A": -softplus(draw(channels, size)),
    }
    inputs |= {name: draw(2, time, groups, size) for name in "BC"}
    if direct:
        inputs["D"] = draw(channels)

    def ours(x, dt, A, B, C, D=None):
        y, last = selective_scan(x, dt, A, B, C, D=D)
        return {"y": y, "last state": last if on_cpu else last.detach()}

    def theirs(x, dt, A, B, C, D=None):
        # The compiled kernel, which has no interpreter and no gradient of the last state; on a CPU its own twin.
        scan = selective_scan_ref if on_cpu else selective_scan_fn
        by_channel = [part.transpose(1, 2) for part in (x, dt)]
        by_group = [part.permute(0, 2, 3, 1) for part in (B, C)]
        y, last = scan(*by_channel, A, *by_group, D=D, return_last_state=True)
        return {"y": y.transpose(1, 2), "last state": last if on_cpu else last.detach()}

    kernel = "selective_scan_ref" if on_cpu else "selective_scan_fn"
    parity(kernel, f"{time} tokens, {groups} of B, C" + ", D" * direct, ours, theirs, inputs)


def test_step_of_heads(device, draw, parity):
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    inputs = {"state": draw(3, HEADS, WIDTH, WIDTH)} | {name: draw(3, HEADS, WIDTH) for name in "xBC"}
    inputs |= {"dt": draw(3, HEADS), "A": -torch.linspace(0.5, 4, HEADS), "D": draw(HEADS), "bias": draw(HEADS)}

    def ours(state, x, dt, A, B, C, D, bias):
        y = scan_step(state, x, softplus(dt + bias), A, B, C, D=D)
        return {"y": y, "state": state}

    def theirs(state, x, dt, A, B, C, D, bias):
        wide = {"A": A[:, None, None].expand(HEADS, WIDTH, WIDTH)}
        wide |= {name: value[:, None].expand(HEADS, WIDTH) for name, value in (("D", D), ("dt_bias", bias))}
        y = selective_state_update(state, x, dt[..., None].expand_as(x), B=B, C=C, dt_softplus=True, **wide)
        return {"y": y, "state": state}

    parity("selective_state_update", "a head's decay", ours, theirs, inputs, backward=False)


@pytest.mark.parametrize("groups", [1, 2])
def test_step_of_channels(device, draw, parity, groups):
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    channels, size = 12, 16
    inputs = {"state": draw(3, channels, size), "x": draw(3, channels), "dt": draw(3, channels)}
    inputs |= {"A": -softplus(draw(channels, size)), "B": draw(3, groups, size), "C": draw(3, groups, size)}
    inputs |= {"D": draw(channels), "bias": draw(channels)}

    def ours(state, x, dt, A, B, C, D, bias):
        y = selective_step(state, x, softplus(dt + bias), A, B, C, D=D)
        return {"y": y, "state": state}

    def theirs(state, x, dt, A, B, C, D, bias):
        shape = (groups, channels // groups)
        state, x, dt = (value.unflatten(1, shape) for value in (state, x, dt))
        A, D, bias = (value.unflatten(0, shape) for value in (A, D, bias))
        y = selective_state_update(state, x, dt, A, B, C, D, dt_bias=bias, dt_softplus=True)
        return {"y": y.flatten(1), "state": state.flatten(1, 2)}

    parity("selective_state_update", f"each channel's decay, {groups} of B, C", ours, theirs, inputs, backward=False)
