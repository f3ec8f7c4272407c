"""Files that grow by whole lines, have one writer, and lose nothing when a process or a disk comes to its end."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path
from typing import IO

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}
_RETRY_SECONDS = 0.05


class BusyError(ValueError):
    """Another process holds the file."""


class AppendFile:
    """A file that this process alone appends to, from its making to :meth:`close`.

    Args:
        path: Created, with its folder, when missing.

    Raises:
        BusyError: Another process holds it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab+", buffering=0)  # noqa: SIM115  held until it is closed
        try:
            lock(self._file, self.path)
        except BaseException:
            self._file.close()
            raise

    def read(self) -> bytes:
        """Return the whole content."""
        self._file.seek(0)
        return self._file.read()

    def append(self, line: bytes) -> None:
        """Add a line, whole or not at all: the piece that a full disk took is cut off again.

        Raises:
            OSError: It could not be written.
        """
        start = os.fstat(self._file.fileno()).st_size
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._file.fileno(), rest) :]
        except BaseException as error:
            with contextlib.suppress(OSError):  # what stays is a torn tail, which the next opening cuts off
                self._file.truncate(start)
            if not isinstance(error, OSError):
                raise
            raise OSError(
                f"{self.path}: cannot write ({error.strerror}); all lines before are safe: make room, "
                "then run the same command again"
            ) from error

    def truncate(self, size: int) -> None:
        """Cut the file off after ``size`` bytes."""
        self._file.truncate(size)

    def sync(self) -> None:
        """Force all that was appended to the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def lock(file: IO[bytes], path: str | os.PathLike[str], *, shared: bool = False, wait: float = 0.0) -> None:
    """Hold an open file until it is closed; where the system has no such locks, do nothing.

    Args:
        file: Open for reading and writing.
        path: For the message.
        shared: Let others hold it too, if they share as well.
        wait: Seconds to wait for a process that holds it.

    Raises:
        BusyError: Another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    until = time.monotonic() + wait
    while True:
        try:
            return fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise BusyError(
                    f"{path} is being written by another process; wait for it or choose another file"
                ) from None
            time.sleep(_RETRY_SECONDS)
        except OSError as error:
            if error.errno not in _NO_LOCKS:  # some network file systems have none
                raise
            return
