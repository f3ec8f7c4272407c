"""What a loss sees of a model: final hidden states with the head that reads them, and optionally every layer's output.

Logits are never formed here: at a vocabulary of 128k, one fp32 row of 8192 tokens is 4.2 GB. Losses multiply by the
head chunk by chunk (:mod:`lit_thinkfast.distill.chunked`). Works for every transformers causal LM whose logits are a
plain product of last hidden state and output embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lit_thinkfast.records import PackedBatch

SignalName = Literal["logits", "hidden_states"]
HYBRID_MODEL_TYPE = "lit_thinkfast_hybrid"


@dataclass(frozen=True)
class TopTokens:
    """The likeliest next tokens at each position.

    Attributes:
        index: ``(b, t, k)``, token ids, the likeliest first.
        log_probs: ``(b, t, k)``, their log-probabilities in the whole vocabulary, in nats.
    """

    index: Tensor
    log_probs: Tensor


@dataclass(frozen=True)
class Signals:
    """One model's view of one batch. What was not asked for, or cannot be given, is ``None``.

    Attributes:
        last_hidden: ``(b, t, d)``, after the final norm.
        head: ``(v, d)``, the output embedding.
        hidden_states: ``n_layers + 1`` tensors ``(b, t, d)``: the embeddings, then each layer's output, the last one
            *before* the final norm.
        top: The likeliest tokens, from a teacher that has no more than those.
    """

    last_hidden: Tensor | None = None
    head: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    top: TopTokens | None = None

    def final(self) -> tuple[Tensor, Tensor]:
        """Return ``last_hidden`` and ``head``.

        Raises:
            ValueError: They are not there.
        """
        if self.last_hidden is None or self.head is None:
            raise ValueError(
                "these signals lack the final hidden states"
                + ("; a teacher of cached top tokens works with TopKKL alone" if self.top is not None else "")
            )
        return self.last_hidden, self.head

    def logits(self) -> Tensor:
        """Return the full ``(b, t, v)`` logits; for small vocabularies and tests."""
        hidden, head = self.final()
        return hidden @ head.T


def read_signals(model: Any, batch: PackedBatch, *, needs: frozenset[str]) -> Signals:
    """Run ``model`` on packed rows, documents isolated from each other.

    Our own models get ``seq_idx``. Stock transformers models get ``position_ids`` without an attention mask and without
    a cache: only then does transformers derive a block-diagonal causal mask from positions that do not rise by one.

    Args:
        model: A causal LM of transformers, ours included.
        batch: Packed rows, ``(b, t)`` each.
        needs: Names of signals; ``hidden_states`` makes every layer's output be kept.
    """
    inputs: dict[str, Any] = {
        "input_ids": batch["input_ids"],
        "position_ids": batch["position_ids"],
        "use_cache": False,
    }
    if model.config.model_type == HYBRID_MODEL_TYPE:
        inputs["seq_idx"] = batch["seq_idx"]
    head = model.get_output_embeddings().weight
    if "hidden_states" not in needs:
        return Signals(last_hidden=model.base_model(**inputs).last_hidden_state, head=head)
    with _input_of(model.base_model.norm) as seen:
        output = model.base_model(**inputs, output_hidden_states=True)
    # transformers reports the last entry after the final norm; a layer's output is wanted.
    return Signals(
        last_hidden=output.last_hidden_state, head=head, hidden_states=(*output.hidden_states[:-1], seen["input"])
    )


@contextmanager
def _input_of(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield a dictionary that holds the first argument of the last call of ``module`` under ``input``."""
    seen: dict[str, Tensor] = {}
    handle = module.register_forward_pre_hook(lambda _, args: seen.update(input=args[0]))
    try:
        yield seen
    finally:
        handle.remove()
