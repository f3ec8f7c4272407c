"""Scores of a large file, kept chunk by chunk while it is scored, so that an interruption costs one chunk.

``<out>.scores.jsonl`` beside the verdicts: a first line that says which reward model scores which completions of which
problems (``identity``), then one line for each chunk of completions with its scores and what they took, each with a
checksum (:func:`~lit_thinkfast.records.sealed`) and forced to the disk. After a kill the last line may be a piece of
one: it is cut off, and its chunk scored again. Anything else that is wrong is an error, never repaired. A chunk is
scored as a whole, so that its batches, and with them the last digits, are those of an uninterrupted run.

The journal is removed once the verdicts, which hold all scores, are written.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from lit_thinkfast.appending import AppendFile
from lit_thinkfast.records import RecordError, decoded, from_json, parse_object, sealed, to_json
from lit_thinkfast.verification.scores import RewardScore

FORMAT = "lit-thinkfast scores 1"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ScoredChunk:
    """One line of a journal.

    Attributes:
        chunk: Its number, from 0.
        seconds: Clock time that scoring took.
        log_odds: Of each completion.
        step_log_odds: Of each completion.
    """

    chunk: int
    seconds: float
    log_odds: tuple[float, ...]
    step_log_odds: tuple[tuple[float, ...], ...]

    @property
    def scores(self) -> list[RewardScore]:
        """The scores, as they were appended."""
        return [RewardScore(*each) for each in zip(self.step_log_odds, self.log_odds, strict=True)]


def journal_path(verdicts: str | os.PathLike[str]) -> Path:
    """Return where the journal of a file of verdicts lies.

    >>> journal_path("runs/verdicts.jsonl").name
    'verdicts.jsonl.scores.jsonl'
    """
    path = Path(verdicts)
    return path.with_name(path.name + ".scores.jsonl")


class ScoreJournal:
    """Scores by chunk, in a file. Use it as a context manager; one process holds it.

    Args:
        path: The file. Created, with its folder, when missing.
        identity: Facts that must be equal for scores to belong together, as plain JSON values.

    Attributes:
        chunks: What the file held when it was opened, and what was appended since, in order.

    Raises:
        ValueError: The file is of another reward model or other completions, something else, or held by another
            process (``BusyError``).
        RecordError: A line is damaged; the message starts with ``path:line``.
    """

    def __init__(self, path: str | os.PathLike[str], *, identity: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.chunks: list[ScoredChunk] = []
        self._identity: dict[str, Any] = json.loads(json.dumps(dict(identity), default=str))
        self._file: AppendFile | None = None

    def __enter__(self) -> ScoreJournal:
        self._file = AppendFile(self.path)
        try:
            self._read(self._file)
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        if not self.chunks:
            self.remove()  # nothing came of it
        self._file.close()

    @property
    def seconds(self) -> float:
        """Clock time of all scoring so far, sessions added up."""
        return sum(chunk.seconds for chunk in self.chunks)

    def append(self, scores: Sequence[RewardScore], seconds: float) -> None:
        """Add the scores of the next chunk.

        Raises:
            OSError: It could not be written. The journal stays valid.
        """
        made = ScoredChunk(
            len(self.chunks),
            seconds,
            tuple(score.log_odds for score in scores),
            tuple(score.step_log_odds for score in scores),
        )
        self._append(to_json(made))
        self.chunks.append(made)

    def remove(self) -> None:
        """Delete the file: its scores are elsewhere now."""
        self.path.unlink(missing_ok=True)

    def _append(self, line: str) -> None:
        assert self._file is not None, "the journal is not open"
        self._file.append(f"{sealed(line)}\n".encode())
        self._file.sync()

    def _read(self, file: AppendFile) -> None:
        content = file.read()
        whole, newline, torn = content.rpartition(b"\n")
        lines = whole.split(b"\n") if newline else []
        header = json.dumps({"format": FORMAT, "identity": self._identity}, ensure_ascii=False)
        if lines:
            self._check_header(lines[0])
        elif not sealed(header).encode().startswith(torn[:20]):
            raise self._not_ours()
        for number, raw in enumerate(lines[1:], start=2):
            where = f"{self.path}:{number}"
            chunk = from_json(ScoredChunk, decoded(raw, where), where)
            if chunk.chunk != len(self.chunks) or len(chunk.log_odds) != len(chunk.step_log_odds):
                raise RecordError(
                    f"{where}: expected chunk {len(self.chunks)}, got chunk {chunk.chunk}; delete the file to score "
                    "all again"
                )
            self.chunks.append(chunk)
        if torn:
            log.warning("%s ended in a torn line, left by an interruption; its chunk is scored again", self.path)
            file.truncate(len(content) - len(torn))
        if not lines:
            self._append(header)

    def _check_header(self, line: bytes) -> None:
        try:
            found = parse_object(decoded(line, str(self.path)), str(self.path))
        except RecordError:
            raise self._not_ours() from None
        was = found.get("identity")
        if found.get("format") != FORMAT or not isinstance(was, dict):
            raise self._not_ours()
        for name in sorted(self._identity.keys() | was.keys()):
            if was.get(name) != self._identity.get(name):
                raise ValueError(
                    f"{self.path} holds scores of an interrupted run whose {name} was {was.get(name)!r}, and is "
                    f"{self._identity.get(name)!r} now; finish that run, delete the file, or choose another output"
                )

    def _not_ours(self) -> ValueError:
        return ValueError(f"{self.path} is not a journal of scores; move it away or choose another output")
