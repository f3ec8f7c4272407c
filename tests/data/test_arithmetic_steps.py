"""Completions become labelled solutions of the very problem that they answer."""

import pytest

from lit_thinkfast.data.arithmetic import generate_problem
from lit_thinkfast.data.arithmetic_steps import labelled, problem_of
from lit_thinkfast.records import Completion


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


def test_the_outcome_is_that_of_the_last_line_whatever_the_way_there():
    problem = generate_problem(3)
    *lines, last = problem.solution.split("\n")
    texts = [problem.solution, f"{lines[0]}\nslip\n{last} \n\n", "\n".join([*lines, "The answer is \\boxed{1}."])]
    made = list(labelled(completion(problem, text, sample=i) for i, text in enumerate(texts)))
    assert last == f"The answer is \\boxed{{{problem.answer}}}."
    assert [e.outcome for e in made] == [True, True, False]
    assert [e.step_labels[-1] for e in made] == [True, False, False]
