"""Training texts for a process reward model of the embedded world: solutions whose lines a program labels.

Run as ``python -m lit_thinkfast.data.arithmetic_steps OUT.jsonl --completions FILE --slips 6000``. There are two kinds
of texts: what a model wrote, and solutions with one slip (:func:`~lit_thinkfast.data.arithmetic.slipped_solution`)
beside right ones, because a good model's own mistakes are too rare to learn from in a few minutes.
"""

import argparse
import itertools
import random
import re
from collections.abc import Iterable, Iterator

from lit_thinkfast.data.arithmetic import (
    DEFAULT_LEVEL,
    ArithmeticProblem,
    check_steps,
    generate_problem,
    slipped_solution,
)
from lit_thinkfast.records import Completion, Example, read_jsonl, write_jsonl


def problem_of(problem_id: str) -> ArithmeticProblem:
    """Make the problem of an id ``split/level/seed/index`` again.

    Raises:
        ValueError: Not such an id.
    """
    match = re.fullmatch(r"(\w+)/(\d+)/(\d+)/(\d+)", problem_id)
    if match is None:
        raise ValueError(f"{problem_id!r} is not the id of an arithmetic problem, such as 'test/2/0/17'")
    split, level, seed, index = match.groups()
    return generate_problem(int(index), split=split, level=int(level), seed=int(seed))  # type: ignore[arg-type]


def labelled(completions: Iterable[Completion]) -> Iterator[Example]:
    """Yield each completion that ended by itself, its blank lines dropped, with the truth of its steps."""
    for c in completions:
        lines = [line for line in c.text.split("\n") if line.strip()]
        if c.finish_reason == "stop" and lines:
            problem, text = problem_of(c.problem_id), "\n".join(lines)
            labels = tuple(check_steps(problem.question, text))
            yield Example(f"{c.problem_id}#{c.sample}", problem.question, text, "arithmetic-steps", labels)


def slips(count: int, *, level: int = DEFAULT_LEVEL, seed: int = 0) -> Iterator[Example]:
    """Yield solutions of ``count`` training problems, every third right, the others with one slip, and their truth."""
    for index in range(count):
        problem = generate_problem(index, split="train", level=level, seed=seed)
        text = problem.solution
        if index % 3:
            text = slipped_solution(problem.question, random.Random(f"slip/{problem.id}"))
        yield Example(
            problem.id, problem.question, text, "arithmetic-steps", tuple(check_steps(problem.question, text))
        )


def main() -> None:
    """Write both kinds of texts into one file, mixed."""
    parser = argparse.ArgumentParser(description="label the lines of solutions of arithmetic problems")
    parser.add_argument("out", help="JSON-lines file of examples to write")
    parser.add_argument("--completions", help="JSON-lines file that generate wrote on arithmetic problems")
    parser.add_argument("--slips", type=int, default=0, help="problems to solve with and without a slip")
    parser.add_argument("--seed", type=int, default=0, help="of the problems to solve; not the seed of others")
    options = parser.parse_args()
    written = labelled(read_jsonl(Completion, options.completions)) if options.completions else iter(())
    examples = list(itertools.chain(written, slips(options.slips, seed=options.seed)))
    random.Random(options.seed).shuffle(examples)
    print(f"{options.out}: {write_jsonl(examples, options.out)} labelled solutions")


if __name__ == "__main__":
    main()
