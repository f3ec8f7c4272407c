"""Model folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel


def check_free(out: str | os.PathLike[str]) -> None:
    """Raise ``FileExistsError`` if something is at ``out`` already."""
    path = Path(out)
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not empty; remove it or choose another folder")


@contextmanager
def appears_whole(out: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a folder to write into; it becomes ``out`` if all goes well, else nothing is left of it.

    Raises:
        FileExistsError: ``out`` is a file or a folder with something in it.
    """
    check_free(out)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        yield partial
        partial.chmod(0o755)
        if out.is_dir():
            out.rmdir()
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def save_folder(model: PreTrainedModel, out: str | os.PathLike[str], *, tokenizer: Any = None) -> None:
    """Save a model, and a tokenizer beside it.

    Raises:
        FileExistsError: ``out`` is a file or a folder with something in it.
    """
    with appears_whole(out) as folder:
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
