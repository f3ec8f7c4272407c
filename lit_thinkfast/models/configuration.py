"""The student's configuration: its teacher's, plus which mixer each layer has.

Any key of the teacher's ``config.json`` may be present and is kept; the fields below are those that the model reads.
"""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PreTrainedConfig

from lit_thinkfast.mixers.base import ATTENTION, MIXERS
from lit_thinkfast.mixers.kernels import check_kernel

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Decoder families that share the Llama layout. SmolLM and SmolLM2 are of the family ``llama``."""


class HybridConfig(PreTrainedConfig):
    """Configuration of :class:`lit_thinkfast.models.HybridForCausalLM`.

    Attributes:
        base_model_type: Family of the teacher, one of ``FAMILIES``.
        layer_mixers: One name a layer: ``"attention"`` or a key of ``MIXERS``. All attention if not given.
        mixer_options: Options of each kind of mixer, for example ``{"mamba2": {"d_conv": 4}}``.
        kernel: Which operators mixers run: ``"auto"`` (fused on CUDA where installed, else torch), ``"torch"``, or
            ``"reference"``, loops over time in float64. Not saved: it belongs to a run, as in
            ``from_pretrained(folder, kernel="torch")``.
        layer_types: Derived: what each layer keeps in a cache, in the words of transformers.

    The other attributes are those of the teacher's configuration.

    Raises:
        ValueError: Unknown family or kernel, ``layer_mixers`` of the wrong length, options of what is no mixer, or one
            of these names without its s.
    """

    model_type = "lit_thinkfast_hybrid"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "pre_norm_hidden_state"]

    base_model_type: str = "llama"
    layer_mixers: list[str] | None = None
    mixer_options: dict[str, dict[str, Any]] | None = None
    kernel: str = "auto"

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False
    sliding_window: int | None = None
    layer_types: list[str] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.base_model_type not in FAMILIES:
            raise ValueError(f"unknown model family {self.base_model_type!r}; known: {', '.join(FAMILIES)}")
        check_kernel(self.kernel)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.layer_mixers is None:
            self.layer_mixers = [ATTENTION] * self.num_hidden_layers
        if len(self.layer_mixers) != self.num_hidden_layers:
            raise ValueError(
                f"layer_mixers names {len(self.layer_mixers)} layers, but the model has {self.num_hidden_layers}; "
                "give one name a layer"
            )
        self.mixer_options = dict(self.mixer_options or {})
        if unknown := sorted(set(self.mixer_options) - set(MIXERS)):
            known = ", ".join(sorted(MIXERS))
            raise ValueError(
                f"mixer_options has options of {unknown[0]!r}, which is no mixer; known: {known} (a package that adds "
                "one must be imported first: --allow-import)"
            )
        if misspelt := [name for name in ("layer_mixer", "mixer_option") if name in kwargs]:
            raise ValueError(f"a configuration has no {misspelt[0]!r}; write {misspelt[0] + 's'!r}")
        self.layer_types = self._cache_types()
        super().__post_init__(**kwargs)

    @classmethod
    def published(cls, name: str) -> HybridConfig:
        """Return the configuration of a published model.

        Args:
            name: llama32_1b, llama32_3b, mamba_in_llama_1b, mamba_in_llama_3b, llamba_1b, llamba_3b or llamba_8b.

        Raises:
            ValueError: No such name.
        """
        from lit_thinkfast.models.published import published_config

        return published_config(name)

    def to_dict(self) -> dict[str, Any]:
        """Return what is saved: everything but the choice of operators of this run."""
        values: dict[str, Any] = super().to_dict()
        values.pop("kernel", None)
        return values

    def _cache_types(self) -> list[str]:
        """Which kind of cache each layer needs. A sliding window is the teacher's choice a layer, where it made one."""
        given = self.layer_types
        kept = "full_attention" if self.sliding_window is None else "sliding_attention"
        types = [kept] * self.num_hidden_layers
        if given is not None and len(given) == self.num_hidden_layers:
            types = [kept if name == "linear_attention" else name for name in given]
        mixers = self.layer_mixers or []
        return [kind if mixer == ATTENTION else "linear_attention" for kind, mixer in zip(types, mixers, strict=True)]

    @property
    def attention_layers(self) -> list[int]:
        """Indices of the layers that keep attention."""
        return [i for i, mixer in enumerate(self.layer_mixers or []) if mixer == ATTENTION]

    def options_of(self, mixer: str) -> dict[str, Any]:
        """Options of a kind of mixer, empty if there are none."""
        return (self.mixer_options or {}).get(mixer, {})
