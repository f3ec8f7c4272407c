"""What the rows of a batch mean: which tokens are padding, which document they are of, and where they stand in it."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Cache

from lit_thinkfast.mixers.documents import document_starts
from lit_thinkfast.models.cache import HybridCache


def cached_tokens(cache: Cache) -> int:
    """Tokens in a cache; also for a stock dynamic cache whose layers are all recurrent and cannot say."""
    layer = cache.layers[0] if cache.layers else None
    if layer is not None and hasattr(layer, "num_tokens"):
        return int(layer.num_tokens)
    if layer is not None and all(cache.is_linear):
        return 0
    return int(cache.get_seq_length())


def valid_tokens(attention_mask: Tensor | None, new_tokens: int, past: int, cache: Cache | None) -> Tensor | None:
    """Return (b, past + t) bool, false at padding, or ``None`` if there is none; a ``HybridCache`` remembers it.

    Raises:
        ValueError: The mask is of neither length.
    """
    if attention_mask is not None:
        if not isinstance(attention_mask, Tensor):
            raise ValueError(
                f"attention_mask is a {type(attention_mask).__name__}; it must be a tensor (batch, tokens)"
            )
        length = attention_mask.shape[-1]
        if attention_mask.ndim != 2 or length not in (new_tokens, past + new_tokens):
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}; it must be (batch, {past + new_tokens})"
            )
        if isinstance(cache, HybridCache):
            cache.remember_padding(attention_mask, start=past + new_tokens - length)
        elif length < past + new_tokens:
            raise ValueError(
                f"attention_mask covers {length} tokens, but {past + new_tokens} are in play; give them all"
            )
    if isinstance(cache, HybridCache):
        return None if cache.valid is None else cache.valid[:, : past + new_tokens]
    if attention_mask is None:
        return None
    valid = attention_mask.bool()
    return None if valid.all() else valid


def padding_of_new_tokens(valid: Tensor | None, new_tokens: int) -> Tensor | None:
    """Return the (b, t) mask for mixers, or ``None`` if the new tokens are all real.

    Raises:
        ValueError: Padding between real tokens. A cache reaches back over padding at the end of an earlier call, but
            within a call a convolution would see the padding as its last inputs.
    """
    if valid is None or valid[:, -new_tokens:].all():
        return None
    new = valid[:, -new_tokens:]
    real_before = valid.cumsum(1)[:, -new_tokens:] > 1
    after_padding = torch.zeros_like(new)
    after_padding[:, 1:] = ~new[:, :-1]
    if (new & after_padding & real_before).any():
        raise ValueError("attention_mask has padding between real tokens; pad on the left of the first or at the end")
    return new


def documents_of(position_ids: Tensor, hidden_states: Tensor) -> Tensor | None:
    """Return (b, t) documents that begin wherever positions do not go on, or ``None`` if they always do."""
    position_ids = position_ids.expand(hidden_states.shape[0], -1)
    starts = torch.zeros_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids.diff(dim=1) != 1
    return starts.cumsum(1) if starts.any() else None


def positions_of(hidden_states: Tensor, past: int, valid: Tensor | None, seq_idx: Tensor | None) -> Tensor:
    """Position of each new token within its document, not counting padding before it."""
    time, device = hidden_states.shape[1], hidden_states.device
    if seq_idx is not None:
        index = torch.arange(time, device=device).expand_as(seq_idx)
        starts: Tensor = torch.where(document_starts(seq_idx), index, 0).cummax(1).values
        return index - starts
    if valid is not None:
        return (valid.cumsum(1)[:, -time:] - 1).clamp_min(0)
    return torch.arange(past, past + time, device=device)[None]
