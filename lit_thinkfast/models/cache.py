"""Memory of the student while it generates: preallocated, written in place, with rows that can be shared and dropped.

``HybridCache`` is a cache in the sense of transformers (``past_key_values=``), for decoding loops that know their
length in advance: keys and values are written into their place, states are brought forward in place, and nothing is
concatenated. ``GrowingCache`` is the stock dynamic cache, for ``generate``, made to work when no layer has attention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, LinearAttentionCacheLayerMixin

from lit_thinkfast.mixers.base import ATTENTION, mixer_class

if TYPE_CHECKING:
    from lit_thinkfast.models.configuration import HybridConfig


class KeyValueLayer(CacheLayerMixin):
    """Keys and values of one attention layer, (b, kv_heads, capacity, head_dim), filled from the left.

    Args:
        keys: Storage, contents irrelevant beyond ``length``.
        values: Storage of the same shape.
        length: Tokens stored.
    """

    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, *, length: int = 0) -> None:
        super().__init__()
        self.keys, self.values, self.length = keys, values, length
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the storage is there from the start."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write (b, kv_heads, t, head_dim) behind what is stored; return views of all keys and values so far.

        Raises:
            ValueError: More tokens than the capacity.
        """
        end = self.length + key_states.shape[2]
        if end > self.keys.shape[2]:
            raise ValueError(f"the cache holds {self.keys.shape[2]} tokens, but {end} are needed; raise max_length")
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.keys.shape[2]

    def reset(self) -> None:
        self.length = 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.keys, self.values = self.keys.index_select(0, beam_idx), self.values.index_select(0, beam_idx)

    def gather(self, rows: Tensor, capacity: int) -> KeyValueLayer:
        """Return a copy with these rows, in this order, and room for ``capacity`` tokens."""
        copies = []
        for stored in (self.keys, self.values):
            copy = stored.new_empty(len(rows), stored.shape[1], capacity, stored.shape[3])
            copy[:, :, : self.length] = stored[:, :, : self.length].index_select(0, rows)
            copies.append(copy)
        return KeyValueLayer(copies[0], copies[1], length=self.length)


class StateLayer(LinearAttentionCacheLayerMixin):
    """States of one recurrent layer, updated in place.

    Args:
        conv: (b, kernel - 1, channels) storage; seen from outside as (b, channels, kernel - 1).
        state: (b, h, p, n), float32 or wider.
        num_tokens: Tokens that went in.
    """

    def __init__(self, conv: Tensor, state: Tensor, *, num_tokens: int = 0) -> None:
        super().__init__()
        self.conv_states[0], self.recurrent_states[0] = conv.transpose(1, 2), state
        self.is_conv_states_initialized[0] = self.is_recurrent_states_initialized[0] = True
        self.conv_kernel_size[0] = conv.shape[1]
        self.device, self.dtype = state.device, conv.dtype
        self.num_tokens = num_tokens
        self.has_previous_state[0] = num_tokens > 0

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the storage is there from the start."""

    def update_conv_state(self, conv_states: Tensor, state_idx: int = 0, **kwargs: Any) -> Tensor:
        self.has_previous_state[0] = True
        stored: Tensor = self.conv_states[0].copy_(conv_states)
        return stored

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: Any) -> Tensor:
        stored: Tensor = self.recurrent_states[0].copy_(recurrent_states)
        return stored

    def get_seq_length(self) -> int:
        return self.num_tokens

    def reset(self) -> None:
        super().reset()
        self.num_tokens = 0

    def gather(self, rows: Tensor) -> StateLayer:
        """Return a copy with these rows, in this order."""
        conv = self.conv_states[0].transpose(1, 2).index_select(0, rows)
        return StateLayer(conv, self.recurrent_states[0].index_select(0, rows), num_tokens=self.num_tokens)


class HybridCache(Cache):
    """Preallocated memory for ``batch_size`` rows of at most ``max_length`` tokens.

    All rows are at the same position: prompts of different lengths are padded on the left. Give the padding to the
    model once, as the ``attention_mask`` of the prefill; the cache remembers it, so that later calls need no mask and
    no ``position_ids``::

        cache = HybridCache(model.config, batch_size=2, max_length=512)
        model(prompts, attention_mask=mask, past_key_values=cache)
        cache = cache.repeat_interleave(64)
        model(tokens, past_key_values=cache)  # tokens (128, 1)
        cache = cache.keep(unfinished)

    Args:
        config: The model's configuration.
        batch_size: Rows.
        max_length: Tokens a row can hold, prompt included. Only attention layers take room for them.
        device: Where; the default device if ``None``.
        dtype: Type of keys, values and convolution inputs. Recurrent states are float32 (float64 in a float64 cache).

    Raises:
        ValueError: A size below one.
    """

    def __init__(
        self,
        config: HybridConfig,
        batch_size: int,
        max_length: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if batch_size < 1 or max_length < 1:
            raise ValueError(f"a cache of {batch_size} rows and {max_length} tokens holds nothing; both must be >= 1")
        keys_shape = (batch_size, config.num_key_value_heads or 1, max_length, config.head_dim or 1)
        wide = torch.promote_types(dtype, torch.float32)
        layers: list[Any] = []
        for mixer in config.layer_mixers or []:
            if mixer == ATTENTION:
                keys, values = (torch.empty(keys_shape, device=device, dtype=dtype) for _ in range(2))
                layers.append(KeyValueLayer(keys, values))
            else:
                (channels, past), shape = mixer_class(mixer).state_shapes(config, config.options_of(mixer))
                conv = torch.zeros(batch_size, past, channels, device=device, dtype=dtype)
                layers.append(StateLayer(conv, torch.zeros(batch_size, *shape, device=device, dtype=wide)))
        self._assemble(layers, batch_size, max_length, None)

    def _assemble(self, layers: list[Any], batch_size: int, max_length: int, valid: Tensor | None) -> None:
        super().__init__(layers=layers)
        self._batch_size, self.max_length = batch_size, max_length
        self.valid = valid
        """(b, max_length) bool, false at padding; ``None`` while there is none."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens stored, padding included."""
        length: int = self.layers[layer_idx].get_seq_length()
        return length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Return the number of tokens that a row can hold."""
        return self.max_length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    @property
    def batch_size(self) -> int:
        """Rows."""
        return self._batch_size

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def nbytes(self) -> int:
        """Bytes held: keys, values, states and the padding mask, whether filled or not."""
        total = 0 if self.valid is None else self.valid.nbytes
        for layer in self.layers:
            if isinstance(layer, KeyValueLayer):
                total += layer.keys.nbytes + layer.values.nbytes
            else:
                total += layer.conv_states[0].nbytes + layer.recurrent_states[0].nbytes
        return total

    def check_room(self, num_tokens: int) -> None:
        """Raise ``ValueError`` if ``num_tokens`` more tokens do not fit, before anything is changed."""
        end = self.get_seq_length() + num_tokens
        if end > self.max_length:
            raise ValueError(f"the cache holds {self.max_length} tokens, but {end} are needed; raise max_length")

    def remember_padding(self, attention_mask: Tensor, *, start: int) -> None:
        """Note which of the tokens from position ``start`` on are padding (zero in the mask, (b, t))."""
        mask = attention_mask.bool()
        if self.valid is None:
            if mask.all():
                return
            self.valid = torch.ones(self._batch_size, self.max_length, dtype=torch.bool, device=mask.device)
        self.valid[:, start : start + mask.shape[1]] = mask

    def reset(self) -> None:
        """Forget everything, keep the memory."""
        super().reset()
        self.valid = None

    def repeat_interleave(self, repeats: int, *, max_length: int | None = None) -> HybridCache:
        """Return a cache with each row ``repeats`` times in sequence, as for many samples of one prompt.

        Args:
            repeats: Copies of each row.
            max_length: Capacity of the new cache; as this one's if ``None``.

        Raises:
            ValueError: ``max_length`` is less than what is stored.
        """
        rows = torch.arange(self._batch_size, device=self._device()).repeat_interleave(repeats)
        return self._gather(rows, self.max_length if max_length is None else max_length)

    def keep(self, rows: Tensor, *, max_length: int | None = None) -> HybridCache:
        """Return a cache with only these rows, in this order.

        Args:
            rows: (r,) row indices, or (batch,) bool.
            max_length: Capacity of the new cache; as this one's if ``None``.

        Raises:
            ValueError: ``max_length`` is less than what is stored.
        """
        rows = rows.to(self._device())
        rows = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
        return self._gather(rows, self.max_length if max_length is None else max_length)

    def _device(self) -> torch.device:
        layer = self.layers[0]
        stored: Tensor = layer.keys if isinstance(layer, KeyValueLayer) else layer.recurrent_states[0]
        return stored.device

    def _gather(self, rows: Tensor, max_length: int) -> HybridCache:
        length = self.get_seq_length()
        if max_length < length:
            raise ValueError(f"max_length {max_length} is less than the {length} tokens stored; use {length} or more")
        layers = [
            layer.gather(rows, max_length) if isinstance(layer, KeyValueLayer) else layer.gather(rows)
            for layer in self.layers
        ]
        valid = None
        if self.valid is not None and not (kept := self.valid[:, :length].index_select(0, rows)).all():
            valid = torch.ones(len(rows), max_length, dtype=torch.bool, device=rows.device)
            valid[:, :length] = kept
        cache = HybridCache.__new__(HybridCache)
        cache._assemble(layers, len(rows), max_length, valid)
        return cache

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder rows, for beam search."""
        super().reorder_cache(beam_idx)
        if self.valid is not None:
            self.valid = self.valid.index_select(0, beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """In-place :meth:`repeat_interleave`, under the name that transformers uses."""
        self.__dict__.update(self.repeat_interleave(repeats).__dict__)

    def batch_select_indices(self, indices: Tensor) -> None:
        """In-place :meth:`keep`, under the name that transformers uses."""
        self.__dict__.update(self.keep(indices).__dict__)


class GrowingCache(DynamicCache):
    """The stock dynamic cache, able to tell its length also when all layers are recurrent.

    Args:
        config: The model's configuration.
    """

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config=config)
        self._all_recurrent = not config.attention_layers

    @property
    def is_compileable(self) -> bool:
        return False

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        for layer in self.layers:
            if hasattr(layer, "num_tokens"):  # counted by ``write_states``, unknown to transformers
                layer.num_tokens = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        if self._all_recurrent:
            return getattr(self.layers[0], "num_tokens", 0)
        return int(super().get_seq_length(layer_idx))

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        if self._all_recurrent:
            return self.get_seq_length() + query_length, 0
        sizes: tuple[int, int] = super().get_mask_sizes(query_length, layer_idx)
        return sizes
