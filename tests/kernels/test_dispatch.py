"""Our calls of the kernels: what ``kernel="auto"`` runs on a GPU gives what ``kernel="torch"`` gives.

Without a GPU the question for the device is answered with yes. Triton kernels are then interpreted. Compiled ones are
played by their twins in torch behind the same checks of types, shapes and strides as in their C++ (causal-conv1d 1.7.0
``csrc/causal_conv1d.cpp``, mamba-ssm 2.3.2 ``csrc/selective_scan/selective_scan.cpp``).
"""

import functools
import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import scaled_dot_product_attention, softplus

from lit_thinkfast.mixers import MIXERS, kernels
from lit_thinkfast.mixers.base import States
from lit_thinkfast.mixers.conv import CausalConv1d
from lit_thinkfast.mixers.scan import chunked_scan, scan_step
from lit_thinkfast.mixers.selective import selective_scan, selective_step

HEADS, WIDTH, TIME = 2, 16, 37
# Packed rows as a collator may write them: the first number is not zero, one is negative, one comes back.
DOCUMENTS = torch.tensor([[3] * 5 + [4] + [3] * 31, [-1] * 20 + [2] * 17])
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def check_conv(x, weight, bias, seq_idx, states):
    (batch, channels, time), taps = x.shape, weight.shape[1]
    last = x.stride(1) == 1 and x.stride(2) > 1
    assert x.dtype in FLOATS
    assert weight.dtype in FLOATS
    assert bias.dtype == weight.dtype
    assert weight.shape == (channels, taps)
    assert 2 <= taps <= 4
    assert last or x.stride(2) == 1
    if last:
        assert channels % 8 == 0, "channels divisible by 8"
        assert x.stride(2) % 8 == 0
        assert x.stride(0) % 8 == 0
    if seq_idx is not None:
        assert last
        assert seq_idx.dtype == torch.int32
        assert seq_idx.is_contiguous()
        assert seq_idx.shape == (batch, time)
    if states is not None:
        assert last
        assert states.dtype == x.dtype
        assert states.shape == (batch, channels, taps - 1)
        assert states.stride(1) == 1


def conv_forward(x, weight, bias, seq_idx, states, out, final, silu):
    from causal_conv1d.causal_conv1d_interface import causal_conv1d_ref

    check_conv(x, weight, bias, seq_idx, states)
    activation = "silu" if silu else None
    out.copy_(causal_conv1d_ref(x, weight, bias, initial_states=states, activation=activation, seq_idx=seq_idx))


def conv_backward(x, weight, bias, dout, seq_idx, states, dfinal, dx, dweight, dbias, dstates, silu):
    """Written out: inside a custom operator torch records no gradients."""
    check_conv(x, weight, bias, seq_idx, states)
    assert states is None
    assert not silu
    (_, _, time), taps = x.shape, weight.shape[1]
    documents = x.new_zeros(len(x), time) if seq_idx is None else seq_idx
    dout = dout.masked_fill((documents < 0)[:, None], 0)
    dx.zero_()
    for lag in range(taps):
        same = (documents[:, lag:] == documents[:, : time - lag])[:, None]
        later = dout[..., lag:] * same
        dx[..., : time - lag] += later * weight[:, taps - 1 - lag, None]
        dweight[:, taps - 1 - lag] = (later * x[..., : time - lag]).sum((0, 2))
    dbias.copy_(dout.sum((0, 2)))


def conv_update(x, state, weight, bias, out, silu, seqlens, indices):
    from causal_conv1d.causal_conv1d_interface import causal_conv1d_update_ref

    assert x.dtype in FLOATS
    assert state.dtype == x.dtype
    assert bias.dtype == weight.dtype
    assert 2 <= weight.shape[1] <= min(4, state.shape[2] + 1)
    assert state.shape[:2] == x.shape[:2] == (len(x), len(weight))
    out.copy_(causal_conv1d_update_ref(x, state, weight, bias, "silu" if silu else None))


def check_selective(u, delta, A, B, C, D):
    assert u.dtype in FLOATS
    assert u.dtype == delta.dtype == B.dtype == C.dtype
    assert A.dtype == torch.float32
    assert all(part.stride(-1) == 1 for part in (u, delta, B, C))
    (batch, channels, time), size = u.shape, A.shape[1]
    assert size <= 256
    assert delta.shape == u.shape
    assert A.shape == (channels, size)
    assert B.shape == C.shape == (batch, B.shape[1], size, time)
    if D is not None:
        assert D.dtype == torch.float32
        assert D.shape == (channels,)
        assert D.stride(0) == 1


def selective_forward(u, delta, A, B, C, D, z, bias, softplus):
    from mamba_ssm.ops.selective_scan_interface import selective_scan_ref

    check_selective(u, delta, A, B, C, D)
    assert z is None
    out, last = selective_scan_ref(u, delta, A, B, C, D, None, bias, softplus, return_last_state=True)
    return out, torch.stack([torch.zeros_like(last), last], dim=-1).flatten(-2)[:, :, None]


def selective_backward(u, delta, A, B, C, D, z, bias, dout, x, out, dz, softplus, recompute):
    from mamba_ssm.ops.selective_scan_interface import selective_scan_ref

    check_selective(u, delta, A, B, C, D)
    assert dout.stride(-1) == 1
    with torch.enable_grad():
        leaves = [None if value is None else value.detach().requires_grad_() for value in (u, delta, A, B, C, D)]
        y = selective_scan_ref(*leaves, delta_bias=bias, delta_softplus=softplus)
        gradients = iter(torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], dout))
    return (*(None if leaf is None else next(gradients) for leaf in leaves), None)


@pytest.fixture(autouse=True)
def fused(device, monkeypatch):
    """Every kernel is within reach."""
    if device.type == "cuda":
        return
    monkeypatch.setattr(kernels, "_fused", lambda device, kernel, *rest: kernel == "auto")
    conv, scan = sys.modules["causal_conv1d_cuda"], sys.modules["selective_scan_cuda"]
    monkeypatch.setattr(conv, "causal_conv1d_fwd", conv_forward, raising=False)
    monkeypatch.setattr(conv, "causal_conv1d_bwd", conv_backward, raising=False)
    monkeypatch.setattr(conv, "causal_conv1d_update", conv_update, raising=False)
    monkeypatch.setattr(scan, "fwd", selective_forward, raising=False)
    monkeypatch.setattr(scan, "bwd", selective_backward, raising=False)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("continued", [False, True])
@pytest.mark.parametrize("direct", [False, True])
def test_scan(device, draw, parity, packed, continued, direct):
    found = kernels.find_scan(device, "auto")
    assert found is not chunked_scan
    inputs = {name: draw(2, TIME, HEADS, WIDTH) for name in "xBC"}
    inputs |= {"dt": softplus(draw(2, TIME, HEADS) - 1), "A": -torch.linspace(0.5, 4, HEADS)}
    if direct:
        inputs["D"] = draw(HEADS)
    if continued:
        inputs["initial_state"] = draw(2, HEADS, WIDTH, WIDTH)
    seq_idx = DOCUMENTS.to(device) if packed else None

    def run(scan):
        def call(x, dt, A, B, C, **options):
            y, last = scan(x, dt, A, B, C, seq_idx=seq_idx, chunk_size=32, **options)
            return {"y": y, "last state": last}

        return call

    parts = [name for name, given in (("D", direct), ("seq_idx", packed), ("initial state", continued)) if given]
    parity("our call: scan", ", ".join([f"{TIME} tokens", *parts]), run(chunked_scan), run(found), inputs)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("direct", [False, True])
def test_selective_scan(device, draw, parity, groups, direct):
    found = kernels.find_selective_scan(device, "auto", fresh=True)
    assert found is not selective_scan
    channels, size = 12, 16
    inputs = {"x": draw(2, TIME, channels), "dt": softplus(draw(2, TIME, channels) - 1)}
    inputs |= {"A": -softplus(draw(channels, size)), "B": draw(2, TIME, groups, size), "C": draw(2, TIME, groups, size)}
    if direct:
        inputs["D"] = draw(channels)

    def run(scan):
        def call(x, dt, A, B, C, **options):
            y, last = scan(x, dt, A, B, C, **options)
            return {"y": y, "last state": last.detach()}  # the kernel has no gradient of it

        return call

    case = f"{groups} of B, C" + ", D" * direct
    parity("our call: selective scan", case, run(selective_scan), run(found), inputs)


def test_selective_scan_leaves_what_the_kernel_cannot_do(device):
    assert kernels.find_selective_scan(device, "auto", fresh=False) is selective_scan


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("channelwise", [False, True])
def test_steps(device, draw, parity, channelwise, direct):
    if channelwise:
        own, found, groups, channels = selective_step, kernels.find_selective_step(device, "auto"), 2, 12
        inputs = {"state": draw(3, channels, WIDTH), "x": draw(3, channels), "dt": softplus(draw(3, channels))}
        inputs |= {"A": -softplus(draw(channels, WIDTH)), "B": draw(3, groups, WIDTH), "C": draw(3, groups, WIDTH)}
        D = draw(channels)
    else:
        own, found = scan_step, kernels.find_scan_step(device, "auto")
        inputs = {"state": draw(3, HEADS, WIDTH, WIDTH)} | {name: draw(3, HEADS, WIDTH) for name in "xBC"}
        inputs |= {"dt": softplus(draw(3, HEADS)), "A": -torch.linspace(0.5, 4, HEADS)}
        D = draw(HEADS)
    assert found is not own
    if direct:
        inputs["D"] = D

    def run(step):
        def call(state, x, dt, A, B, C, D=None):
            return {"y": step(state, x, dt, A, B, C, D=D), "state": state}

        return call

    name = "our call: selective step" if channelwise else "our call: scan step"
    parity(name, "D" if direct else "no D", run(own), run(found), inputs, backward=False)


@pytest.mark.parametrize("channels", [24, 20])
@pytest.mark.parametrize(("taps", "offset"), [(4, 0), (4, 3), (3, 0), (2, 0), (5, 0)])
@pytest.mark.parametrize("packed", [False, True])
def test_conv(device, draw, parity, channels, taps, offset, packed):
    """Rows cut from a wider projection at any place; numbers of channels and taps that the kernel takes and refuses."""
    inputs = {"wide": draw(2, TIME, channels + offset), "weight": draw(channels, 1, taps), "bias": draw(channels)}
    seq_idx = DOCUMENTS.to(device) if packed else None

    def run(kernel):
        conv = CausalConv1d(channels, kernel_size=taps, kernel=kernel).to(device)

        def call(wide, weight, bias):
            weights = {"weight": weight, "bias": bias}
            return {"y": functional_call(conv, weights, (wide[..., offset:],), {"seq_idx": seq_idx})}

        return call

    case = f"{channels} channels from {offset} on, {taps} taps" + ", seq_idx" * packed
    parity("our call: conv", case, run("torch"), run("auto"), inputs)


@pytest.mark.parametrize("rows", [torch.float32, torch.bfloat16])
def test_conv_step(device, draw, parity, rows):
    """A cache may be in another type than the activations, as under autocast."""
    channels, taps = 24, 4
    inputs = {"x": draw(3, channels), "state": draw(3, channels, taps - 1)}
    torch.manual_seed(0)
    convs = {name: CausalConv1d(channels, kernel_size=taps, kernel=name).to(device) for name in ("torch", "auto")}
    convs["auto"].load_state_dict(convs["torch"].state_dict())
    exact = {name: value.bfloat16().float() for name, value in inputs.items()}

    def run(conv):
        def call(x, state):
            return {"y": conv.step(x.to(rows), state).float(), "state": state}

        return call

    name = str(rows).removeprefix("torch.")
    limit = 5e-5 if rows == torch.float32 else 1e-2
    parity("our call: conv step", name, run(convs["torch"]), run(convs["auto"]), exact, backward=False, limit=limit)


class Mixing(torch.nn.Module):
    """``mix`` as ``forward``, with the parameters called ``mixer.``..."""

    def __init__(self, mixer, options):
        super().__init__()
        self.mixer = mixer
        self.options = options

    def forward(self, u):
        return self.mixer.mix(u, **self.options)


def build(mixer, kernel, device):
    config = SimpleNamespace(
        hidden_size=32,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        head_dim=WIDTH,
        rms_norm_eps=1e-5,
        base_model_type="llama",
        attention_bias=False,
        kernel=kernel,
    )
    torch.manual_seed(0)
    return MIXERS[mixer](config, 0).to(device)


@pytest.mark.parametrize("mixer", ["mamba1", "mamba2", "discrete_mamba2"])
@pytest.mark.parametrize("rows", ["plain", "packed", "padded", "continued"])
def test_mixer(device, draw, parity, mixer, rows):
    own, auto = (build(mixer, kernel, device) for kernel in ("torch", "auto"))
    inputs = {f"mixer.{name}": value.detach() for name, value in own.named_parameters()}
    options = {"states": None, "attention_mask": None, "seq_idx": None}
    if rows == "packed":
        options["seq_idx"] = DOCUMENTS.to(device)
    if rows == "padded":
        options["attention_mask"] = torch.ones(2, TIME, device=device)
        options["attention_mask"][1, :7] = 0
    if rows == "continued":
        with torch.no_grad():
            _, options["states"] = own.mix(draw(2, 5, 32).to(device), states=None, attention_mask=None, seq_idx=None)

    def run(mixer):
        def call(u, **weights):
            out, states = functional_call(Mixing(mixer, options), weights, (u,))
            return {"out": out, "state": states.state.detach(), "conv": states.conv.detach()}

        return call

    parity(f"our call: {mixer}", rows, run(own), run(auto), {"u": draw(2, TIME, 32), **inputs})


@pytest.mark.parametrize("mixer", ["mamba1", "mamba2", "discrete_mamba2"])
def test_mixer_step(device, draw, parity, mixer):
    own, auto = (build(mixer, kernel, device) for kernel in ("torch", "auto"))
    with torch.no_grad():
        _, states = own.mix(draw(3, 5, 32).to(device), states=None, attention_mask=None, seq_idx=None)

    def run(module):
        def call(u, conv, state):
            return {"out": module.step(u, States(conv, state)), "conv": conv, "state": state}

        return call

    inputs = {"u": draw(3, 32), "conv": states.conv, "state": states.state}
    parity(f"our call: {mixer}", "one token", run(own), run(auto), inputs, backward=False)


def attention_loop(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *, softmax_scale, causal,
                   dropout_p=0.0):  # fmt: skip
    """What flash-attn does with ``flash_attn_varlen_func``, by its documentation, one document after the other."""
    assert q.dtype == k.dtype == v.dtype == torch.bfloat16
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert isinstance(max_seqlen_q, int)
    assert isinstance(max_seqlen_k, int)
    assert dropout_p == 0
    edges = cu_seqlens_q.tolist()
    assert edges == cu_seqlens_k.tolist()
    assert edges[-1] == len(q)
    pieces = []
    for start, end in pairwise(edges):
        assert end - start <= min(max_seqlen_q, max_seqlen_k)
        rows = [part[start:end].float().transpose(0, 1) for part in (q, k, v)]
        y = scaled_dot_product_attention(*rows, is_causal=causal, scale=softmax_scale, enable_gqa=True)
        pieces.append(y.transpose(0, 1).to(q.dtype))
    return torch.cat(pieces)


def test_attention_over_documents(device, draw, parity, monkeypatch):
    from lit_thinkfast.models import attention

    if device.type == "cpu":
        call = functools.partial(kernels._varlen_attention, attention_loop)
        find = lambda device, dtype: call if dtype == torch.bfloat16 else None  # noqa: E731
        monkeypatch.setattr(attention, "find_varlen_attention", find)
    else:
        pytest.importorskip("flash_attn", reason="flash-attn is not installed")
    seq_idx = torch.tensor([[3] * 7 + [4] + [3] * 12, [-1] * 20], device=device)

    def run(dtype):
        def call(q, k, v):
            visible = attention.visibility(queries=20, past=0, device=device, seq_idx=seq_idx, dtype=dtype)
            parts = (part.to(dtype) for part in (q, k, v))
            return {"out": attention.attend(*parts, visible, scale=0.3).float()}

        return call

    inputs = {"q": draw(2, 4, 20, WIDTH), "k": draw(2, 2, 20, WIDTH), "v": draw(2, 2, 20, WIDTH)}
    parity("our call: attention", "documents, bfloat16", run(torch.float32), run(torch.bfloat16), inputs, limit=3e-2)


@pytest.mark.parametrize("window", [None, 4])
def test_attention_over_slots(device, draw, parity, window):
    """Rows of five lengths, three steps; without a GPU the kernel is played in ``tests/models/test_slots.py``."""
    from lit_thinkfast.models.slots import FlashSlots, TimeFirstSlots, reach

    if device.type == "cpu":
        pytest.skip("flash-attn runs on a GPU only")
    pytest.importorskip("flash_attn", reason="flash-attn is not installed")
    lengths = torch.tensor([0, 5, 11, 3, 8], device=device)

    def run(dtype):
        def call(q, k, v, keys, values):
            sizes, place = (5, 2, WIDTH, 16), {"device": device, "dtype": dtype}
            found = kernels.find_cached_attention(device, dtype)
            memory = TimeFirstSlots(*sizes, **place) if found is None else FlashSlots(found, *sizes, **place)
            for row, time in enumerate(lengths.tolist()):
                stored = (part[row, :, :time].to(dtype) for part in (keys, values))
                memory.admit(torch.tensor([row], device=device), *stored)
            outs = []
            for step in range(3):
                at = reach(lengths + step, 16, dtype=dtype, window=window)
                parts = (part[step].to(dtype) for part in (q, k, v))
                outs.append(memory.step(*parts, at, scale=0.3).float())
            return {"out": torch.stack(outs)}

        return call

    inputs = {"q": draw(3, 5, 4, WIDTH), "k": draw(3, 5, 2, WIDTH), "v": draw(3, 5, 2, WIDTH)}
    inputs |= {"keys": draw(5, 2, 16, WIDTH), "values": draw(5, 2, 16, WIDTH)}
    case = "slots, bfloat16" if window is None else "slots, bfloat16, a window"
    ways = run(torch.float32), run(torch.bfloat16)
    parity("our call: attention", case, *ways, inputs, backward=False, limit=3e-2)
