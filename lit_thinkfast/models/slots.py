"""Memory of the rows that decode together: a fixed number of slots, each row at a length of its own.

A slot is taken by copying the cache of an encoded prompt into it (:meth:`SlotCache.admit`), brought forward one token a
step, and left by letting another row in. Nothing is allocated, padded or concatenated on the way.

How keys and values lie in memory depends on who reads them, hence three classes of one interface. On a CPU time comes
last: scores and weighted sums are then products whose long side is contiguous, which read a cache about as fast as it
can be copied (1.3 to 1.5 times the speed of ``scaled_dot_product_attention`` for one query, docs/results.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lit_thinkfast.mixers.base import ATTENTION, States, mixer_class
from lit_thinkfast.mixers.kernels import find_cached_attention
from lit_thinkfast.models.cache import HybridCache, KeyValueLayer

if TYPE_CHECKING:
    from lit_thinkfast.models.configuration import HybridConfig

_WIDEST_PIECE = 32  # of a head: for two to eight queries BLAS is half as fast on longer inner products


@dataclass(frozen=True)
class Reach:
    """What the rows of a step see of their slots, the same for all layers of a kind.

    Attributes:
        lengths: (b,) int64, tokens stored before this step: where the new one goes.
        longest: No row has more tokens than this, the new one included.
        bias: (b, 1, 1, longest), zero where a row sees a token, else minus infinity.
        window: Tokens that a row sees, the new one included; all if ``None``.
    """

    lengths: Tensor
    longest: int
    bias: Tensor
    window: int | None = None


def reach(lengths: Tensor, longest: int, *, dtype: torch.dtype, window: int | None = None) -> Reach:
    """Work out what the rows see when their next token has been stored."""
    at = torch.arange(longest, device=lengths.device)
    seen = at <= lengths[:, None]
    if window is not None:
        seen &= at > lengths[:, None] - window
    bias = torch.zeros(seen.shape, dtype=dtype, device=lengths.device).masked_fill_(~seen, float("-inf"))
    return Reach(lengths, longest, bias[:, None, None], window)


class AttentionSlots(ABC):
    """Keys and values of one attention layer.

    Args:
        slots: Rows.
        kv_heads: Heads of keys and values.
        width: Of a head.
        capacity: Tokens a row.
        device: Where.
        dtype: Of keys and values.
    """

    def __init__(
        self, slots: int, kv_heads: int, width: int, capacity: int, *, device: Any = None, dtype: Any = None
    ) -> None:
        # Zeros, not garbage: what no row sees is still multiplied, by zero.
        shape = self.shape(slots, kv_heads, width, capacity)
        self.keys, self.values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))

    @staticmethod
    @abstractmethod
    def shape(slots: int, kv_heads: int, width: int, capacity: int) -> tuple[int, ...]:
        """Order of the axes of keys and values; slots come first."""

    @abstractmethod
    def admit(self, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values of a prompt, (kv_heads, t, width), in each of ``rows``."""

    @abstractmethod
    def step(self, query: Tensor, key: Tensor, value: Tensor, at: Reach, *, scale: float) -> Tensor:
        """Store one token a row and attend to all of it.

        Args:
            query: (b, heads, width), of the rows in slots 0 .. b - 1.
            key: (b, kv_heads, width).
            value: (b, kv_heads, width).
            at: Where and how far.
            scale: Factor on the scores.

        Returns:
            (b, heads * width).
        """

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy rows ``source`` over rows ``target``."""
        self.keys[target], self.values[target] = self.keys[source], self.values[source]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.keys.nbytes + self.values.nbytes


class TimeLastSlots(AttentionSlots):
    """(slots, kv_heads, width, capacity), for products of BLAS."""

    @staticmethod
    def shape(slots: int, kv_heads: int, width: int, capacity: int) -> tuple[int, ...]:
        return slots, kv_heads, width, capacity

    def admit(self, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        time = keys.shape[1]
        for stored, new in ((self.keys, keys.mT), (self.values, values.mT)):
            for row in rows.tolist():  # whole rows are copied faster than one index over all of them
                stored[row, :, :, :time] = new

    def step(self, query: Tensor, key: Tensor, value: Tensor, at: Reach, *, scale: float) -> Tensor:
        batch, heads, width = query.shape
        kv_heads = key.shape[1]
        row = torch.arange(batch, device=query.device)
        self.keys[row, :, :, at.lengths] = key
        self.values[row, :, :, at.lengths] = value

        piece = next(size for size in range(min(width, _WIDEST_PIECE), 0, -1) if width % size == 0)
        pieces, groups = width // piece, heads // kv_heads
        cut = (query * scale).reshape(batch, kv_heads, groups, pieces, piece).transpose(2, 3)
        keys = self.keys[:batch].view(batch * kv_heads * pieces, piece, -1)[..., : at.longest]
        scores = torch.bmm(cut.reshape(-1, groups, piece), keys)
        scores = scores.view(batch, kv_heads, pieces, groups, at.longest)
        scores = scores[:, :, 0] if pieces == 1 else scores.sum(2)
        weights = torch.softmax(scores.add_(at.bias), dim=-1)
        out = torch.matmul(weights, self.values[:batch, :, :, : at.longest].mT)
        return out.reshape(batch, heads * width)


class TimeFirstSlots(AttentionSlots):
    """(slots, kv_heads, capacity, width), for ``scaled_dot_product_attention`` on an accelerator."""

    @staticmethod
    def shape(slots: int, kv_heads: int, width: int, capacity: int) -> tuple[int, ...]:
        return slots, kv_heads, capacity, width

    def admit(self, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        time = keys.shape[1]
        self.keys[rows, :, :time] = keys
        self.values[rows, :, :time] = values

    def step(self, query: Tensor, key: Tensor, value: Tensor, at: Reach, *, scale: float) -> Tensor:
        batch, heads, width = query.shape
        row = torch.arange(batch, device=query.device)
        self.keys[row, :, at.lengths] = key
        self.values[row, :, at.lengths] = value
        # The queries of a group become the queries of one head, so that keys are read once and not repeated.
        out = scaled_dot_product_attention(
            query.reshape(batch, key.shape[1], -1, width),
            self.keys[:batch, :, : at.longest],
            self.values[:batch, :, : at.longest],
            attn_mask=at.bias,
            scale=scale,
        )
        return out.reshape(batch, heads * width)


class FlashSlots(AttentionSlots):
    """(slots, capacity, kv_heads, width), for flash-attn, which stores the token and reads only what a row has.

    Args:
        kernel: ``find_cached_attention``'s.
        sizes: As for the others.
        place: As for the others.
    """

    def __init__(self, kernel: Callable[..., Tensor], *sizes: int, **place: Any) -> None:
        super().__init__(*sizes, **place)
        self._kernel = kernel

    @staticmethod
    def shape(slots: int, kv_heads: int, width: int, capacity: int) -> tuple[int, ...]:
        return slots, capacity, kv_heads, width

    def admit(self, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        time = keys.shape[1]
        self.keys[rows, :time] = keys.transpose(0, 1)
        self.values[rows, :time] = values.transpose(0, 1)

    def step(self, query: Tensor, key: Tensor, value: Tensor, at: Reach, *, scale: float) -> Tensor:
        batch, heads, width = query.shape
        out = self._kernel(
            query, key, value, self.keys[:batch], self.values[:batch], lengths=at.lengths, scale=scale, window=at.window
        )
        return out.reshape(batch, heads * width)


def attention_slots(
    config: HybridConfig, slots: int, capacity: int, *, device: torch.device, dtype: torch.dtype
) -> AttentionSlots:
    """Make the kind that is read fastest on this device."""
    kv_heads, width = config.num_key_value_heads or 1, config.head_dim or 1
    if device.type == "cpu":
        return TimeLastSlots(slots, kv_heads, width, capacity, device=device, dtype=dtype)
    if config.kernel == "auto" and (kernel := find_cached_attention(device, dtype)) is not None:
        return FlashSlots(kernel, slots, kv_heads, width, capacity, device=device, dtype=dtype)
    return TimeFirstSlots(slots, kv_heads, width, capacity, device=device, dtype=dtype)


class SlotCache:
    """Memory for ``slots`` rows of at most ``capacity`` tokens each; those in use are slots 0 to b - 1.

    Args:
        config: The model's configuration.
        slots: Rows.
        capacity: Tokens a row can hold. Only attention layers take room for them.
        device: Where.
        dtype: Of keys, values and convolution inputs. Recurrent states are float32 (float64 beside float64).

    Attributes:
        lengths: (slots,) int64, tokens stored in each slot.
        layers: An :class:`AttentionSlots` or the :class:`~lit_thinkfast.mixers.base.States` of a layer.

    Raises:
        ValueError: A size below one.
    """

    def __init__(
        self,
        config: HybridConfig,
        slots: int,
        capacity: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if slots < 1 or capacity < 1:
            raise ValueError(f"{slots} slots of {capacity} tokens hold nothing; both must be at least 1")
        device = torch.device(device)
        wide = torch.promote_types(dtype, torch.float32)
        self.slots, self.capacity = slots, capacity
        self.lengths = torch.zeros(slots, dtype=torch.int64, device=device)
        self.layers: list[AttentionSlots | States] = []
        for mixer in config.layer_mixers or []:
            if mixer == ATTENTION:
                self.layers.append(attention_slots(config, slots, capacity, device=device, dtype=dtype))
            else:
                (channels, past), shape = mixer_class(mixer).state_shapes(config, config.options_of(mixer))
                conv = torch.zeros(slots, past, channels, device=device, dtype=dtype).transpose(1, 2)
                self.layers.append(States(conv, torch.zeros(slots, *shape, device=device, dtype=wide)))

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(
            layer.nbytes if isinstance(layer, AttentionSlots) else layer.conv.nbytes + layer.state.nbytes
            for layer in self.layers
        )

    def admit(self, rows: Tensor, prompt: HybridCache) -> None:
        """Let the one prompt that ``prompt`` holds into each of the slots ``rows`` (r,) int64.

        Raises:
            ValueError: It holds more than one row, or more tokens than a slot.
        """
        time = prompt.get_seq_length()
        if prompt.batch_size != 1 or prompt.valid is not None or time > self.capacity:
            raise ValueError(
                f"slots of {self.capacity} tokens take one prompt without padding at a time, but {prompt.batch_size} "
                f"of {time} tokens are given"
            )
        for mine, theirs in zip(self.layers, prompt.layers, strict=True):
            if isinstance(mine, AttentionSlots):
                assert isinstance(theirs, KeyValueLayer)
                mine.admit(rows, theirs.keys[0, :, :time], theirs.values[0, :, :time])
            else:
                mine.conv[rows] = theirs.conv_states[0]
                mine.state[rows] = theirs.recurrent_states[0]
        self.lengths[rows] = time

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy rows ``source`` (m,) over rows ``target`` (m,), none of which is a source too."""
        for layer in self.layers:
            if isinstance(layer, AttentionSlots):
                layer.move(source, target)
            else:
                layer.conv[target], layer.state[target] = layer.conv[source], layer.state[source]
        self.lengths[target] = self.lengths[source]
