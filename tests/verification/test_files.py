"""Grading and scoring a file: what was interrupted goes on, what is wrong is said, nothing is left half done."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_thinkfast.appending import AppendFile
from lit_thinkfast.records import Completion, Problem, RecordError, Verdict, read_jsonl, write_jsonl
from lit_thinkfast.verification import ProcessRewardModel, RewardScore, Verifier, grade_files
from lit_thinkfast.verification.protocols import MathShepherd
from lit_thinkfast.verification.score_journal import journal_path
from lit_thinkfast.verification.scores import TransformedRewardModel

from . import prm_models as made
from .toy_rewards import PROBLEMS, Toy


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr("lit_thinkfast.verification.files.CHUNK", 3)
    samples = [
        Completion(p.id, i, f"try {i} of {p.id} \u00e9\n#### {2 * j + i % 2}", 1, 1, "stop", 0.0, 0.0)
        for i in range(4)
        for j, p in enumerate(PROBLEMS)
    ]
    write_jsonl(samples, tmp_path / "c.jsonl")
    return tmp_path / "c.jsonl", tmp_path / "v.jsonl"


@pytest.fixture
def uninterrupted(files):
    completions, out = files
    other = out.with_name("whole.jsonl")
    grade_files(PROBLEMS, completions, other, reward_model=Toy())
    return other.read_bytes()


@pytest.mark.parametrize("fails_at", range(1, 6))
def test_what_was_interrupted_goes_on_and_ends_the_same(files, uninterrupted, fails_at):
    completions, out = files
    with pytest.raises(KeyboardInterrupt):
        grade_files(PROBLEMS, completions, out, reward_model=Toy(fails_at=fails_at))
    assert not out.exists()
    assert len(journal_path(out).read_bytes().splitlines()) == 1 + fails_at
    again = Toy()
    summary = grade_files(PROBLEMS, completions, out, reward_model=again)
    assert again.calls == 6 - fails_at, "only what was not scored"
    assert out.read_bytes() == uninterrupted
    assert summary.verdicts == 16
    assert not journal_path(out).exists(), "its scores are in the verdicts"


def test_an_interruption_before_anything_was_scored_leaves_nothing(files):
    completions, out = files
    with pytest.raises(KeyboardInterrupt):
        grade_files(PROBLEMS, completions, out, reward_model=Toy(fails_at=0))
    assert [path.name for path in out.parent.iterdir()] == ["c.jsonl"]


def test_verdicts_that_could_not_be_written_cost_no_scores(files, uninterrupted, monkeypatch):
    completions, out = files

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("os.replace", full)
        with pytest.raises(OSError, match="No space left"):
            grade_files(PROBLEMS, completions, out, reward_model=Toy())
    assert sorted(path.name for path in out.parent.iterdir()) == ["c.jsonl", "v.jsonl.scores.jsonl", "whole.jsonl"]
    again = Toy()
    grade_files(PROBLEMS, completions, out, reward_model=again)
    assert again.calls == 0
    assert out.read_bytes() == uninterrupted


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from lit_thinkfast.verification import files
import toy_rewards as own
files.CHUNK = 3
files.grade_files(own.PROBLEMS, sys.argv[2], sys.argv[3], reward_model=own.Toy(seconds=0.2))
"""


def test_a_killed_process_loses_at_most_a_chunk(files, uninterrupted):
    completions, out = files
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, Path(__file__).parent, completions, out])
    journal = journal_path(out)
    until = time.monotonic() + 60
    while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = journal.read_bytes().count(b"\n") - 1
    assert 2 <= kept < 6
    time.sleep(0.3)  # downtime
    again = Toy()
    summary = grade_files(PROBLEMS, completions, out, reward_model=again)
    assert again.calls == 6 - kept
    assert out.read_bytes() == uninterrupted
    assert 0.2 * kept <= summary.scoring_seconds < 0.2 * kept + 0.3


def test_seconds_of_scoring_add_up_over_sessions(files, monkeypatch):
    completions, out = files
    now = [0.0]
    monkeypatch.setattr("lit_thinkfast.verification.files.time.perf_counter", lambda: now[0])

    class Clocked(Toy):
        def score(self, problems, completions):
            now[0] += 1.5 * (self.fails_at != self.calls)
            return super().score(problems, completions)

    for fails_at in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            grade_files(PROBLEMS, completions, out, reward_model=Clocked(fails_at=fails_at))
        now[0] += 1000
    assert grade_files(PROBLEMS, completions, out, reward_model=Clocked()).scoring_seconds == pytest.approx(9.0)


def interrupted(files, **options):
    completions, out = files
    with pytest.raises(KeyboardInterrupt):
        grade_files(PROBLEMS, completions, out, reward_model=Toy(fails_at=3), **options)
    return journal_path(out)


@pytest.mark.parametrize("kept", [1, 40, -40, -1])
def test_a_torn_last_line_is_scored_again(files, uninterrupted, kept, caplog):
    completions, out = files
    journal = interrupted(files)
    content = journal.read_bytes()
    start = content.rindex(b"\n", 0, -1) + 1
    journal.write_bytes(content[: start + kept] if kept > 0 else content[:kept])
    again = Toy()
    grade_files(PROBLEMS, completions, out, reward_model=again)
    assert again.calls == 4
    assert out.read_bytes() == uninterrupted
    assert "ended in a torn line" in caplog.text


def test_a_torn_first_line_starts_anew(files, uninterrupted):
    completions, out = files
    journal = interrupted(files)
    journal.write_bytes(journal.read_bytes()[:30])
    grade_files(PROBLEMS, completions, out, reward_model=Toy())
    assert out.read_bytes() == uninterrupted


def test_a_damaged_journal_is_refused(files):
    completions, out = files
    journal = interrupted(files)
    header, first, second, third = journal.read_bytes().splitlines(keepends=True)
    for lines, words in (
        ([header, first.replace(b"0.", b"1.", 1), second], r"jsonl:2: damaged, or edited by hand"),
        ([header, second, third], r"jsonl:2: expected chunk 0, got chunk 1; delete the file"),
    ):
        journal.write_bytes(b"".join(lines))
        with pytest.raises(RecordError, match=words):
            grade_files(PROBLEMS, completions, out, reward_model=Toy())
        assert journal.read_bytes() == b"".join(lines)
    for other in (b"notes\n", b"notes", b'{"format": "another"}\n'):
        journal.write_bytes(other)
        with pytest.raises(ValueError, match="is not a journal of scores; move it away"):
            grade_files(PROBLEMS, completions, out, reward_model=Toy())
        assert journal.read_bytes() == other
    assert not out.exists()


def test_scores_of_something_else_are_not_gone_on_with(files):
    completions, out = files
    journal = interrupted(files)
    content = journal.read_bytes()
    other = Toy()
    other.name = "another"
    with pytest.raises(
        ValueError, match=r"whose reward_model was 'toy', and is 'another' now; finish that run, delete"
    ):
        grade_files(PROBLEMS, completions, out, reward_model=other)
    asked = [Problem(p.id, p.question + "?", p.answer) for p in PROBLEMS]
    with pytest.raises(ValueError, match="whose problems was"):
        grade_files(asked, completions, out, reward_model=Toy())
    write_jsonl(list(read_jsonl(Completion, completions))[:-1], completions)
    with pytest.raises(ValueError, match="whose completions was"):
        grade_files(PROBLEMS, completions, out, reward_model=Toy())
    held = AppendFile(journal)
    with pytest.raises(ValueError, match="is being written by another process"):
        grade_files(PROBLEMS, completions, out, reward_model=Toy())
    held.close()
    assert journal.read_bytes() == content


def test_a_reward_model_is_known_by_its_weights(tmp_path):
    def identity(folder, **options):
        return ProcessRewardModel(folder, **options).identity()

    one = made.llama(tmp_path / "one")
    assert identity(one) == identity(one, batch_size=2)
    assert identity(one)["weights"] != identity(made.llama(tmp_path / "other", initializer_range=0.3))["weights"]
    assert identity(one)["dtype"] != identity(one, dtype="bfloat16")["dtype"]
    assert ProcessRewardModel(one, aggregation="min").name != ProcessRewardModel(one).name
    shapes = {"v_head.summary.weight": (1, 32), "v_head.summary.bias": (1,)}
    tokenizer = made.qwen_tokenizer(bos_token="<|endoftext|>")
    first = identity(made.qwen(tmp_path / "a", "Qwen2ForPrmModel", shapes, tokenizer=tokenizer))
    drawn_otherwise = dict(reversed(shapes.items()))
    other = identity(made.qwen(tmp_path / "b", "Qwen2ForPrmModel", drawn_otherwise, tokenizer=tokenizer))
    assert first["weights"] == other["weights"]
    assert first["head"] != other["head"], "a head of its own tells too"


def test_a_reward_model_is_known_by_how_it_is_asked(tmp_path):
    """What changes scores, or how much of a text is scored, changes the identity; where the folder lies does not."""

    def identity(**options):
        return ProcessRewardModel(folder, **{"protocol": "classifier", **options}).identity()

    first = tmp_path / "first"
    made.classifier(first, pad_token_id=0)
    folder = tmp_path / "moved"
    shutil.copytree(first, folder)
    before = identity()
    assert before == ProcessRewardModel(first, protocol="classifier").identity()
    asked = ProcessRewardModel(folder, protocol="classifier")
    asked.score(PROBLEMS, [Completion("p0", i, "one " * (1 + i), 1, 1, "stop", 0.0, 0.0) for i in range(2)])
    assert asked.identity() == before, "the calls before leave no trace"
    assert json.loads(json.dumps(before)) == before, "it is plain values"

    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template.replace("Today Date: ", "Be strict: "))
    assert differing(before, identity()) == {"chat_template"}
    (folder / "chat_template.jinja").write_text(template)
    assert identity() == before

    config = json.loads((folder / "config.json").read_text())
    for change, names in (
        ({"max_position_embeddings": 200}, {"context", "config"}),
        ({"reward_scope": "outcome"}, {"scope", "config"}),
        ({"pad_token_id": 3}, {"config"}),
        ({"rms_norm_eps": 0.1}, {"config"}),
        ({"transformers_version": "4.0.0"}, set()),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        assert differing(before, identity()) == names
    (folder / "config.json").write_text(json.dumps(config))

    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["model"]["merges"] = whole["model"]["merges"][:-1]
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    assert differing(before, identity()) == {"tokenizer"}
    assert differing(identity(), identity(aggregation="min")) == {"aggregation"}


def test_two_protocols_of_one_name_are_told_apart(tmp_path):
    folder = made.mistral(tmp_path / "own")
    one, other = (
        ProcessRewardModel(folder, protocol=MathShepherd(separator=separator, name="mine")).identity()
        for separator in ("\n", "\n\n")
    )
    assert differing(one, other) == {"protocol"}


def differing(one, other):
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def test_what_a_look_up_takes_is_no_time_of_scoring(files):
    completions, out = files

    class Recorded(Toy):
        timed = False

    class Raw:
        timed = False

        def score(self, problems, completions):
            return [0.5] * len(completions)

    looked_up = grade_files(PROBLEMS, completions, out, reward_model=Recorded())
    assert looked_up.scoring_seconds is None
    assert looked_up.saturation is not None
    wrapped = TransformedRewardModel(Raw(), transform="identity")
    assert grade_files(PROBLEMS, completions, out, reward_model=wrapped).scoring_seconds is None
    assert grade_files(PROBLEMS, completions, out, reward_model=Toy()).scoring_seconds > 0


def test_a_large_file_is_scored_with_a_model_in_two_sessions_as_in_one(files, tmp_path):
    completions, out = files
    folder = made.llama(tmp_path / "model")

    class Interrupted(ProcessRewardModel):
        calls = 0

        def score(self, problems, completions):
            if self.calls == 4:
                raise KeyboardInterrupt
            self.calls += 1
            return super().score(problems, completions)

    whole = out.with_name("whole.jsonl")
    grade_files(PROBLEMS, completions, whole, reward_model=ProcessRewardModel(folder))
    with pytest.raises(KeyboardInterrupt):
        grade_files(PROBLEMS, completions, out, reward_model=Interrupted(folder))
    grade_files(PROBLEMS, completions, out, reward_model=ProcessRewardModel(folder))
    assert out.read_bytes() == whole.read_bytes()


def test_problems_without_a_readable_answer_are_left_out(files, caplog):
    completions, out = files
    bad = [PROBLEMS[0], Problem("p1", "Which?", r"\frac{"), *PROBLEMS[2:]]
    seen = []
    summary = grade_files(
        bad, completions, out, reward_model=Toy(), progress=lambda done, total: seen.append((done, total))
    )
    assert summary.removed_problems == ("p1",)
    assert "'p1'" in caplog.text
    assert [v.problem_id for v in read_jsonl(Verdict, out)] == ["p0", "p2", "p3"] * 4
    assert seen[0] == (0, 12)
    assert seen[-1] == (12, 12)
    with pytest.raises(ValueError, match=r"no gold answer of its 4 problems can be read, the first is '\\\\frac{'"):
        grade_files([Problem(p.id, p.question, r"\frac{") for p in PROBLEMS], completions, out.with_name("none.jsonl"))
    assert not out.with_name("none.jsonl").exists()

    class Any(Verifier):
        def grade(self, problem, completion):
            return Verdict(problem.id, completion.sample, "correct")

    summary = grade_files(bad, completions, out, verifier=Any())
    assert (summary.removed_problems, summary.verdicts) == ((), 16), "another verifier may read what ours cannot"


def test_what_is_wrong_with_completions_shows_before_the_work(files):
    completions, out = files
    model = Toy()
    with pytest.raises(ValueError, match="of problem 'p3', which is not among the 3 problems"):
        grade_files(PROBLEMS[:3], completions, out, reward_model=model)
    with open(completions, "a") as file:
        file.write('{"problem_id"')
    with pytest.raises(RecordError, match=r"c\.jsonl:17"):
        grade_files(PROBLEMS, completions, out, reward_model=model)
    assert model.calls == 0
    assert not journal_path(out).exists()


@pytest.mark.parametrize(
    ("give", "words"),
    [
        (lambda n: [RewardScore((1.0,), 1.0)] * (n - 1), "toy gives 2 scores for 3 completions"),
        (lambda n: None, "toy gives NoneType scores for 3 completions"),
        (
            lambda n: [RewardScore((1.0,), 1.0), RewardScore((1.0,), float("nan")), RewardScore((1.0,), 1.0)],
            "toy gives log-odds of nan for sample 0 of problem 'p1'; they must be finite",
        ),
        (
            lambda n: [RewardScore((1.0, float("inf")), 1.0)] * n,
            "toy gives log-odds of inf for sample 0 of problem 'p0'",
        ),
        (
            lambda n: [-1.5] * n,
            "toy gives -1.5 for sample 0 of problem 'p0', not a RewardScore; wrap it in Transformed",
        ),
    ],
)
def test_what_is_no_score_is_refused(files, give, words):
    completions, out = files
    model = Toy()
    model.score = lambda problems, completions: give(len(completions))
    with pytest.raises(ValueError, match=words) as error:
        grade_files(PROBLEMS, completions, out, reward_model=model)
    assert "\n" not in str(error.value)
    assert [path.name for path in out.parent.iterdir()] == ["c.jsonl"]


def test_saturated_scores_are_loud(files, caplog):
    completions, out = files
    fine = grade_files(PROBLEMS, completions, out, reward_model=Toy()).saturation
    assert fine.num_texts == 16
    assert fine.share_tied_at_top == 0
    assert fine.share_distinct == 1
    assert not caplog.text
    model = Toy()
    model.score = lambda problems, completions: [RewardScore((), float(c.sample < 3)) for c in completions]
    tied = grade_files(PROBLEMS, completions, out, reward_model=model).saturation
    assert (tied.share_tied_at_top, tied.share_distinct) == (0.75, 0.5)
    assert "scores are saturated: 75% of a problem's samples tie for its best" in caplog.text
    assert grade_files(PROBLEMS, completions, out).saturation is None
