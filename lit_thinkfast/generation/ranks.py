"""One process a GPU, without a process group: who am I, and which samples are mine.

Who samples what is a pure function of (problem, sample, rank, number of processes), and what is done is what the files
say (:mod:`lit_thinkfast.generation.parts`), so nothing is communicated.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from lit_thinkfast.records import Problem

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rank:
    """The place of a process among those that sample together.

    Attributes:
        rank: From 0.
        world_size: How many there are.
        local_rank: Among those of this machine; the number of its GPU.

    Raises:
        ValueError: ``rank`` is not below ``world_size``.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size or self.local_rank < 0:
            raise ValueError(
                f"rank {self.rank} of {self.world_size} (local rank {self.local_rank}) cannot be; "
                "ranks are counted from 0 and lie below the number of processes"
            )

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world_size}"

    def owns(self, problem: int, sample: int, *, num_problems: int) -> bool:
        """Say whether sample ``sample`` of the problem with index ``problem`` is this process's.

        Problems are dealt one by one. Those of the last, incomplete round, or all if there are fewer than processes,
        are shared by several processes each: sample by sample, so that nobody waits long for another.
        """
        return self._owner(problem, sample, num_problems) == self.rank

    def owned(self, problem: int, num_samples: int, *, num_problems: int) -> int:
        """Return how many of the first ``num_samples`` samples of a problem are this process's."""
        first = next((s for s in range(self.world_size) if self.owns(problem, s, num_problems=num_problems)), None)
        if first is None or first >= num_samples:
            return 0
        return len(range(first, num_samples, self._sharers(problem, num_problems)))

    def _owner(self, problem: int, sample: int, num_problems: int) -> int:
        rest = num_problems % self.world_size
        place = problem - (num_problems - rest)
        if place < 0:
            return problem % self.world_size
        return place + rest * (sample % self._sharers(problem, num_problems))

    def _sharers(self, problem: int, num_problems: int) -> int:
        """Return how many processes share a problem."""
        rest = num_problems % self.world_size
        place = problem - (num_problems - rest)
        return 1 if place < 0 else len(range(place, self.world_size, rest))


ALONE = Rank()


def rank_of(given: str, *, environment: Mapping[str, str] | None = None) -> Rank:
    """Return the rank that a user gives.

    Args:
        given: ``auto`` for :func:`rank_from_environment`, or like ``3/8``: the fourth of eight processes, taken to be
            on one machine.
        environment: Default: that of this process.

    >>> rank_of("3/8")
    Rank(rank=3, world_size=8, local_rank=3)
    """
    environment = os.environ if environment is None else environment
    if given == "auto":
        return rank_from_environment(environment)
    if not (found := re.fullmatch(r"(\d+)/(\d+)", given.strip())):
        raise ValueError(f"rank {given!r} is neither auto nor like 3/8, the fourth of eight processes")
    return Rank(int(found[1]), int(found[2]), int(found[1]))


def rank_from_environment(environment: Mapping[str, str]) -> Rank:
    """Return the rank that torchrun (``RANK WORLD_SIZE LOCAL_RANK``) or SLURM's srun has given this process.

    A batch script of SLURM that was not started by srun is one process, whatever ``SLURM_NTASKS`` says.

    Raises:
        ValueError: A variable is missing or not a number.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        return Rank(*(_number(environment, name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    if "SLURM_PROCID" not in environment or "SLURM_NTASKS" not in environment:
        return ALONE
    if "SLURM_STEP_ID" not in environment and "SLURM_STEPID" not in environment:
        if _number(environment, "SLURM_NTASKS") > 1:
            _log.warning(
                "SLURM gave this job %s tasks, but srun did not start this process: it samples all by itself",
                environment["SLURM_NTASKS"],
            )
        return ALONE
    # a step may have fewer tasks than its job
    size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
    return Rank(*(_number(environment, name) for name in ("SLURM_PROCID", size, "SLURM_LOCALID")))


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name)
    if value is None or not value.isdecimal():
        raise ValueError(f"the environment variable {name} is {value!r}, not a number; start with torchrun or srun")
    return int(value)


class Unwanted(Container[tuple[str, int]]):
    """The (problem id, sample) pairs that a process leaves out: not its own, or done.

    Args:
        problems: All of them, in the order that all processes know.
        rank: Whose share.
        done: What exists already.
    """

    def __init__(self, problems: Sequence[Problem], rank: Rank, done: Container[tuple[str, int]]) -> None:
        self._places = {problem.id: place for place, problem in enumerate(problems)}
        self._rank = rank
        self._done = done

    def __contains__(self, key: object) -> bool:
        assert isinstance(key, tuple)
        if key in self._done:
            return True
        if self._rank.world_size == 1:
            return False
        return not self._rank.owns(self._places[key[0]], key[1], num_problems=len(self._places))
