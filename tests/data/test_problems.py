import pytest

from lit_thinkfast.data import arithmetic
from lit_thinkfast.data.problems import load_problems, split_gsm8k_answer
from lit_thinkfast.records import Problem, RecordError, write_jsonl

GSM8K = [
    {"question": "Ann pays 3 times 400. How much?", "answer": "Ann pays 3*400=<<3*400=1200>>1200.\n#### 1,200"},
    {"question": "What is 1-2?", "answer": "It is <<1-2=-1>>-1.\n#### -1"},
]
MATH = [
    {
        "problem": "$1+1$",
        "solution": "So $\\boxed{2}$",
        "answer": "2",
        "subject": "Algebra",
        "level": 1,
        "unique_id": "a/1.json",
    },
    {
        "problem": "$x$",
        "solution": "$\\boxed{x}$",
        "answer": "x",
        "subject": "Algebra",
        "level": 3,
        "unique_id": "a/2.json",
    },
]


def test_gsm8k_as_published(write_rows):
    found = load_problems("gsm8k", path=write_rows(GSM8K))
    assert found[0] == Problem("gsm8k/test/0", GSM8K[0]["question"], "1200", "Ann pays 3*400=1200.", "gsm8k")
    assert found[1].answer == "-1"


def test_math500_as_published(write_rows, tmp_path):
    found = load_problems("math500", path=write_rows(MATH))
    assert found[0] == Problem("a/1.json", "$1+1$", "2", "So $\\boxed{2}$", "math500", 1, "Algebra")
    assert [p.id for p in load_problems("math500", path=write_rows(MATH), level=3)] == ["a/2.json"]
    worded = [{**row, "level": f"Level {row['level']}"} for row in MATH]
    assert [p.id for p in load_problems("math500", path=write_rows(worded), level=3)] == ["a/2.json"]


def test_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(GSM8K), tmp_path / "t.parquet")
    assert len(load_problems("gsm8k", path=str(tmp_path / "t.parquet"))) == 2


def test_arithmetic():
    assert load_problems("arithmetic", limit=3, level=1, seed=2) == arithmetic.problems(
        "test", level=1, count=3, seed=2
    )
    assert len(load_problems("arithmetic", split="validation")) == 100


def test_a_file_of_problems_and_a_draw_from_it(tmp_path):
    problems = [Problem(str(i), f"q{i}", str(i)) for i in range(20)]
    path = str(tmp_path / "p.jsonl")
    write_jsonl(problems, path)
    assert load_problems(path) == problems
    five, nine = (load_problems(path, limit=limit, seed=3) for limit in (5, 9))
    assert len(five) == 5
    assert set(five) < set(nine)
    assert nine == sorted(nine, key=lambda p: int(p.id))
    assert five != load_problems(path, limit=5, seed=4)
    assert load_problems(path, limit=99) == problems


def test_commas_within_numbers_only():
    assert [split_gsm8k_answer(f"x\n#### {a}")[1] for a in ("1,234,567", "1,2", "3,000.5", "12,34")] == [
        "1234567",
        "1,2",
        "3000.5",
        "12,34",
    ]


def bad(match, *args, kind=ValueError, **kwargs):
    with pytest.raises(kind, match=match) as caught:
        load_problems(*args, **kwargs)
    assert "\n" not in str(caught.value)


def test_bad_input_is_named(write_rows, tmp_path):
    bad("unknown problems 'gsm8'; known: arithmetic, gsm8k, math500, or a .jsonl file", "gsm8")
    bad(r"problem file none.jsonl does not exist", "none.jsonl", kind=FileNotFoundError)
    bad(r"data file none.jsonl does not exist", "gsm8k", path="none.jsonl", kind=FileNotFoundError)
    bad(r"cannot load the dataset 'openai/gsm8k' \(configuration 'main', split 'test'", "gsm8k")
    bad("limit 0 leaves no problem", "arithmetic", limit=0)
    bad("level 7 is not one of", "arithmetic", level=7)
    bad("split 'dev' of arithmetic", "arithmetic", split="dev")
    bad("drop the path", "arithmetic", path="x.jsonl")
    bad("gsm8k has no levels", "gsm8k", level=1)
    bad("math500 has only a test split, not 'train'", "math500", split="train")
    empty = write_rows([], "empty.jsonl")
    bad(r"no problem in .*empty.jsonl; an evaluation needs at least one", empty)
    bad(r"no problem in .*empty.jsonl", "gsm8k", path=empty)
    bad(r"no problem of level 5 in .*rows.jsonl", "math500", path=write_rows(MATH), level=5)
    bad(r"two problems have the id 'a/1.json'", "math500", path=write_rows(MATH + MATH[:1]))
    bad(r"rows.jsonl:2: no column 'answer'", "gsm8k", path=write_rows([GSM8K[0], {"question": "q"}]), kind=RecordError)
    bad(
        r"rows.jsonl:1: no final answer after '####'",
        "gsm8k",
        path=write_rows([{"question": "q", "answer": "12"}]),
        kind=RecordError,
    )
    bad(r"rows.jsonl:1: Problem lacks the field 'id'", write_rows([{"question": "q", "answer": "a"}]), kind=RecordError)
    bad(r"drop level", write_rows([{"id": "1", "question": "q", "answer": "a"}]), level=2)
