"""One model's evaluation: what it wrote, what became of it, and the circumstances."""

from __future__ import annotations

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lit_thinkfast.records import Completion, Problem, Verdict, read_jsonl

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelRun:
    """Completions and verdicts of one model, joined by (problem, sample).

    A problem of which no completion has a verdict was taken out of the evaluation, for example since its gold answer
    cannot be read: its completions are dropped, with a warning in the log, and it is named in ``removed_problems``.

    Attributes:
        completions: What the model wrote, with engine seconds. Seconds of 0 mean that nobody measured them, and a run
            in which some are 0 counts as not timed.
        verdicts: One verdict for each completion, in any order.
        meta: Run metadata as the generator writes it, shown whole in the report's provenance. Read from it where
            present, at the top or in a nested mapping: ``num_parameters``, ``num_layers``, ``layer_mixers``.
        scoring_seconds: What the reward model took for all completions; spread over samples and added to the time of
            the two rules that need it. ``None``: not measured, and said so in the report.
        note: One line about the model for the reader, e.g. how it was trained.
        problems: Problem id -> question, gold answer, level and subject, as far as they are known.
        removed_problems: Ids of problems without verdicts, sorted; those found are added to those given.

    Raises:
        ValueError: No completions, two records of one sample, or records without a partner.
    """

    completions: Sequence[Completion]
    verdicts: Sequence[Verdict]
    meta: Mapping[str, Any] = field(default_factory=dict)
    scoring_seconds: float | None = None
    note: str = ""
    problems: Mapping[str, Problem] = field(default_factory=dict)
    removed_problems: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.completions:
            raise ValueError("a run without completions cannot be analysed; generate some first")
        seen = {
            "completion": Counter((c.problem_id, c.sample) for c in self.completions),
            "verdict": Counter((v.problem_id, v.sample) for v in self.verdicts),
        }
        for kind, counter in seen.items():
            key, times = counter.most_common(1)[0] if counter else (("", 0), 0)
            if times > 1:
                raise ValueError(f"problem {key[0]!r} sample {key[1]} has {times} {kind}s; keep one")
        if not self.verdicts:
            raise ValueError("none of the completions has a verdict; run verify on them first")
        self._drop({c.problem_id for c in self.completions} - {v.problem_id for v in self.verdicts})
        written = {(c.problem_id, c.sample) for c in self.completions}
        judged = seen["verdict"].keys()
        for kind, other, alone in (
            ("completion", "verdict", written - judged),
            ("verdict", "completion", judged - written),
        ):
            if alone:
                problem, sample = min(alone)
                raise ValueError(
                    f"{len(alone)} {kind}s have no {other}, the first is problem {problem!r} sample {sample}; "
                    f"run verify on these completions again"
                )

    def _drop(self, removed: set[str]) -> None:
        """Leave out the completions of problems that have no verdict at all."""
        if not removed:
            return
        total = len({c.problem_id for c in self.completions})
        kept = [c for c in self.completions if c.problem_id not in removed]
        object.__setattr__(self, "completions", kept)
        object.__setattr__(self, "removed_problems", tuple(sorted({*self.removed_problems, *removed})))
        _log.warning(
            "%d of %d problems have no verdict and are left out, the first is %r; verify leaves out those whose gold "
            "answer it cannot read",
            len(removed),
            total,
            min(removed),
        )

    @classmethod
    def from_files(
        cls,
        completions: str | os.PathLike[str],
        verdicts: str | os.PathLike[str],
        *,
        meta: str | os.PathLike[str] | None = None,
        note: str = "",
        problems: str | os.PathLike[str] | None = None,
    ) -> ModelRun:
        """Read a run from JSON lines and, by default, the ``.meta.json`` beside the completions if it is there.

        Raises:
            FileNotFoundError: A named file is missing.
            RecordError: A line is not a record; the message says file and line.
            ValueError: The metadata is not a JSON object, or the records do not fit together.
        """
        path = Path(meta) if meta is not None else Path(f"{os.fspath(completions)}.meta.json")
        values: Any = {}
        if meta is not None or path.exists():
            try:
                values = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{path}: not JSON ({error})") from None
            if not isinstance(values, dict):
                raise ValueError(f"{path}: expected a JSON object, got {type(values).__name__}")
        asked = {p.id: p for p in read_jsonl(Problem, problems)} if problems is not None else {}
        records = list(read_jsonl(Completion, completions)), list(read_jsonl(Verdict, verdicts))
        try:
            return cls(*records, meta=values, note=note, problems=asked)
        except ValueError as error:
            raise ValueError(f"{completions}: {error}") from None

    @cached_property
    def by_problem(self) -> dict[str, list[tuple[Completion, Verdict]]]:
        """Problem id -> its samples in order of ``sample``; problems in order of appearance."""
        verdicts = {(v.problem_id, v.sample): v for v in self.verdicts}
        grouped: dict[str, list[tuple[Completion, Verdict]]] = {}
        for c in self.completions:
            grouped.setdefault(c.problem_id, []).append((c, verdicts[c.problem_id, c.sample]))
        for samples in grouped.values():
            samples.sort(key=lambda pair: pair[0].sample)
        return grouped

    @cached_property
    def asked(self) -> tuple[str, ...]:
        """Ids of all problems that the run spent its time on, also those without a finished sample or a verdict.

        From ``prompts`` of the metadata where they name every problem that has a completion; else only problems with a
        completion are known: ``problems`` may be those of a whole set of which the run was given a part.
        """
        sampled = dict.fromkeys([*self.by_problem, *self.removed_problems])
        told = find(self.meta, "prompts")
        asked = dict.fromkeys(map(str, told)) if isinstance(told, Mapping | list | tuple) else {}
        return tuple(asked if sampled.keys() <= asked.keys() else sampled)

    @property
    def unsampled(self) -> tuple[str, ...]:
        """Problems of ``asked`` of which no sample was finished."""
        known = {*self.by_problem, *self.removed_problems}
        return tuple(p for p in self.asked if p not in known)

    @cached_property
    def num_untimed(self) -> int:
        """Completions without engine seconds."""
        return sum(not c.seconds > 0 for c in self.completions)

    @property
    def has_scores(self) -> bool:
        """Whether a reward model scored every completion."""
        return all(v.score is not None for v in self.verdicts)

    @property
    def scoring_seconds_per_sample(self) -> float:
        """Reward-model seconds of one sample; 0 where they were not measured."""
        return (self.scoring_seconds or 0.0) / len(self.verdicts)

    @property
    def tokens_per_completion(self) -> float:
        """Tokens of a completion, the mean; NaN where nobody counted them."""
        return (sum(c.num_tokens for c in self.completions) or math.nan) / len(self.completions)

    @property
    def seconds_per_sample(self) -> float:
        return sum(c.seconds for c in self.completions) / len(self.completions)

    @property
    def share_cut(self) -> float:
        """Share of completions that the token budget cut off."""
        return sum(c.finish_reason == "length" for c in self.completions) / len(self.completions)

    @property
    def share_without_answer(self) -> float:
        return sum(v.canonical is None for v in self.verdicts) / len(self.verdicts)

    @property
    def num_parameters(self) -> int | None:
        number = find(self.meta, "num_parameters")
        return number if isinstance(number, int) else None

    @property
    def layer_mixers(self) -> list[str] | None:
        """The mixer of each layer, ``attention`` among them, or ``None`` where the metadata does not say."""
        names = find(self.meta, "layer_mixers")
        return [str(name) for name in names] if isinstance(names, list | tuple) and names else None


def untimed_in_words(name: str, run: ModelRun) -> str:
    """Return the name of a run without engine seconds, and of how many of its completions if not of all."""
    part = run.num_untimed < len(run.completions)
    return f"{name} ({run.num_untimed} of {len(run.completions)} completions)" if part else name


def find(meta: Mapping[str, Any], key: str) -> Any:
    """Return the first value called ``key`` in nested mappings, the outermost first, or ``None``."""
    level: list[Mapping[str, Any]] = [meta]
    while level:
        for mapping in level:
            if key in mapping:
                return mapping[key]
        level = [value for mapping in level for value in mapping.values() if isinstance(value, Mapping)]
    return None
