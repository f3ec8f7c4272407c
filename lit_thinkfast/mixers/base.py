"""What every mixer promises, the table of mixers, and the one place that touches a cache layer's states.

A mixer replaces the self-attention of one decoder layer. It maps (b, t, d) to (b, t, d), causally, and remembers
the past in two tensors of constant size: the last inputs of its convolution and a recurrent state.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import Cache

    from lit_thinkfast.mixers.matrices import MixingMatrix

ATTENTION = "attention"
"""The name in ``layer_mixers`` of a layer that keeps the teacher's attention."""

MIXERS: dict[str, type[Mixer]] = {}
"""The mixers that a configuration may name."""


class StateShapes(NamedTuple):
    """Shapes, without the batch axis, of what a mixer remembers.

    Attributes:
        conv: (channels, kernel - 1), inputs of the convolution, oldest first; (0, 0) for a mixer that has none.
        state: Recurrent state, kept in float32 at least.
    """

    conv: tuple[int, int]
    state: tuple[int, ...]


class States(NamedTuple):
    """What a mixer remembers: ``conv`` (b, channels, kernel - 1) and the recurrent ``state`` (b, ...)."""

    conv: Tensor
    state: Tensor


class Mixer(nn.Module, ABC):
    """A causal sequence mixer in the place of attention.

    A subclass is built as ``MixerClass(config, layer_idx, **options)``; its options are keyword-only parameters of its
    constructor and are stored in the model's configuration. It says how tokens are mixed (:meth:`mix`); caches are this
    class's business.

    Args:
        config: A decoder configuration; ``kernel``, if it has one, says which operators run: ``"auto"``, ``"torch"``
            or ``"reference"``.
        layer_idx: Place in the decoder, and in a cache.
    """

    full_precision: tuple[str, ...] = ()
    """Names of own parameters that stay in float32 when the model is cast to a smaller type."""

    free_options: tuple[str, ...] = ()
    """Options of initial values and speed: mixers that keep their weights in another conversion may be given others."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.kernel: str = getattr(config, "kernel", "auto")

    def forward(
        self,
        hidden_states: Tensor,
        *,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        seq_idx: Tensor | None = None,
    ) -> Tensor:
        """Mix along time, a single token after others by :meth:`step` where nothing is learnt, else by :meth:`mix`.

        Args:
            hidden_states: (b, t, d), normalised input of the block.
            past_key_values: Cache whose layer for this mixer is read and brought forward by t tokens.
            attention_mask: (b, t), zero at padding, which then leaves states and other positions untouched.
            seq_idx: (b, t) document of each token; convolution and state restart where it changes.

        Returns:
            (b, t, d).

        Raises:
            ValueError: No rows or no tokens.
        """
        if not hidden_states.numel():
            raise ValueError(f"no tokens to mix: hidden_states have shape {tuple(hidden_states.shape)}")
        states = read_states(past_key_values, self.layer_idx)
        one = hidden_states.shape[1] == 1 and attention_mask is None
        if states is not None and one and not torch.is_grad_enabled() and self.kernel != "reference":
            out = self.step(hidden_states[:, 0], states)[:, None]
        else:
            out, states = self.mix(hidden_states, states=states, attention_mask=attention_mask, seq_idx=seq_idx)
        if past_key_values is not None:
            write_states(past_key_values, self.layer_idx, states, num_tokens=hidden_states.shape[1])
        return out

    @abstractmethod
    def mix(
        self, hidden_states: Tensor, *, states: States | None, attention_mask: Tensor | None, seq_idx: Tensor | None
    ) -> tuple[Tensor, States]:
        """Mix many tokens: (b, t, d) -> (b, t, d) and the states after the last of them.

        Args:
            hidden_states: As in :meth:`forward`.
            states: Those before the first token, or ``None`` at the start. Not changed.
            attention_mask: As in :meth:`forward`.
            seq_idx: As in :meth:`forward`, never with ``states``.
        """

    def step(self, hidden_states: Tensor, states: States) -> Tensor:
        """Mix one token, (b, d) -> (b, d), bringing ``states`` forward in place. By default through :meth:`mix`."""
        out, after = self.mix(hidden_states[:, None], states=states, attention_mask=None, seq_idx=None)
        for own, new in zip(states, after, strict=True):
            own.copy_(new)
        return out[:, 0]

    def mixing_matrix(
        self, hidden_states: Tensor, *, attention_mask: Tensor | None = None, seq_idx: Tensor | None = None
    ) -> MixingMatrix:
        """Return what stands where the attention matrix stood, as MOHAWK's first stage compares it.

        Raises:
            ValueError: This mixer has no such matrix.
        """
        raise ValueError(f"a {type(self).__name__} has no matrix for each head; match hidden states instead")

    def matrix(
        self, hidden_states: Tensor, *, attention_mask: Tensor | None = None, seq_idx: Tensor | None = None
    ) -> Tensor:
        """Return the matrices of :meth:`mixing_matrix` whole, (b, h, t, t): for short texts, to look at."""
        return self.mixing_matrix(hidden_states, attention_mask=attention_mask, seq_idx=seq_idx).rows(
            0, hidden_states.shape[1]
        )

    @abstractmethod
    def reset_parameters(self) -> None:
        """Give all parameters fresh values, as for training from scratch."""

    @abstractmethod
    def init_from_attention(self, attention: nn.Module) -> None:
        """Copy what can be copied from an attention module with ``{q,k,v,o}_proj``.

        Raises:
            ValueError: Its heads have no place here.
        """

    def init_mohawk(self) -> None:
        """Start neutrally, as before MOHAWK's first stage: open gate, identity convolution.

        Raises:
            ValueError: This mixer has no such start.
        """
        raise ValueError(
            f"a {type(self).__name__} has no neutral start: nothing opens its gate; use init 'attention' or 'random', "
            "or the mixer discrete_mamba2"
        )

    @classmethod
    @abstractmethod
    def state_shapes(cls, config: Any, options: Mapping[str, Any]) -> StateShapes:
        """Return the shapes of the states of one sequence, for preallocation."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        # ``model.bfloat16()`` and the like must not round decays: take the unrounded values along.
        kept = {name: getattr(self, name).detach() for name in self.full_precision}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, values in kept.items():
            parameter = getattr(self, name)
            if parameter.dtype in (torch.bfloat16, torch.float16) and not values.is_meta:
                parameter.data = values.to(parameter.device, torch.float32)
        return self


def mixer_class(name: str) -> type[Mixer]:
    """Return the class of a mixer by its name.

    Raises:
        ValueError: No mixer of that name.
    """
    if name not in MIXERS:
        known = ", ".join(sorted({ATTENTION, *MIXERS}))
        remedy = "a package that adds one must be imported first: --allow-import"
        raise ValueError(f"unknown mixer {name!r}; known: {known} ({remedy})")
    return MIXERS[name]


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Check that a mixer knows all options, and that each has the type of its annotation.

    Raises:
        ValueError: An option is unknown, or of another type.
    """
    constructor = mixer_class(name).__init__
    parameters = inspect.signature(constructor).parameters.values()
    known = sorted(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"mixer {name!r} has no option {unknown[0]!r}; its options: {', '.join(known)}")
    try:
        types = get_type_hints(constructor)
    except NameError:  # a mixer of another package names types that only type checkers see
        return
    for option, value in options.items():
        if not _fits(value, wanted := types.get(option, Any)):
            raise ValueError(
                f"option {option!r} of mixer {name!r} is {value!r}; give it as {inspect.formatannotation(wanted)}"
            )


def _fits(value: Any, wanted: Any) -> bool:
    """Is the value of a plain type, or of one of several? Other annotations are left to the mixer."""
    if get_origin(wanted) in (Union, UnionType):
        return any(_fits(value, part) for part in get_args(wanted))
    if get_origin(wanted) is Literal:
        return any(value == part and type(value) is type(part) for part in get_args(wanted))
    if wanted not in (bool, int, float, str, NoneType):
        return True
    if isinstance(value, bool):
        return wanted is bool
    return isinstance(value, (int, float) if wanted is float else wanted)


def read_states(cache: Cache | None, layer_idx: int) -> States | None:
    """Return the states that a cache holds for a layer, or ``None`` before the first token.

    Caches of transformers and ours share this layout; it is not a documented interface, hence this one reader.
    """
    if cache is None:
        return None
    layer = cache.layers[layer_idx]
    if not layer.has_previous_state[0]:
        return None
    return States(layer.conv_states[0], layer.recurrent_states[0])


def write_states(cache: Cache, layer_idx: int, states: States, *, num_tokens: int) -> None:
    """Store states after ``num_tokens`` more tokens. Tensors that are the cache's own have been updated in place."""
    layer = cache.layers[layer_idx]
    if layer.conv_states[0] is not states.conv:
        layer.update_conv_state(states.conv)
    if layer.recurrent_states[0] is not states.state:
        layer.update_recurrent_state(states.state)
    layer.num_tokens = getattr(layer, "num_tokens", 0) + num_tokens
