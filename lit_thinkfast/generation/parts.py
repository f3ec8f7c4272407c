"""Parts of a run: what each of several processes has sampled, and how they become one journal.

A part is a journal named ``<out>.rank-00003-of-00008.jsonl``. Merging appends the lines of all parts to the one journal
``out`` and deletes them; interrupted at any point, it can be done again. Parts of a job that was killed count as done
whatever the number of processes of the next job.

Locks tell who is alive: a process that samples alone holds ``out``; processes of a job share it, and hold a part each.
Where a network file system has no locks, merge by hand.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_thinkfast.appending import lock
from lit_thinkfast.generation.journal import (
    Journal,
    check_identity,
    clock_path,
    forget_deleted,
    meta_path,
    read_clock,
    read_meta,
    whole_line,
    without_duplicates,
)
from lit_thinkfast.generation.ranks import Rank
from lit_thinkfast.generation.sessions import run_clock, settle, settle_killed, totals, warn_of_mixture
from lit_thinkfast.records import Completion, RecordError, decoded, from_json

# How long a process that starts waits for one that looks whether it is the last
_MERGE_SECONDS = 3.0
# What a part says of itself rather than of the run
_OF_A_PART = ("identity", "sessions", "prompts", "done")


@dataclass(frozen=True, slots=True)
class Part:
    """What a process of some job has sampled so far.

    Attributes:
        path: Its journal.
        rank: Of that process.
        meta: Its meta document, empty where nothing was written yet.
        completions: Whole lines of the journal.
    """

    path: Path
    rank: Rank
    meta: dict[str, Any]
    completions: list[Completion]

    def clock(self) -> float:
        """Return the engine seconds that its process had come to."""
        return run_clock(self.completions, self.meta, noted=read_clock(self.path))


def part_path(out: str | os.PathLike[str], rank: Rank) -> Path:
    """Return where the part of a process lies.

    >>> part_path("runs/teacher.jsonl", Rank(3, 8)).name
    'teacher.rank-00003-of-00008.jsonl'
    """
    path = Path(out)
    return path.with_name(f"{path.stem}.rank-{rank.rank:05}-of-{rank.world_size:05}{path.suffix}")


def read_parts(out: str | os.PathLike[str]) -> list[Part]:
    """Read all parts that lie beside ``out``, also while they are written: an unfinished last line is passed over.

    Raises:
        RecordError: A line is damaged, or twice in a part.
    """
    out = Path(out)
    name = re.compile(rf"{re.escape(out.stem)}\.rank-(\d{{5,}})-of-(\d{{5,}}){re.escape(out.suffix)}")
    names = sorted(entry.name for entry in out.parent.iterdir()) if out.parent.is_dir() else []
    found = []
    for match in filter(None, map(name.fullmatch, names)):
        path = out.with_name(match[0])
        try:
            completions = read_unlocked(path)  # before the meta document: a part with lines has one
        except FileNotFoundError:  # merged meanwhile
            continue
        found.append(Part(path, Rank(int(match[1]), int(match[2])), read_meta(path) or {}, completions))
    return found


def read_unlocked(path: str | os.PathLike[str]) -> list[Completion]:
    """Read a journal that another process may be appending to.

    Raises:
        RecordError: A line is damaged, or there twice.
    """
    path = Path(path)
    whole, _, tail = path.read_bytes().rpartition(b"\n")

    def records() -> Iterator[Completion]:
        for number, raw in enumerate(whole.split(b"\n"), start=1):
            where = f"{path}:{number}"
            if line := decoded(raw, where).strip():
                yield from_json(Completion, line, where)
        if (last := whole_line(tail)) is not None:
            yield last

    return without_duplicates(records(), path)


def join(parts: Sequence[Part], completions: Sequence[Completion], path: str | os.PathLike[str]) -> list[Completion]:
    """Return the completions of ``parts`` that are not among those of the journal at ``path``.

    A merge that was interrupted leaves lines in both; they are equal.

    Raises:
        RecordError: Two files hold different completions of one sample.
    """
    seen = {(c.problem_id, c.sample): (c, Path(path)) for c in completions}
    found = []
    for part in parts:
        for completion in part.completions:
            known, where = seen.setdefault((completion.problem_id, completion.sample), (completion, part.path))
            if known != completion:
                raise RecordError(
                    f"{part.path} and {where} hold different completions of sample {completion.sample} of problem "
                    f"{completion.problem_id!r}; delete the line in one of them"
                )
            if where == part.path:
                found.append(completion)
    return found


@contextmanager
def sharing(out: str | os.PathLike[str]) -> Iterator[None]:
    """Be one of the processes of a job: nobody else may sample into ``out`` alone meanwhile.

    Raises:
        BusyError: A process samples into it alone, or is merging.
    """
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    forget_deleted(out)
    with open(out, "ab+") as file:
        lock(file, out, shared=True, wait=_MERGE_SECONDS)
        yield


def check_nobody_else(parts: Sequence[Part], rank: Rank) -> None:
    """Check that no job of another number of processes is at work.

    Raises:
        BusyError: One is.
    """
    for part in parts:
        if part.rank.world_size != rank.world_size:
            try:
                with open(part.path, "rb+") as file:
                    lock(file, part.path, shared=True)
            except FileNotFoundError:
                continue


def check_parts(parts: Sequence[Part], identity: Mapping[str, Any]) -> None:
    """Check that all parts are of the run with ``identity``.

    Raises:
        ValueError: One is not.
    """
    for part in parts:
        if part.completions:
            check_identity(part.meta, identity, part.path)


def delete(part: Part) -> None:
    """Delete a part that was merged. What an interruption leaves of it is harmless."""
    for path in (part.path, meta_path(part.path), clock_path(part.path)):
        path.unlink(missing_ok=True)


def merge(journal: Journal, parts: Sequence[Part]) -> None:
    """Append the completions of parts to an open journal, describe it as they are described, and delete them.

    Raises:
        ValueError: A part is of another run.
        RecordError: Two files hold different completions of one sample.
    """
    if not parts:
        return
    check_parts(parts, journal.identity)
    new = join(parts, journal.completions, journal.path)
    settle(journal)
    sessions = journal.meta.setdefault("sessions", [])
    prompts = journal.meta.setdefault("prompts", {})
    known = {session.get("id") for session in sessions}
    for part in parts:
        settle_killed(part.meta, part.clock())
        sessions += [session for session in part.meta.get("sessions", []) if session["id"] not in known]
        keep_prompts(prompts, part.meta.get("prompts", {}), part.path)
        journal.meta |= {name: value for name, value in part.meta.items() if name not in _OF_A_PART}
    for completion in new:
        journal.append(completion)
    journal.sync()
    journal.meta |= totals(journal.completions, journal.meta, problem_ids=prompts)
    journal.save_meta()
    journal.forget_clock()
    warn_of_mixture(sessions, journal.path)
    for part in parts:
        delete(part)


def merge_parts(out: str | os.PathLike[str]) -> dict[str, Any]:
    """Merge whatever parts lie beside ``out`` into it, whether they are complete or not; return the meta document.

    Raises:
        FileNotFoundError: There are none.
        BusyError: One of their processes is still at work.
        ValueError: They are not of one run.
        RecordError: A line is damaged, or two files hold different completions of one sample.
    """
    identity = next((part.meta["identity"] for part in read_parts(out) if "identity" in part.meta), None)
    if identity is None:
        raise FileNotFoundError(f"no parts of {out}, which would be named like {part_path(out, Rank(0, 8)).name}")
    with Journal(out, identity=identity) as journal:
        merge(journal, read_parts(out))
        return journal.meta


def keep_prompts(known: dict[str, str], made: Mapping[str, str], path: str | os.PathLike[str]) -> None:
    """Add hashes of prompts by problem id to those that are known.

    Raises:
        ValueError: A prompt differs from the one that was sampled.
    """
    for problem_id, digest in made.items():
        if known.setdefault(problem_id, digest) != digest:
            raise ValueError(
                f"{path}: the prompt of problem {problem_id!r} is not the one that was sampled "
                "(other problems, tokenizer or template?); choose another file"
            )
