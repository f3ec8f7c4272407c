"""The teacher's attention, kept in some layers: rotary, grouped heads, for all families in ``FAMILIES``.

Weights carry the names of the stock classes and the numbers agree with them. What differs is how masks are handled:
one :class:`Visibility` a forward pass says what each query may see, and packed documents are attended to one at a
time on a CPU, or by flash-attn on CUDA, instead of masking a square that is mostly empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from lit_thinkfast.mixers.documents import document_starts
from lit_thinkfast.mixers.heads import attention_input_bias, attention_output_bias
from lit_thinkfast.mixers.kernels import find_varlen_attention
from lit_thinkfast.mixers.matrices import AttentionMatrix
from lit_thinkfast.mixers.skinny import skinny_linear

if TYPE_CHECKING:
    from transformers import Cache

    from lit_thinkfast.models.slots import AttentionSlots, Reach


@dataclass(frozen=True)
class Documents:
    """Lengths of documents. An object, because compiled layers would be compiled again for every length of a list."""

    lengths: list[int]


@dataclass(frozen=True)
class Visibility:
    """What the queries of one forward pass may attend to.

    Attributes:
        mask: (b or 1, 1, queries, keys) bool, true where a query sees a key; ``None`` if no mask is needed.
        causal: Queries are the last positions and see all keys up to their own. Only without ``mask``.
        documents: The documents in all rows laid end to end; each is causal and on its own.
    """

    mask: Tensor | None = None
    causal: bool = True
    documents: Documents | None = None


def visibility(
    *,
    queries: int,
    past: int,
    device: torch.device,
    valid: Tensor | None = None,
    seq_idx: Tensor | None = None,
    window: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Visibility:
    """Work out what may be seen.

    Args:
        queries: New tokens.
        past: Tokens in the cache.
        device: Where the mask goes.
        valid: (b, past + queries) bool, false at padding.
        seq_idx: (b, queries) documents; only without a past.
        window: Tokens that a query sees, itself included; all before it if ``None``.
        dtype: Of queries and keys, on which depends what kernel can attend to them.
    """
    keys = past + queries
    window = None if window is None or window >= keys else window
    one_by_one = device.type == "cpu" or find_varlen_attention(device, dtype) is not None
    if seq_idx is not None and window is None and one_by_one:
        documents = seq_idx if valid is None else torch.where(valid, seq_idx, -1)
        starts = document_starts(documents)
        starts[:, 0] = True
        edges = starts.flatten().nonzero()[:, 0]
        ends = torch.cat([edges[1:], edges.new_tensor([starts.numel()])])
        return Visibility(documents=Documents((ends - edges).tolist()))
    if valid is None and seq_idx is None and window is None and (queries == 1 or past == 0):
        return Visibility(causal=queries > 1)
    query_at = torch.arange(past, keys, device=device)[:, None]
    key_at = torch.arange(keys, device=device)[None, :]
    mask = key_at <= query_at
    if window is not None:
        mask = mask & (key_at > query_at - window)
    mask = mask[None, None]
    if seq_idx is not None:
        document = document_starts(seq_idx).cumsum(1)  # a number that comes back is another document
        mask = mask & (document[:, None, :, None] == document[:, None, None, :])
    if valid is not None:
        # Padding sees itself, so that no row of the softmax is empty.
        mask = mask & (valid[:, None, None, :] | (key_at == query_at))
    return Visibility(mask=mask, causal=False)


def attend(
    query: Tensor, key: Tensor, value: Tensor, visible: Visibility, *, scale: float, dropout: float = 0.0
) -> Tensor:
    """Softmax attention.

    Args:
        query: (b, heads, queries, p).
        key: (b, kv_heads, keys, p).
        value: (b, kv_heads, keys, p).
        visible: What may be seen.
        scale: Factor on the scores.
        dropout: Probability to drop a weight.

    Returns:
        (b, queries, heads * p).
    """
    batch, heads, queries, width = query.shape
    groups = heads // key.shape[1]
    # A cache with a sliding window returns only the last keys.
    mask = None if visible.mask is None else visible.mask[..., -key.shape[2] :].to(query.device)
    options: dict[str, Any] = {"scale": scale, "dropout_p": dropout}
    if groups > 1 and queries == 1:
        # One query a head: the queries of a group become the queries of one head, and keys are read once, not copied.
        out = scaled_dot_product_attention(
            query.reshape(batch, -1, groups, width), key, value, attn_mask=mask, is_causal=False, **options
        )
        return out.reshape(batch, 1, heads * width)
    options["enable_gqa"] = groups > 1
    if visible.documents is not None:
        apart: Tensor = _one_by_one(query, key, value, visible.documents, options)
        return apart
    out = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=visible.causal and queries > 1, **options
    )
    return out.transpose(1, 2).flatten(2)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _one_by_one(query: Tensor, key: Tensor, value: Tensor, documents: Documents, options: dict[str, Any]) -> Tensor:
    """Attend within each document: (b, heads, t, p) -> (b, t, heads * p)."""
    batch, heads, time, width = query.shape
    lengths = documents.lengths
    if (varlen := find_varlen_attention(query.device, query.dtype)) is not None:
        rows = [part.transpose(1, 2).flatten(0, 1) for part in (query, key, value)]
        out: Tensor = varlen(*rows, lengths=lengths, scale=options["scale"], dropout=options["dropout_p"])
        return out.reshape(batch, time, -1)
    flat = [part.transpose(0, 1).flatten(1, 2).split(lengths, dim=1) for part in (query, key, value)]
    pieces = [
        scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, **options)[0]
        for q, k, v in zip(*flat, strict=True)
    ]
    joined: Tensor = torch.cat(pieces, dim=1)
    return joined.permute(1, 0, 2).reshape(batch, time, heads * width)


class HybridAttention(nn.Module):
    """Causal self-attention with the parameters of the stock class of its family.

    Args:
        config: A :class:`lit_thinkfast.models.HybridConfig`.
        layer_idx: Place in the decoder, and in a cache.
    """

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.dropout = config.attention_dropout
        sliding = (config.layer_types or [None] * (layer_idx + 1))[layer_idx] == "sliding_attention"
        self.window: int | None = config.sliding_window if sliding else None
        input_bias, output_bias = attention_input_bias(config), attention_output_bias(config)
        inner, kv_inner = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, inner, bias=input_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_inner, bias=input_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_inner, bias=input_bias)
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=output_bias)
        self.q_norm: nn.Module | None = None
        self.k_norm: nn.Module | None = None
        if config.base_model_type == "qwen3":
            self.q_norm = LlamaRMSNorm(self.head_dim, eps=config.rms_norm_eps)
            self.k_norm = LlamaRMSNorm(self.head_dim, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        *,
        visible: Visibility,
        position_embeddings: tuple[Tensor, Tensor],
        past_key_values: Cache | None = None,
    ) -> Tensor:
        """Attend: (b, t, d) -> (b, t, d), writing keys and values to the cache if there is one."""
        query, key, value = self.project(hidden_states, position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        dropout = self.dropout if self.training else 0.0
        out: Tensor = self.o_proj(attend(query, key, value, visible, scale=self.head_dim**-0.5, dropout=dropout))
        return out

    def matrix(
        self, hidden_states: Tensor, *, position_embeddings: tuple[Tensor, Tensor], seq_idx: Tensor | None = None
    ) -> AttentionMatrix:
        """Return the attention weights of all heads, whose rows are formed when they are asked for."""
        query, key, _ = self.project(hidden_states, position_embeddings)
        document = None if seq_idx is None else document_starts(seq_idx).cumsum(1)
        return AttentionMatrix(query, key, document, self.window, self.head_dim**-0.5)

    def project(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(b, t, d) -> queries (b, heads, t, p), keys and values (b, kv_heads, t, p), turned by their positions."""
        query, key, value = (part.transpose(1, 2) for part in self._heads(hidden_states))
        # Angles are in the type of the hidden states, wider than the projections under autocast.
        query, key = (part.to(value.dtype) for part in apply_rotary_pos_emb(query, key, *position_embeddings))
        return query, key, value

    def step(
        self, hidden_states: Tensor, *, memory: AttentionSlots, position_embeddings: tuple[Tensor, Tensor], at: Reach
    ) -> Tensor:
        """Attend with one new token a row, (b, d) -> (b, d), which is stored in ``memory``."""
        query, key, value = self._heads(hidden_states)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)  # (b, p): all heads of a row turn alike
        # Under autocast projections are narrower than what is stored, and angles wider than they.
        query, key, value = (part.to(memory.keys.dtype) for part in (query, key, value))
        out = memory.step(query, key, value, at, scale=self.head_dim**-0.5)
        return skinny_linear(self.o_proj, out)

    def _heads(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., d) -> queries (..., heads, p), keys and values (..., kv_heads, p), not turned yet."""
        query, key, value = (
            skinny_linear(projection, hidden_states).unflatten(-1, (-1, self.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        return query, key, value
