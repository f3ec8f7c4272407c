"""A ``mamba2`` student as a stock architecture of transformers: GraniteMoeHybrid without experts, or Bamba.

Both stack attention with RoPE and the Mamba-2 of Bamba over gated MLPs, which is what a student is, once three things
are written out: the x and B rows of grouped heads, repeated (every head is a group of its own, so that the gated norm
is a head's); biases that only some projections have, as zeros; and scales and RoPE where the defaults are others.
Nothing is approximated. What has no place there is refused.

The stock classes count cached tokens in an attention layer, and fail where there is none (transformers 5.23). A
student without one gets a layer of zeros on top, which adds nothing to the residual stream.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import transformers
from packaging.version import Version
from torch import Tensor

from lit_thinkfast.mixers import ATTENTION
from lit_thinkfast.models.configuration import HybridConfig
from lit_thinkfast.models.formats import ForeignModel
from lit_thinkfast.models.modeling import HybridForCausalLM

_TAKEN_OVER = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "attention_dropout",
    "pad_token_id",  # null is written too: Bamba's default is 0
    "bos_token_id",
    "eos_token_id",
)
_FIRST_VERSION = "5.23"  # in which the gated norm of both classes looks at ``mamba_n_groups``
_NO_STOCK_CLASS = {
    "mamba1": (
        "no stock class has Mamba-1 with grouped B and C and without norms on them; use the target mamba_in_llama"
    ),
    "discrete_mamba2": (
        "the stock Mamba-2 multiplies its input by the step, activates the convolution with SiLU and norms behind the "
        "gate, and this mixer does none of it; use the target llamba"
    ),
}


class _Heads(NamedTuple):
    """Heads of a mixer: ``own`` of ``width`` channels, ``kv`` of them for x and B, and ``total`` with idle ones."""

    own: int
    kv: int
    width: int
    total: int


def to_granite_hybrid(model: HybridForCausalLM) -> ForeignModel:
    """Return a student as ``GraniteMoeHybridForCausalLM``, with the same numbers.

    Raises:
        ValueError: A layer's mixer is not ``mamba2``, or the student has something that this class has not.
    """
    weights, values = _shared(model)
    if model.config.mlp_bias:
        raise ValueError("the MLP has biases, and that of GraniteMoeHybrid has not; use the target bamba")
    for i in range(values["num_hidden_layers"]):
        mlp = f"model.layers.{i}.mlp."
        gate, up = weights.pop(f"{mlp}gate_proj.weight"), weights.pop(f"{mlp}up_proj.weight")
        weights[f"{mlp}input_linear.weight"] = torch.cat([gate, up])
        weights[f"{mlp}output_linear.weight"] = weights.pop(f"{mlp}down_proj.weight")
    attention = values.pop("attn_layer_indices")
    values |= {
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "model_type": "granitemoehybrid",
        # The names before transformers 5.13: later versions read them too, vLLM before 0.26 only them.
        "layer_types": ["attention" if i in attention else "mamba" for i in range(values["num_hidden_layers"])],
        "shared_intermediate_size": model.config.intermediate_size,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "position_embedding_type": "rope",
        "attention_multiplier": values["mamba_d_head"] ** -0.5,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
    }
    return ForeignModel(config=values, weights=_renamed(weights, {".mlp.": ".shared_mlp."}))


def to_bamba(model: HybridForCausalLM, *, expand: int | None = None) -> ForeignModel:
    """Return a student as ``BambaForCausalLM``, with the same numbers.

    Args:
        model: The student.
        expand: Inner size of its Mamba layers in hidden sizes, to which idle heads fill them up; the least if ``None``.

    Raises:
        ValueError: A layer's mixer is not ``mamba2``, or the student has something that this class has not.
    """
    weights, values = _shared(model, expand)
    values |= {
        "architectures": ["BambaForCausalLM"],
        "model_type": "bamba",
        "mlp_bias": model.config.mlp_bias,
        # Bamba turns half of each head unless it is told otherwise in this very place.
        "rope_parameters": values["rope_parameters"] | {"partial_rotary_factor": 1.0},
    }
    names = {
        ".mlp.": ".feed_forward.",
        ".post_attention_layernorm.": ".pre_ff_layernorm.",
        "model.norm.": "model.final_layernorm.",
    }
    return ForeignModel(config=values, weights=_renamed(weights, names))


def card_notes(model: HybridForCausalLM, config: dict[str, Any], *, to: str) -> list[str]:
    """Return what a user of a folder exported to the format ``to`` must know, a line of Markdown each."""
    notes = [
        f"It needs transformers {_FIRST_VERSION} or later. Each head is normed on its own (`mamba_n_groups` is the "
        "number of heads); earlier versions norm all heads at once and give other numbers without a warning."
    ]
    if "layer_types" in config:
        notes.append(
            "`layer_types` in `config.json` has the names `mamba` and `attention` on purpose: transformers reads them "
            "in every version, and vLLM before 0.26 reads no others. `save_pretrained` of transformers 5.13 and later "
            "renames them."
        )
    else:
        notes.append(
            "vLLM has had no Bamba since its version 0.23; for vLLM, export the student with `--to granite_hybrid`."
        )
        notes.append(
            "Decoding with a cache and without `generate` needs `position_ids`: the class counts from 0 again in every "
            "call."
        )
    if to == "llama_cpp":
        notes.append(
            "llama.cpp: `convert_hf_to_gguf.py this/folder --outtype f32`. What other types of weights lose was not "
            "measured for these models."
        )
    else:
        notes.append(
            "Do not convert it for llama.cpp, which switches RoPE off for this class without a warning, and holds only "
            "Mamba layers of twice the hidden size; export the student with `--to llama_cpp`."
            if "layer_types" in config
            else "For llama.cpp, which holds only Mamba layers of twice the hidden size, export the student with "
            "`--to llama_cpp`."
        )
    if "layer_types" in config and (wrong := wrong_in_vllm(model)):
        notes.append(f"Do not serve it with vLLM: {wrong}.")
    if config["dtype"] != "float32":
        notes.append(
            "`A_log`, `D` and `dt_bias` are stored in float32. transformers rounds them with everything else when it "
            f"loads the model in {config['dtype']}; with `dtype=torch.float32` nothing is lost."
        )
    if config["num_hidden_layers"] > model.config.num_hidden_layers:
        notes.append(
            "The last layer is attention whose weights are all zero; it adds nothing. It is there because transformers "
            "counts the tokens of its cache in an attention layer."
        )
    if idle := config["mamba_n_heads"] - model.config.num_attention_heads:
        why = "llama.cpp needs twice" if to == "llama_cpp" else "the class needs a multiple of"
        notes.append(f"The last {idle} heads of each Mamba layer are zero and add nothing: {why} the hidden size.")
    if wrong := wrong_behind_padding(model):
        notes.append(f"Do not pad batches on the left: {wrong}.")
    return notes


def wrong_behind_padding(model: HybridForCausalLM) -> str | None:
    """Say why the stock classes go wrong in rows padded on the left, or return ``None`` if they do not.

    They clear the padding before the projection and not behind it, where its biases reach the convolution.
    """
    if not any(name.endswith(".mixer.in_proj.bias") for name in model.state_dict()):
        return None
    return (
        "the input projections of its Mamba layers have biases, which the stock class lets through at padding, so that "
        "the first tokens behind it see them; batches of rows of one length are exact"
    )


def wrong_in_vllm(model: HybridForCausalLM) -> str | None:
    """Say why vLLM computes another model than a GraniteMoeHybrid export, or return ``None`` if it does not."""
    config = model.config
    if not config.attention_layers or config.hidden_size == (config.head_dim or 0) * config.num_attention_heads:
        return None
    return (
        f"it ignores head_dim={config.head_dim} of the attention layers, takes hidden_size / num_attention_heads, and "
        "gives other numbers without an error (seen in 0.32)"
    )


def _shared(model: HybridForCausalLM, expand: int | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights, mixers as ``mamba`` and all else under the student's names, and what both classes configure.

    Raises:
        ValueError: As :func:`to_bamba`.
    """
    config, own = model.config, model.state_dict()
    _refuse(config)
    mixers = [name for name in config.layer_mixers or [] if name != ATTENTION]
    if not mixers:
        raise ValueError("a student whose layers all have attention is a stock model already; export it without target")
    if tied := model.lm_head.weight is model.model.embed_tokens.weight:
        del own["lm_head.weight"]

    heads = _heads(config, expand)
    kept, mixed = "model.layers.{}.self_attn.", "model.layers.{}.mixer."
    attention = config.attention_layers
    attention_bias = any(f"{kept.format(i)}q_proj.bias" in own for i in attention)
    mamba_bias = any(name.endswith(("mixer.in_proj.bias", "mixer.out_proj.bias")) for name in own)
    weights = {name: weight for name, weight in own.items() if ".mixer." not in name}
    for i in attention:
        if attention_bias:  # of all four projections; Qwen2 has it on three
            output = f"{kept.format(i)}o_proj."
            weights.setdefault(f"{output}bias", torch.zeros_like(own[f"{output}weight"][:, 0]))
    taps = 0
    for i in range(config.num_hidden_layers):
        if i not in attention:
            prefix = mixed.format(i)
            parts = {name.removeprefix(prefix): own[name] for name in own if name.startswith(prefix)}
            block = _block(parts, heads, bias=mamba_bias)
            taps = block["conv1d.weight"].shape[-1]
            weights |= {f"model.layers.{i}.mamba.{name}": weight for name, weight in block.items()}
    kv_heads, layers = config.num_key_value_heads, config.num_hidden_layers
    if not attention:
        weights |= _idle_layer(weights, layers, heads)
        attention, kv_heads, layers = [layers], 1, layers + 1

    values: dict[str, Any] = {name: getattr(config, name) for name in _TAKEN_OVER}
    if heads.width * heads.own != config.hidden_size:
        values["head_dim"] = heads.width
    values |= {
        "dtype": str(model.dtype).removeprefix("torch."),
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "attn_layer_indices": attention,
        "attention_bias": attention_bias,
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "rope_parameters": dict(config.rope_parameters or {}),
        "mamba_n_heads": heads.total,
        "mamba_n_groups": heads.total,
        "mamba_d_head": heads.width,
        "mamba_d_state": heads.width,
        "mamba_d_conv": taps,
        "mamba_expand": heads.total * heads.width // config.hidden_size,
        "mamba_conv_bias": True,
        "mamba_proj_bias": mamba_bias,
        "transformers_version": transformers.__version__,
    }
    return weights, values


def _refuse(config: HybridConfig) -> None:
    """Raise ``ValueError`` for what neither class can say."""
    if Version(transformers.__version__).release < Version(_FIRST_VERSION).release:
        raise ValueError(
            f"transformers {transformers.__version__} norms all heads of a Mamba layer at once and computes another "
            f"model; install transformers {_FIRST_VERSION} or later"
        )
    for i, mixer in enumerate(config.layer_mixers or []):
        if mixer not in (ATTENTION, "mamba2"):
            reason = _NO_STOCK_CLASS.get(mixer, "no stock class is known to have it; keep the folder as it is")
            raise ValueError(f"layer {i} has a {mixer} mixer, which cannot be exported without loss: {reason}")
    types = config.layer_types or []
    if "sliding_attention" in types:
        raise ValueError(
            f"layer {types.index('sliding_attention')} attends within a sliding window, which the stock "
            "hybrid classes do not know; keep the folder as it is"
        )
    if config.base_model_type == "qwen3" and config.attention_layers:
        raise ValueError(
            f"layer {config.attention_layers[0]} keeps the attention of Qwen3, and the stock hybrid classes have no "
            "norms on queries and keys; keep the folder as it is, or export a student without attention"
        )
    if config.hidden_act not in ("silu", "swish"):
        raise ValueError(
            f"hidden_act is {config.hidden_act!r}; the stock hybrid classes have one activation for MLP and "
            "convolution, and that of the convolution is silu"
        )


def _heads(config: HybridConfig, expand: int | None) -> _Heads:
    """Return the heads; idle ones fill up to the multiple of ``hidden_size`` that ``mamba_expand`` can say.

    Raises:
        ValueError: The heads do not fit into ``expand`` hidden sizes, or do not fill them up.
    """
    count, width, hidden = config.num_attention_heads, config.head_dim or 0, config.hidden_size
    if expand is None:
        total = next(n for n in itertools.count(count) if n * width % hidden == 0)
    else:
        total, rest = divmod(expand * hidden, width)
        if rest or total < count:
            raise ValueError(
                f"{count} heads of {width} channels cannot be filled up to {expand} * hidden_size = {expand * hidden} "
                "by whole heads; use the target granite_hybrid"
            )
    return _Heads(own=count, kv=config.num_key_value_heads or count, width=width, total=total)


def _block(own: Mapping[str, Tensor], heads: _Heads, *, bias: bool) -> dict[str, Tensor]:
    """Return a mixer's weights as those of the stock Mamba block, whose rows are in the same order."""
    h, kv, p = heads.own, heads.kv, heads.width
    projected = [(h, p), (kv, p), (kv, p), (h, p), (h, 1)]  # z, x, B, C, dt
    convolved = projected[1:4]
    out = own["out_proj.weight"]
    block = {
        "in_proj.weight": _rows(own["in_proj.weight"], projected, heads.total),
        "conv1d.weight": _rows(own["conv1d.weight"], convolved, heads.total),
        "conv1d.bias": _rows(own["conv1d.bias"], convolved, heads.total),
        "norm.weight": _rows(own["norm.weight"], [(h, p)], heads.total),
        "out_proj.weight": _rows(out.t(), [(h, p)], heads.total).t().contiguous(),
    }
    block |= {name: _rows(own[name], [(h, 1)], heads.total) for name in ("dt_bias", "A_log", "D")}
    if bias:
        rows = block["in_proj.weight"][:, 0]
        given = own.get("in_proj.bias")
        block["in_proj.bias"] = torch.zeros_like(rows) if given is None else _rows(given, projected, heads.total)
        block["out_proj.bias"] = own.get("out_proj.bias", torch.zeros_like(out[:, 0]))
    return block


def _rows(rows: Tensor, parts: Sequence[tuple[int, int]], total: int) -> Tensor:
    """Repeat whole heads, and append idle ones, until each part has ``total`` heads.

    Args:
        rows: (r, ...).
        parts: Heads and rows a head of each part, in order; their products add up to r.
        total: At least the most heads of a part.
    """
    most = max(count for count, _ in parts)
    made = []
    for part, (count, width) in zip(rows.split([count * width for count, width in parts]), parts, strict=True):
        heads = part.unflatten(0, (count, width)).repeat_interleave(most // count, dim=0)
        made += [heads.flatten(0, 1), heads.new_zeros((total - most) * width, *part.shape[1:])]
    return torch.cat(made)


def _idle_layer(weights: Mapping[str, Tensor], index: int, heads: _Heads) -> dict[str, Tensor]:
    """Return an attention layer of zeros, with one key/value head, shaped after layer 0."""
    first, prefix = "model.layers.0.", f"model.layers.{index}."
    hidden, inner = weights["model.norm.weight"].shape[0], heads.own * heads.width
    shapes = {"q": (inner, hidden), "k": (heads.width, hidden), "v": (heads.width, hidden), "o": (hidden, inner)}
    like = weights["model.norm.weight"]
    layer = {f"{prefix}self_attn.{name}_proj.weight": like.new_zeros(shape) for name, shape in shapes.items()}
    for name, weight in weights.items():
        if name.startswith(first) and ".mamba." not in name:
            layer[prefix + name.removeprefix(first)] = torch.zeros_like(weight)
    return layer


def _renamed(weights: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    made = {}
    for name, weight in weights.items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        made[name] = weight
    return made
