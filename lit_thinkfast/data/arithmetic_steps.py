"""Turn completions of arithmetic problems into training texts for reward models.

Run as ``python -m lit_thinkfast.data.arithmetic_steps COMPLETIONS.jsonl OUT.jsonl``: each completion becomes an
:class:`~lit_thinkfast.records.Example` whose lines are labelled by :func:`~lit_thinkfast.data.arithmetic.check_steps`,
and whose outcome says whether its last line gives the right answer. A corpus takes one of the two, by
``step_labels_column`` for a process reward model or by ``outcome_column`` for an outcome reward model.
"""

import re
import sys
from collections.abc import Iterable, Iterator

from lit_thinkfast.data.arithmetic import ArithmeticProblem, check_steps, generate_problem
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
    """Yield each completion that ended by itself, its blank lines dropped, with the truth of its steps and outcome."""
    for c in completions:
        lines = [line for line in c.text.split("\n") if line.strip()]
        if c.finish_reason == "stop" and lines:
            problem, text = problem_of(c.problem_id), "\n".join(lines)
            labels = tuple(check_steps(problem.question, text))
            answered = lines[-1].strip() == problem.solution.split("\n")[-1]
            yield Example(f"{c.problem_id}#{c.sample}", problem.question, text, "arithmetic-steps", labels, answered)


if __name__ == "__main__":
    count = write_jsonl(labelled(read_jsonl(Completion, sys.argv[1])), sys.argv[2])
    print(f"{sys.argv[2]}: {count} labelled solutions")
