"""What a decoder layer holds while it runs forward and backward, and a stand-in that holds as much at no work.

A layer is run once for each kind on tensors of ``FakeTensorMode``, so that what autograd keeps is not guessed: the
operators of the package, its scans and torch's attention are counted as they are. In a model of many layers, all of
them are then stand-ins.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_thinkfast.distill.ledger import Ledger

if TYPE_CHECKING:
    from lit_thinkfast.models import HybridConfig

_LENGTHS = (128, 256)  # tokens at which layers run; beyond, what they hold goes on along a line


@dataclass(frozen=True)
class Footprint:
    """Bytes of one layer on one batch, its parameters, input and output not counted.

    Attributes:
        kept: From the forward to the backward pass.
        casts: Weights in the type of autocast, kept until its context ends.
        forward: At most in the forward pass, ``kept`` and ``casts`` among them.
        backward: At most in the backward pass, beyond ``kept``, gradients among them.
        keeps_input: The input is kept too.
        learning: Which parameters get a gradient, in order.
    """

    kept: int
    casts: int
    forward: int
    backward: int
    keeps_input: bool
    learning: tuple[bool, ...]


@dataclass(frozen=True)
class Setting:
    """How layers run.

    Attributes:
        batch: Rows.
        time: Tokens a row, one document.
        autocast: Type of autocast, or ``None``.
    """

    batch: int
    time: int
    autocast: torch.dtype | None = None


def measure(layer: nn.Module, config: HybridConfig, setting: Setting, *, gradient: bool, part: str) -> Footprint:
    """Run a layer forward, and backward if anything is learnt, and say what it held.

    Args:
        layer: A decoder layer of fake tensors, whose mode is on.
        config: Its model's.
        setting: How it runs.
        gradient: Its input has a gradient.
        part: ``block`` or ``mixed``.
    """
    window = config.sliding_window
    if setting.time <= _LENGTHS[1] or (window is not None and window < setting.time):
        return _run(layer, config, setting, gradient=gradient, part=part)
    low, high = (_run(layer, config, replace(setting, time=time), gradient=gradient, part=part) for time in _LENGTHS)
    further = (setting.time - _LENGTHS[1]) / (_LENGTHS[1] - _LENGTHS[0])
    line = {
        name: round(getattr(high, name) + further * (getattr(high, name) - getattr(low, name)))
        for name in ("kept", "casts", "forward", "backward")
    }
    return replace(high, **line)


def layer_arguments(config: HybridConfig, setting: Setting, layer_type: str) -> dict[str, Any]:
    """Return what a layer is called with besides hidden states, for rows of one document."""
    from lit_thinkfast.models.attention import Documents, Visibility

    angles = torch.empty(setting.batch, setting.time, config.head_dim or 0)
    visible = Visibility(documents=Documents([setting.time] * setting.batch))
    if layer_type == "sliding_attention" and (config.sliding_window or setting.time) < setting.time:
        mask = torch.ones(1, 1, setting.time, setting.time, dtype=torch.bool)
        visible = Visibility(mask=mask, causal=False)
    return {"visible": visible, "position_embeddings": (angles, angles), "seq_idx": None}


def _run(layer: nn.Module, config: HybridConfig, setting: Setting, *, gradient: bool, part: str) -> Footprint:
    arguments = layer_arguments(config, setting, (config.layer_types or [])[_place(layer)])
    dtype = next(layer.parameters()).dtype
    leaf = torch.empty(setting.batch, setting.time, config.hidden_size, dtype=dtype, requires_grad=gradient)
    ledger = Ledger()
    parameters = [p for p in layer.parameters()]
    ledger.book([*parameters, leaf, *arguments["position_embeddings"]], "outside")
    with ledger:
        with autocast(setting.autocast):
            x = leaf.clone()
            before = ledger.total
            ledger.begin("forward")
            out = layer(x, **arguments, part=part)
            size = out.untyped_storage().nbytes()
            highest = ledger.peak("forward") - before - size
            inside = ledger.total
        casts = inside - ledger.total
        kept = ledger.total - before - size
        assert isinstance(out, Tensor)
        with_input = ledger.total
        input_size = x.untyped_storage().nbytes()
        del x
        keeps_input = ledger.total > with_input - input_size
        backward = 0
        if out.requires_grad:
            gradient_of_output = torch.empty_like(out)
            before = ledger.total
            ledger.begin("backward")
            torch.autograd.backward([out], [gradient_of_output])
            backward = ledger.peak("backward") - before
    learning = tuple(p.grad is not None for p in parameters)
    for p in parameters:
        p.grad = None
    return Footprint(kept, casts, highest, backward, keeps_input, learning)


def _place(layer: nn.Module) -> int:
    inner: Any = layer.self_attn if layer.is_attention else layer.mixer
    return int(inner.layer_idx)


def autocast(dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    """Autocast to ``dtype`` on the CPU, where fake tensors are, or none."""
    return contextlib.nullcontext() if dtype is None else torch.autocast("cpu", dtype)


class StandIns:
    """Layers that hold what real ones hold.

    Args:
        layers: The layers, of fake tensors.
        config: Their model's.
        setting: How they run.
    """

    def __init__(self, layers: Iterable[nn.Module], config: HybridConfig, setting: Setting) -> None:
        self.layers = list(layers)
        self.config, self.setting = config, setting
        self.arguments: list[dict[str, Any]] = []
        """What real layers are called with, see :func:`layer_arguments`."""
        self._known: dict[tuple[Any, ...], Footprint] = {}
        self._casts: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.layers)

    def end_autocast(self) -> None:
        """Free what autocast holds until its context ends."""
        self._casts.clear()

    def _footprint(self, index: int, *, gradient: bool, part: str) -> Footprint:
        layer = self.layers[index]
        learnt = tuple(p.requires_grad for p in layer.parameters())
        learning = torch.is_grad_enabled() and (gradient or any(learnt))
        kind = ((self.config.layer_mixers or [])[index], (self.config.layer_types or [])[index])
        key = (kind, part, learnt if learning else (), gradient and learning, learning)
        if key not in self._known:
            self._known[key] = measure(layer, self.config, self.setting, gradient=gradient, part=part)
        return self._known[key]

    def run(self, index: int, hidden_states: Tensor, part: str = "block") -> Any:
        """Stand in for a layer; of a ``matrix`` the layer itself is asked."""
        layer = self.layers[index]
        if part == "matrix":
            return layer(hidden_states, **self.arguments[index], part=part)
        footprint = self._footprint(index, gradient=hidden_states.requires_grad, part=part)
        dtype = hidden_states.dtype
        if part == "mixed" and self.setting.autocast is not None:
            dtype = self.setting.autocast
        out, casts = _Held.apply(hidden_states, footprint, dtype, *layer.parameters())
        self._casts.append(casts)
        return out


class _Held(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_states: Tensor, footprint: Footprint, dtype: torch.dtype, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        casts = _bytes(footprint.casts)
        kept = _bytes(footprint.kept)
        out = torch.empty_like(hidden_states, dtype=dtype)
        _bytes(footprint.forward - footprint.kept - footprint.casts)
        if footprint.keeps_input:
            ctx.save_for_backward(kept, hidden_states, *parameters)
        else:
            ctx.save_for_backward(kept, None, *parameters)
        ctx.input, ctx.footprint = (hidden_states.shape, hidden_states.dtype), footprint
        ctx.mark_non_differentiable(casts)
        return out, casts

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        parameters = ctx.saved_tensors[2:]
        shape, dtype = ctx.input
        learning = ctx.footprint.learning
        gradients: list[Tensor | None] = [torch.empty(shape, dtype=dtype) if ctx.needs_input_grad[0] else None]
        gradients += [torch.empty_like(p) if needed else None for p, needed in zip(parameters, learning, strict=True)]
        size = sum(g.untyped_storage().nbytes() for g in gradients if g is not None)
        _bytes(ctx.footprint.backward - size)
        first, *rest = gradients
        return first, None, None, *rest


def _bytes(size: int) -> Tensor:
    return torch.empty(max(0, size), dtype=torch.uint8)
