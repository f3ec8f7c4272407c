"""Reading models with transformers, which raises anything where a file is wrong: told in one line."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def told_in_one_line(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what goes wrong while the model in ``path`` is read into one line, the original error chained to it.

    transformers' table of weights that do not fit stays unsaid: whoever loads asks for them and names them.

    Raises:
        FileNotFoundError: A file is missing or damaged.
        ImportError: A package is to be installed.
        ValueError: The files contradict each other, or are of something else.
    """
    from safetensors import SafetensorError

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_is_no_report)
    try:
        yield
    except ImportError:
        raise
    except (OSError, SafetensorError) as error:
        raise FileNotFoundError(f"cannot read a model from {os.fspath(path)} ({first_line(error)})") from None
    except Exception as error:
        cause = error.__cause__ or error
        kind = "" if isinstance(cause, ValueError) else f"{type(cause).__name__}: "
        raise ValueError(f"the model in {os.fspath(path)} cannot be used ({kind}{first_line(cause)})") from error
    finally:
        logger.removeFilter(_is_no_report)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _is_no_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()
