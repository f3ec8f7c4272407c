"""A sampling run into a file: resumable, with everything beside it that its seconds depend on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from lit_thinkfast.appending import BusyError
from lit_thinkfast.generation.journal import Journal, check_identity, read_clock, read_meta
from lit_thinkfast.generation.parts import (
    check_nobody_else,
    check_parts,
    join,
    keep_prompts,
    merge,
    part_path,
    read_parts,
    read_unlocked,
    sharing,
)
from lit_thinkfast.generation.progress import Progress, ProgressCallback
from lit_thinkfast.generation.ranks import ALONE, Rank, Unwanted
from lit_thinkfast.generation.sampling import BaseSampler
from lit_thinkfast.generation.sessions import Session, run_clock, settle, totals, warn_of_mixture
from lit_thinkfast.records import Completion, Problem


def generate_to_file(
    sampler: BaseSampler,
    problems: Sequence[Problem],
    out: str | os.PathLike[str],
    *,
    on_progress: ProgressCallback | None = None,
    time_budget: float | None = None,
) -> dict[str, Any]:
    """Sample completions of ``problems`` into the journal ``out``, continuing what is there.

    Samples that the journal holds are not drawn again; the others get the texts they would have had in one
    uninterrupted run (in half precision: with the same batch size and device, see
    :mod:`lit_thinkfast.generation.rng`). Beside it, ``<out>.meta.json`` describes model, settings and
    totals, and each session that added lines: machine, batch size, calibration before and after, engine seconds.

    Args:
        sampler: Model, tokenizer and settings.
        problems: At least one, ids that differ.
        out: JSON-lines file. Parts beside it, left by processes of :func:`generate_share`, are merged into it.
        on_progress: See :meth:`BaseSampler.sample`; it counts this session's samples only.
        time_budget: Engine seconds of the run in all, sessions added up, after which to stop; ``num_samples`` is then
            the most a problem can get. Completions that are unfinished then, or finished later, are not counted. After
            a kill, the seconds that are gone are known to the last call of ``on_progress``, a fraction of a second or
            one step of the engine; after a loss of power, to the last completion on the disk, a few seconds.

    Returns:
        The meta document.

    Raises:
        ValueError: No problems, or the journal is of another run or holds samples that are not asked for.
        RecordError: The journal is damaged other than by an interruption.
        OSError: It cannot be written, for example because the disk is full. All lines before are safe.
    """
    asked = _Asked(sampler, problems, time_budget)
    with Journal(out, identity=asked.identity) as journal:
        parts = read_parts(out)
        asked.check(journal.completions, out)
        for part in parts:
            asked.check(part.completions, part.path)
        merge(journal, parts)
        asked.fill(journal, settle(journal), rank=ALONE, elsewhere=(), on_progress=on_progress)
        return journal.meta


def generate_share(
    sampler: BaseSampler,
    problems: Sequence[Problem],
    out: str | os.PathLike[str],
    *,
    rank: Rank,
    on_progress: ProgressCallback | None = None,
    time_budget: float | None = None,
) -> dict[str, Any] | None:
    """Sample the share of one of several processes into its part; the last one to end merges all parts into ``out``.

    Args:
        sampler: As in :func:`generate_to_file`; settings must be equal in all processes.
        problems: All of them, equal in all processes.
        out: JSON-lines file of the whole run.
        rank: Place of this process, see :func:`~lit_thinkfast.generation.ranks.rank_from_environment`.
        on_progress: Counts this process's samples.
        time_budget: Of each process: they run at the same time.

    Returns:
        The meta document of ``out`` where it is complete by now and this process made it so (or, if there was nothing
        to do, is rank 0); ``None`` in the other processes.

    Raises:
        ValueError: As in :func:`generate_to_file`, or another job is writing the same file.
        RecordError: As there.
        OSError: As there.
    """
    asked = _Asked(sampler, problems, time_budget)
    path = part_path(out, rank)
    with sharing(out):
        whole, meta = read_unlocked(out), read_meta(out) or {}
        if whole:
            check_identity(meta, asked.identity, out)
            asked.check(whole, out)
        clock = run_clock(whole, meta, noted=read_clock(out))
        if whole and asked.left(whole, clock, rank=ALONE) == 0:
            return meta | totals(whole, meta, problem_ids=asked.prompts) if rank.rank == 0 else None
        with Journal(path, identity=asked.identity) as journal:
            parts = read_parts(out)
            check_parts(parts, asked.identity)
            check_nobody_else(parts, rank)
            for part in parts:
                asked.check(part.completions, part.path)
                if part.rank.world_size != rank.world_size:
                    clock = max(clock, part.clock())
            elsewhere = [*whole, *join(parts, whole, out)]
            asked.fill(journal, max(clock, settle(journal)), rank=rank, elsewhere=elsewhere, on_progress=on_progress)
            journal.meta["done"] = asked.digest(rank)
            journal.save_meta()
    return _merge_if_last(out, asked, rank)


def _merge_if_last(out: str | os.PathLike[str], asked: _Asked, rank: Rank) -> dict[str, Any] | None:
    """Merge the parts if every process has said that it is done; who is alive still shares ``out``."""

    def all_done() -> bool:
        metas = (read_meta(part_path(out, Rank(other, rank.world_size))) for other in range(rank.world_size))
        return all(meta is not None and meta.get("done") == asked.digest(rank) for meta in metas)

    if not all_done():  # without holding up those who start
        return None
    try:
        with Journal(out, identity=asked.identity) as journal:
            if not all_done():  # somebody was faster
                return None
            merge(journal, read_parts(out))
            return journal.meta
    except BusyError:
        return None


class _Asked:
    """What a call asks for: which samples of which problems, from which sampler, within which time."""

    def __init__(self, sampler: BaseSampler, problems: Sequence[Problem], time_budget: float | None) -> None:
        if not problems:
            raise ValueError("there are no problems to sample; give at least one")
        self.sampler, self.problems, self.time_budget = sampler, problems, time_budget
        self.prompts = sampler.prompts(problems)
        self.identity = sampler.identity()

    def digest(self, rank: Rank) -> str:
        """Return a hash of the call: processes with equal ones work on the same thing."""
        ids = [problem.id for problem in self.problems]
        return _hash([ids, self.sampler.config.num_samples, self.time_budget, rank.world_size])

    def check(self, completions: Iterable[Completion], path: str | os.PathLike[str]) -> None:
        check_belongs(completions, self.prompts, num_samples=self.sampler.config.num_samples, path=path)

    def left(self, done: Iterable[Completion], clock: float, *, rank: Rank) -> int:
        """Return how many samples of a process's share are to be drawn yet; none when the time is over."""
        if self.time_budget is not None and clock >= self.time_budget:
            return 0
        number, samples = len(self.problems), self.sampler.config.num_samples
        places = {problem.id: place for place, problem in enumerate(self.problems)}
        share = sum(rank.owned(place, samples, num_problems=number) for place in range(number))
        keys = {(c.problem_id, c.sample) for c in done}
        return share - sum(rank.owns(places[key], sample, num_problems=number) for key, sample in keys)

    def fill(
        self,
        journal: Journal,
        clock: float,
        *,
        rank: Rank,
        elsewhere: Collection[Completion],
        on_progress: ProgressCallback | None,
    ) -> None:
        """Sample what is left of a process's share into its journal.

        Args:
            journal: Open.
            clock: Engine seconds of the run so far.
            rank: Whose share.
            elsewhere: Completions that other files hold.
            on_progress: See :meth:`BaseSampler.sample`.
        """
        sampler, number = self.sampler, len(self.problems)
        mine = [
            problem
            for place, problem in enumerate(self.problems)
            if rank.owned(place, sampler.config.num_samples, num_problems=number)
        ]
        described = json.loads(json.dumps(sampler.describe()))  # as it is read again: lists for tuples
        keep_prompts(journal.meta.setdefault("prompts", {}), _hashes(self.prompts), journal.path)
        journal.meta |= described | {
            "problems": ", ".join(sorted({p.source for p in self.problems if p.source})),
            "num_problems": number,
            "time_budget_seconds": self.time_budget,
        }
        journal.meta.pop("done", None)
        sessions = journal.meta.setdefault("sessions", [])
        done = [*journal.completions, *elsewhere]

        def save() -> None:
            journal.meta |= totals(journal.completions, journal.meta, problem_ids=[p.id for p in mine])
            journal.save_meta()

        if self.left(done, clock, rank=rank) == 0:
            save()
            journal.forget_clock()
            return
        session = Session(sampler, described, rank=rank, before=clock)
        sessions.append(session.values)
        warn_of_mixture(sessions, journal.path)
        save()
        latest = clock

        def note(progress: Progress) -> None:
            nonlocal latest
            latest = max(latest, clock + progress.seconds)
            journal.note_clock(latest)
            if on_progress is not None:
                on_progress(progress)

        def close() -> None:
            session.close(latest, journal.path)
            save()
            journal.forget_clock()

        unwanted = Unwanted(self.problems, rank, {(c.problem_id, c.sample) for c in done})
        try:
            for completion in sampler.sample(
                mine, skip=unwanted, on_progress=note, time_budget=self.time_budget, spent=clock
            ):
                finished = completion.finished_seconds or 0.0
                if self.time_budget is None or finished <= self.time_budget:
                    journal.append(completion)
                latest = max(latest, finished)
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to tell
                if latest == clock and sampler.stats == session.stats_before:  # it refused to begin
                    sessions.pop()
                    save()
                else:
                    close()
            raise
        close()


def check_belongs(
    completions: Iterable[Completion], prompts: dict[str, list[int]], *, num_samples: int, path: str | os.PathLike[str]
) -> None:
    """Check that completions found in a journal are among those that a run asks for.

    Raises:
        ValueError: Another problem, another prompt, or a sample index beyond ``num_samples``.
    """
    for c in completions:
        if c.problem_id not in prompts:
            raise ValueError(
                f"{path} holds problem {c.problem_id!r}, which is not asked for; choose another file or ask for it"
            )
        if c.num_prompt_tokens != len(prompts[c.problem_id]):
            raise ValueError(
                f"{path}: the prompt of problem {c.problem_id!r} had {c.num_prompt_tokens} tokens, now it has "
                f"{len(prompts[c.problem_id])} (other problems, tokenizer or template?); choose another file"
            )
        if c.sample >= num_samples:
            raise ValueError(
                f"{path} holds sample {c.sample} of problem {c.problem_id!r}, but num_samples is {num_samples}; "
                f"use num_samples {c.sample + 1} or more, or choose another file"
            )


def _hashes(prompts: dict[str, list[int]]) -> dict[str, str]:
    return {problem_id: _hash(tokens) for problem_id, tokens in prompts.items()}


def _hash(value: Any) -> str:
    return hashlib.blake2b(repr(value).encode(), digest_size=8).hexdigest()
