"""Facts that belong beside samples: which weights they came from, how large the model is, and the code at the time."""

from __future__ import annotations

import hashlib
import subprocess
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from lit_thinkfast.models.modeling import HybridForCausalLM

_FINGERPRINT_VALUES = 1024
_GIT_SECONDS = 5.0


def describe_model(model: HybridForCausalLM) -> dict[str, Any]:
    """Return the facts about a model that a reader of its figures needs."""
    return {
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "weight_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "num_layers": model.config.num_hidden_layers,
        "layer_mixers": list(model.config.layer_mixers or []),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def fingerprint(model: torch.nn.Module) -> str:
    """Return a short hash of names, shapes and up to 1024 evenly spaced values of every weight.

    Enough to tell one checkpoint from the next without reading gigabytes.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        flat = weight.detach().reshape(-1)
        stride = max(1, flat.numel() // _FINGERPRINT_VALUES)
        digest.update(flat[::stride].to("cpu", torch.float64).numpy().tobytes())
    return digest.hexdigest()


def git_state() -> dict[str, Any] | None:
    """Return the commit of the working directory's repository and whether tracked files differ from it.

    ``None`` outside a repository, without git, or where git takes longer than some seconds.
    """
    answers = []
    for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            done = subprocess.run(["git", *command], capture_output=True, text=True, timeout=_GIT_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode:
            return None
        answers.append(done.stdout.strip())
    return {"commit": answers[0], "changed": bool(answers[1])}


def now() -> str:
    """Return the time as it is noted: UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
