import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_thinkfast.data.prompts import encode_example
from lit_thinkfast.data.rows import Document, RowPacker, best_fit, collate_rows
from lit_thinkfast.records import Example


def naive_best_fit(lengths, capacity):
    """Number of bins, by looking at every bin for every item."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=lambda i: rooms[i])] -= length
        else:
            rooms.append(capacity - length)
    return len(rooms)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 20), max_size=40))
def test_best_fit_places_each_item_once_and_as_the_naive_twin(lengths):
    bins = best_fit(lengths, 20)
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in b) <= 20 for b in bins)
    assert len(bins) == naive_best_fit(lengths, 20)


def test_layout_of_a_row():
    rows = [
        [Document(np.array([5, 6, 7]), np.array([-100, 6, 7])), Document(np.array([8, 9]), np.array([-100, 9]))],
        [],
    ]
    batch = collate_rows(rows, seq_len=7, pad_token_id=1)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 1, 1], [1] * 7]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9, -100, -100], [-100] * 7]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1], list(range(7))]
    assert batch["seq_idx"].tolist() == [[0, 0, 0, 1, 1, 2, 2], [0] * 7]
    assert [str(batch[k].dtype) for k in batch] == ["torch.int64"] * 3 + ["torch.int32"]


def test_a_long_document_is_cut_and_one_without_labels_left_out(tokenizer, caplog):
    short, long, hopeless = Example("s", "Q", "ab"), Example("l", "Q", "9" * 90), Example("h", "9" * 90, "x")
    with caplog.at_level(logging.WARNING):
        packer = RowPacker(tokenizer, seq_len=40)
        rows = packer.rows([short, long, hopeless, long])
    documents = sorted((d for row in rows for d in row), key=len)
    assert [len(d) for d in documents] == [len(encode_example(tokenizer, short)[0]), 40, 40]
    assert documents[-1].input_ids.tolist() == encode_example(tokenizer, long)[0][:40]
    assert len(caplog.messages) == 2  # one of each kind
    assert "example 'l' has 95 tokens; seq_len keeps 40" in caplog.messages[0]
    assert "example 'h' has no label within seq_len 40; left out" in caplog.messages[1]


def test_half_empty_rows_are_reported_with_a_remedy(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        RowPacker(tokenizer, seq_len=100).rows([Example(str(i), "Q", "1" * 50) for i in range(20)])
    assert len(caplog.messages) == 1
    assert "are 55% full" in caplog.messages[0]
    assert "a seq_len of 256 wastes less" in caplog.messages[0]


def test_a_row_has_at_least_two_tokens(tokenizer):
    with pytest.raises(ValueError, match="seq_len 1 is too short; use at least 2"):
        RowPacker(tokenizer, seq_len=1)
