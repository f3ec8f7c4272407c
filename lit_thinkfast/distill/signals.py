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

    from lit_thinkfast.mixers.matrices import MixingMatrix
    from lit_thinkfast.records import PackedBatch

SignalName = Literal["logits", "hidden_states", "layers"]
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


class Layers:
    """The layers of one of our models on one batch of packed rows, run one at a time on hidden states that are given.

    Args:
        model: A :class:`~lit_thinkfast.models.HybridForCausalLM`.
        batch: The packed rows, whose documents are isolated in every layer.
    """

    def __init__(self, model: Any, batch: PackedBatch) -> None:
        self._layers = model.base_model.layers
        self._arguments = model.base_model.layer_arguments(batch)
        self.kinds: list[str] = model.config.layer_mixers
        """Name of each layer's mixer, or ``attention``."""

    def __len__(self) -> int:
        return len(self._layers)

    def block(self, index: int, hidden_states: Tensor) -> Tensor:
        """Return the output of a whole layer, (b, t, d)."""
        return self._run(index, hidden_states, "block")  # type: ignore[no-any-return]

    def mixed(self, index: int, hidden_states: Tensor) -> Tensor:
        """Return what attention or mixer adds to the hidden states, (b, t, d)."""
        return self._run(index, hidden_states, "mixed")  # type: ignore[no-any-return]

    def matrix(self, index: int, hidden_states: Tensor) -> MixingMatrix:
        """Return with which matrix each head mixes tokens.

        Raises:
            ValueError: The mixer has none.
        """
        return self._run(index, hidden_states, "matrix")  # type: ignore[no-any-return]

    def _run(self, index: int, hidden_states: Tensor, part: str) -> Any:
        return self._layers[index](hidden_states, **self._arguments[index], part=part)


@dataclass(frozen=True)
class Signals:
    """One model's view of one batch. What was not asked for, or cannot be given, is ``None``.

    Attributes:
        last_hidden: ``(b, t, d)``, after the final norm.
        head: ``(v, d)``, the output embedding.
        hidden_states: ``n_layers + 1`` tensors ``(b, t, d)``: the embeddings, then each layer's output, the last one
            *before* the final norm.
        top: The likeliest tokens, from a teacher that has no more than those.
        layers: The model's layers, to be run on hidden states of one's choice.
    """

    last_hidden: Tensor | None = None
    head: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    top: TopTokens | None = None
    layers: Layers | None = None

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
        needs: Names of signals: ``hidden_states`` makes every layer's output be kept; with ``layers`` alone the model
            is not run.

    Raises:
        ValueError: Layers of a stock model are asked for.
    """
    ours = model.config.model_type == HYBRID_MODEL_TYPE
    if "layers" in needs and not ours:
        raise ValueError(
            f"a {type(model).__name__} cannot be run layer by layer; load it with lit_thinkfast.models.load_model"
        )
    layers = Layers(model, batch) if "layers" in needs else None
    if needs == {"layers"}:
        return Signals(layers=layers)
    inputs: dict[str, Any] = {
        "input_ids": batch["input_ids"],
        "position_ids": batch["position_ids"],
        "use_cache": False,
    }
    if ours:
        inputs["seq_idx"] = batch["seq_idx"]
    head = model.get_output_embeddings().weight
    if "hidden_states" not in needs:
        return Signals(last_hidden=model.base_model(**inputs).last_hidden_state, head=head, layers=layers)
    with _input_of(model.base_model.norm) as seen:
        output = model.base_model(**inputs, output_hidden_states=True)
    # transformers reports the last entry after the final norm; a layer's output is wanted.
    return Signals(
        last_hidden=output.last_hidden_state,
        head=head,
        hidden_states=(*output.hidden_states[:-1], seen["input"]),
        layers=layers,
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
