"""Measured numbers by layer set, in a file that an interruption cannot spoil and a later call goes on with.

JSON lines: a header that says what was measured (``identity``), then one line a measurement, each appended by a single
write and forced to the disk. A last line without its newline, left by a kill, is cut off and measured again; anything
else that is wrong is an error, never repaired.
"""

from __future__ import annotations

import json
import os
from collections import UserDict
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from lit_thinkfast.appending import AppendFile
from lit_thinkfast.records import RecordError, decoded, parse_object

FORMAT = "lit-thinkfast layer measurements 1"

LayerSet = tuple[int, ...]
"""Layers that have attention, in ascending order."""


class MeasurementFile(UserDict[LayerSet, float]):
    """A dictionary from layer sets to numbers that is also a file. Use it as a context manager; one process holds it.

    Args:
        path: The file. Created, with its folder, when missing.
        identity: Facts that must be equal for measurements to belong together, each a name and a text.

    Raises:
        ValueError: The file is of other models or texts, something else, or held by another process.
        RecordError: A line is not a measurement; the message starts with ``path:line``.
    """

    def __init__(self, path: str | os.PathLike[str], *, identity: Mapping[str, str]) -> None:
        super().__init__()
        self.path = Path(path)
        self._header = {"format": FORMAT, **identity}
        self._file: AppendFile | None = None

    def __enter__(self) -> MeasurementFile:
        self._file = AppendFile(self.path)
        try:
            self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.close()

    def __setitem__(self, layers: LayerSet, value: float) -> None:
        self._append({"attention_layers": list(layers), "value": value})
        super().__setitem__(layers, value)

    def _append(self, values: Mapping[str, Any]) -> None:
        assert self._file is not None, "the file is not open"
        self._file.append(_line(values))
        self._file.sync()

    def _read(self) -> None:
        assert self._file is not None
        content = self._file.read()
        whole, newline, torn = content.rpartition(b"\n")
        lines = whole.split(b"\n") if newline else []
        if lines:
            self._check_header(lines[0])
        elif not _line(self._header).startswith(torn):
            raise self._not_ours()
        for number, line in enumerate(lines[1:], start=2):
            layers, value = _measurement(line, f"{self.path}:{number}")
            self.data[layers] = value
        if torn:
            self._file.truncate(len(content) - len(torn))
        if not lines:
            self._append(self._header)

    def _check_header(self, line: bytes) -> None:
        try:
            found = parse_object(decoded(line, str(self.path)), str(self.path))
        except RecordError:
            raise self._not_ours() from None
        if found.get("format") != FORMAT:
            raise self._not_ours()
        for name, now in self._header.items():
            if (was := found.get(name)) != now:
                raise ValueError(
                    f"{self.path} holds measurements of another {name}: {was} then, {now} now; "
                    "choose another file or delete it"
                )

    def _not_ours(self) -> ValueError:
        return ValueError(f"{self.path} is not a file of layer measurements; choose another file")


def _line(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, allow_nan=False) + "\n").encode()


def _measurement(line: bytes, where: str) -> tuple[LayerSet, float]:
    values = parse_object(decoded(line, where), where)
    layers, value = values.get("attention_layers"), values.get("value")
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers) or type(value) is not float:
        raise RecordError(f"{where}: not a measurement; delete the line to measure again")
    return tuple(layers), value
