"""Tiny random models in float64, so that equal texts mean equal arithmetic, and a tokenizer of single characters."""

import functools

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from lit_thinkfast.models import HybridConfig, HybridForCausalLM
from lit_thinkfast.models.convert import convert
from lit_thinkfast.records import Problem

LAYERS = {"attention": [0, 1, 2], "hybrid": [1], "recurrent": []}
SMALL = {
    "vocab_size": 45, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 256, "initializer_range": 0.5,
    "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0, "tie_word_embeddings": True,
}  # fmt: skip
FAMILIES = {
    "llama": lambda: LlamaConfig(**SMALL),
    "mistral": lambda: MistralConfig(**SMALL, sliding_window=4),
    "qwen2": lambda: Qwen2Config(**SMALL),
    "qwen3": lambda: Qwen3Config(**SMALL),
    "mixed_windows": lambda: Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=3, max_window_layers=1),
}


@pytest.fixture(scope="session")
def characters():
    """Characters as tokens; ``.`` ends a text."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", ".", *"abcdefghijklmnopqrstuvwxyz0123456789 ?:+\nQA"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token=".")


@pytest.fixture(scope="session")
def llama(characters):
    """A stock Transformer with grouped heads."""
    config = LlamaConfig(
        vocab_size=len(characters), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.4, bos_token_id=None,
        eos_token_id=characters.eos_token_id, pad_token_id=characters.pad_token_id, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).double().eval()


@pytest.fixture(scope="session")
def all_models(llama):
    return {name: convert(llama, attention_layers=kept, seed=1).double().eval() for name, kept in LAYERS.items()}


@pytest.fixture(scope="session")
def small():
    """``small("mistral hybrid mamba1")``: two layers of a family; biases and norms are not what they are made with."""

    @functools.cache
    def build(name):
        family, layout, mixer = (*name.split(), "mamba2")[:3]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            teacher = AutoModelForCausalLM.from_config(FAMILIES[family]())
            for parameter in teacher.parameters():
                if parameter.ndim == 1:
                    parameter.data.add_(0.3 * torch.randn_like(parameter))
        kept = {"attention": [0, 1], "hybrid": [1], "recurrent": []}[layout]
        options = {"d_state": 4} if mixer == "mamba1" else None
        return convert(teacher, attention_layers=kept, mixer=mixer, mixer_options=options, seed=1).double().eval()

    return build


@pytest.fixture(scope="session")
def everything():
    """A model with a layer of each kind: full and sliding attention, with norms, and all mixers."""
    mixers = ["attention", "mamba1", "attention", "mamba2", "discrete_mamba2"]
    config = HybridConfig(
        **SMALL | {"num_hidden_layers": 5}, base_model_type="qwen3", layer_mixers=mixers, sliding_window=4,
        layer_types=["full_attention", "", "sliding_attention", "", ""], mixer_options={"mamba1": {"d_state": 4}},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return HybridForCausalLM(config).double().eval()


@pytest.fixture(params=list(LAYERS))
def model(request, all_models):
    return all_models[request.param]


@pytest.fixture(scope="session")
def problems():
    questions = ["two and two", "7", "how many apples has she", "3 + 4", "what"]
    return [Problem(id=f"toy/{i}", question=q, answer="4", source="toy") for i, q in enumerate(questions)]
