"""A decoder's configuration, and each kind of mixer in float64 with values that are not neutral."""

from types import SimpleNamespace

import pytest
import torch

from lit_thinkfast.mixers import MIXERS

VARIANTS = {
    "mamba1": ("mamba1", {"d_state": 4}),
    "mamba1_published": ("mamba1", {"d_state": 4, "gqa_expand": "reference", "dt_bias_mult": 2}),
    "mamba1_conv_first": ("mamba1", {"d_state": 8, "repeat_kv_before_conv": False, "dt_rank": 3}),
    "mamba2": ("mamba2", {}),
    "mamba2_bias": ("mamba2", {"bias": True, "d_conv": 3, "chunk_size": 5}),
    "discrete_mamba2": ("discrete_mamba2", {}),
    "discrete_mamba2_odd_heads": ("discrete_mamba2", {"num_heads": 8, "d_state": 5, "chunk_size": 3}),
    "discrete_mamba2_multi_value": ("discrete_mamba2", {"num_qk_heads": 1, "activation": "silu", "bias": True}),
}


def make_config(**changes):
    values = {
        "hidden_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": 1e-5,
        "base_model_type": "llama",
        "attention_bias": False,
    }
    return SimpleNamespace(**values | changes)


def make_mixer(variant, *, kernel="auto", dtype=torch.float64):
    name, options = VARIANTS[variant]
    torch.manual_seed(0)
    mixer = MIXERS[name](make_config(kernel=kernel), 0, **options)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer.to(dtype)


@pytest.fixture(params=VARIANTS)
def variant(request):
    return request.param


@pytest.fixture
def tools():
    return SimpleNamespace(config=make_config, mixer=make_mixer, variants=VARIANTS)
