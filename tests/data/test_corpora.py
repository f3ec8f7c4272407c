import itertools
import json
import pickle

import pytest

from lit_thinkfast.data.arithmetic import generate_problem
from lit_thinkfast.data.corpora import (
    ArithmeticCorpus,
    Corpus,
    Gsm8kCorpus,
    HubCorpus,
    HubTableCorpus,
    IndexedCorpus,
    JsonlCorpus,
    ParquetCorpus,
)
from lit_thinkfast.data.mixing import MixedCorpus
from lit_thinkfast.records import Example, RecordError, write_jsonl

ROWS = [{"prompt": f"p{i}", "response": f"r{i}", "n": i} for i in range(11)]


def responses(corpus, split, start=0):
    return [e.response for e in corpus.examples(split, start=start)]


def write_parquet(path, rows):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


@pytest.fixture(params=["jsonl", "parquet", "hub", "hub-download"])
def corpus(request, tmp_path, write_rows, monkeypatch):
    """Eleven rows, every fourth held out, in each form."""
    if request.param == "jsonl":
        return JsonlCorpus(write_rows(ROWS), validation_every=4)
    if request.param == "parquet":
        return ParquetCorpus(write_parquet(tmp_path / "rows.parquet", ROWS), validation_every=4)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    write_rows(ROWS, "set/train.jsonl")
    return HubCorpus(str(tmp_path / "set"), validation_every=4, streaming=request.param == "hub")


def test_rows_become_examples_and_some_are_held_out(corpus):
    assert isinstance(corpus, Corpus)
    assert responses(corpus, "validation") == ["r0", "r4", "r8"]
    assert responses(corpus, "train") == ["r1", "r2", "r3", "r5", "r6", "r7", "r9", "r10"]
    first = next(iter(corpus.examples("train")))
    assert first.prompt == "p1"
    assert len({e.id for split in ("train", "validation") for e in corpus.examples(split)}) == 11


def test_a_later_start_is_the_tail(corpus):
    for split in ("train", "validation"):
        whole = responses(corpus, split)
        for start in range(len(whole) + 2):
            assert responses(corpus, split, start) == whole[start:]


def test_size_and_random_access_agree_with_the_pass(write_rows):
    for count, every in itertools.product(range(1, 12), (2, 3, 5)):
        made = JsonlCorpus(write_rows(ROWS[:count]), validation_every=every)
        both = []
        for split in ("train", "validation"):
            both += [made.example(split, i).response for i in range(made.size(split))]
            assert made.size(split) == len(responses(made, split))
        assert sorted(both) == sorted(r["response"] for r in ROWS[:count])


def test_a_second_file_to_validate_on(write_rows):
    made = JsonlCorpus(write_rows(ROWS), validation_path=write_rows(ROWS[:2], "held.jsonl"))
    assert len(responses(made, "train")) == 11
    assert responses(made, "validation") == ["r0", "r1"]


def test_splits_of_a_dataset(tmp_path, write_rows, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    write_rows(ROWS, "set/train.jsonl")
    write_rows(ROWS[5:7], "set/test.jsonl")
    made = HubCorpus(str(tmp_path / "set"), validation_split="test")
    assert len(responses(made, "train")) == 11
    assert responses(made, "validation") == ["r5", "r6"]


def test_columns_step_labels_and_ids(write_rows):
    path = write_rows([{"q": "Q", "a": "x\ny", "ok": [1, False], "key": 7}])
    made = JsonlCorpus(
        path, prompt_column="q", response_column="a", step_labels_column="ok", id_column="key", validation_every=2
    )
    assert made.example("validation", 0) == Example("7", "Q", "x\ny", path, (True, False))
    assert JsonlCorpus(path, prompt_column=None, response_column="a").example("validation", 0).prompt == ""


def test_outcomes(write_rows):
    path = write_rows([{"a": "x\ny", "right": 1}, {"a": ["x y", "z"], "right": [True, False]}])
    made = JsonlCorpus(path, prompt_column=None, response_column="a", outcome_column="right", validation_every=2)
    assert made.example("validation", 0) == Example(f"{path}:1", "", "x\ny", path, outcome=True)
    assert made.example("train", 0) == Example(f"{path}:2", "", "x y\nz", path, outcome=False)
    for outcome in ("yes", [], ["yes"], 0.5, None):
        path = write_rows([{"prompt": "p", "response": "r", "right": outcome}])
        with pytest.raises(RecordError, match=r"rows.jsonl:1: column 'right' is not a truth value"):
            JsonlCorpus(path, outcome_column="right").example("validation", 0)


def test_reads_written_examples(tmp_path):
    examples = [Example(str(i), "Q", f"{i}\nb", "here", (True, False)) for i in range(3)]
    write_jsonl(examples, tmp_path / "e.jsonl")
    made = JsonlCorpus(str(tmp_path / "e.jsonl"), step_labels_column="step_labels", validation_every=3)
    found = [*made.examples("validation"), *made.examples("train")]
    assert [(e.prompt, e.response, e.step_labels) for e in found] == [
        ("Q", e.response, (True, False)) for e in examples
    ]


def test_blank_lines_carriage_returns_and_a_byte_order_mark_do_no_harm(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "p", "response": "a"}\r\n\r\n  \n{"prompt": "p", "response": "b"}')
    made = JsonlCorpus(str(path), validation_every=2)
    assert [made.example("validation", 0).response, made.example("train", 0).response] == ["a", "b"]
    assert made.example("train", 0).id == f"{path}:4"


BAD_LINES = {
    b'{"prompt": "p"': r":2: not a line of JSON \(Expecting ',' delimiter at column 15\)",
    b"[1]": ":2: expected a JSON object, got list",
    b'{"prompt": "p", "answer": "r"}': ":2: no column 'response'; there are 'prompt', 'answer'",
    b'{"prompt": "p", "response": 3}': ":2: column 'response' holds int, expected text",
    b'{"prompt": null, "response": "r"}': ":2: column 'prompt' holds NoneType, expected text",
    b'{"prompt": "p", "response": ""}': ":2: column 'response' is empty",
    b'{"prompt": "\xff", "response": "r"}': r":2: not UTF-8 \(invalid start byte\)",
    b'{"prompt": "\\ud800", "response": "r"}': r":2: column 'prompt' is not valid text \(surrogates not allowed\)",
    b'{"prompt": ' + b"[" * 100_000: ":2: not a readable line of JSON",
    b'{"prompt": ' + b"9" * 5000 + b"}": ":2: not a readable line of JSON",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_bad_line_is_named(line, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(ROWS[0]).encode() + b"\n" + line + b"\n")
    with pytest.raises(RecordError, match=BAD_LINES[line]) as caught:
        JsonlCorpus(str(path), validation_every=2).example("train", 0)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_bad_step_labels(write_rows):
    for labels in (["yes"], "yes", [0.5], None):
        path = write_rows([{"prompt": "p", "response": "r", "ok": labels}])
        with pytest.raises(RecordError, match=r"rows.jsonl:1: column 'ok' is not a list of truth values"):
            JsonlCorpus(path, step_labels_column="ok").example("validation", 0)


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data file .*none.jsonl does not exist"):
        responses(JsonlCorpus(str(tmp_path / "none.jsonl")), "train")
    with pytest.raises(FileNotFoundError, match="is not a file"):
        responses(JsonlCorpus(str(tmp_path)), "train")
    damaged = tmp_path / "rows.parquet"
    write_parquet(damaged, ROWS)
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"rows.parquet: not a readable Parquet file") as caught:
        responses(ParquetCorpus(str(damaged)), "train")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="a Parquet file, not JSON lines; use ParquetCorpus"):
        responses(JsonlCorpus(str(damaged)), "train")
    with pytest.raises(ValueError, match="validation_every 1 leaves nothing to train on"):
        JsonlCorpus("x", validation_every=1)


def test_parquet_and_hub_name_row_and_column(tmp_path, write_rows):
    path = write_parquet(tmp_path / "rows.parquet", ROWS)
    with pytest.raises(RecordError, match=r"rows.parquet:1: no column 'answer'; there are 'prompt', 'response', 'n'"):
        ParquetCorpus(path, response_column="answer").example("train", 0)
    (tmp_path / "set").mkdir()
    write_rows(ROWS, "set/train.jsonl")
    made = HubCorpus(str(tmp_path / "set"), response_column="answer")
    with pytest.raises(RecordError, match=r"set\[train\]:1: no column 'answer'; there are 'prompt', 'response', 'n'"):
        next(iter(made.examples("train")))
    with pytest.raises(
        ValueError, match=r"cannot load the dataset .*split 'dev'.*check the name and the network"
    ) as caught:
        next(iter(HubCorpus(str(tmp_path / "set"), split="dev").examples("train")))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"cannot load the dataset 'nobody/nothing'"):
        next(iter(HubCorpus("nobody/nothing").examples("train")))


def test_gsm8k_solutions_end_in_a_box(write_rows):
    rows = [{"question": f"q{i}", "answer": f"2+{i}=<<2+{i}={2 + i}>>{2 + i}.\n#### 1,00{i}"} for i in range(3)]
    made = Gsm8kCorpus(write_rows(rows), validation_every=3)
    assert responses(made, "train")[0] == "2+1=3.\nThe answer is \\boxed{1001}."
    assert isinstance(made, IndexedCorpus)
    with pytest.raises(RecordError, match=r"rows.jsonl:1: no final answer after '####'"):
        responses(Gsm8kCorpus(write_rows([{"question": "q", "answer": "3"}])), "validation")


def test_a_downloaded_dataset_is_read_at_random(tmp_path, write_rows, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    write_rows(ROWS, "set/train.jsonl")
    made = HubTableCorpus(str(tmp_path / "set"), validation_every=4)
    assert isinstance(made, IndexedCorpus)
    streamed = HubCorpus(str(tmp_path / "set"), validation_every=4)
    for split, size in (("train", 8), ("validation", 3)):
        assert [made.example(split, i) for i in range(made.size(split))] == list(streamed.examples(split))
        assert made.size(split) == size
    with pytest.raises(ValueError, match=r"cannot load the dataset 'nobody/nothing'"):
        HubTableCorpus("nobody/nothing").size("train")


def test_workers_read_a_stream_of_several_files_as_one(tmp_path, write_rows, plain_tokenizer):
    from lit_thinkfast.data.loader import PackedLoader
    from lit_thinkfast.data.packing import PackedStream

    (tmp_path / "set").mkdir()
    for part in range(4):
        write_rows([{"response": f"{part}.{i}"} for i in range(5)], f"set/train-{part}.jsonl")
    corpus = HubCorpus(str(tmp_path / "set"), prompt_column=None, validation_every=100)

    def rows(num_workers):
        stream = PackedStream(
            corpus, tokenizer=plain_tokenizer, seq_len=12, batch_size=1, length=9, num_shards=4, block_size=2
        )
        return [batch["input_ids"].tolist() for batch in PackedLoader(stream, num_workers=num_workers)]

    assert rows(2) == rows(0)


def test_a_list_of_steps_is_lines(write_rows):
    rows = [{"prompt": "Q", "response": ["2 + 2\n= 4", " so 4"], "ok": [True, False]}]
    made = JsonlCorpus(write_rows(rows), step_labels_column="ok")
    (example,) = made.examples("validation")
    assert (example.response, example.step_labels) == ("2 + 2 = 4\nso 4", (True, False))
    (example,) = JsonlCorpus(write_rows(rows), outcome_column="ok").examples("validation")
    assert (example.response, example.step_labels, example.outcome) == ("2 + 2 = 4\nso 4", None, False)
    for bad in ([" ", "a"], [1, 2]):
        path = write_rows([{"prompt": "Q", "response": bad, "ok": [True, False]}])
        with pytest.raises(RecordError, match=r"rows.jsonl:1: column 'response' is not a list of steps"):
            JsonlCorpus(path, step_labels_column="ok").example("validation", 0)
    with pytest.raises(RecordError, match="column 'response' holds list, expected text"):
        JsonlCorpus(write_rows(rows)).example("validation", 0)


def taking_turns(lists, order):
    """The examples of a mix as a plain loop."""
    lists, mixed = [list(reversed(one)) for one in lists], []
    for which in itertools.cycle(order):
        if not lists[which]:
            return mixed
        mixed.append(lists[which].pop())


ORDERS = {(1, 1): (0, 1), (3, 1): (0, 0, 1, 0), (1, 2, 1): (1, 0, 2, 1), (2, 1): (0, 1, 0)}


@pytest.mark.parametrize("turns", ORDERS, ids=str)
def test_corpora_take_turns(turns, write_rows):
    for sizes in itertools.product((2, 5, 12), repeat=len(turns)):
        parts = [
            JsonlCorpus(write_rows([{"response": f"{n}.{i}"} for i in range(size)], f"{n}.jsonl"), prompt_column=None)
            for n, size in enumerate(sizes)
        ]
        made = MixedCorpus(parts, turns=None if set(turns) == {1} else list(turns))
        assert isinstance(made, Corpus)
        assert not isinstance(made, IndexedCorpus)
        for split in ("train", "validation"):
            whole = taking_turns([responses(part, split) for part in parts], ORDERS[turns])
            for start in range(len(whole) + 4):
                assert responses(made, split, start) == whole[start:]


def test_a_mix_resumes_in_a_stream(write_rows, plain_tokenizer):
    """Passes over a mix follow one another, and a restart at any batch goes on with the same rows."""
    from lit_thinkfast.data.packing import PackedStream

    parts = [JsonlCorpus(write_rows(ROWS[:n], f"{n}.jsonl"), prompt_column=None) for n in (6, 11)]

    def stream(rank=0, world_size=1):
        return PackedStream(
            MixedCorpus(parts), tokenizer=plain_tokenizer, seq_len=12, batch_size=1, length=8, num_shards=2,
            block_size=3, rank=rank, world_size=world_size,
        )  # fmt: skip

    whole, begun = stream(), stream()
    expected = [batch["input_ids"].tolist() for _ in range(3) for batch in whole]
    found = []
    for _ in range(3):
        found += [batch["input_ids"].tolist() for batch in begun]
        again = stream()
        again.load_state_dict(begun.state_dict())
        begun = again
    assert found == expected
    ranks = [[batch["input_ids"].tolist() for batch in stream(rank, 2)] for rank in (0, 1)]
    assert [row for pair in zip(*ranks, strict=True) for row in pair] == expected[:16]


def test_a_mix_that_cannot_be():
    with pytest.raises(ValueError, match="corpora is an empty list"):
        MixedCorpus([])
    for turns in ([1], [1, 0]):
        with pytest.raises(ValueError, match=r"turns .* is not one positive number for each of 2 corpora"):
            MixedCorpus([ArithmeticCorpus(), ArithmeticCorpus()], turns=turns)


def test_arithmetic_levels_take_turns():
    made = ArithmeticCorpus([1, 2], seed=5)
    found = list(itertools.islice(made.examples("train", start=3), 3))
    expected = [generate_problem(i, split="train", level=level, seed=5) for i, level in ((1, 2), (2, 1), (2, 2))]
    assert [(e.prompt, e.response) for e in found] == [(p.question, p.solution) for p in expected]
    with pytest.raises(ValueError, match="level 9 is not one of 1, 2, 3, 4"):
        ArithmeticCorpus(9)
    with pytest.raises(ValueError, match="empty list"):
        ArithmeticCorpus([])


def test_an_opened_corpus_can_be_sent_to_a_worker(write_rows):
    made = JsonlCorpus(write_rows(ROWS))
    first = made.example("train", 0)
    assert pickle.loads(pickle.dumps(made)).example("train", 0) == first


def _read_all(corpus, index, results):
    """Read everything many times, while other processes do; a lock of the queue keeps its answers apart."""
    try:
        expected = [f"r{i}" * (i % 50 + 1) for i in range(1, 400) if i % 50]
        results.put((index, all(responses(corpus, "train") == expected for _ in range(20))))
    except ValueError as error:
        results.put((index, str(error)))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_workers_forked_after_the_parent_has_read(kind, tmp_path, write_rows):
    """They inherit the open file, and with it one position for all."""
    import multiprocessing

    rows = [{"prompt": "p", "response": f"r{i}" * (i % 50 + 1)} for i in range(400)]
    if kind == "jsonl":
        made = JsonlCorpus(write_rows(rows))
    else:
        made = ParquetCorpus(write_parquet(tmp_path / "rows.parquet", rows))
    first = made.example("train", 0)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    workers = [context.Process(target=_read_all, args=(made, index, results)) for index in range(4)]
    for worker in workers:
        worker.start()
    found = dict(results.get() for _ in workers)
    for worker in workers:
        worker.join()
    assert found == dict.fromkeys(range(4), True)
    assert made.example("train", 0) == first
