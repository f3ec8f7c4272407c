"""Tiny Llama folders and packed rows."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB = 48


def llama_config(*, vocab_size=VOCAB, hidden_size=16, layers=2, **options):
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        architectures=["LlamaForCausalLM"],
        **options,
    )


def llama_folder(path: Path, *, seed: int = 0, weights: bool = True, **options) -> str:
    config = llama_config(**options)
    if weights:
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():  # away from the init, so that distributions are not nearly uniform
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
        model.save_pretrained(path)
    else:
        config.save_pretrained(path)
    return str(path)


def pack(lengths_of_rows, *, seed=0, prompt=2, seq_len=24):
    """Rows of random documents of these lengths; the first ``prompt`` tokens have no label; the rest is padding."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths_of_rows), seq_len)
    batch = {
        "input_ids": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, -100),
        "position_ids": torch.zeros(shape, dtype=torch.long),
        "seq_idx": torch.zeros(shape, dtype=torch.int32),
    }
    for row, lengths in enumerate(lengths_of_rows):
        start = 0
        for number, length in enumerate([*lengths, seq_len - sum(lengths)]):
            piece = slice(start, start + length)
            batch["position_ids"][row, piece] = torch.arange(length)
            batch["seq_idx"][row, piece] = number
            if number < len(lengths):
                # arithmetic progressions, so that there is something to learn
                first, step = torch.randint(3, VOCAB, (1,), generator=generator), number + 1
                ids = 3 + (first + step * torch.arange(length)) % (VOCAB - 3)
                batch["input_ids"][row, piece] = ids
                batch["labels"][row, piece] = ids
                batch["labels"][row, start : start + prompt] = -100
            start += length
    return batch


class Rows(Dataset):
    """A map-style set of packed rows."""

    def __init__(self, count, *, seed=0):
        self.count, self.seed = count, seed

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        batch = pack([[9, 11]], seed=self.seed * 1000 + index)
        return {name: values[0] for name, values in batch.items()}


def loader(count, batch_size, *, seed=0):
    return DataLoader(Rows(count, seed=seed), batch_size=batch_size)


@pytest.fixture
def teacher_folder(tmp_path):
    return llama_folder(tmp_path / "teacher", seed=1)


@pytest.fixture
def student_folder(tmp_path):
    return llama_folder(tmp_path / "student", seed=2)


@pytest.fixture
def batch():
    return pack([[9, 11], [20], [5, 6, 7]])
