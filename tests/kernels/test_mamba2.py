"""The Mamba-2 block and its gated norm against mamba-ssm's, with the same weights."""

from types import SimpleNamespace

import pytest
import torch
from torch.func import functional_call

from lit_thinkfast.mixers.base import States
from lit_thinkfast.mixers.mamba2 import GatedHeadNorm, Mamba2Mixer

# On a GPU the convolution inside mamba-ssm's block asks for a projection whose rows are a multiple of eight: eight heads.
HIDDEN, HEADS, WIDTH, TAPS = 32, 8, 4, 4


@pytest.mark.parametrize("time", [1, 37])
def test_gated_norm(device, draw, parity, time):
    from mamba_ssm.ops.triton.layernorm_gated import RMSNorm

    own = GatedHeadNorm(HEADS, head_dim=WIDTH, eps=1e-5).to(device)
    other = RMSNorm(HEADS * WIDTH, eps=1e-5, group_size=WIDTH, norm_before_gate=False).to(device)
    inputs = {"y": draw(2, time, HEADS * WIDTH), "z": draw(2, time, HEADS * WIDTH), "weight": draw(HEADS * WIDTH)}

    def norm(module):
        return lambda y, z, weight: {"out": functional_call(module, {"weight": weight}, (y, z))}

    parity("layernorm_gated.RMSNorm", f"{time} tokens", norm(own), norm(other), inputs)


@pytest.fixture(params=[8, 2], ids=["as many key heads", "grouped key heads"])
def mixer(request, device):
    config = SimpleNamespace(
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        num_key_value_heads=request.param,
        head_dim=WIDTH,
        rms_norm_eps=1e-5,
        base_model_type="llama",
        attention_bias=False,
        kernel="torch",
    )
    torch.manual_seed(0)
    mixer = Mamba2Mixer(config, layer_idx=0, d_conv=TAPS)
    torch.nn.init.normal_(mixer.norm.weight)
    torch.nn.init.normal_(mixer.D)
    return mixer.to(device)


@pytest.fixture
def block(device, monkeypatch):
    """mamba-ssm's block, with the compiled convolution replaced by its twin in torch where there is no GPU."""
    from mamba_ssm.modules import mamba2

    if device.type == "cpu":
        from causal_conv1d.causal_conv1d_interface import causal_conv1d_ref, causal_conv1d_update_ref

        monkeypatch.setattr(mamba2, "causal_conv1d_fn", causal_conv1d_ref)
        monkeypatch.setattr(mamba2, "causal_conv1d_update", causal_conv1d_update_ref)
    return mamba2.Mamba2(
        HIDDEN,
        d_state=WIDTH,
        d_conv=TAPS,
        expand=1,
        headdim=WIDTH,
        ngroups=HEADS,
        chunk_size=16,
        use_mem_eff_path=False,  # one kernel for everything, a compiled one among it
        device=device,
    )


def spread(mixer, weights):
    """Our weights in the layout of a block without grouped heads: rows of x and B once for each query head."""
    repeats = mixer.num_heads // mixer.num_kv_heads
    rows = torch.arange(HEADS * WIDTH).unflatten(0, (HEADS, WIDTH))
    shared = rows[: mixer.num_kv_heads].repeat_interleave(repeats, dim=0)
    kv = mixer.num_kv_heads * WIDTH
    conv = torch.cat([shared, kv + shared, 2 * kv + rows]).flatten()
    z, dt = rows.flatten(), torch.arange(HEADS) + HEADS * WIDTH + len(rows.flatten()) + 2 * kv
    projection = torch.cat([z, HEADS * WIDTH + conv, dt])
    theirs = dict(weights)
    theirs["in_proj.weight"] = weights["in_proj.weight"][projection]
    theirs["conv1d.weight"] = weights["conv1d.weight"][conv]
    theirs["conv1d.bias"] = weights["conv1d.bias"][conv]
    return theirs, conv


def with_dots(names):
    return {name.replace("__", "."): value for name, value in names.items()}


@pytest.mark.parametrize("packed", [False, True])
def test_block(device, draw, parity, mixer, block, packed):
    seq_idx = None
    if packed:
        seq_idx = torch.tensor([[0] * 5 + [1] + [2] * 31, [0] * 20 + [1] * 17], dtype=torch.int32, device=device)
    inputs = {name.replace(".", "__"): value.detach() for name, value in mixer.named_parameters()}

    def ours(u, **weights):
        return {"out": functional_call(mixer, with_dots(weights), (u,), {"seq_idx": seq_idx})}

    def theirs(u, **weights):
        weights, _ = spread(mixer, with_dots(weights))
        return {"out": functional_call(block, weights, (u,), {"seq_idx": seq_idx})}

    case = f"37 tokens, {mixer.num_kv_heads} key heads" + ", seq_idx" * packed
    parity("Mamba2", case, ours, theirs, {"u": draw(2, 37, HIDDEN), **inputs})


def test_block_step(device, draw, parity, mixer, block):
    channels = mixer.conv1d.weight.shape[0]
    weights, conv = spread(mixer, dict(mixer.named_parameters()))
    block.load_state_dict(weights)
    inputs = {"u": draw(3, HIDDEN), "state": draw(3, HEADS, WIDTH, WIDTH), "past": draw(3, channels, TAPS - 1)}

    def ours(u, state, past):
        out = mixer.step(u, States(past, state))
        return {"out": out, "state": state, "past": past[:, conv]}

    def theirs(u, state, past):
        # mamba-ssm keeps one input more than the window needs.
        past = torch.cat([torch.zeros_like(past[..., :1]), past], dim=-1)[:, conv]
        out, past, state = block.step(u[:, None], past, state)
        return {"out": out[:, 0], "state": state, "past": past[..., 1:]}

    parity("Mamba2.step", f"{mixer.num_kv_heads} key heads", ours, theirs, inputs, backward=False)
