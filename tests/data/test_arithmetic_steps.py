"""Completions become labelled solutions of the very problem that they answer."""

import random
import re

import pytest

from lit_thinkfast.data.arithmetic import check_steps, generate_problem, slipped_solution
from lit_thinkfast.data.arithmetic_steps import labelled, main, problem_of, slips
from lit_thinkfast.records import Completion, Example, read_jsonl


def completion(problem, text, finish="stop", sample=0):
    return Completion(problem.id, sample, text, 5, 7, finish, 0.1, 0.1)


def test_a_problem_is_found_again_by_its_id():
    problem = generate_problem(7, split="validation", level=3, seed=2)
    assert problem_of(problem.id) == problem
    with pytest.raises(ValueError, match="'gsm8k/1' is not the id of an arithmetic problem"):
        problem_of("gsm8k/1")


def test_labels_turn_false_at_the_first_wrong_line_and_cut_texts_are_left_out():
    problem = generate_problem(3)
    lines = problem.solution.split("\n")
    wrong = [*lines[:4], "ones 1+1+0=3", *lines[5:]]
    made = list(
        labelled(
            [
                completion(problem, problem.solution),
                completion(problem, "\n".join(wrong) + "\n", sample=1),
                completion(problem, problem.solution[:50], "length", sample=2),
                completion(problem, "", sample=3),
            ]
        )
    )
    assert [e.id for e in made] == [f"{problem.id}#0", f"{problem.id}#1"]
    assert made[0].step_labels == (True,) * len(lines)
    assert made[1].step_labels == (True,) * 4 + (False,) * (len(lines) - 4)
    assert made[1].prompt == problem.question


def test_a_slip_is_one_wrong_digit_or_one_wrong_recall_and_all_that_follows_from_it():
    kinds = set()
    for index in range(80):
        problem = generate_problem(index, split="train")
        text = slipped_solution(problem.question, random.Random(index))
        assert text == slipped_solution(problem.question, random.Random(index))
        lines, right, labels = text.split("\n"), problem.solution.split("\n"), check_steps(problem.question, text)
        first = labels.index(False)
        assert labels == [True] * first + [False] * (len(lines) - first)
        differs = sum(a != b for a, b in zip(lines, right, strict=False))
        kinds.add("written" if len(text) == len(problem.solution) and differs == 1 else "recalled")
        if differs > 1:
            name, _, count = lines[first].partition("=")
            assert re.fullmatch(r"[A-Z][a-z]+=\d+", lines[first]), "the first wrong line recalls a count"
            assert right[first].startswith(f"{name}=")
            work = next(line for line in lines[first:] if line.startswith("work "))
            assert count in re.findall(r"\d+", work), "and the next sum is done with it"
        assert "=-" not in text
    assert kinds == {"written", "recalled"}


def test_slips_are_labelled_and_mixed_with_samples(tmp_path, monkeypatch, capsys):
    made = list(slips(9, seed=5))
    assert [all(example.step_labels) for example in made] == [True, False, False] * 3
    out = tmp_path / "examples.jsonl"
    monkeypatch.setattr("sys.argv", ["arithmetic_steps", str(out), "--slips", "9", "--seed", "5"])
    main()
    assert "9 labelled solutions" in capsys.readouterr().out
    assert sorted(read_jsonl(Example, out), key=lambda e: e.id) == sorted(made, key=lambda e: e.id)
