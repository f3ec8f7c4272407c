r"""Evaluation sets as :class:`~lit_thinkfast.records.Problem`: GSM8K, MATH-500, the embedded arithmetic, or a file."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from lit_thinkfast.data import arithmetic
from lit_thinkfast.data.tables import HubTable, Row, open_table, string
from lit_thinkfast.records import Problem, RecordError, read_jsonl

SOURCES: tuple[str, ...] = ("arithmetic", "gsm8k", "math500")
"""Names that :func:`load_problems` knows besides files of problems."""

DEFAULT_ARITHMETIC_PROBLEMS = 100
"""How many problems of the endless arithmetic world are taken when no limit is given."""


def load_problems(
    source: str,
    *,
    path: str | None = None,
    split: str = "test",
    limit: int | None = None,
    level: int | None = None,
    seed: int = 0,
) -> list[Problem]:
    """Return an evaluation set.

    Args:
        source: ``gsm8k``, ``math500``, ``arithmetic``, or the path of a JSONL file of ``Problem`` records.
        path: For ``gsm8k`` and ``math500``, a local JSONL or Parquet file in the published format; by default the set
            is taken from the Hugging Face hub or its cache.
        split: Split of the set; MATH-500 has only ``test``.
        limit: At most this many problems, drawn by ``seed`` from the whole and kept in its order; a smaller limit draws
            a part of what a larger one draws. Of ``arithmetic``, the first ones (100 by default).
        level: Difficulty, for ``arithmetic`` and ``math500``.
        seed: Of the draw; for ``arithmetic``, of the problems.

    Raises:
        ValueError: Unknown source, split or level, a limit below 1, two problems with one id, or no problem at all.
        FileNotFoundError: No such file.
        RecordError: A line is not a problem; the message starts with ``path:line``.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit {limit} leaves no problem; use at least 1")
    if source == "arithmetic":
        if path is not None:
            raise ValueError(f"arithmetic problems are made, not read from {path!r}; drop the path")
        if split not in ("train", "validation", "test"):
            raise ValueError(f"split {split!r} of arithmetic is not one of train, validation, test")
        count = DEFAULT_ARITHMETIC_PROBLEMS if limit is None else limit
        return arithmetic.problems(
            split,  # type: ignore[arg-type]
            level=arithmetic.DEFAULT_LEVEL if level is None else level,
            count=count,
            seed=seed,
        )
    if source == "gsm8k":
        if level is not None:
            raise ValueError(f"gsm8k has no levels; drop level {level}")
        where = path or f"openai/gsm8k[{split}]"
        found = list(_from_table(_gsm8k_problem, "gsm8k", path, "openai/gsm8k", "main", split))
    elif source == "math500":
        if split != "test":
            raise ValueError(f"math500 has only a test split, not {split!r}")
        where = path or "HuggingFaceH4/MATH-500[test]"
        found = list(_from_table(_math_problem(level), "math500", path, "HuggingFaceH4/MATH-500", None, split))
    elif Path(source).suffix in (".jsonl", ".json") or Path(source).exists():
        if path is not None or level is not None:
            raise ValueError(f"{source} is a file of problems; drop {'path' if path is not None else 'level'}")
        where = source
        found = list(_read_file(source))
    else:
        raise ValueError(f"unknown problems {source!r}; known: {', '.join(SOURCES)}, or a .jsonl file of problems")
    _check_ids(found, where)
    if not found:
        chosen = "" if level is None else f" of level {level}"
        raise ValueError(f"no problem{chosen} in {where}; an evaluation needs at least one")
    return found if limit is None else draw(found, limit, seed=seed)


def draw(problems: list[Problem], limit: int, *, seed: int) -> list[Problem]:
    """Return ``limit`` of the problems, drawn without replacement, in their order."""
    order = list(range(len(problems)))
    random.Random(seed).shuffle(order)
    return [problems[index] for index in sorted(order[:limit])]


def split_gsm8k_answer(text: str, where: str = "answer") -> tuple[str, str]:
    r"""Return the worked solution without calculator annotations, and the final answer without thousands commas.

    Raises:
        RecordError: There is no ``####``.

    >>> split_gsm8k_answer("He pays 3*400=<<3*400=1200>>1200.\n#### 1,200")
    ('He pays 3*400=1200.', '1200')
    """
    solution, mark, answer = text.rpartition("####")
    if not mark or not answer.strip():
        raise RecordError(f"{where}: no final answer after '####'")
    answer = re.sub(r"(?<=\d),(?=\d{3}(\D|$))", "", answer.strip())
    return re.sub(r"<<[^<>]*>>", "", solution).strip(), answer


def _from_table(
    make: Callable[[Row, str], Problem | None], source: str, path: str | None, hub: str, name: str | None, split: str
) -> Iterator[Problem]:
    table = open_table(path) if path is not None else HubTable(hub, name=name, split=split, revision=None)
    for index in range(len(table)):
        problem = make(table.row(index), f"{source}/{split}/{index}")
        if problem is not None:
            yield problem


def _gsm8k_problem(row: Row, default_id: str) -> Problem:
    solution, answer = split_gsm8k_answer(string(row, "answer"), row.where)
    return Problem(default_id, string(row, "question"), answer, solution, "gsm8k")


def _math_problem(level: int | None) -> Callable[[Row, str], Problem | None]:
    def make(row: Row, default_id: str) -> Problem | None:
        if level is not None:
            row.column("level")  # must be there
        # published copies write the level as 3 or as "Level 3"
        written = str(row.values.get("level", "")).split()[-1:]
        own = int(written[0]) if written and written[0].isdecimal() else None
        problem = Problem(
            string(row, "unique_id") if "unique_id" in row.values else default_id,
            string(row, "problem"),
            string(row, "answer"),
            string(row, "solution") if "solution" in row.values else None,
            "math500",
            own,
            string(row, "subject") if "subject" in row.values else "",
        )
        return problem if level is None or own == level else None

    return make


def _read_file(path: str) -> Iterator[Problem]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"problem file {path} does not exist")
    return read_jsonl(Problem, path)


def _check_ids(problems: list[Problem], where: str) -> None:
    seen: set[str] = set()
    for problem in problems:
        if problem.id in seen:
            raise ValueError(f"{where}: two problems have the id {problem.id!r}; ids must be unique")
        seen.add(problem.id)
