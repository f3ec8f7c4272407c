"""Files of MambaInLlama and M1 and ours: attention in some layers, Mamba-1 or Mamba-2 in the others.

Sources: arXiv:2408.15237, arXiv:2504.10449 and the code published with them.

A folder has the ``config.json`` of the Transformer that it began as, a ``mamba_config.json``, and weights: see
``mamba_in_llama_weights.py``. Two quirks of the published Mamba-1 are part of its weights and become options of
``mamba1``: the step's bias is added twice, and key/value groups are repeated slice by slice.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from lit_thinkfast.mixers import ATTENTION
from lit_thinkfast.models.configuration import HybridConfig
from lit_thinkfast.models.formats import ForeignModel
from lit_thinkfast.models.mamba_in_llama_weights import layout_of, our_weights, their_weights
from lit_thinkfast.models.modeling import HybridForCausalLM

NAME = "mamba_in_llama"
FILE = "mamba_config.json"
BASES = ("llama", "mistral")
"""Families that such a hybrid may have begun as."""

RopeScaling = Literal["none", "keep"]

_EPSILON = 1e-5  # of the gated norm in the published Mamba-2, whatever the configuration says
# settings of the published mixers that change what they compute, and the only value that can be read
_FIXED: dict[str, dict[str, Any]] = {
    "mamba1": {"conv_bias": True, "proj_x_bias": False, "proj_z_bias": False, "out_proj_bias": False},
    "mamba2": {
        "conv_bias": True,
        "D_has_hdim": False,
        "rmsnorm": True,
        "norm_before_gate": False,
        "repeat_kv_before_conv": False,
        "dt_limit": [0.0, float("inf")],
    },
}
# whose code the published loader starts from, by hidden size and layers
_STARTS = {
    (2048, 16): "meta-llama/Llama-3.2-1B-Instruct",
    (3072, 28): "meta-llama/Llama-3.2-3B-Instruct",
    (4096, 32): "meta-llama/Llama-3.1-8B-Instruct",
}
_OWN = ("_name_or_path", "architectures", "auto_map", "model_type", "transformers_version", "torch_dtype", "dtype")
_COPIED = (
    "attention_bias",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "mlp_bias",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "rms_norm_eps",
    "use_cache",
    "vocab_size",
)


def from_foreign(
    foreign: ForeignModel, *, rope_scaling: RopeScaling = "none"
) -> tuple[HybridConfig, dict[str, Tensor]]:
    """Return configuration and weights in our words.

    Mamba-1 and Mamba-2 are told apart by the weights (``norm`` and ``dt_bias``, or ``dt_proj``), which must agree with
    ``ngroups`` in ``ssm_cfg``. The files' settings and layout are kept under ``released_config``, so that
    :func:`to_foreign` gives back what the mathematics does not need.

    Args:
        foreign: With ``mamba_config.json`` among its ``files``.
        rope_scaling: Of the attention layers. ``"none"`` rotates by ``rope_theta`` alone, as the published programs do
            when they generate, whatever ``config.json`` says; M1 was also trained so. ``"keep"`` follows
            ``config.json``, as MambaInLlama does in training and in likelihood benchmarks, where it runs the attention
            of transformers.

    Raises:
        ValueError: The files contradict each other, or have a setting that the student cannot express.
    """
    base, file = foreign.config, foreign.files[FILE]
    family, ssm = base.get("model_type"), file.get("ssm_cfg") or {}
    if family not in BASES:
        raise ValueError(f"{FILE} lies beside a model of family {family!r}; known: {', '.join(BASES)}")
    if rope_scaling not in ("none", "keep"):
        raise ValueError(f"unknown rope_scaling {rope_scaling!r}; known: none, keep")
    kind = _kind(ssm, foreign.weights)
    layers, attention = base["num_hidden_layers"], set(file["attn_layers"])
    values = {key: value for key, value in base.items() if key not in _OWN}
    if rope_scaling == "none":
        values["rope_scaling"] = None
        if theta := (values.pop("rope_parameters", None) or {}).get("rope_theta"):
            values["rope_theta"] = theta
    made = {
        "base_model_type": family,
        "layer_mixers": [ATTENTION if i in attention else kind for i in range(layers)],
        "mixer_options": {kind: _options(kind, ssm)} if len(attention) < layers else None,
        "released_config": {NAME: {"config": base, FILE: file, "layout": layout_of(foreign.weights)}},
    }
    config = HybridConfig(**values | made)
    _check_sizes(config, file, kind)
    return config, our_weights(foreign.weights, config)


def to_foreign(
    model: HybridForCausalLM,
    *,
    mixers: Literal["fused", "split"] | None = None,
    attention: Literal["mha", "self_attn"] | None = None,
    rope_scaling: RopeScaling = "none",
) -> ForeignModel:
    """Return a student in the words of MambaInLlama and M1.

    Args:
        model: Its mixers are all ``mamba1`` or all ``mamba2``. Weights that need no rearrangement are shared with it.
        mixers: Layout of the mixers; as in the files that the student was read from, else ``"fused"``. Mamba-2 is
            always fused.
        attention: Layout of the attention; likewise, else ``"mha"``.
        rope_scaling: ``"keep"`` allows a student whose attention has scaled RoPE, which whoever reads the files must
            then keep too; the published programs leave it out when they generate.

    Raises:
        ValueError: Something that the published code does otherwise.
    """
    config = model.config
    kind = _check_expressible(model, rope_scaling)
    released = (getattr(config, "released_config", None) or {}).get(NAME, {})
    if ("ngroups" in (released.get(FILE, {}).get("ssm_cfg") or {})) != (kind == "mamba2"):
        released = {}  # the mixers have been replaced since
    layout = {"mixers": "fused", "attention": "mha"} | released.get("layout", {})
    layout |= {key: value for key, value in (("mixers", mixers), ("attention", attention)) if value is not None}
    if kind == "mamba2" and layout["mixers"] == "split":
        raise ValueError("there is no split layout of Mamba-2; use mixers='fused'")
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    return ForeignModel(
        config=_base_config(model, released.get("config"), tied=tied),
        weights=their_weights(model, layout, tied=tied),
        files={FILE: _mamba_config(model, kind, released.get(FILE))},
    )


def _kind(ssm: dict[str, Any], weights: dict[str, Tensor]) -> str:
    """Return which mixer the layers without attention have.

    Raises:
        ValueError: Weights and configuration disagree.
    """
    parts = {name.split(".mamba.")[1] for name in weights if ".mamba." in name}
    by_config = "mamba2" if "ngroups" in ssm else "mamba1"
    if not parts:
        return by_config
    by_weights = "mamba2" if parts & {"norm.weight", "dt_bias"} else "mamba1"
    if by_weights != by_config:
        names = {"mamba1": "Mamba-1 (no ngroups in ssm_cfg)", "mamba2": "Mamba-2 (ngroups in ssm_cfg)"}
        raise ValueError(f"{FILE} describes {names[by_config]}, but the weights are those of {names[by_weights][:7]}")
    return by_weights


def _options(kind: str, ssm: dict[str, Any]) -> dict[str, Any]:
    """Return the options of our mixer for the settings of a published one."""
    for key, fixed in _FIXED[kind].items():
        value = ssm.get(key, fixed)
        if (list(value) if isinstance(value, tuple) else value) != fixed:
            raise ValueError(
                f"{key} in ssm_cfg is {value}, which cannot be read; in all published models it is {fixed}"
            )
    options = {key: ssm[key] for key in ("d_conv",) if key in ssm}
    if kind == "mamba2":
        return options | ({"bias": True} if ssm.get("bias") else {})
    if ssm.get("dt_rank", "auto") != "auto":
        options["dt_rank"] = ssm["dt_rank"]
    if "d_state" in ssm:
        options["d_state"] = ssm["d_state"]
    repeat_first = ssm.get("repeat_kv_before_conv", True)
    return options | {"gqa_expand": "reference", "dt_bias_mult": 2, "repeat_kv_before_conv": repeat_first}


def _check_sizes(config: HybridConfig, file: dict[str, Any], kind: str) -> None:
    """Raise ``ValueError`` where the two configuration files disagree or heads are not those of the attention."""
    ssm, heads, width = file.get("ssm_cfg") or {}, config.num_attention_heads, config.head_dim or 0
    inner = file.get("d_inner")
    expected = {
        "d_model": (file["d_model"], config.hidden_size),
        "n_layer": (file["n_layer"], config.num_hidden_layers),
        "intermediate_size": (file["intermediate_size"], config.intermediate_size),
        "hidden_act": (file.get("hidden_act", "silu"), config.hidden_act),
        "rms_norm_eps": (file.get("rms_norm_eps", 1e-5), config.rms_norm_eps),
        "d_inner": (ssm.get("expand", 2) * file["d_model"] if inner is None else inner, heads * width),
        "d_xb": (file["d_xb"], (config.num_key_value_heads or 0) * width),
    }
    if kind == "mamba2":
        expected |= {
            "ngroups in ssm_cfg": (ssm["ngroups"], heads),
            "d_state in ssm_cfg": (ssm.get("d_state", 128), width),
            "rms_norm_eps": (config.rms_norm_eps, _EPSILON),
        }
    for key, (value, wanted) in expected.items():
        if value != wanted:
            raise ValueError(f"{key} is {value}, which cannot be read: by config.json it would have to be {wanted}")


def _check_expressible(model: HybridForCausalLM, rope_scaling: RopeScaling) -> str:
    """Return the kind of mixer.

    Raises:
        ValueError: The published code would compute something else.
    """
    config = model.config
    remedy = "save the student as it is"
    kinds = sorted(set(config.layer_mixers or []) - {ATTENTION})
    if kinds not in (["mamba1"], ["mamba2"]):
        found = " and ".join(kinds) or "attention only"
        raise ValueError(f"the layers have {found}; MambaInLlama has either mamba1 or mamba2 in some: {remedy}")
    (kind,) = kinds
    if config.base_model_type not in BASES:
        raise ValueError(f"the family is {config.base_model_type}; MambaInLlama knows {' and '.join(BASES)}: {remedy}")
    if config.mlp_bias:
        raise ValueError(f"the MLPs have biases; those of MambaInLlama have none: {remedy}")
    mixers: list[Any] = [layer.mixer for layer in model.model.layers if hasattr(layer, "mixer")]  # type: ignore[union-attr]
    if kind == "mamba1" and any(part.bias is not None for m in mixers for part in (m.in_proj, m.out_proj)):
        raise ValueError(f"the mixers' projections have biases; those of the published Mamba-1 have none: {remedy}")
    if kind == "mamba2" and config.rms_norm_eps != _EPSILON:
        raise ValueError(
            f"rms_norm_eps is {config.rms_norm_eps}; the published Mamba-2 normalises with {_EPSILON}: {remedy}"
        )
    if config.attention_layers:
        if config.attention_bias:
            raise ValueError(f"the attention has biases; that of MambaInLlama has none: {remedy}")
        if config.sliding_window is not None:
            raise ValueError(f"the attention has a sliding window; that of MambaInLlama sees everything: {remedy}")
        if config.head_dim != config.hidden_size // config.num_attention_heads:
            raise ValueError(f"heads are {config.head_dim} wide, and not hidden_size / num_attention_heads: {remedy}")
        if _is_scaled(config) and rope_scaling != "keep":
            raise ValueError(
                f"the attention layers have RoPE scaled as {(config.rope_parameters or {})['rope_type']}, which the "
                f"published code leaves out when it generates: {remedy}, or give rope_scaling='keep' to to_foreign and "
                "to whatever reads the files"
            )
    return kind


def _is_scaled(config: HybridConfig) -> bool:
    return str((config.rope_parameters or {}).get("rope_type", "default")) != "default"


def _base_config(model: HybridForCausalLM, released: dict[str, Any] | None, *, tied: bool) -> dict[str, Any]:
    """Return ``config.json``: that of the files the student was read from with its values, or one in their style."""
    config = model.config
    rope = dict(config.rope_parameters or {})
    written: dict[str, Any] = {key: getattr(config, key) for key in _COPIED}
    written |= {
        "architectures": [f"{config.base_model_type.capitalize()}ForCausalLM"],
        "model_type": config.base_model_type,
        "rope_theta": rope.pop("rope_theta", 10000.0),
        "rope_scaling": rope if _is_scaled(config) else None,
        "tie_word_embeddings": tied,
        "torch_dtype": str(model.dtype).removeprefix("torch."),
    }
    if released is None:
        start = _STARTS.get((config.hidden_size, config.num_hidden_layers))
        return ({"_name_or_path": start} if start else {}) | written
    if not _is_scaled(config):
        written.pop("rope_scaling")  # the published code does not read it, so that the files' own may stay
    return {key: written.get(key, value) for key, value in released.items()}


def _mamba_config(model: HybridForCausalLM, kind: str, released: dict[str, Any] | None) -> dict[str, Any]:
    """Return ``mamba_config.json``."""
    config, width = model.config, model.config.head_dim or 0
    options, inner = config.options_of(kind), config.num_attention_heads * width
    if kind == "mamba2":
        ssm: dict[str, Any] = {"expand": 1, "ngroups": config.num_attention_heads, "d_state": width}
        first: Any = model.model.layers[(config.layer_mixers or []).index(kind)]
        if first.mixer.in_proj.bias is not None:
            ssm["bias"] = True
    else:
        ssm = {"expand": 1} | {key: options[key] for key in ("d_state", "dt_rank") if options.get(key)}
        if not options.get("repeat_kv_before_conv", True):
            ssm["repeat_kv_before_conv"] = False
    if "d_conv" in options:
        ssm["d_conv"] = options["d_conv"]
    written = {
        "d_model": config.hidden_size,
        "ssm_cfg": (released or {}).get("ssm_cfg", {}) | ssm,
        "rms_norm_eps": config.rms_norm_eps,
        "vocab_size": None,
        "d_inner": inner,
        "d_xb": (config.num_key_value_heads or 0) * width,
        "intermediate_size": config.intermediate_size,
        "hidden_act": config.hidden_act,
        "n_layer": config.num_hidden_layers,
        "attn_layers": config.attention_layers,
    }
    if released is not None and released.get("d_inner", inner) is None:
        written["d_inner"] = None
    return written
