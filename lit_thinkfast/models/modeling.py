"""The student: a Llama-style decoder in which some or all attention is replaced by recurrent mixers.

A citizen of transformers: ``from_pretrained``, ``save_pretrained``, ``generate``, gradient checkpointing. With all
layers ``attention`` it equals its teacher, under the same parameter names, so teacher and student run on one code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationMixin, PreTrainedModel
from transformers.generation import GenerationMode
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.utils import can_return_tuple

from lit_thinkfast.mixers import ATTENTION, Mixer, mixer_class
from lit_thinkfast.mixers.base import check_options
from lit_thinkfast.mixers.conv import CausalConv1d
from lit_thinkfast.mixers.kernels import check_kernel
from lit_thinkfast.mixers.mamba2 import GatedHeadNorm
from lit_thinkfast.models.attention import HybridAttention, Visibility, visibility
from lit_thinkfast.models.cache import GrowingCache, HybridCache
from lit_thinkfast.models.configuration import HybridConfig
from lit_thinkfast.models.rows import cached_tokens, documents_of, padding_of_new_tokens, positions_of, valid_tokens


@dataclass
class HybridModelOutput(BaseModelOutputWithPast):
    """Output of :class:`HybridModel`.

    Attributes:
        pre_norm_hidden_state: (b, t, d), the last layer's output before the final norm. The last entry of
            ``hidden_states`` is after it, as everywhere in transformers.
    """

    pre_norm_hidden_state: Tensor | None = None


@dataclass
class HybridCausalLMOutput(CausalLMOutputWithPast):
    """Output of :class:`HybridForCausalLM`; ``pre_norm_hidden_state`` as in :class:`HybridModelOutput`."""

    pre_norm_hidden_state: Tensor | None = None


class HybridDecoderLayer(GradientCheckpointingLayer):
    """Pre-norm residual block: attention or a mixer, then a gated MLP.

    Args:
        config: The model's configuration.
        layer_idx: Place in the decoder.
    """

    def __init__(self, config: HybridConfig, layer_idx: int) -> None:
        super().__init__()
        name = (config.layer_mixers or [])[layer_idx]
        if name == ATTENTION:
            self.self_attn = HybridAttention(config, layer_idx)
        else:
            check_options(name, config.options_of(name))
            self.mixer = mixer_class(name)(config, layer_idx, **config.options_of(name))  # type: ignore[call-arg]
        self.is_attention = name == ATTENTION
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        *,
        visible: Visibility | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        seq_idx: Tensor | None = None,
        past_key_values: Cache | None = None,
        part: Literal["block", "mixed", "matrix"] = "block",
    ) -> Any:
        """Map (b, t, d) to (b, t, d).

        Args:
            hidden_states: What the layer before returned.
            visible: What attention may see.
            position_embeddings: Cosines and sines, for attention.
            attention_mask: (b, t), zero at padding, for mixers.
            seq_idx: (b, t) documents.
            past_key_values: Cache.
            part: ``mixed`` returns only what attention or mixer adds, (b, t, d), and ``matrix`` a
                :class:`~lit_thinkfast.mixers.matrices.MixingMatrix`. Both through this method, since strategies that
                shard weights gather those of a layer when it is called.
        """
        mixed = self.input_layernorm(hidden_states)
        if part == "matrix":
            if self.is_attention and position_embeddings is not None:
                return self.self_attn.matrix(mixed, position_embeddings=position_embeddings, seq_idx=seq_idx)
            return self.mixer.mixing_matrix(mixed, attention_mask=attention_mask, seq_idx=seq_idx)
        if self.is_attention:
            mixed = self.self_attn(
                mixed, visible=visible, position_embeddings=position_embeddings, past_key_values=past_key_values
            )
        else:
            mixed = self.mixer(mixed, past_key_values=past_key_values, attention_mask=attention_mask, seq_idx=seq_idx)
        if part == "mixed":
            return mixed
        hidden_states = hidden_states + mixed
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class HybridRotaryEmbedding(LlamaRotaryEmbedding):  # type: ignore[misc]
    """Rotary frequencies that no cast of the model rounds: it computes what it will compute when it is loaded again."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        kept = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, values in kept.items():
            own = getattr(self, name)
            if own.dtype in (torch.bfloat16, torch.float16):
                setattr(self, name, values.to(own.device))
        return self


class HybridPreTrainedModel(PreTrainedModel):
    """What the models share: initialisation, loading, and what they support."""

    config_class = HybridConfig
    config: HybridConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["HybridDecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Mixers know their own initial values; their parts are visited before them and must not be drawn twice.
        if isinstance(module, Mixer):
            module.reset_parameters()
        elif not isinstance(module, (CausalConv1d, GatedHeadNorm)):
            super()._init_weights(module)


class HybridModel(HybridPreTrainedModel):
    """The decoder without its head.

    Args:
        config: The configuration.

    Raises:
        ValueError: A layer names an unknown mixer or gives it an unknown option, or an unknown kernel.
    """

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        check_kernel(config.kernel)  # ``from_pretrained(folder, kernel=...)`` sets it behind the configuration's back
        self._is_stateful = _is_stateful(config)
        mixers = {mixer_class(name) for name in config.layer_mixers or [] if name != ATTENTION}
        self._keep_in_fp32_modules_strict = {f"mixer.{name}" for mixer in mixers for name in mixer.full_precision}
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(HybridDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = HybridRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        seq_idx: Tensor | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> HybridModelOutput:
        """Run the decoder; arguments as in :meth:`HybridForCausalLM.forward`."""
        if output_attentions:
            raise ValueError("output_attentions is not available: recurrent layers have none; leave it out")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if seq_idx is None and position_ids is not None and attention_mask is None and past_key_values is None:
            seq_idx = documents_of(position_ids, hidden_states)
        checkpointing = self.gradient_checkpointing and self.training
        if past_key_values is None and use_cache and not checkpointing:
            past_key_values = GrowingCache(self.config)
        past = 0 if past_key_values is None else cached_tokens(past_key_values)
        if seq_idx is not None and past:
            raise ValueError("seq_idx is for packed training rows and cannot continue a cache; leave it out")
        if isinstance(past_key_values, HybridCache):
            past_key_values.check_room(hidden_states.shape[1])
        valid = valid_tokens(attention_mask, hidden_states.shape[1], past, past_key_values)

        visible: dict[str, Visibility] = {}
        position_embeddings = None
        if self.config.attention_layers:
            if position_ids is None:
                position_ids = positions_of(hidden_states, past, valid, seq_idx)
            position_embeddings = self.rotary_emb(hidden_states, position_ids=position_ids)
            visible = self._visibility(hidden_states, past, valid, seq_idx)
        padding = (
            None
            if attention_mask is None or not self._is_stateful
            else padding_of_new_tokens(valid, hidden_states.shape[1])
        )

        collected = []
        output_hidden_states = bool(output_hidden_states or self.config.output_hidden_states)
        for layer, kind in zip(self.layers, self.config.layer_types or [], strict=True):
            if output_hidden_states:
                collected.append(hidden_states)
            hidden_states = layer(
                hidden_states,
                visible=visible.get(kind),
                position_embeddings=position_embeddings,
                attention_mask=padding,
                seq_idx=seq_idx,
                past_key_values=past_key_values,
            )
        normed = self.norm(hidden_states)
        return HybridModelOutput(
            last_hidden_state=normed,
            past_key_values=past_key_values,
            hidden_states=(*collected, normed) if output_hidden_states else None,
            pre_norm_hidden_state=hidden_states,
        )

    def layer_arguments(self, batch: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """Return what each layer is called with besides hidden states, for packed rows from their start.

        For running layers one at a time on hidden states of another model.

        Args:
            batch: ``input_ids``, ``position_ids`` and ``seq_idx``, (b, t) each.
        """
        probe = self.norm.weight.new_empty(*batch["input_ids"].shape, 0)
        seq_idx = batch["seq_idx"]
        position_embeddings = self.rotary_emb(self.norm.weight, position_ids=batch["position_ids"])
        visible = self._visibility(probe, 0, None, seq_idx)
        return [
            {"visible": visible.get(kind), "position_embeddings": position_embeddings, "seq_idx": seq_idx}
            for kind in self.config.layer_types or []
        ]

    def _visibility(
        self, hidden_states: Tensor, past: int, valid: Tensor | None, seq_idx: Tensor | None
    ) -> dict[str, Visibility]:
        """One mask for each kind of attention layer that the model has."""
        windows = {"full_attention": None, "sliding_attention": self.config.sliding_window}
        queries, device, dtype = hidden_states.shape[1], hidden_states.device, hidden_states.dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        return {
            kind: visibility(
                queries=queries,
                past=past,
                device=device,
                valid=valid,
                seq_idx=seq_idx,
                window=windows[kind],
                dtype=dtype,
            )
            for kind in set(self.config.layer_types or []) - {"linear_attention"}
        }


class HybridForCausalLM(HybridPreTrainedModel, GenerationMixin):
    """The student with its language-model head.

    Args:
        config: The configuration.

    Raises:
        ValueError: A layer names an unknown mixer or gives it an unknown option.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        self._is_stateful = _is_stateful(config)
        self.model = HybridModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        seq_idx: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> HybridCausalLMOutput:
        """Run the model.

        Args:
            input_ids: (b, t).
            attention_mask: (b, past + t), zero at padding on the left or right; for a :class:`HybridCache` the mask
                of the new tokens, (b, t), will also do, and none is needed where they are all real.
            position_ids: (b, t); by default counted from each row's first real token, or document start. Without
                mask, cache and ``seq_idx``, positions that do not go on mark documents, as in the stock classes.
            past_key_values: A :class:`HybridCache` or a cache of transformers.
            inputs_embeds: (b, t, d), instead of ``input_ids``.
            labels: (b, t), targets *at* their own position (shifted inside), -100 for none.
            use_cache: Return a cache, making one if none is given.
            logits_to_keep: Only the logits of the last so many positions (0: all), or of these positions.
            seq_idx: (b, t) document of each token in packed rows: attention, convolution and state stay within it.
            output_hidden_states: Also return (b, t, d) before each layer and after the final norm.
            output_attentions: Refused if true.
            kwargs: Passed to the loss, for example ``num_items_in_batch``.

        Returns:
            ``logits`` (b, t or fewer, v), ``past_key_values``, ``hidden_states``, ``pre_norm_hidden_state``, and
            ``loss``, the mean cross-entropy in nats, if there are labels.

        Raises:
            ValueError: Neither or both inputs, documents with a cache, attention weights asked for, a mask that fits
                neither length, or one with padding between real tokens, over which a convolution cannot reach.
        """
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            seq_idx=seq_idx,
            output_attentions=output_attentions,
            return_dict=True,
        )
        hidden_states = outputs.last_hidden_state
        if isinstance(logits_to_keep, int):
            kept = hidden_states[:, -logits_to_keep:] if logits_to_keep else hidden_states
        else:
            kept = hidden_states[:, logits_to_keep]
        logits = self.lm_head(kept)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return HybridCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            pre_norm_hidden_state=outputs.pre_norm_hidden_state,
        )

    def _validate_generation_mode(self, generation_mode: Any, *args: Any, **kwargs: Any) -> None:
        if self._is_stateful and generation_mode == GenerationMode.ASSISTED_GENERATION:
            raise ValueError(
                "assisted decoding is not for stateful models: it takes tokens back, which recurrent layers cannot; "
                "leave out assistant_model, prompt_lookup_num_tokens and assistant_early_exit"
            )
        super()._validate_generation_mode(generation_mode, *args, **kwargs)

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        drafts = generation_config.is_assistant
        if drafts and self._is_stateful:
            raise ValueError(
                "a stateful model cannot draft for another: drafting takes tokens back, which recurrent layers cannot; "
                "use an assistant_model whose layers all have attention"
            )
        # The stock cache cannot tell its length when no layer has attention; ours can, but takes no tokens back.
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False and not drafts:
            wanted = generation_config.cache_implementation
            if wanted not in (None, "dynamic"):
                raise ValueError(
                    f"cache_implementation {wanted!r} is not available; leave it out, or pass a HybridCache as "
                    "past_key_values for one of fixed size"
                )
            model_kwargs["past_key_values"] = GrowingCache(self.config)
            return
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)


def _is_stateful(config: HybridConfig) -> bool:
    """Does a layer keep a state that cannot go back to an earlier token, as speculative decoding would need?"""
    return len(config.attention_layers) < config.num_hidden_layers
