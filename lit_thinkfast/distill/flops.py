"""Arithmetic of one token, forward and in a training step, from configurations alone.

A multiply-add is two operations. Counted are products with weights, attention, scans and convolutions; left out are
norms, activations, softmax, rotary angles and the optimiser, which cost memory traffic rather than arithmetic. Within
a fraction of a per cent of 2 P forward and 6 P in training for a model of P weights, plus what depends on length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from lit_thinkfast.mixers import ATTENTION, DiscreteMamba2Mixer, Mamba2Mixer, Mixer, mixer_class
from lit_thinkfast.mixers.conv import CausalConv1d

if TYPE_CHECKING:
    from lit_thinkfast.models import HybridConfig


def forward_flops_per_token(config: HybridConfig, *, seq_len: float, head: bool = True) -> float:
    """Return the operations of one forward pass, a token.

    Args:
        config: Of a student or, with all layers attention, of a teacher. Nothing of the model's size is allocated.
        seq_len: Tokens a document, or a row if documents are not packed: a query sees half of them on average. The
            length that makes mean context, which need not be whole.
        head: Count the product with the output embedding.
    """
    total = sum(_layer(config, index, layer, seq_len) for index, layer in _layers(config))
    return total + (2.0 * config.hidden_size * config.vocab_size if head else 0.0)


def training_flops_per_token(
    student: HybridConfig,
    *,
    seq_len: float,
    teacher: HybridConfig | None = None,
    gradient_checkpointing: bool = False,
    trainable: str = ".*",
    head: bool = True,
) -> float:
    """Return the operations of a training step, a token: ``2 P_teacher + 6 P_student (+ 2 P_student)`` and lengths.

    Args:
        student: Forward once, backward twice as much.
        seq_len: As in :func:`forward_flops_per_token`.
        teacher: Forward once, if there is one.
        gradient_checkpointing: Layers run forward once more; the head does not, whose gradient is made on the way.
        trainable: Pattern of the parameters that are trained: for the others no gradient of weights is formed, but it
            flows through them.
        head: Products with output embeddings are formed, as losses of logits need.
    """
    layers = forward_flops_per_token(student, seq_len=seq_len, head=False)
    forward = forward_flops_per_token(student, seq_len=seq_len, head=head)
    frozen = _frozen_weights(student, trainable, head=head)
    total = 3 * forward - 2.0 * frozen + (layers if gradient_checkpointing else 0.0)
    return total + (0.0 if teacher is None else forward_flops_per_token(teacher, seq_len=seq_len, head=head))


def _layers(config: HybridConfig) -> Iterator[tuple[int, nn.Module]]:
    """Each layer of the model, without values; layers of one kind are one object."""
    from lit_thinkfast.models.modeling import HybridDecoderLayer

    made: dict[tuple[str, str], nn.Module] = {}
    kinds = zip(config.layer_mixers or [], config.layer_types or [], strict=True)
    for index, kind in enumerate(kinds):
        if kind not in made:
            with torch.device("meta"):
                made[kind] = HybridDecoderLayer(config, index)
        yield index, made[kind]


def _layer(config: HybridConfig, index: int, layer: nn.Module, seq_len: float) -> float:
    total = 0.0
    for module in layer.modules():
        if isinstance(module, (nn.Linear, CausalConv1d)):
            total += 2.0 * module.weight.numel()
        elif isinstance(module, Mixer):
            total += _scan(config, (config.layer_mixers or [])[index], module)
    if (config.layer_mixers or [])[index] == ATTENTION:
        sliding = (config.layer_types or [])[index] == "sliding_attention"
        context = mean_context(seq_len, config.sliding_window if sliding else None)
        total += 4.0 * config.num_attention_heads * (config.head_dim or 0) * context
    return total


def mean_context(seq_len: float, window: int | None = None) -> float:
    """Return how many tokens a query of a document of ``seq_len`` sees on average, with a sliding window or without."""
    if window is None or window >= seq_len:
        return seq_len / 2
    return window * (1 - window / (2 * seq_len))


def _scan(config: HybridConfig, name: str, mixer: Mixer) -> float:
    """Scan of one token: in chunks of l, ``2 l (n + p) + 4 n p`` a head (arXiv:2405.21060, sec. 6).

    Another mixer has its recurrence counted: decay, input and output, a multiply-add for each entry of the state.
    """
    state = mixer_class(name).state_shapes(config, config.options_of(name)).state
    if isinstance(mixer, (Mamba2Mixer, DiscreteMamba2Mixer)):
        heads, width, size = state
        return heads * (2.0 * mixer.chunk_size * (size + width) + 4.0 * size * width)
    entries = 1.0
    for length in state:
        entries *= length
    return 6.0 * entries


def _frozen_weights(config: HybridConfig, trainable: str, *, head: bool) -> float:
    """Number of weights in frozen matrices and convolutions."""
    frozen = 0.0
    for index, layer in _layers(config):
        for name, module in layer.named_modules():
            known = isinstance(module, (nn.Linear, CausalConv1d))
            if known and not re.search(trainable, f"model.layers.{index}.{name}.weight"):
                frozen += module.weight.numel()  # type: ignore[operator, union-attr]
    name = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    if head and not re.search(trainable, name):
        frozen += config.hidden_size * config.vocab_size
    return frozen
