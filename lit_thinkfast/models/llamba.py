"""Llamba's files and ours: every layer a ``discrete_mamba2`` (arXiv:2502.14458; cartesia-ai/Llamba-1B, -3B and -8B).

Nothing is computed: in either direction weights only change their names. Models that the published code would compute
otherwise are refused; among other things, its layers normalise with an epsilon of 1e-5 whatever ``norm_epsilon`` says.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_thinkfast.mixers import DiscreteMamba2Mixer
from lit_thinkfast.models.configuration import HybridConfig
from lit_thinkfast.models.formats import ForeignModel
from lit_thinkfast.models.modeling import HybridForCausalLM

NAME = "llamba"
TOKENIZERS = {2048: "meta-llama/Llama-3.2-1B", 3072: "meta-llama/Llama-3.2-3B", 4096: "meta-llama/Llama-3.1-8B"}
"""Whose tokenizer a published model takes, by its width: there is none in its own files."""

_EPSILON = 1e-5
# what the published classes take for settings that a file does not make
_SSM = {
    "d_state": 64,
    "n_v_heads": 32,
    "n_qk_heads": 32,
    "expand": 1,
    "chunk_size": 128,
    "activation": "identity",
    "bias": False,
}
_MLP = {"intermediate_size": 14336, "bias": False, "act_fn": "silu"}
_NAMES = {
    "backbone.embedding.": "model.embed_tokens.",
    "backbone.final_layernorm.": "model.norm.",
    "backbone.layers.": "model.layers.",
}


def is_llamba(config: dict[str, Any]) -> bool:
    """Is this the ``config.json`` of a Llamba?"""
    return config.get("model_type") == NAME or (
        "model_type" not in config and "n_v_heads" in (config.get("ssm_cfg") or {})
    )


def from_foreign(foreign: ForeignModel) -> tuple[HybridConfig, dict[str, Tensor]]:
    """Return configuration and weights in our words.

    The vocabulary is the padded one that the weights have. The file's configuration is kept under ``released_config``,
    so that :func:`to_foreign` gives back what the mathematics does not need.

    Raises:
        ValueError: A setting that no published model has and the student cannot express.
    """
    file = foreign.config
    ssm, mlp = _SSM | (file.get("ssm_cfg") or {}), _MLP | (file.get("mlp_cfg") or {})
    _check(
        lm_head_bias=(file.get("lm_head_bias", False), False),
        norm_epsilon=(file.get("norm_epsilon", _EPSILON), _EPSILON),
        conv_bias=(ssm.get("conv_bias", True), True),
    )
    inner, layers = ssm["expand"] * file["d_model"], file.get("n_layer", 32)
    options = {"num_qk_heads": ssm["n_qk_heads"], "d_state": ssm["d_state"]}
    if ssm["activation"] != "identity":
        options["activation"] = "silu" if ssm["activation"] == "swish" else ssm["activation"]
    if "d_conv" in ssm:
        options["d_conv"] = ssm["d_conv"]
    vocab_size = _padded(file)
    config = HybridConfig(
        vocab_size=vocab_size,
        hidden_size=file["d_model"],
        intermediate_size=mlp["intermediate_size"],
        num_hidden_layers=layers,
        num_attention_heads=ssm["n_v_heads"],
        head_dim=inner // ssm["n_v_heads"],
        hidden_act=mlp["act_fn"],
        max_position_embeddings=131072,
        rms_norm_eps=_EPSILON,
        tie_word_embeddings=file.get("tie_embeddings", False),
        attention_bias=ssm["bias"],  # there is no attention; mixers take their biases from here
        mlp_bias=mlp["bias"],
        layer_mixers=["discrete_mamba2"] * layers,
        mixer_options={"discrete_mamba2": options},
        released_config={NAME: file},
        **{key: file[key] for key in ("reward_judge", "reward_scope") if key in file},  # written by us
        # no file of this format says where a text ends; those of a vocabulary of this size are Llama 3's
        **({"bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009]} if vocab_size == 128256 else {}),
    )
    weights = {}
    for name, weight in foreign.weights.items():
        for theirs, ours in _NAMES.items():
            name = name.replace(theirs, ours)
        weights[name] = weight
    return config, weights


def to_foreign(model: HybridForCausalLM) -> ForeignModel:
    """Return a student in Llamba's words. Weights are shared with it.

    Raises:
        ValueError: A layer with another mixer, or something that Llamba's code does otherwise.
    """
    config = model.config
    for i, name in enumerate(config.layer_mixers or []):
        if name != "discrete_mamba2":
            raise ValueError(
                f"layer {i} has the mixer {name!r}; all layers of a Llamba have discrete_mamba2: convert the teacher "
                "to it, or save the student as it is"
            )
    if config.rms_norm_eps != _EPSILON:
        raise ValueError(
            f"rms_norm_eps is {config.rms_norm_eps}; the published code of Llamba normalises with {_EPSILON}: save the "
            "student as it is"
        )
    first: Any = model.model.layers[0]
    mixer: DiscreteMamba2Mixer = first.mixer
    if mixer.inner % config.hidden_size:
        raise ValueError(
            f"the mixers are {mixer.inner} wide; in a Llamba that is a multiple of the hidden size, "
            f"{config.hidden_size}: save the student as it is"
        )
    file: dict[str, Any] = (getattr(config, "released_config", None) or {}).get(NAME, {})
    ssm = (file.get("ssm_cfg") or _SSM) | {
        "d_state": mixer.d_state,
        "n_v_heads": mixer.num_heads,
        "n_qk_heads": mixer.num_qk_heads,
        "expand": mixer.inner // config.hidden_size,
        "bias": mixer.in_proj.bias is not None,
    }
    if mixer.activate != (ssm.get("activation") in ("silu", "swish")):
        ssm["activation"] = "silu" if mixer.activate else "identity"
    if mixer.conv1d.kernel_size != ssm.get("d_conv", 4):
        ssm["d_conv"] = mixer.conv1d.kernel_size
    if chunk_size := config.options_of("discrete_mamba2").get("chunk_size"):
        ssm["chunk_size"] = chunk_size
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    mlp = {"intermediate_size": config.intermediate_size, "bias": config.mlp_bias, "act_fn": config.hidden_act}
    written = {
        "model_type": NAME,
        "vocab_size": config.vocab_size,
        "tie_embeddings": tied,
        "pad_vocab_size_multiple": 8,
        "lm_head_bias": False,
        "d_model": config.hidden_size,
        "n_layer": config.num_hidden_layers,
        "resid_dropout": 0.0,
        "norm_epsilon": _EPSILON,
        "mlp_cfg": (file.get("mlp_cfg") or {}) | mlp,
        "ssm_cfg": ssm,
    }
    if file and _padded(file) == config.vocab_size:
        written |= {key: file[key] for key in ("vocab_size", "pad_vocab_size_multiple") if key in file}
    elif config.vocab_size % 8:
        written["pad_vocab_size_multiple"] = 1
    return ForeignModel(config=file | written, weights=_weights(model, tied=tied))


def _weights(model: HybridForCausalLM, *, tied: bool) -> dict[str, Tensor]:
    weights = {}
    for name, weight in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        for theirs, ours in _NAMES.items():
            name = name.replace(ours, theirs)
        weights[name] = weight
    for layer in range(model.config.num_hidden_layers):
        prefix = f"backbone.layers.{layer}.mixer."
        if f"{prefix}in_proj.bias" in weights and f"{prefix}out_proj.bias" not in weights:
            # a Llamba has both biases or none
            out = weights[f"{prefix}out_proj.weight"]
            weights[f"{prefix}out_proj.bias"] = torch.zeros(out.shape[0], dtype=out.dtype, device=out.device)
    return weights


def _padded(file: dict[str, Any]) -> int:
    """Return the rows of the embedding: the vocabulary, rounded up."""
    multiple: int = file.get("pad_vocab_size_multiple", 8)
    rows: int = -(-file["vocab_size"] // multiple) * multiple
    return rows


def _check(**settings: tuple[Any, Any]) -> None:
    for name, (value, fixed) in settings.items():
        if value != fixed:
            raise ValueError(f"{name} is {value}, which cannot be read; in all published models it is {fixed}")
