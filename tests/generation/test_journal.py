"""The journal: resume after a torn line, and refusal of everything that is not an interruption."""

import dataclasses
import json
import subprocess
import sys
import zlib

import pytest

from lit_thinkfast.generation.journal import Journal, clock_path, mend_tail, meta_path, read_clock, read_meta
from lit_thinkfast.records import Completion, RecordError, read_jsonl, to_json

IDENTITY = {"seed": 0, "temperature": 0.8}


def completion(problem="p", sample=0, text="x"):
    return Completion(
        problem_id=problem, sample=sample, text=text, num_prompt_tokens=3, num_tokens=4, finish_reason="stop",
        seconds=0.5, latency_seconds=1.0,
    )  # fmt: skip


def write(path, *completions):
    with Journal(path, identity=IDENTITY) as journal:
        for c in completions:
            journal.append(c)
    return path


def test_appends_and_gives_back(tmp_path):
    path = write(tmp_path / "new" / "run.jsonl", completion(), completion(sample=1, text="ü\n\u2028"))
    with Journal(path, identity=IDENTITY) as journal:
        assert [c.sample for c in journal.completions] == [0, 1]
        assert journal.completions[1].text == "ü\n\u2028"
        journal.append(completion(sample=2))
    assert [c.sample for c in read_jsonl(Completion, path)] == [0, 1, 2]
    assert read_meta(path)["identity"] == IDENTITY


@pytest.mark.parametrize("cut", [1, 5, 40, 10_000])
def test_every_torn_tail_is_cut_kept_and_reported(tmp_path, cut, caplog):
    path = write(tmp_path / "run.jsonl", completion(), completion(sample=1))
    whole = path.read_bytes()
    line = to_json(completion(sample=2, text="\U0001f600" * 40)).encode()
    torn = line[: min(cut, len(line) - 1)]
    path.write_bytes(whole + torn)
    with Journal(path, identity=IDENTITY) as journal:
        assert len(journal.completions) == 2
        journal.append(completion(sample=2))
    assert path.with_name("run.jsonl.rejected").read_bytes() == torn + b"\n"
    assert len(list(read_jsonl(Completion, path))) == 3
    assert "torn line" in caplog.text


def test_a_line_of_any_length_may_be_torn_and_zeros_too(tmp_path):
    path = write(tmp_path / "run.jsonl", completion(text="y" * 200_000))
    whole = path.read_bytes()
    for tail in (to_json(completion(text="z" * 300_000)).encode()[:-2], b"\0" * 4096):
        path.write_bytes(whole + tail)
        assert mend_tail(path)
        assert path.read_bytes() == whole


def test_a_whole_line_without_newline_is_kept(tmp_path):
    path = write(tmp_path / "run.jsonl", completion())
    path.write_bytes(path.read_bytes()[:-1])
    with Journal(path, identity=IDENTITY) as journal:
        assert len(journal.completions) == 1
        journal.append(completion(sample=1))
    assert len(list(read_jsonl(Completion, path))) == 2
    assert not path.with_name("run.jsonl.rejected").exists()


def test_another_run_is_refused_and_left_alone(tmp_path):
    path = write(tmp_path / "run.jsonl", completion())
    before, meta = path.read_bytes(), meta_path(path).read_bytes()
    with (
        pytest.raises(ValueError, match=r"its temperature is 0\.8, now it is 0\.7"),
        Journal(path, identity={**IDENTITY, "temperature": 0.7}),
    ):
        pass
    assert (path.read_bytes(), meta_path(path).read_bytes()) == (before, meta)


def test_an_empty_journal_belongs_to_nobody(tmp_path):
    path = write(tmp_path / "run.jsonl")
    with Journal(path, identity={"seed": 1}) as journal:
        journal.append(dataclasses.replace(completion(), seed=1))
    assert read_meta(path)["identity"] == {"seed": 1}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda text: text.replace('"stop"', '"later"', 1),
            r"run\.jsonl:1: damaged, or edited by hand.*delete the line",
        ),
        (lambda text: text.replace('0.5, "lat', '0.7, "lat', 2), r"run\.jsonl:1: damaged"),
        (lambda text: text.replace('"crc32": "', '"crc32": "0', 1), r"run\.jsonl:1: damaged"),
        (lambda text: text.replace('"crc32"', '"crc33"', 1), r"run\.jsonl:1: Completion has no field 'crc33'"),
        (lambda text: "garbage\n" + text, r"run\.jsonl:1: not a line of JSON"),
        (lambda text: text + text, r"sample 0 of problem 'p' is there twice \(records 1 and 3\)"),
    ],
)
def test_damage_is_an_error_with_its_place(tmp_path, spoil, message):
    path = write(tmp_path / "run.jsonl", completion(), completion(sample=1))
    path.write_text(spoil(path.read_text()))
    with pytest.raises(RecordError, match=message), Journal(path, identity=IDENTITY):
        pass


def test_lines_without_or_with_broken_meta_are_refused(tmp_path):
    path = write(tmp_path / "run.jsonl", completion())
    meta_path(path).write_text("{")
    with pytest.raises(RecordError, match=r"meta\.json: not JSON"), Journal(path, identity=IDENTITY):
        pass
    meta_path(path).unlink()
    with pytest.raises(ValueError, match="cannot be resumed"), Journal(path, identity=IDENTITY):
        pass


def test_one_writer_at_a_time(tmp_path):
    path = tmp_path / "run.jsonl"
    second = (
        "import sys\nfrom lit_thinkfast.generation.journal import Journal\n"
        "try:\n    Journal(sys.argv[1], identity={}).__enter__()\nexcept ValueError as error:\n    print(error)\n"
    )
    with Journal(path, identity=IDENTITY):
        said = subprocess.run([sys.executable, "-c", second, str(path)], capture_output=True, text=True, check=True)
    assert "being written by another process" in said.stdout


def test_meta_is_plain_json(tmp_path):
    path = write(tmp_path / "run.jsonl", completion())
    assert json.loads(meta_path(path).read_text()) == {"identity": IDENTITY}


def test_a_checksum_needs_no_tool_of_ours(tmp_path):
    path = write(tmp_path / "run.jsonl", completion(text='ü "crc32": "\\'), completion(sample=1))
    for line in path.read_bytes().splitlines():
        values = json.loads(line)
        assert list(values)[-1] == "crc32"
        record, _, _ = line.rpartition(b', "crc32"')
        assert f"{zlib.crc32(record + b'}'):08x}" == values["crc32"]


def test_every_flipped_bit_is_seen(tmp_path):
    path = write(tmp_path / "run.jsonl", completion(text="some text"), completion(sample=1))
    whole = path.read_bytes()
    end = whole.index(b"\n")
    for place in range(0, end):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        if damaged[place] == ord("\n"):  # two lines, and the first is torn in its middle
            continue
        path.write_bytes(damaged)
        with pytest.raises(RecordError, match=r"run\.jsonl:1: ") as caught:
            list(read_jsonl(Completion, path))
        assert "\n" not in str(caught.value)


def test_a_torn_tail_with_a_wrong_checksum_is_cut(tmp_path):
    path = write(tmp_path / "run.jsonl", completion(), completion(sample=1))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1].replace(b'"sample": 1', b'"sample": 7'))
    with Journal(path, identity=IDENTITY) as journal:
        assert [c.sample for c in journal.completions] == [0]


def test_journals_without_checksums_go_on(tmp_path):
    path = write(tmp_path / "run.jsonl", completion())
    path.write_text(to_json(completion()) + "\n")
    with Journal(path, identity=IDENTITY) as journal:
        journal.append(completion(sample=1))
    assert ["crc32" in line for line in path.read_text().splitlines()] == [False, True]
    assert [c.sample for c in read_jsonl(Completion, path)] == [0, 1]


def test_a_sample_that_comes_twice_is_an_error(tmp_path):
    path = write(tmp_path / "run.jsonl", completion())
    with Journal(path, identity=IDENTITY) as journal:
        journal.append(completion(sample=1))
        for sample in (0, 1):
            with pytest.raises(RecordError, match=f"sample {sample} of problem 'p' came twice"):
                journal.append(completion(sample=sample))
    assert len(list(read_jsonl(Completion, path))) == 2


FULL = """
import resource, sys
from lit_thinkfast.generation.journal import Journal
from lit_thinkfast.records import Completion
with Journal(sys.argv[1], identity={"seed": 0, "temperature": 0.8}) as journal:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
    try:
        for sample in range(1, 9):
            journal.append(Completion("p", sample, "x" * 50, 3, 4, "stop", 0.5, 1.0))
    except OSError as error:
        print(sample, error)
"""


@pytest.mark.parametrize("room", [0, 1, 150, 700])
def test_a_full_disk_leaves_whole_lines(tmp_path, room):
    """A limit on the size of files stands for the disk."""
    path = write(tmp_path / "run.jsonl", completion())
    before = path.read_bytes()
    command = [sys.executable, "-c", FULL, str(path), str(len(before) + room)]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    sample, _, message = said.stdout.partition(" ")
    assert message.startswith(f"{path}: cannot write (File too large); all lines before are safe")
    assert message.count("\n") == 1
    whole = path.read_bytes()
    assert whole.startswith(before)
    assert whole.endswith(b"\n"), "the piece was cut off"
    assert [c.sample for c in read_jsonl(Completion, path)] == list(range(int(sample)))
    with Journal(path, identity=IDENTITY) as journal:
        journal.append(completion(sample=9))
    assert not path.with_name("run.jsonl.rejected").exists()


def test_the_clock_outlives_a_kill_and_no_more(tmp_path):
    path = tmp_path / "run.jsonl"
    with Journal(path, identity=IDENTITY) as journal:
        assert read_clock(path) == 0
        for seconds in (1.5, 123456.25, 123457.0):
            journal.note_clock(seconds)
            assert read_clock(path) == seconds
    with Journal(path, identity=IDENTITY) as journal:
        assert read_clock(path) == 123457.0
        journal.note_clock(123458.0)
        journal.forget_clock()
        assert read_clock(path) == 0
    clock_path(path).write_bytes(b"")
    assert read_clock(path) == 0


def test_what_lies_beside_a_deleted_journal_is_not_taken_over(tmp_path):
    path = write(tmp_path / "run.jsonl", completion())
    with Journal(path, identity=IDENTITY) as journal:
        journal.meta["sessions"] = ["one"]
        journal.save_meta()
        journal.note_clock(5.0)
    path.unlink()
    with Journal(path, identity=IDENTITY) as journal:
        assert journal.meta == {}
        assert read_clock(path) == 0
