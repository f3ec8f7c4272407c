"""Rows of files and of the Hugging Face hub by number, each knowing where it came from.

A row carries its place (``path:line``) so that whatever is wrong with it can be said in one line that leads there.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lit_thinkfast.records import RecordError, decoded, parse_object


@dataclass(frozen=True, slots=True)
class Row:
    """Values by column name, and the place they were read from."""

    values: Mapping[str, Any]
    where: str

    def column(self, name: str) -> Any:
        """Return the value in column ``name``.

        Raises:
            RecordError: There is no such column.
        """
        if name not in self.values:
            raise RecordError(f"{self.where}: no column {name!r}; there are {', '.join(map(repr, self.values))}")
        return self.values[name]


def string(row: Row, name: str) -> str:
    """Return the text in column ``name``.

    Raises:
        RecordError: There is no such column, or it does not hold text.
    """
    value = row.column(name)
    if not isinstance(value, str):
        raise RecordError(f"{row.where}: column {name!r} holds {type(value).__name__}, expected text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a character
        raise RecordError(f"{row.where}: column {name!r} is not valid text ({error.reason})") from None
    return value


class Table(Protocol):
    """Rows by number."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> Row:
        """Return row number ``index``, from 0."""
        ...


class JsonlTable:
    """A file of JSON lines, of which only the places of the lines are held in memory. Blank lines do not count.

    Forked processes and threads may share one: lines are read by place, since an open file has one position for all.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The name ends in ``.parquet``.
    """

    def __init__(self, path: str) -> None:
        if Path(path).suffix == ".parquet":
            raise ValueError(f"{path}: a Parquet file, not JSON lines; use ParquetCorpus")
        _check_file(path)
        self.path = path
        self._file: IO[bytes] = open(path, "rb")  # noqa: SIM115 - kept open as long as the table lives
        self._offsets, self._lengths, self._lines = _lines(self._file)

    def __len__(self) -> int:
        return len(self._offsets)

    def row(self, index: int) -> Row:
        line = os.pread(self._file.fileno(), int(self._lengths[index]), int(self._offsets[index]))
        where = f"{self.path}:{self._lines[index]}"
        return Row(parse_object(decoded(line, where).strip(), where), where)


class ParquetTable:
    """A Parquet file, read into memory.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a Parquet file, or a damaged one.
    """

    def __init__(self, path: str) -> None:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]

        _check_file(path)
        self.path = path
        try:
            self._table = pyarrow.parquet.read_table(path)
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise ValueError(f"{path}: not a readable Parquet file ({_first_line(error)})") from None

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def row(self, index: int) -> Row:
        return Row(self._table.slice(index, 1).to_pylist()[0], f"{self.path}:{index}")


class HubTable:
    """One split of a dataset of the hub, downloaded whole.

    Raises:
        ValueError: It cannot be loaded.
    """

    def __init__(self, path: str, *, name: str | None, split: str, revision: str | None) -> None:
        self._rows = load_hub(path, name, split, revision, streaming=False)
        self._where = f"{path}[{split}]"

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Row:
        return Row(self._rows[index], f"{self._where}:{index}")


def open_table(path: str) -> Table:
    """Open a local file as JSON lines or, if its name ends in ``.parquet``, as Parquet."""
    return ParquetTable(path) if Path(path).suffix == ".parquet" else JsonlTable(path)


def load_hub(path: str, name: str | None, split: str, revision: str | None, *, streaming: bool) -> Any:
    """Return one split of a dataset of the hub.

    Raises:
        ValueError: No such dataset, configuration or split, or no network; one line says which and what to do.
    """
    import datasets

    try:
        return datasets.load_dataset(path, name, split=split, revision=revision, streaming=streaming)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot load the dataset {path!r} (configuration {name!r}, split {split!r}, revision {revision!r}): "
            f"{_first_line(error)}; give a local file, or check the name and the network"
        ) from None


def _check_file(path: str) -> None:
    if not Path(path).is_file():
        what = "is not a file" if Path(path).exists() else "does not exist"
        raise FileNotFoundError(f"data file {path} {what}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _lines(file: IO[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the offsets and lengths in bytes and the numbers, from 1, of the lines that are not blank."""
    places, offset = array("q"), 0
    for number, line in enumerate(file, start=1):
        if line.strip():
            places.extend((offset, len(line), number))
        offset += len(line)
    offsets, lengths, numbers = np.array(places, dtype=np.int64).reshape(-1, 3).T
    return offsets, lengths, numbers
