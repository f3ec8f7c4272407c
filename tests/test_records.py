"""Records survive the journey through a file, and a bad line is named by file and number."""

import pytest

from lit_thinkfast.records import (
    BudgetPoint,
    Completion,
    Example,
    Problem,
    RecordError,
    Verdict,
    from_json,
    read_jsonl,
    to_json,
    write_jsonl,
)

RECORDS = [
    Example("a", "2+2?", "4\nyes", "toy", (True, False)),
    Problem("p/1", "How many?", "\\frac12", None, "toy"),
    Completion("p/1", 3, 'text with \u2028 and "quotes"', 5, 7, "stop", 0.5, 1.25, 42, "teacher"),
    Verdict("p/1", 3, "correct", "1/2", "1/2", "exact", 0.75, (1.0, -2.5), "prm"),
    BudgetPoint("teacher", "coverage", 8, 1.5, 0.5, 0.25, 0.75, 20),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_round_trip(record, tmp_path):
    assert from_json(type(record), to_json(record)) == record
    path = tmp_path / "deep" / "records.jsonl"
    assert write_jsonl([record, record], path) == 2
    assert list(read_jsonl(type(record), path)) == [record, record]
    assert [p.name for p in path.parent.iterdir()] == ["records.jsonl"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "x", "question": "q"', "not a line of JSON"),
        ("[1]", "expected a JSON object, got list"),
        ('{"id": "\\ud800", "question": "q", "answer": "4"}', "field 'id': not valid text"),
        ("[" * 100_000, "not a readable line of JSON"),
        ('{"id": ' + "9" * 5000 + "}", "not a readable line of JSON"),
        ('{"id": "x", "question": "q"}', "Problem lacks the field 'answer'"),
        ('{"id": "x", "question": "q", "answer": 4}', "field 'answer': expected str, got int"),
        ('{"id": "x", "question": "q", "answer": "4", "anser": "4"}', "Problem has no field 'anser'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "problems.jsonl"
    path.write_text(to_json(RECORDS[1]) + "\n\n" + line + "\n")
    with pytest.raises(RecordError) as error:
        list(read_jsonl(Problem, path))
    assert str(error.value).startswith(f"{path}:3: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_types_are_checked():
    with pytest.raises(RecordError, match="'won' is not one of correct"):
        from_json(Verdict, '{"problem_id": "p", "sample": 0, "outcome": "won"}')
    with pytest.raises(RecordError, match="field 'sample': expected int, got bool"):
        from_json(Verdict, '{"problem_id": "p", "sample": true, "outcome": "correct"}')


def test_not_utf8(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{to_json(RECORDS[1])}\n\n".encode() + b'{"id": "\xff"}\n')
    found = read_jsonl(Problem, path)
    assert next(found) == RECORDS[1]  # a byte-order mark does no harm
    with pytest.raises(RecordError, match=r"bad.jsonl:3: not UTF-8"):
        next(found)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_seconds_are_finite(value):
    line = (
        '{"model": "m", "rule": "coverage", "k": 1, "seconds": %s, "value": 1, "low": 1, "high": 1, "num_problems": 1}'
    )
    with pytest.raises(RecordError, match=r"field 'seconds': -?(nan|inf) is not a finite number"):
        from_json(BudgetPoint, line % value)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "problems.jsonl"
    write_jsonl([RECORDS[1]], path)

    def broken():
        yield RECORDS[1]
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError):
        write_jsonl(broken(), path)
    assert list(read_jsonl(Problem, path)) == [RECORDS[1]]
    assert len(list(tmp_path.iterdir())) == 1
