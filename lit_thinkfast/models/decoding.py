"""One decode step of a whole batch: a token a row in, logits a row out, caches brought forward in place.

The same arithmetic as ``HybridForCausalLM.forward`` for one new token, without what generality costs there: no masks to
look through, no outputs to wrap, fixed shapes, and no look at what a tensor holds, so that the step can be compiled or
captured. Rows may be at different lengths.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from lit_thinkfast.mixers.base import States
from lit_thinkfast.mixers.skinny import skinny_linear
from lit_thinkfast.models.slots import AttentionSlots, SlotCache, reach

if TYPE_CHECKING:
    from lit_thinkfast.models.modeling import HybridForCausalLM


def decode_step(model: HybridForCausalLM, tokens: Tensor, cache: SlotCache, *, longest: int) -> Tensor:
    """Take one token a row in.

    Args:
        model: In evaluation mode, gradients off.
        tokens: (b,) int64, for the rows in slots 0 .. b - 1.
        cache: Brought forward by one token for these rows.
        longest: A bound, at most ``cache.capacity``, on the tokens that any of the rows has with the new one. What
            attention costs grows with it.

    Returns:
        (b, vocabulary), contiguous, in the type of the model.
    """
    decoder: Any = model.model
    config = model.config
    lengths = cache.lengths[: len(tokens)]
    hidden = decoder.embed_tokens(tokens)
    angles = None
    seen = {}
    if config.attention_layers:
        cos, sin = decoder.rotary_emb(hidden, position_ids=lengths[:, None])
        angles = cos[:, 0], sin[:, 0]
        windows = {"full_attention": None, "sliding_attention": config.sliding_window}
        kinds = sorted(set(config.layer_types or []) - {"linear_attention"})
        seen = {kind: reach(lengths, longest, dtype=hidden.dtype, window=windows[kind]) for kind in kinds}
    for layer, kind, memory in zip(decoder.layers, config.layer_types or [], cache.layers, strict=True):
        mixed = layer.input_layernorm(hidden)
        if isinstance(memory, AttentionSlots):
            mixed = layer.self_attn.step(mixed, memory=memory, position_embeddings=angles, at=seen[kind])
        else:
            mixed = layer.mixer.step(mixed, States(memory.conv[: len(tokens)], memory.state[: len(tokens)]))
        hidden = hidden + mixed
        hidden = hidden + _mlp_step(layer.mlp, layer.post_attention_layernorm(hidden))
    logits = skinny_linear(model.lm_head, decoder.norm(hidden)).contiguous()
    lengths.add_(1)
    return logits


def _mlp_step(mlp: Any, x: Tensor) -> Tensor:
    gated = mlp.act_fn(skinny_linear(mlp.gate_proj, x)) * skinny_linear(mlp.up_proj, x)
    return skinny_linear(mlp.down_proj, gated)
