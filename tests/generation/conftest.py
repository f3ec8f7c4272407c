"""Tiny random models in float64, so that equal texts mean equal arithmetic, and a tokenizer of single characters."""

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lit_thinkfast.models.convert import convert
from lit_thinkfast.records import Problem

LAYERS = {"attention": [0, 1, 2], "hybrid": [1], "recurrent": []}


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


@pytest.fixture(params=list(LAYERS))
def model(request, all_models):
    return all_models[request.param]


@pytest.fixture(scope="session")
def problems():
    questions = ["two and two", "7", "how many apples has she", "3 + 4", "what"]
    return [Problem(id=f"toy/{i}", question=q, answer="4", source="toy") for i, q in enumerate(questions)]
