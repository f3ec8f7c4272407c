"""The journal: completions appended to a file one by one, so that an interruption costs nothing that was written.

A journal is a plain JSON-lines file of :class:`~lit_thinkfast.records.Completion` with ``<journal>.meta.json`` beside
it. The meta file is written first and says which run the lines belong to (``identity``): settings and model that decide
the text. Random numbers are a function of (seed, problem, sample, position), hence a resumed journal ends up with the
texts of an uninterrupted one.

Each record is one ``write`` of a whole line. After a kill the file may end in a piece of a line: on opening, it is cut
off, kept in ``<journal>.rejected``, and sampled again. Anything else that is wrong is an error, never repaired.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from lit_thinkfast.records import Completion, RecordError, from_json, read_jsonl, to_json

_log = logging.getLogger(__name__)
_FSYNC_SECONDS = 5.0


def meta_path(journal: str | os.PathLike[str]) -> Path:
    """Return where the meta file of a journal lies.

    >>> meta_path("runs/teacher.jsonl").name
    'teacher.jsonl.meta.json'
    """
    path = Path(journal)
    return path.with_name(path.name + ".meta.json")


def write_json(values: Any, path: str | os.PathLike[str]) -> None:
    """Write one JSON document. The file appears whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(values, file, indent=2, ensure_ascii=False, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_meta(journal: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the meta document of a journal, or ``None`` when there is no such file.

    Raises:
        RecordError: Not a JSON object.
    """
    path = meta_path(journal)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RecordError(f"{path}: not JSON ({error}); move it and {Path(journal).name} away") from None
    if not isinstance(found, dict):
        raise RecordError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


class Journal:
    """An open journal. Use it as a context manager; only one process can hold it.

    Args:
        path: The JSON-lines file. Created, with its folder, when missing.
        identity: Facts that must be equal for lines to belong together, as plain JSON values.

    Attributes:
        completions: What the file held when it was opened, in the order of the file.
        meta: The meta document; :meth:`save_meta` writes it.

    Raises:
        ValueError: The journal belongs to another run, or another process is writing it.
        RecordError: A line is not a completion, or is there twice.
    """

    def __init__(self, path: str | os.PathLike[str], *, identity: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.completions: list[Completion] = []
        self.meta: dict[str, Any] = {}
        self._identity = json.loads(json.dumps(dict(identity)))
        self._file: IO[bytes] | None = None
        self._synced = time.monotonic()

    def __enter__(self) -> Journal:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab")
        try:
            _lock(self._file, self.path)
            self.meta = self._checked_meta()
            mend_tail(self.path)
            self.completions = list(_without_duplicates(self.path))
            self.save_meta()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        try:
            self.sync()
        finally:
            self._file.close()

    def append(self, completion: Completion) -> None:
        """Add one completion: handed to the system at once, forced to the disk every few seconds."""
        assert self._file is not None, "the journal is not open"
        self._file.write((to_json(completion) + "\n").encode())
        self._file.flush()
        if time.monotonic() - self._synced > _FSYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Force everything appended so far to the disk."""
        assert self._file is not None, "the journal is not open"
        self._file.flush()
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def save_meta(self) -> None:
        """Write :attr:`meta` beside the journal."""
        write_json({**self.meta, "identity": self._identity}, meta_path(self.path))

    def _checked_meta(self) -> dict[str, Any]:
        meta = read_meta(self.path)
        if self.path.stat().st_size == 0:
            return {}
        if meta is None:
            raise ValueError(
                f"{self.path} has lines but no {meta_path(self.path).name}, so it cannot be resumed; "
                "choose another file or delete it"
            )
        written = meta.get("identity", {})
        for name in sorted(self._identity.keys() | written.keys()):
            was, now = written.get(name), self._identity.get(name)
            if was != now:
                raise ValueError(
                    f"{self.path} belongs to another run: its {name} is {was!r}, now it is {now!r}; "
                    "choose another file or delete it"
                )
        return meta


def mend_tail(path: str | os.PathLike[str]) -> bool:
    """Cut an unfinished last line off, keeping it in ``<path>.rejected``; return whether there was one.

    A last line that lacks nothing but its newline is given it.
    """
    path = Path(path)
    with open(path, "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        start, tail = end, b""
        while start and b"\n" not in tail:
            step = min(start, 65536)
            start -= step
            file.seek(start)
            tail = file.read(step) + tail
        torn = tail[tail.rfind(b"\n") + 1 :]
        if not torn:
            return False
        try:
            from_json(Completion, torn.decode())
        except ValueError:  # RecordError and UnicodeDecodeError among them
            pass
        else:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
            return False
        with open(path.with_name(path.name + ".rejected"), "ab") as rejected:
            rejected.write(torn + b"\n")
        file.truncate(end - len(torn))
    _log.warning("%s ended in a torn line of %d bytes, left by an interruption; it is sampled again", path, len(torn))
    return True


def _without_duplicates(path: Path) -> list[Completion]:
    seen: dict[tuple[str, int], int] = {}
    found = []
    for number, completion in enumerate(read_jsonl(Completion, path), start=1):
        key = (completion.problem_id, completion.sample)
        if key in seen:
            raise RecordError(
                f"{path}: sample {completion.sample} of problem {completion.problem_id!r} is there twice "
                f"(records {seen[key]} and {number}); delete one of them"
            )
        seen[key] = number
        found.append(completion)
    return found


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # not a POSIX system: no lock to take
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{path} is being written by another process; wait for it or choose another file") from None
