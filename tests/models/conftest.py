"""Tiny teachers and students, built from seeds."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, Qwen2Config, Qwen3Config

from lit_thinkfast.models import convert

collect_ignore = ["outside_mixer.py"]  # whose import adds a mixer

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "initializer_range": 0.3,
}
CONFIGS = {
    "llama": lambda: LlamaConfig(**SIZES),
    "llama_bias": lambda: LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama3_rope": lambda: LlamaConfig(
        **SIZES,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=5),
    "qwen2": lambda: Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=16),
}
ATTENTION_LAYERS = {"hybrid": [1], "recurrent": [], "attention": [0, 1, 2]}
LAYOUTS = (
    "attention", "hybrid mamba2", "recurrent mamba2",
    "hybrid mamba1", "recurrent mamba1", "hybrid discrete_mamba2", "recurrent discrete_mamba2",
)  # fmt: skip
OPTIONS = {"mamba1": {"d_state": 4}}


def make_teacher(family="llama", dtype=torch.float32):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype)


def make_student(layout="hybrid", dtype=torch.float32, family="llama"):
    """A student by the name of its layout; its mixer is mamba2 unless a second word says another."""
    layers, _, mixer = layout.partition(" ")
    mixer = mixer or "mamba2"
    return convert(
        make_teacher(family, dtype),
        attention_layers=ATTENTION_LAYERS[layers],
        mixer=mixer,
        mixer_options=OPTIONS.get(mixer),
    )


def tokens(*shape, seed=0):
    return torch.randint(3, 50, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return request.param


@pytest.fixture
def teacher():
    return make_teacher()


@pytest.fixture
def helpers():
    class Helpers:
        student = staticmethod(make_student)
        teacher = staticmethod(make_teacher)
        tokens = staticmethod(tokens)
        families = tuple(CONFIGS)
        llama = LlamaForCausalLM

    return Helpers
