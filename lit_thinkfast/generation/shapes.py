"""Shapes of models for benchmarks, where speed and memory count and weights may be random.

``paper`` are the models of arXiv:2502.20339, for a card of 80 GB. ``smollm2`` is a real small model and its students.
``paper-regime`` is made for a CPU: attention without grouped heads and a thin MLP, so that at 1k tokens keys and values
weigh against its arithmetic what those of a 3B model weigh on an H100 (a CPU moves a hundred times more bytes for each
operation, so that with a model of usual shape nothing of the paper would be seen at this length).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from lit_thinkfast.mixers import ATTENTION

if TYPE_CHECKING:
    from lit_thinkfast.models import HybridConfig, HybridForCausalLM

Preset = Literal["paper", "smollm2", "paper-regime"]

_POSITIONS = 131072
_SMOLLM2: dict[str, Any] = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "rms_norm_eps": 1e-5,
    "max_position_embeddings": _POSITIONS, "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "tie_word_embeddings": True,
}  # fmt: skip
_REGIME: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8,
    "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 32, "max_position_embeddings": _POSITIONS,
    "tie_word_embeddings": True,
}  # fmt: skip


def preset_configs(name: Preset) -> dict[str, HybridConfig]:
    """Return the models of a preset, by name; the first of a size is the Transformer that the others are held against.

    Raises:
        ValueError: No such preset.
    """
    presets: dict[str, Callable[[], dict[str, HybridConfig]]] = {
        "paper": _paper,
        "smollm2": lambda: _family(_SMOLLM2, kept=8),
        "paper-regime": lambda: _family(_REGIME, kept=2),
    }
    if name not in presets:
        raise ValueError(f"unknown preset {name!r}; known: {', '.join(get_args(Preset))}")
    return presets[name]()


def preset_baselines(name: Preset) -> dict[str, str]:
    """Return, for each model of a preset, the Transformer of its size."""
    models = list(preset_configs(name))
    if name != "paper":
        return dict.fromkeys(models, models[0])
    return {model: f"llama-{model.split('-')[1]}" for model in models}


def random_model(config: HybridConfig, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> HybridForCausalLM:
    """Make a model with random weights, the same each time, where it is to run and in its type from the start."""
    from lit_thinkfast.models import HybridForCausalLM

    usual = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                return HybridForCausalLM(config).eval()  # type: ignore[no-any-return]
        finally:
            torch.set_default_dtype(usual)


def _paper() -> dict[str, HybridConfig]:
    from lit_thinkfast.models import HybridConfig

    found = {}
    for size in ("1b", "3b"):
        teacher, hybrid = HybridConfig.published(f"llama32_{size}"), HybridConfig.published(f"mamba_in_llama_{size}")
        found[f"llama-{size}"] = teacher
        found[f"hybrid-{size}-mamba1"] = hybrid
        found[f"hybrid-{size}-mamba2"] = _with_mixers(hybrid, "mamba2", hybrid.attention_layers)
        found[f"llamba-{size}"] = HybridConfig.published(f"llamba_{size}")
    return found


def _family(sizes: dict[str, Any], *, kept: int) -> dict[str, HybridConfig]:
    """Return the Transformer of these sizes, its hybrid with ``kept`` attention layers spread evenly, and the pure."""
    from lit_thinkfast.models import HybridConfig

    teacher, layers = HybridConfig(**sizes), sizes["num_hidden_layers"]
    spread = [(i + 1) * layers // kept - 1 for i in range(kept)]
    return {
        "transformer": teacher,
        "hybrid": _with_mixers(teacher, "mamba2", spread),
        "pure": _with_mixers(teacher, "mamba2", []),
    }


def _with_mixers(config: HybridConfig, mixer: str, attention: list[int]) -> HybridConfig:
    """Return the same sizes with other mixers in the layers that do not keep attention."""
    from lit_thinkfast.models import HybridConfig

    values = config.to_dict()
    for derived in ("model_type", "layer_types", "mixer_options"):
        values.pop(derived, None)
    layers = range(config.num_hidden_layers)
    return HybridConfig(**values | {"layer_mixers": [ATTENTION if i in attention else mixer for i in layers]})
