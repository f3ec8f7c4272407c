"""The arithmetic world against an independent solver, and its splits against each other."""

import itertools
import random
import re

import pytest

from lit_thinkfast.data import arithmetic
from lit_thinkfast.data.arithmetic import LEVELS, check_steps, generate_problem, split_of


def solve_independently(question: str) -> int:
    """Read the question with other means than the library: word by word, substituting as it goes."""
    counts = {}
    for sentence in question.splitlines():
        words = sentence.strip(".?").replace("'s", "").split()[1:]
        if words[0] == "What":
            person, left, word, right = "?", words[2], words[4], words[5]
        elif len(words) == 4:
            counts[words[0]] = int(words[2])
            continue
        else:
            person, left, word, right = words[0], words[2], words[4], words[5]
        a, b = counts[left], counts.get(right) or int(right)
        counts[person] = {"plus": a + b, "minus": a - b, "times": a * b}[word]
    return counts["?"]


@pytest.mark.parametrize("level", LEVELS)
def test_answers_agree_with_an_independent_solver(level):
    for index in range(200):
        problem = generate_problem(index, level=level)
        assert int(problem.answer) == solve_independently(problem.question)
        assert problem.solution.endswith(f"\\boxed{{{problem.answer}}}.")


def test_every_equation_in_a_solution_holds():
    for index in range(100):
        for left, right in re.findall(r"(?<![\w+*-])(\d+(?:[-+*]\d+)+)=(\d+)", generate_problem(index).solution):
            assert eval(left) == int(right)


def test_a_problem_is_a_function_of_its_number():
    again = [generate_problem(i, split="test", level=3, seed=5) for i in range(5)]
    assert again == [generate_problem(i, split="test", level=3, seed=5) for i in range(5)]
    assert generate_problem(0, seed=0) != generate_problem(0, seed=1)


def test_splits_are_disjoint():
    questions = {
        split: {generate_problem(i, split=split, level=1, seed=s).question for i in range(300) for s in (0, 1)}
        for split in ("train", "validation", "test")
    }
    for one, other in itertools.combinations(questions, 2):
        assert not questions[one] & questions[other]
    assert all(split_of(q) == split for split, made in questions.items() for q in made)


def test_check_steps_finds_the_first_wrong_line():
    rng = random.Random(0)
    for index in range(100):
        problem = generate_problem(index)
        lines = problem.solution.split("\n")
        assert check_steps(problem.question, problem.solution) == [True] * len(lines)
        wrong = rng.randrange(len(lines))
        digits = [m.start() for m in re.finditer(r"\d", lines[wrong])]
        if digits:
            at = rng.choice(digits)
            digit = str((int(lines[wrong][at]) + rng.randint(1, 9)) % 10)
            lines[wrong] = lines[wrong][:at] + digit + lines[wrong][at + 1 :]
            expected = [number < wrong for number in range(len(lines))]
            assert check_steps(problem.question, "\n".join(lines)) == expected


def test_bad_requests_say_what_is_allowed():
    with pytest.raises(ValueError, match=r"level 9 is not one of 1, 2, 3, 4"):
        generate_problem(0, level=9)
    with pytest.raises(ValueError, match="split 'dev' is not one of train, validation, test"):
        generate_problem(0, split="dev")
    with pytest.raises(ValueError, match="cannot read"):
        check_steps("What is love?", "x")


def test_tokenizer_round_trip_and_length():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arithmetic.TOKENIZER)
    assert len(tokenizer) <= 512
    made = [generate_problem(i) for i in range(200)]
    lengths = [len(tokenizer(p.solution).input_ids) for p in made]
    assert sum(lengths) / len(lengths) >= 400
    for problem in made:
        text = problem.question + "\n" + problem.solution
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    newline = tokenizer("\n").input_ids
    assert len(newline) == 1
    assert tokenizer(made[0].solution).input_ids.count(newline[0]) == made[0].solution.count("\n")
    chat = [{"role": "user", "content": "Hi"}]
    assert (
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        == "<|user|>Hi<|end|><|assistant|>"
    )
