"""What tests of several rooms share: no network, one thread, and a Transformer of two layers in a folder."""

import os

# before torch, transformers or matplotlib are imported by anyone
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", MPLBACKEND="Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # shapes here are too small for more

import logging
import sys

import pytest


@pytest.fixture(scope="session")
def tokenizer():
    """The tokenizer of the embedded world."""
    from transformers import AutoTokenizer

    from lit_thinkfast.data.arithmetic import TOKENIZER

    return AutoTokenizer.from_pretrained(TOKENIZER)


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory, tokenizer):
    """A folder with a random two-layer Llama, its tokenizer and chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("tiny_teacher")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run ``lit-thinkfast`` in this process: ``cli("verb", ...) -> (exit code, stdout, stderr)``."""
    from lit_thinkfast.cli import main

    monkeypatch.setattr(sys, "argv", ["lit-thinkfast"])
    monkeypatch.setattr(logging, "raiseExceptions", False)  # Lightning's logger keeps the stderr of an earlier test
    monkeypatch.delenv("LIT_THINKFAST_DEBUG", raising=False)
    monkeypatch.setenv("LIT_THINKFAST_ALLOW_IMPORT", "")

    def run(*args):
        code = 0
        try:
            main([str(arg) for arg in args])
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return run
