"""The journal: completions appended to a file one by one, so that an interruption costs nothing that was written.

A journal is a plain JSON-lines file of :class:`~lit_thinkfast.records.Completion`, each line with a checksum
(:func:`~lit_thinkfast.records.sealed`), and ``<journal>.meta.json`` beside it. The meta file is written first and says
which run the lines belong to (``identity``): settings and model that decide the text. Random numbers are a function of
(seed, problem, sample, position), hence a resumed journal ends up with the texts of an uninterrupted one.

Each record is one ``write`` of a whole line. After a kill the file may end in a piece of a line: on opening, it is cut
off, kept in ``<journal>.rejected``, and sampled again. Anything else that is wrong is an error, never repaired.

While a run goes on, ``<journal>.clock`` holds the engine seconds so far: what a killed process had used of a time
budget since its last completion.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from lit_thinkfast.appending import AppendFile
from lit_thinkfast.records import Completion, RecordError, from_json, read_jsonl, sealed, to_json

_log = logging.getLogger(__name__)
_FSYNC_SECONDS = 5.0


def meta_path(journal: str | os.PathLike[str]) -> Path:
    """Return where the meta file of a journal lies.

    >>> meta_path("runs/teacher.jsonl").name
    'teacher.jsonl.meta.json'
    """
    return _beside(journal, ".meta.json")


def clock_path(journal: str | os.PathLike[str]) -> Path:
    """Return where the clock of a running or killed process lies, see :meth:`Journal.note_clock`."""
    return _beside(journal, ".clock")


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
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
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


def read_clock(journal: str | os.PathLike[str]) -> float:
    """Return the engine seconds that a killed process noted last, 0 where there is nothing to read."""
    try:
        return max(0.0, float(clock_path(journal).read_text(encoding="ascii")))
    except (FileNotFoundError, ValueError):  # a machine that lost power may leave an empty file
        return 0.0


def forget_deleted(journal: str | os.PathLike[str]) -> None:
    """Delete what lies beside a journal that is there no more: a new one of its name starts from nothing."""
    if not Path(journal).exists():
        meta_path(journal).unlink(missing_ok=True)
        clock_path(journal).unlink(missing_ok=True)


class Journal:
    """An open journal. Use it as a context manager; only one process can hold it.

    Args:
        path: The JSON-lines file. Created, with its folder, when missing.
        identity: Facts that must be equal for lines to belong together, as plain JSON values.

    Attributes:
        completions: What the file held when it was opened, in the order of the file, and what was appended since.
        meta: The meta document; :meth:`save_meta` writes it, with ``identity``.

    Raises:
        ValueError: The journal belongs to another run, or another process is writing it (``BusyError``).
        RecordError: A line is not a completion, is damaged, or is there twice.
    """

    def __init__(self, path: str | os.PathLike[str], *, identity: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.completions: list[Completion] = []
        self.meta: dict[str, Any] = {}
        self.identity = json.loads(json.dumps(dict(identity)))
        self._keys: set[tuple[str, int]] = set()
        self._file: AppendFile | None = None
        self._clock: int | None = None
        self._synced = time.monotonic()

    def __enter__(self) -> Journal:
        forget_deleted(self.path)
        self._file = AppendFile(self.path)
        try:
            self.meta = self._checked_meta()
            mend_tail(self.path)
            self.completions = without_duplicates(read_jsonl(Completion, self.path), self.path)
            self._keys = {(c.problem_id, c.sample) for c in self.completions}
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
            self._file.sync()
        finally:
            self._file.close()
            if self._clock is not None:
                os.close(self._clock)
                self._clock = None

    def append(self, completion: Completion) -> None:
        """Add one completion: handed to the system at once, forced to the disk every few seconds.

        Raises:
            RecordError: The journal has this sample already.
            OSError: The disk is full, or gone. The journal stays valid.
        """
        assert self._file is not None, "the journal is not open"
        key = completion.problem_id, completion.sample
        if key in self._keys:
            raise RecordError(f"{self.path}: sample {key[1]} of problem {key[0]!r} came twice; it is kept once")
        self._file.append((sealed(to_json(completion)) + "\n").encode())
        self._keys.add(key)
        self.completions.append(completion)
        if time.monotonic() - self._synced > _FSYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Force everything appended so far to the disk."""
        assert self._file is not None, "the journal is not open"
        self._file.sync()
        self._synced = time.monotonic()

    def note_clock(self, seconds: float) -> None:
        """Note the engine seconds of the run so far: handed to the system at once, so that a kill does not lose it.

        Raises:
            OSError: The disk is full, or gone.
        """
        path = clock_path(self.path)
        try:
            if self._clock is None:
                self._clock = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
            os.lseek(self._clock, 0, os.SEEK_SET)
            os.write(self._clock, b"%024.6f\n" % seconds)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None

    def forget_clock(self) -> None:
        """Delete the note of :meth:`note_clock`: the meta document has the whole story."""
        if self._clock is not None:
            os.close(self._clock)
            self._clock = None
        clock_path(self.path).unlink(missing_ok=True)

    def save_meta(self) -> None:
        """Write :attr:`meta` beside the journal."""
        write_json({**self.meta, "identity": self.identity}, meta_path(self.path))

    def _checked_meta(self) -> dict[str, Any]:
        meta = read_meta(self.path)
        empty = self.path.stat().st_size == 0
        if meta is None:
            if empty:
                return {}
            raise ValueError(
                f"{self.path} has lines but no {meta_path(self.path).name}, so it cannot be resumed; "
                "choose another file or delete it"
            )
        try:
            check_identity(meta, self.identity, self.path)
        except ValueError:
            if not empty:
                raise
            clock_path(self.path).unlink(missing_ok=True)
            return {}
        return meta


def check_identity(meta: Mapping[str, Any], identity: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Check that a meta document is of the run with ``identity``.

    Raises:
        ValueError: It is not; the message says in what they differ.
    """
    written = meta.get("identity", {})
    for name in sorted(identity.keys() | written.keys()):
        was, now = written.get(name), identity.get(name)
        if was != now:
            raise ValueError(
                f"{path} belongs to another run: its {name} is {was!r}, now it is {now!r}; "
                "choose another file or delete it"
            )


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
        if whole_line(torn) is not None:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
            return False
        with open(_beside(path, ".rejected"), "ab") as rejected:
            rejected.write(torn + b"\n")
        file.truncate(end - len(torn))
    _log.warning("%s ended in a torn line of %d bytes, left by an interruption; it is sampled again", path, len(torn))
    return True


def whole_line(line: bytes) -> Completion | None:
    """Return the completion in a last line without newline, or ``None`` if more than the newline is missing."""
    try:
        return from_json(Completion, line.decode())
    except ValueError:  # RecordError and UnicodeDecodeError among them
        return None


def without_duplicates(completions: Iterable[Completion], path: Path) -> list[Completion]:
    """Return the records of a journal.

    Raises:
        RecordError: A sample is there twice.
    """
    seen: dict[tuple[str, int], int] = {}
    found = []
    for number, completion in enumerate(completions, start=1):
        key = (completion.problem_id, completion.sample)
        if key in seen:
            raise RecordError(
                f"{path}: sample {completion.sample} of problem {completion.problem_id!r} is there twice "
                f"(records {seen[key]} and {number}); delete one of them"
            )
        seen[key] = number
        found.append(completion)
    return found


def _beside(journal: str | os.PathLike[str], suffix: str) -> Path:
    path = Path(journal)
    return path.with_name(path.name + suffix)
