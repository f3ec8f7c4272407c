"""Completions of other programs: every layout read back value by value, and what is wrong with one told by place."""

import json
import math

import pytest

from lit_thinkfast.layouts import read_samples, with_engine_seconds
from lit_thinkfast.records import Completion, Problem, RecordError, write_jsonl
from lit_thinkfast.verification.scores import log_odds_of

SAL = {
    "problem": "1 + 1?",
    "solution": "So $\\boxed{2}$.",
    "answer": "2",
    "subject": "Algebra",
    "level": 3,
    "unique_id": "test/algebra/1.json",
    "completions": ["\\boxed{2}", "\\boxed{3}"],
    "scores": [[0.25, 0.75], [1.0]],
    "completion_tokens": [7, 9],
    "pred": "\\boxed{2}",
}
NEMO = {"problem": "1 + 1?", "expected_answer": 2, "generation": "\\boxed{2}", "num_generated_tokens": 5}
LM_EVAL = {
    "doc_id": 4,
    "doc": {"question": "1 + 1?", "answer": "One and one.\n#### 2"},
    "target": "One and one.\n#### 2",
    "arguments": {},
    "resps": [["It is 2.", "It is 3."]],
    "filtered_resps": ["2"],
    "filter": "strict-match",
    "exact_match": 1.0,
}
BATCH = {
    "id": "r",
    "custom_id": "p#3",
    "response": {
        "status_code": 200,
        "body": {
            "model": "m",
            "choices": [{"index": 0, "message": {"content": "It is 2."}, "finish_reason": "length"}],
            "usage": {"prompt_tokens": 4, "completion_tokens": 6},
        },
    },
    "error": None,
}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_ours(tmp_path):
    made = [Completion("p", i, "2", 3, 1, "stop", 0.5, 0.5, model="m") for i in range(3)]
    write_jsonl(made, tmp_path / "c.jsonl")
    found = read_samples(tmp_path / "c.jsonl", model="other")
    assert (found.layout, found.completions, found.problems) == ("native", made, [])


def test_search_and_learn(tmp_path):
    found = read_samples(write(tmp_path / "c.jsonl", SAL), model="llama")
    problem = Problem(
        "test/algebra/1.json", "1 + 1?", "2", "So $\\boxed{2}$.", source="math500", level=3, subject="Algebra"
    )
    assert found.layout == "search-and-learn"
    assert found.problems == [problem]
    assert found.completions == [
        Completion(problem.id, i, text, 0, tokens, "stop", 0.0, 0.0, model="llama")
        for i, (text, tokens) in enumerate([("\\boxed{2}", 7), ("\\boxed{3}", 9)])
    ]
    assert found.rewards[problem.id, 0] == pytest.approx((-math.log(3), math.log(3)))
    assert found.rewards[problem.id, 1][0] > log_odds_of(math.nextafter(1, 0))


def test_nemo_skills_takes_a_folder_of_seeds_in_the_order_of_their_numbers(tmp_path):
    for seed in (10, 2, 0):
        row = NEMO | {"generation": f"seed {seed}", "reward_model_score": -1.5 + seed}
        write(tmp_path / f"output-rs{seed}.jsonl", row, row | {"problem": "2 + 2?"})
    write(tmp_path / "output.jsonl", NEMO)  # greedy, another evaluation
    found = read_samples(tmp_path)
    assert found.layout == "nemo-skills"
    assert [(p.id, p.answer) for p in found.problems] == [("nemo-skills/0", "2"), ("nemo-skills/1", "2")]
    assert {(c.problem_id, c.sample): c.text for c in found.completions if c.problem_id[-1] == "1"} == {
        ("nemo-skills/1", 0): "seed 0",
        ("nemo-skills/1", 1): "seed 2",
        ("nemo-skills/1", 2): "seed 10",
    }
    assert found.rewards["nemo-skills/0", 1] == (0.5,)


def test_lm_eval_reads_repeats_once_for_all_filters(tmp_path):
    path = write(tmp_path / "samples_gsm8k_cot_2026-01-01T00-00-00.jsonl", LM_EVAL, LM_EVAL | {"filter": "flexible"})
    found = read_samples(path)
    assert found.layout == "lm-eval"
    assert found.problems == [Problem("gsm8k_cot/4", "1 + 1?", "2", source="gsm8k")]
    assert [c.text for c in found.completions] == ["It is 2.", "It is 3."]


def test_a_file_that_lm_eval_has_written(tmp_path):
    tracker = pytest.importorskip("lm_eval.loggers.evaluation_tracker")
    sample = LM_EVAL | {"arguments": [("prompt", {"until": []})]}
    writer = tracker.EvaluationTracker(output_path=str(tmp_path))
    writer.date_id = "2026-01-01T00-00-00"
    writer.save_results_samples("gsm8k", [sample])
    found = read_samples(next(tmp_path.rglob("samples_gsm8k_*.jsonl")))
    assert found.problems == [Problem("gsm8k/4", "1 + 1?", "2", source="gsm8k")]
    assert [c.text for c in found.completions] == ["It is 2.", "It is 3."]


def test_a_batch_of_requests(tmp_path):
    found = read_samples(write(tmp_path / "b.jsonl", BATCH))
    assert found.completions == [Completion("p", 3, "It is 2.", 4, 6, "length", 0.0, 0.0, model="m")]


def test_a_batch_without_numbers_and_counts(tmp_path):
    choices = [{"index": None, "text": "a"}, {"text": "b"}]
    row = BATCH | {"custom_id": "p", "response": {"body": {"choices": choices, "usage": {"prompt_tokens": None}}}}
    found = read_samples(write(tmp_path / "b.jsonl", row), model="m")
    assert found.completions == [
        Completion("p", i, text, 0, 0, "stop", 0.0, 0.0, model="m") for i, text in enumerate("ab")
    ]


def test_requests_that_failed_are_left_out_and_told(tmp_path, caplog):
    failed = [
        BATCH | {"response": None, "error": {"message": "expired"}},
        BATCH | {"response": {"status_code": 400, "body": {"error": {"message": "too long"}}}},
        BATCH | {"response": None},
    ]
    found = read_samples(write(tmp_path / "b.jsonl", BATCH, *failed))
    assert len(found.completions) == 1
    assert "3 requests have failed and are left out, the first at" in caplog.text
    assert "expired" in caplog.text
    with pytest.raises(ValueError, match="there are no completions"):
        read_samples(write(tmp_path / "c.jsonl", *failed))


def test_odd_names_and_levels(tmp_path):
    rows = [SAL | {"unique_id": None, "level": "9" * 5000}, SAL | {"unique_id": None, "problem": "2 + 2?"}]
    found = read_samples(write(tmp_path / "c.jsonl", *rows))
    assert [(p.id, p.level) for p in found.problems] == [("search-and-learn/0", None), ("search-and-learn/1", 3)]


def test_engine_seconds_are_shared_by_tokens_or_evenly(tmp_path):
    found = read_samples(write(tmp_path / "c.jsonl", SAL)).completions
    assert [c.seconds for c in with_engine_seconds(found, 8.0)] == pytest.approx([3.5, 4.5])
    uncounted = read_samples(write(tmp_path / "d.jsonl", {**SAL, "completion_tokens": None})).completions
    assert [c.seconds for c in with_engine_seconds(uncounted, 8.0)] == [4.0, 4.0]
    empty = read_samples(write(tmp_path / "e.jsonl", SAL | {"completions": ["a", ""], "completion_tokens": [3, 0]}))
    assert [c.seconds for c in with_engine_seconds(empty.completions, 8.0)] == [6.0, 2.0]
    partly = read_samples(write(tmp_path / "f.jsonl", SAL | {"completion_tokens": [3, 0]})).completions
    with pytest.raises(ValueError, match=r"1 of 2 completions have no count, the first is problem .* sample 1"):
        with_engine_seconds(partly, 8.0)
    with pytest.raises(ValueError, match="engine_seconds 0 is not a positive"):
        with_engine_seconds(found, 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"foo": 1}, r":1: not a completion in any layout that is known .* its keys are 'foo'"),
        (SAL | {"scores": [[0.5]]}, r":1: 1 scores for 2 completions"),
        (SAL | {"scores": [[0.5], [1.5]]}, r":1: the score 1\.5 is no probability"),
        (SAL | {"scores": [[0.5], [None]]}, r":1: the score None is not a finite number"),
        (SAL | {"completions": ["a", None]}, r":1: sample 1 is NoneType, expected text"),
        (SAL | {"completions": ["a", "\ud800"]}, r":1: sample 1 is not valid text"),
        (SAL | {"problem": None}, r":1: no 'problem' or 'question'"),
        (NEMO | {"generation": []}, r":1: 'generation' holds list, expected str"),
        (BATCH | {"response": {"body": {}}}, r":1: the response holds no choices"),
        (BATCH | {"response": {"body": {"choices": ["x"]}}}, r":1: the response holds no choices"),
        (BATCH | {"response": {"body": {"choices": [{"index": "0", "text": "a"}]}}}, r":1: 'index' holds str"),
        (BATCH | {"response": {"body": {"choices": [{"message": {}}]}}}, r":1: no 'content'"),
    ],
)
def test_what_is_wrong_is_told_by_place(tmp_path, row, message):
    with pytest.raises(RecordError, match=message):
        read_samples(write(tmp_path / "c.jsonl", row))


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        read_samples(tmp_path / "none.jsonl")
    with pytest.raises(FileNotFoundError, match=r"no \.jsonl file in this folder"):
        read_samples(tmp_path)
    with pytest.raises(ValueError, match="no completions in this file"):
        read_samples(write(tmp_path / "c.jsonl"))
    with pytest.raises(ValueError, match="layout 'odd' is not one of native"):
        read_samples(write(tmp_path / "c.jsonl", SAL), layout="odd")


def test_two_texts_of_one_sample(tmp_path):
    with pytest.raises(ValueError, match=r":2: problem .* sample 0 has two texts that differ"):
        read_samples(write(tmp_path / "c.jsonl", SAL, SAL | {"completions": ["a", "b"]}))
    with pytest.raises(ValueError, match=r":2: two different problems have the id"):
        read_samples(write(tmp_path / "c.jsonl", SAL, SAL | {"problem": "?"}))
