"""Which way of judging a model was made for, as far as its config, its architecture or its name tell."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any, Literal

Judge = Literal[
    "signs",
    "head",
    "likelihood",
    "rlhflow-deepseek",
    "rlhflow-mistral",
    "math-shepherd",
    "math-shepherd-blocks",
    "skywork",
    "qwen-prm",
    "qwen-rm",
    "classifier",
]
"""How a model judges: by likelihood, or by a protocol."""

_ARCHITECTURES = {
    "Qwen2ForPrmModel": "skywork",
    "Qwen2ForProcessRewardModel": "qwen-prm",
    "Qwen2ForRewardModel": "qwen-rm",
}
_OTHER = re.compile(r"Classification|Reward|Prm")
_NAMES = {
    r"PRM-Deepseek-Data": "rlhflow-deepseek",
    r"PRM-Mistral-Data": "rlhflow-mistral",
    r"math-shepherd.*prm": "math-shepherd",
    r"Skywork-o1-Open-PRM": "skywork",
}

log = logging.getLogger(__name__)


def marked(path: str | os.PathLike[str]) -> str | None:
    """Return what the config of a model says under ``reward_judge``, if anything.

    Raises:
        ValueError: It says what is not known.
    """
    made_for = _config(path).get("reward_judge")
    if made_for is not None and made_for not in Judge.__args__:  # type: ignore[attr-defined]
        raise ValueError(f"{path}: its config has an unknown judge {made_for!r}; {_choices()}")
    return made_for


def judge_of(path: str | os.PathLike[str]) -> str:
    """Return how a model judges: what its config says under ``reward_judge``, else what its architecture or name tell.

    A language model of which nothing tells is taken to judge by ``signs``, with a warning.

    Raises:
        ValueError: It is a classifier or reward model of a kind that is not known here.
    """
    if (made_for := marked(path)) is not None:
        return made_for
    config = _config(path)
    architecture = next(iter(config.get("architectures") or ()), "")
    if (found := _ARCHITECTURES.get(architecture)) is not None:
        return found
    if architecture.endswith("ForSequenceClassification"):
        if len(config.get("id2label") or "..") == 1 or config.get("num_labels") == 1:
            return "classifier"
        raise ValueError(f"{path}: a {architecture} of several labels is no reward model; use one with one label")
    for pattern, name in _NAMES.items():
        if re.search(pattern, _name(path), re.IGNORECASE):
            return name
    if _OTHER.search(architecture):
        raise ValueError(f"{path}: how a {architecture} judges is not known; {_choices()}")
    if config:
        log.warning("%s does not say how it judges, and is taken to judge lines by signs; %s", path, _choices())
    return "signs"


def _choices() -> str:
    return f"choose one of {', '.join(Judge.__args__)}"  # type: ignore[attr-defined]


def _name(path: str | os.PathLike[str]) -> str:
    """Return the name of a model: the last part of its path, or that of the hub whose cache it lies in."""
    parts = Path(os.path.normpath(path)).parts
    return next((part for part in parts if part.startswith("models--")), parts[-1] if parts else "")


def _config(path: str | os.PathLike[str]) -> dict[str, Any]:
    from transformers import PretrainedConfig

    try:
        values, _ = PretrainedConfig.get_config_dict(path)
    except OSError:
        return {}  # loading will say what is wrong with it
    return dict(values)
