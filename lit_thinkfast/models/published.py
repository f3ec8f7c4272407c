"""Configurations of the models that were published, by name.

Sizes of Llama are those of its ``config.json``; of MambaInLlama's mathematical hybrids, those of M1's conversion script
and the sizes of the published files (which layers of the 1B model keep attention is inferred: see ``layers.py``); of
Llamba, those of the configuration published with it. Parameter counts of all are pinned by a test.
"""

from __future__ import annotations

import copy
from typing import Any

from lit_thinkfast.mixers import ATTENTION
from lit_thinkfast.models.configuration import HybridConfig
from lit_thinkfast.models.layers import PUBLISHED_ATTENTION_LAYERS

_LLAMA3: dict[str, Any] = {
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
}
_SIZES: dict[str, dict[str, Any]] = {
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "3b": {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
}
_THETA = 500000.0
_SCALED = {
    "rope_type": "llama3",
    "rope_theta": _THETA,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# the quirks of the published code that its weights were trained with
_RELEASED_MAMBA1 = {"gqa_expand": "reference", "dt_bias_mult": 2, "repeat_kv_before_conv": True}
_LLAMBA_HEADS = 32  # in all sizes, whatever the heads of the teacher

PUBLISHED = (
    "llama32_1b",
    "llama32_3b",
    "mamba_in_llama_1b",
    "mamba_in_llama_3b",
    "llamba_1b",
    "llamba_3b",
    "llamba_8b",
)
"""Names that :func:`published_config` knows."""


def published_config(name: str) -> HybridConfig:
    """Return the configuration of a published model, new each time.

    Raises:
        ValueError: No such name.
    """
    if name not in PUBLISHED:
        raise ValueError(f"unknown published configuration {name!r}; known: {', '.join(PUBLISHED)}")
    family, _, size = name.rpartition("_")
    values = copy.deepcopy(_LLAMA3 | _SIZES[size])
    if family == "llamba":
        return HybridConfig(**values | _llamba(values))
    if family == "mamba_in_llama":
        kept = PUBLISHED_ATTENTION_LAYERS[values["num_hidden_layers"]]
        return HybridConfig(
            **values,
            rope_parameters={"rope_type": "default", "rope_theta": _THETA},
            layer_mixers=[ATTENTION if i in kept else "mamba1" for i in range(values["num_hidden_layers"])],
            mixer_options={"mamba1": dict(_RELEASED_MAMBA1)},
        )
    return HybridConfig(**values, rope_parameters=dict(_SCALED))


def _llamba(sizes: dict[str, Any]) -> dict[str, Any]:
    """Return what a Llamba has in the place of its teacher's heads and attention."""
    return {
        "num_attention_heads": _LLAMBA_HEADS,
        "num_key_value_heads": _LLAMBA_HEADS,
        "head_dim": sizes["hidden_size"] // _LLAMBA_HEADS,
        "layer_mixers": ["discrete_mamba2"] * sizes["num_hidden_layers"],
        "mixer_options": {"discrete_mamba2": {"num_qk_heads": _LLAMBA_HEADS, "d_state": 64}},
    }
