"""Facts about a model that belong beside its samples: which weights they came from, and how large it is."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from lit_thinkfast.models.modeling import HybridForCausalLM

_FINGERPRINT_VALUES = 1024


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
