"""Signals against stock models run one document at a time."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from lit_thinkfast.distill import HFTeacher
from lit_thinkfast.distill.signals import read_signals
from lit_thinkfast.models import convert

from .conftest import llama_folder

NEEDS = frozenset({"logits", "hidden_states"})


def documents(batch):
    """Yield (row, slice) of each document, padding included."""
    for row, index in enumerate(batch["seq_idx"]):
        for number in index.unique():
            where = (index == number).nonzero().flatten()
            yield row, slice(int(where[0]), int(where[-1]) + 1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_documents_are_isolated_for_a_stock_teacher(attention, teacher_folder, batch):
    model = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.float64, attn_implementation=attention)
    with torch.no_grad():
        packed = read_signals(model, batch, needs=frozenset({"logits"}))
        for row, piece in documents(batch):
            alone = model(batch["input_ids"][row : row + 1, piece]).logits[0]
            tolerance = 1e-6 if attention == "eager" else 1e-9  # eager attention takes its softmax in fp32
            torch.testing.assert_close(packed.logits()[row, piece], alone, rtol=tolerance, atol=tolerance)


def test_our_model_gives_the_signals_of_the_stock_one(teacher_folder, batch):
    stock = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.float64)
    ours = convert(stock, mixer="attention")
    with torch.no_grad():
        wanted, actual = (read_signals(m, batch, needs=NEEDS) for m in (stock, ours))
    torch.testing.assert_close(actual.last_hidden, wanted.last_hidden)
    torch.testing.assert_close(actual.head, wanted.head)
    torch.testing.assert_close(actual.hidden_states, wanted.hidden_states)


def test_the_last_hidden_state_is_before_the_final_norm(teacher_folder, batch):
    model = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.float64)
    with torch.no_grad():
        signals = read_signals(model, batch, needs=NEEDS)
        assert len(signals.hidden_states) == 3
        torch.testing.assert_close(model.model.norm(signals.hidden_states[-1]), signals.last_hidden)
        assert (signals.hidden_states[-1] - signals.last_hidden).abs().max() > 0.1
    assert not model.model.norm._forward_pre_hooks


def test_a_teacher_is_frozen_lazy_and_silent(teacher_folder, batch):
    teacher = HFTeacher(teacher_folder, dtype="bfloat16")
    assert teacher._model is None
    teacher.load(torch.device("cpu"))
    signals = teacher.signals(batch, frozenset({"logits"}))
    assert signals.last_hidden.dtype == torch.bfloat16
    assert not signals.last_hidden.requires_grad
    assert not signals.head.requires_grad
    assert signals.hidden_states is None
    assert not teacher._model.training


def test_constructing_reads_nothing_and_a_missing_teacher_is_one_line(tmp_path):
    teacher = HFTeacher(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere") as error:
        teacher.vocab_size()
    assert "\n" not in str(error.value)


def test_vocab_size(tmp_path):
    assert HFTeacher(llama_folder(tmp_path / "t", vocab_size=50)).vocab_size() == 50
