"""Which layers keep attention: a list, a published list, every n-th, or a share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lit_thinkfast.mixers import ATTENTION, mixer_class

PUBLISHED_ATTENTION_LAYERS = {16: (3, 7, 11, 15), 28: (3, 8, 13, 18, 23, 27)}
"""Layers that keep attention in the hybrids of arXiv:2502.20339, by the depth of their teacher, Llama-3.2-1B or 3B.

Those of the 1B model are inferred from the size of its configuration file; those of the 3B model are in the code of M1.
"""


def plan_layers(
    num_layers: int,
    *,
    mixer: str,
    layer_mixers: Sequence[str] | None = None,
    attention_layers: Sequence[int] | Literal["published"] | None = None,
    attention_every: int | None = None,
    attention_ratio: float | None = None,
) -> list[str]:
    """Return one mixer name a layer.

    Args:
        num_layers: Of the teacher.
        mixer: Of the layers that do not keep attention.
        layer_mixers: The answer itself, checked.
        attention_layers: Layers that keep attention, from 0, or those of the published hybrid of this depth.
        attention_every: Every so many layers the last keeps attention.
        attention_ratio: Share of layers that keep attention, spread evenly, the last of each group.

    Raises:
        ValueError: Unknown mixer, a layer out of range, no published list, or more than one of the four given.
    """
    if mixer != ATTENTION:
        mixer_class(mixer)
    given = (layer_mixers, attention_layers, attention_every, attention_ratio)
    if sum(value is not None for value in given) > 1:
        raise ValueError(
            "layer_mixers, attention_layers, attention_every and attention_ratio exclude each other; give one of them"
        )
    if layer_mixers is not None:
        if len(layer_mixers) != num_layers:
            raise ValueError(f"layer_mixers names {len(layer_mixers)} layers, but the teacher has {num_layers}")
        for name in set(layer_mixers) - {ATTENTION}:
            mixer_class(name)
        return list(layer_mixers)
    kept: Sequence[int] = ()
    if attention_ratio is not None:
        if not 0 <= attention_ratio <= 1:
            raise ValueError(f"attention_ratio {attention_ratio} is not between 0 and 1")
        count = round(attention_ratio * num_layers)
        kept = [(i + 1) * num_layers // count - 1 for i in range(count)]
    elif attention_every is not None:
        if not 1 <= attention_every <= num_layers:
            raise ValueError(f"attention_every {attention_every} is not between 1 and the {num_layers} layers")
        kept = range(attention_every - 1, num_layers, attention_every)
    elif isinstance(attention_layers, str):
        kept = _published(attention_layers, num_layers)
    elif attention_layers is not None:
        kept = attention_layers
    if wrong := [i for i in kept if not 0 <= i < num_layers]:
        raise ValueError(f"attention layer {wrong[0]} does not exist; the teacher has layers 0 to {num_layers - 1}")
    return [ATTENTION if i in set(kept) else mixer for i in range(num_layers)]


def _published(name: str, num_layers: int) -> Sequence[int]:
    if name != "published":
        raise ValueError(f"attention_layers {name!r} is neither a list of layers nor 'published'")
    if num_layers not in PUBLISHED_ATTENTION_LAYERS:
        known = " and ".join(map(str, PUBLISHED_ATTENTION_LAYERS))
        raise ValueError(f"no hybrid of {num_layers} layers has been published, only of {known}; give the layers")
    return PUBLISHED_ATTENTION_LAYERS[num_layers]
