"""How much memory generating takes, and how many rows fit a budget. From configurations alone: nothing is allocated.

Once there are the weights and one prompt being encoded: its cache, and what the layers hold for one chunk of it. Every
row adds its own cache at full length, and what a step holds for it. Sizes of weights and caches are exact; what layers
hold while they work is an upper estimate, tested against what they were seen to hold. An allocator keeps more than is
in use; of six models whose processes were watched (docs/results.md) it added 3.6 % at most, and 4 % are set aside.

Left out: Python and its libraries.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from lit_thinkfast.mixers import ATTENTION, Mixer, mixer_class
from lit_thinkfast.mixers.ssm import StateSpaceMixer

if TYPE_CHECKING:
    from lit_thinkfast.models.configuration import HybridConfig
    from lit_thinkfast.models.modeling import HybridDecoderLayer, HybridForCausalLM

_WIDE = 4  # bytes of what is computed in float32 whatever the type of the model
# How often outputs of a layer's products are alive, as they are and rotated, activated, gated or repeated to all heads;
# 5.7 were seen for mixers, whose scans of a prompt are in float32. Beside them are hidden states: those that came in,
# what was added to them, their sum, and normed.
_MLP, _ATTENTION, _SCAN, _HIDDEN = 1.5, 2.0, 6.0, 4
_SLICE = 32  # of a head, of which a CPU multiplies the scores
_SHORTEST_SCAN = 32  # tokens: a scan keeps a state every so often
_LEAST_SCAN = 4 * 2**20  # of scans that work on a few states side by side
_STATES = 2  # of a layer: what a step makes of it at once, where it does not go through rows block by block
_PICKING = 4  # copies in float32 of all rows' logits on an accelerator
_ALLOCATOR = 25  # one byte of so many
_BLOCKS = 8 * 2**20  # on a CPU tokens are drawn, and states brought forward, for as many rows as caches hold


@dataclass(frozen=True, slots=True)
class ModelBytes:
    """Bytes that a model takes while it generates.

    Attributes:
        weights: All weights, tied ones once.
        read_weights: Those that every step reads: all but an input embedding with a head of its own beside it.
        token: Keys and values of one token of a row, all attention layers together; kappa of the roofline.
        conv: Inputs of convolutions that a row keeps.
        state: Recurrent states of a row.
        step: What a step holds, whatever the batch.
        step_row: What it holds for a row, without what grows with its length.
        step_token: What it holds for each token that a row can have.
        chunk: What encoding holds, however few tokens at a time.
        chunk_token: What it holds for each token of a chunk.
        mask_entry: What it holds for each pair of a token in a later chunk and one up to there.
    """

    weights: int
    read_weights: int
    token: int
    conv: int
    state: int
    step: int
    step_row: int
    step_token: int
    chunk: int
    chunk_token: int
    mask_entry: int

    def row(self, length: int) -> int:
        """Cache of one row that can hold ``length`` tokens."""
        return length * self.token + self.conv + self.state

    def row_at_work(self, length: int) -> int:
        """What a decode step holds for one row besides its cache."""
        return self.step_row + length * self.step_token

    def prefill(self, prompt: int, chunk: int) -> int:
        """What encoding a prompt holds besides its cache."""
        pairs = chunk * prompt if chunk < prompt else 0  # a first chunk is causal, which takes no mask
        return self.chunk + min(prompt, chunk) * self.chunk_token + pairs * self.mask_entry

    def tensors(self, rows: int, *, length: int, prompt: int, prefill_chunk: int) -> int:
        """All tensors, when they are most: while a prompt is encoded beside full rows, or all rows step."""
        work = max(self.prefill(prompt, prefill_chunk), self.step + rows * self.row_at_work(length))
        return self.weights + self.row(prompt) + rows * self.row(length) + work

    def total(self, rows: int, *, length: int, prompt: int, prefill_chunk: int) -> int:
        """All tensors at their most, and what an allocator adds."""
        size = self.tensors(rows, length=length, prompt=prompt, prefill_chunk=prefill_chunk)
        return size + size // _ALLOCATOR

    def rows(self, budget: float, *, length: int, prompt: int, prefill_chunk: int) -> int:
        """Return the most rows whose :meth:`total` is within a budget.

        Raises:
            ValueError: Not even one row fits.
        """
        least = self.total(1, length=length, prompt=prompt, prefill_chunk=prefill_chunk)
        if least > budget:
            work = least - self.weights - self.row(prompt) - self.row(length)
            raise ValueError(
                f"one row of {length} tokens takes {_gib(least)} GiB (weights {_gib(self.weights)}, its cache "
                f"{_gib(self.row(length))}, that of the prompt {_gib(self.row(prompt))}, work and "
                f"allocator {_gib(work)}), which exceeds the memory budget of {_gib(budget)} GiB; raise the budget or "
                "shorten prompt and output"
            )
        shares, rest = divmod(int(budget), _ALLOCATOR + 1)
        for_tensors = shares * _ALLOCATOR + min(rest, _ALLOCATOR - 1)  # the most whose total is within the budget
        left = for_tensors - self.weights - self.row(prompt)
        beside_prefill = (left - self.prefill(prompt, prefill_chunk)) // self.row(length)
        return int(min(beside_prefill, (left - self.step) // (self.row(length) + self.row_at_work(length))))


def model_bytes(
    config: HybridConfig,
    *,
    dtype: torch.dtype = torch.float32,
    state_dtype: torch.dtype | None = None,
    accelerator: bool = False,
) -> ModelBytes:
    """Work out what a model takes.

    Args:
        config: Its configuration; mixers of other packages are asked by their ``state_shapes``.
        dtype: Of weights, keys, values and convolution inputs.
        state_dtype: Of recurrent states; by default float32, float64 beside float64, as in our caches.
        accelerator: Not on a CPU: tokens are drawn for all rows at once.
    """
    item = dtype.itemsize
    wide = torch.promote_types(dtype, torch.float32)
    states = (state_dtype or wide).itemsize
    vocabulary, width = config.vocab_size, config.hidden_size
    embedding = vocabulary * width * item
    weights = embedding * (1 if config.tie_word_embeddings else 2) + width * item
    hidden = _HIDDEN * width * item
    token = conv = state = step_row = step_token = chunk = chunk_token = 0
    for name, layer, count in _layers(config):
        weights += count * _layer_weights(layer, item, wide.itemsize)
        mlp = int(_MLP * item * _outputs(layer.mlp)) + hidden
        if name == ATTENTION:
            heads, kv_heads, head = config.num_attention_heads, config.num_key_value_heads or 1, config.head_dim or 1
            token += count * 2 * kv_heads * head * item
            # scores, where a head is wide of slices that are added up, and their softmax; the bias, and what it is of
            step_token = heads * item * max(2, 1 + math.ceil(head / _SLICE)) + 2 * item + 1
            work = int(_ATTENTION * item * _outputs(layer.self_attn)) + hidden
            step_row, chunk_token = max(step_row, mlp, work), max(chunk_token, mlp, work)
            continue
        mixer = mixer_class(name)
        (channels, past), shape = mixer.state_shapes(config, config.options_of(name))
        entries = math.prod(shape)
        conv += count * channels * past * item
        state += count * entries * states
        work = int(_SCAN * wide.itemsize * _outputs(layer.mixer)) + hidden
        at_once = accelerator or not issubclass(mixer, StateSpaceMixer)
        step_row = max(step_row, mlp, work + (_STATES * entries * wide.itemsize if at_once else 0))
        chunk_token = max(chunk_token, mlp, work + entries * wide.itemsize // _SHORTEST_SCAN)
        chunk = max(chunk, _LEAST_SCAN, _STATES * entries * wide.itemsize)
    # those of rows that end are copied to be looked at, and all rows may end together
    logits = vocabulary * (2 * item + (_PICKING * _WIDE if accelerator else 0))
    return ModelBytes(
        weights=weights,
        read_weights=weights - (0 if config.tie_word_embeddings else embedding),
        token=token,
        conv=conv,
        state=state,
        step=0 if accelerator else _BLOCKS,
        step_row=max(step_row, logits + width * item),
        step_token=step_token,
        chunk=chunk,
        chunk_token=chunk_token,
        mask_entry=1 + item if token else 0,
    )


def plan_rows(
    model: HybridForCausalLM, *, length: int, prompt: int, budget_bytes: float, prefill_chunk: int = 512
) -> int:
    """Return the most rows of a model that can decode together within a budget of memory.

    Args:
        model: Of any mixers. Its weights are part of what the budget is for.
        length: Tokens that a row can hold, prompt included.
        prompt: Tokens of the longest prompt that is encoded.
        budget_bytes: For weights, caches and work; see the module for what is left out.
        prefill_chunk: Tokens of a prompt encoded at a time.

    Raises:
        ValueError: Not even one row fits.
    """
    accelerator = model.device.type not in ("cpu", "meta")  # a model without values is planned for a CPU
    found = model_bytes(model.config, dtype=model.dtype, accelerator=accelerator)
    return found.rows(budget_bytes, length=length, prompt=prompt, prefill_chunk=prefill_chunk)


def split(batch: int, rows: int) -> list[int]:
    """Return the sizes of the fewest equal parts of a batch with at most ``rows`` each; the paper ran 512 as 2 x 256.

    >>> split(512, 300), split(7, 3), split(4, 9)
    ([256, 256], [3, 2, 2], [4])
    """
    parts = math.ceil(batch / rows)
    return [batch // parts + (part < batch % parts) for part in range(parts)]


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g}"


def _layers(config: HybridConfig) -> Iterator[tuple[str, HybridDecoderLayer, int]]:
    """Yield each kind of layer: its mixer, one of them without values, and how many there are."""
    from lit_thinkfast.models.modeling import HybridDecoderLayer

    mixers = config.layer_mixers or []
    for name, count in Counter(mixers).items():
        with torch.device("meta"):
            yield name, HybridDecoderLayer(config, mixers.index(name)), count


def _outputs(part: nn.Module) -> int:
    """Numbers that the products of a part of a layer make of one token."""
    return sum(module.out_features for module in part.modules() if isinstance(module, nn.Linear))


def _layer_weights(layer: nn.Module, item: int, wide: int) -> int:
    """Bytes of a layer; parameters that a mixer keeps in full precision are wide."""
    total = sum(p.numel() for p in layer.parameters()) * item
    for mixer in layer.modules():
        if isinstance(mixer, Mixer):
            total += sum(getattr(mixer, name).numel() for name in mixer.full_precision) * (wide - item)
    return total
