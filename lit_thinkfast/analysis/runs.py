"""One model's evaluation: what it wrote, what became of it, and the circumstances."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lit_thinkfast.records import Completion, Verdict, read_jsonl


@dataclass(frozen=True)
class ModelRun:
    """Completions and verdicts of one model, joined by (problem, sample).

    Attributes:
        completions: What the model wrote, with engine seconds.
        verdicts: One verdict for each completion, in any order.
        meta: Run metadata as the generator writes it, shown whole in the report's provenance. Read from it where
            present, at the top or in a nested mapping: ``num_parameters``, ``num_layers``, ``layer_mixers``.
        scoring_seconds: What the reward model took for all completions; spread over samples and added to the time of
            the two rules that need it. ``None``: not measured, and said so in the report.
        note: One line about the model for the reader, e.g. how it was trained.

    Raises:
        ValueError: No completions, two records of one sample, or records without a partner.
    """

    completions: Sequence[Completion]
    verdicts: Sequence[Verdict]
    meta: Mapping[str, Any] = field(default_factory=dict)
    scoring_seconds: float | None = None
    note: str = ""

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
        for kind, other in (("completion", "verdict"), ("verdict", "completion")):
            alone = seen[kind].keys() - seen[other].keys()
            if alone:
                problem, sample = min(alone)
                raise ValueError(
                    f"{len(alone)} {kind}s have no {other}, the first is problem {problem!r} sample {sample}; "
                    f"run verify on these completions again"
                )

    @classmethod
    def from_files(
        cls,
        completions: str | os.PathLike[str],
        verdicts: str | os.PathLike[str],
        *,
        meta: str | os.PathLike[str] | None = None,
        note: str = "",
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
        records = list(read_jsonl(Completion, completions)), list(read_jsonl(Verdict, verdicts))
        try:
            return cls(*records, meta=values, note=note)
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

    @property
    def has_scores(self) -> bool:
        """Whether a reward model scored every completion."""
        return all(v.score is not None for v in self.verdicts)

    @property
    def scoring_seconds_per_sample(self) -> float:
        """Reward-model seconds of one sample; 0 where they were not measured."""
        return (self.scoring_seconds or 0.0) / len(self.completions)

    @property
    def tokens_per_completion(self) -> float:
        return sum(c.num_tokens for c in self.completions) / len(self.completions)

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


def find(meta: Mapping[str, Any], key: str) -> Any:
    """Return the first value called ``key`` in nested mappings, the outermost first, or ``None``."""
    level: list[Mapping[str, Any]] = [meta]
    while level:
        for mapping in level:
            if key in mapping:
                return mapping[key]
        level = [value for mapping in level for value in mapping.values() if isinstance(value, Mapping)]
    return None
