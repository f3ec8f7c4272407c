"""Reading models with transformers: whole or not at all, and in one line where a file is wrong.

Left to itself, transformers fills weights that a file lacks with random numbers, and raises anything where a value in a
file is of another kind.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)


def read_causal_lm(path: str | os.PathLike[str], where: str, *, dtype: Any, **options: Any) -> Any:
    """Read a causal language model all of whose weights are in its file.

    Weights that the model has no place for are left out with a warning, unless they show that it is another model: a
    classifier, or one of more layers than its configuration says.

    Args:
        path: What the user named, for messages.
        where: Folder or hub id to read.
        dtype: Type of the weights.
        **options: Of ``from_pretrained``.

    Raises:
        FileNotFoundError: A file is missing or damaged.
        ValueError: Configuration and weights are not of one causal language model.
    """
    from transformers import AutoModelForCausalLM

    with told_in_one_line(path):
        model, info = AutoModelForCausalLM.from_pretrained(
            where,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told below, by name
            **options,
        )
    spare = set(info["unexpected_keys"])
    telling = {name for name in spare if _CLASSIFIER.match(name) or _layer(name) >= model.config.num_hidden_layers}
    for problem, names in (
        ("missing", info["missing_keys"]),
        ("of another shape", {name for name, *_ in info["mismatched_keys"]}),
        ("not in the model", telling),
    ):
        if names:
            raise ValueError(
                f"{path}: weights {problem}: {len(names)}, first {min(names)}; it is no whole {type(model).__name__}: "
                "correct its config.json, or save it again with save_pretrained"
            )
    if spare:
        log.warning(
            "%s: %d weights have no place in the model and are left out, first %s", path, len(spare), min(spare)
        )
    return model


_CLASSIFIER = re.compile(r"score\.|classifier\.|qa_outputs\.")


def _layer(name: str) -> int:
    """Return the number of the layer that a weight belongs to, or -1."""
    found = re.search(r"\b(?:layers|h|blocks)\.(\d+)\.", name)
    return int(found[1]) if found else -1


@contextmanager
def told_in_one_line(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what goes wrong while the model in ``path`` is read into one line, the original error chained to it.

    transformers' table of weights that do not fit stays unsaid: whoever loads asks for them and names them.

    Raises:
        FileNotFoundError: A file is missing or damaged.
        ImportError: A package is to be installed; passed on, as is a lack of memory.
        ValueError: The files contradict each other, or are of something else.
    """
    import torch
    from safetensors import SafetensorError

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_is_no_report)
    try:
        yield
    except (ImportError, MemoryError, torch.OutOfMemoryError):
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
