"""Running a decoder over texts of different lengths, and reading the start that they share only once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lit_thinkfast.verification.steps import StepText, shared_prefix

if TYPE_CHECKING:
    from torch import Tensor


def hidden_states(model: Any, texts: Sequence[StepText], *, share: bool = False) -> Tensor:
    """Return the last hidden states of texts, padded on the right: ``(texts, longest, d)``.

    Args:
        model: A decoder of transformers, with or without a head.
        texts: At least one.
        share: Read the first tokens that all have in common once, where that is worth it, and let each go on from their
            keys and values. Only for models of which :func:`shares_prefixes` is true.
    """
    import torch

    prefix = shared_prefix(texts) if share else 0
    width = max(len(text.ids) for text in texts)
    # Padding on the right, where a causal model does not look back from.
    rows = [text.ids[prefix:] + [0] * (width - len(text.ids)) for text in texts]
    mask = [[1] * len(text.ids) + [0] * (width - len(text.ids)) for text in texts]
    asked = {
        "input_ids": torch.tensor(rows, device=model.device),
        "attention_mask": torch.tensor(mask, device=model.device),
    }
    if not prefix:
        hidden: Tensor = model.base_model(**asked, use_cache=False).last_hidden_state
        return hidden
    first, cache = _read_once(model, texts[0].ids[:prefix], len(texts))
    after = model.base_model(**asked, past_key_values=cache, use_cache=True).last_hidden_state
    return torch.cat([first.expand(len(texts), -1, -1), after], dim=1)


def shares_prefixes(model: Any) -> bool:
    """Return whether a model can go on from keys and values: one of transformers without a state besides them.

    It is tried on a short text, so that a model of an unforeseen kind is slow, but not wrong.
    """
    import torch

    if not type(model).__module__.startswith("transformers.") or model._is_stateful:
        return False
    ids = [0, 1, 0, 0, 1, 1, 0, 1]
    with torch.inference_mode():
        whole = hidden_states(model, [StepText(ids, 0, [])]).float()
        _, cache = _read_once(model, ids[:5], 1)
        asked = torch.tensor([ids[5:]], device=model.device)
        mask = torch.ones(1, len(ids), dtype=torch.long, device=model.device)
        rest = model.base_model(input_ids=asked, attention_mask=mask, past_key_values=cache, use_cache=True)
    tolerance = torch.finfo(model.dtype).eps ** 0.5
    return bool((rest.last_hidden_state.float() - whole[:, 5:]).norm() <= tolerance * whole[:, 5:].norm())


def _read_once(model: Any, ids: list[int], copies: int) -> tuple[Tensor, Any]:
    """Return the last hidden states of some tokens, ``(1, tokens, d)``, and a cache that holds them several times."""
    import torch
    from transformers import DynamicCache

    # Of no config: all layers then keep all keys and values, also those that attend to a window alone.
    once, cache = DynamicCache(), DynamicCache()
    asked = torch.tensor([ids], device=model.device)
    hidden = model.base_model(input_ids=asked, past_key_values=once, use_cache=True).last_hidden_state
    for number, layer in enumerate(once.layers):
        cache.update(*(each.expand(copies, -1, -1, -1) for each in (layer.keys, layer.values)), number)
    return hidden, cache
