"""Weights of MambaInLlama and M1 under their names and under ours.

There are two layouts of each part. Mixers are ``fused`` (``mamba.in_proj``) or ``split`` (``in_proj_z``, ``in_proj_x``,
``B_proj``, ``C_proj`` and ``dt_proj_down``, its rows in this order); attention is ``mha`` (``in_proj`` with the rows of
q, k and v, and ``out_proj``) or ``self_attn``. By the sizes of their index files, M1-3B is fused with mha, and the
``*_MATH`` hybrids of 3B are split with self_attn.

A ``mamba1`` student without the quirks of the published code is rearranged on the way out so that this code computes
the same: the step's bias, which it adds twice, is halved, and channels are put into the order of its repetitions.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from lit_thinkfast.mixers import ATTENTION, Mamba1Mixer
from lit_thinkfast.models.configuration import HybridConfig
from lit_thinkfast.models.modeling import HybridForCausalLM

_SPLIT = ("in_proj_z", "in_proj_x", "B_proj", "C_proj", "dt_proj_down")


def layout_of(weights: dict[str, Tensor]) -> dict[str, str]:
    """Return the layout of ``"mixers"`` and ``"attention"``."""
    return {
        "mixers": "split" if any(".mamba.in_proj_z." in name for name in weights) else "fused",
        "attention": "mha" if any(".mha." in name for name in weights) else "self_attn",
    }


def our_weights(weights: dict[str, Tensor], config: HybridConfig) -> dict[str, Tensor]:
    """Return a state dict of theirs, in any layout, as one of ours.

    Raises:
        ValueError: A piece of an input projection is missing, or one has other rows than it should.
    """
    renamed: dict[str, Tensor] = {}
    for name, weight in weights.items():
        renamed |= _ours(name, weight, config)
    return _joined(renamed)


def their_weights(model: HybridForCausalLM, layout: dict[str, str], *, tied: bool) -> dict[str, Tensor]:
    """Return the weights of a student under their names, in a layout, without the head if it is tied."""
    weights: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        if not (tied and name == "lm_head.weight"):
            weights[name.replace(".mixer.", ".mamba.")] = weight
    for i, mixer in enumerate(model.config.layer_mixers or []):
        prefix = f"model.layers.{i}."
        if mixer == "mamba1":
            _to_mamba1(weights, f"{prefix}mamba.", model.model.layers[i].mixer, split=layout["mixers"] == "split")
        elif mixer == ATTENTION and layout["attention"] == "mha":
            rows = [weights.pop(f"{prefix}self_attn.{part}_proj.weight") for part in "qkv"]
            weights[f"{prefix}mha.in_proj.weight"] = torch.cat(rows)
            weights[f"{prefix}mha.out_proj.weight"] = weights.pop(f"{prefix}self_attn.o_proj.weight")
    return weights


def _ours(name: str, weight: Tensor, config: HybridConfig) -> dict[str, Tensor]:
    """Return what one weight is called here, in pieces if it has several; nothing for what is not a parameter."""
    if name.endswith(".inv_freq"):
        return {}
    if name == "lm_head.weight" and config.tie_word_embeddings:
        return {}  # the published code puts the embedding in its place
    if found := re.fullmatch(r"(.*)\.mha\.in_proj\.(\w+)", name):
        width = config.head_dim or 0
        sizes = [config.num_attention_heads * width, *2 * [(config.num_key_value_heads or 0) * width]]
        if weight.shape[0] != sum(sizes):
            raise ValueError(f"{name} has {weight.shape[0]} rows, q, k and v of config.json have {sum(sizes)}")
        pieces = zip("qkv", weight.split(sizes), strict=True)
        return {f"{found[1]}.self_attn.{part}_proj.{found[2]}": piece.clone() for part, piece in pieces}
    name = name.replace(".mha.out_proj.", ".self_attn.o_proj.").replace(".mamba.dt_proj.bias", ".mamba.dt_bias")
    return {name.replace(".mamba.", ".mixer."): weight}


def _joined(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with the pieces of split input projections joined.

    Raises:
        ValueError: A piece is missing.
    """
    made = dict(weights)
    for name in weights:
        prefix, dot, _ = name.rpartition("in_proj_z.weight")
        if not dot:
            continue
        try:
            made[f"{prefix}in_proj.weight"] = torch.cat([made.pop(f"{prefix}{piece}.weight") for piece in _SPLIT])
        except KeyError as error:
            raise ValueError(f"weights missing: {error.args[0].replace('.mixer.', '.mamba.')}") from None
    return made


def _to_mamba1(weights: dict[str, Tensor], prefix: str, mixer: Any, *, split: bool) -> None:
    """Bring one layer to the published Mamba-1, in place."""
    own: Mamba1Mixer = mixer

    def change(name: str, by: Any) -> None:
        weights[f"{prefix}{name}"] = by(weights[f"{prefix}{name}"])

    bias = weights.pop(f"{prefix}dt_bias")
    weights[f"{prefix}dt_proj.bias"] = bias if own.dt_bias_mult == 2 else bias / 2
    sizes = [own.inner, own.kv_inner, own.kv_inner, own.inner, own.dt_rank]
    order = _reference_order(own)
    if order is not None:
        z, x, B, C, dt = weights[f"{prefix}in_proj.weight"].split(sizes)
        weights[f"{prefix}in_proj.weight"] = torch.cat([z[order], x, B, C[order], dt])
        for name in ("dt_proj.weight", "dt_proj.bias", "A_log", "D"):
            change(name, lambda value: value[order])
        if own.repeat_kv_before_conv:
            change("conv1d.weight", lambda value: value[order])
            change("conv1d.bias", lambda value: value[order])
        change("out_proj.weight", lambda value: value[:, order].contiguous())
    if split:
        pieces = weights.pop(f"{prefix}in_proj.weight").split(sizes)
        weights |= {f"{prefix}{name}.weight": piece.clone() for name, piece in zip(_SPLIT, pieces, strict=True)}


def _reference_order(mixer: Mamba1Mixer) -> Tensor | None:
    """Return, for each channel of the published order, (inner,), which of the mixer's channels it is; ``None``: itself.

    Both orders pair a key/value slice with equally many channels, ``"head"`` with a slice of each head of its group,
    ``"reference"`` with so many slices in a row, so that one is a permutation of the other.
    """
    repeats = mixer.num_heads // mixer.num_kv_heads
    if mixer.gqa_expand == "reference" or repeats == 1:
        return None
    slices = mixer.head_dim // mixer.d_state  # of a head
    at = torch.arange(mixer.num_heads * slices, device=mixer.D.device)
    kv_slice, copy = at // repeats, at % repeats
    own = (kv_slice // slices * repeats + copy) * slices + kv_slice % slices
    return (own[:, None] * mixer.d_state + torch.arange(mixer.d_state, device=own.device)).flatten()
