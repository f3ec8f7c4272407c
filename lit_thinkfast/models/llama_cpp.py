"""A ``mamba2`` student as a Bamba that llama.cpp converts, loads and computes with the same numbers.

llama.cpp knows Bamba as its ``granitehybrid``, and holds less of it than transformers: an inner size of twice the
hidden size, which idle heads fill up; attention heads that split the hidden size; a vocabulary in steps of 8; no biases
at the Mamba projections; and RoPE without scaling. It must be Bamba: for GraniteMoeHybrid the converter switches RoPE
off. Source: llama.cpp at commit 0c1e57098, ``conversion/granite.py`` and ``src/models/granite-hybrid.cpp``.
"""

from __future__ import annotations

import math

from lit_thinkfast.models.configuration import HybridConfig
from lit_thinkfast.models.formats import ForeignModel
from lit_thinkfast.models.granite import to_bamba
from lit_thinkfast.models.modeling import HybridForCausalLM

_EXPAND = 2
_VOCABULARY_STEP = 8


def to_llama_cpp(model: HybridForCausalLM) -> ForeignModel:
    """Return a student as a ``BambaForCausalLM`` that llama.cpp holds, with the same numbers.

    Raises:
        ValueError: As :func:`~lit_thinkfast.models.granite.to_bamba`, or llama.cpp cannot hold it.
    """
    config = model.config
    made = to_bamba(model, expand=_EXPAND)
    if config.attention_layers:
        _refuse_attention(config)
    if made.config["mamba_proj_bias"]:
        raise ValueError(
            "the mixers have biases at their projections, and the Mamba of llama.cpp has none; use the target "
            "granite_hybrid, or convert the teacher with the mixer option bias: false"
        )
    if rest := config.vocab_size % _VOCABULARY_STEP:
        size = config.vocab_size + _VOCABULARY_STEP - rest
        raise ValueError(
            f"the vocabulary has {config.vocab_size} tokens, and llama.cpp needs a multiple of {_VOCABULARY_STEP}; "
            f"call model.resize_token_embeddings({size}) and save the student first, or use the target granite_hybrid"
        )
    return made if config.attention_layers else _plain_idle_layer(made)


def _refuse_attention(config: HybridConfig) -> None:
    """Raise ``ValueError`` for layers with attention that llama.cpp would compute otherwise, or not load."""
    width, heads, hidden = config.head_dim, config.num_attention_heads, config.hidden_size
    if hidden != (width or 0) * heads:
        raise ValueError(
            f"layer {config.attention_layers[0]} keeps attention with head_dim={width}, and llama.cpp knows only "
            f"hidden_size / num_attention_heads = {hidden}/{heads}; use another target, or export a student "
            "without attention"
        )
    scaling = (config.rope_parameters or {}).get("rope_type", "default")
    if scaling != "default":
        raise ValueError(
            f"layer {config.attention_layers[0]} keeps attention with {scaling} RoPE scaling, which llama.cpp does not "
            "take for this class; use the target granite_hybrid, or export a student without attention"
        )


def _plain_idle_layer(made: ForeignModel) -> ForeignModel:
    """Give the attention layer of zeros, the only one, a shape and RoPE that llama.cpp knows; it adds nothing."""
    values, weights = dict(made.config), dict(made.weights)
    hidden, (index,) = values["hidden_size"], values["attn_layer_indices"]
    # The head's width if it splits the hidden size, else half of it: ``expand`` heads do split twice the hidden size.
    width = math.gcd(hidden, values["mamba_d_head"])
    prefix = f"model.layers.{index}.self_attn."
    like = weights[f"{prefix}q_proj.weight"]
    for name, rows in {"q": hidden, "k": width, "v": width, "o": hidden}.items():
        weights[f"{prefix}{name}_proj.weight"] = like.new_zeros(rows, hidden)
    values.pop("head_dim", None)
    theta = values["rope_parameters"].get("rope_theta", 10000.0)
    values |= {
        "num_attention_heads": hidden // width,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 1.0},
    }
    return ForeignModel(config=values, weights=weights, files=made.files)
