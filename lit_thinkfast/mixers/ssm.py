"""What the state-space mixers share: project, convolve, scan, gate, project, for a sequence and for one token.

A subclass says how its projection is cut and which recurrence it runs. Fixed against the published code for all of
them: convolution and state restart at documents, padding leaves no trace, prefill and decoding share one recurrence.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_thinkfast.mixers.base import Mixer, States
from lit_thinkfast.mixers.conv import CausalConv1d
from lit_thinkfast.mixers.heads import real_lengths, widen
from lit_thinkfast.mixers.skinny import skinny_linear


class Projected(NamedTuple):
    """What the input projection gives, each (..., size): the gate, what is convolved, and the rest."""

    z: Tensor
    convolved: Tensor
    rest: tuple[Tensor, ...]


class StateSpaceMixer(Mixer):
    """A selective state-space mixer: ``out_proj(gate(scan(conv(x)), z))``.

    Subclasses make ``in_proj``, ``conv1d`` and ``out_proj`` and set ``activate``. The recurrence runs in float32 at
    least under any autocast: decays close to one do not survive bfloat16.
    """

    in_proj: nn.Linear
    conv1d: CausalConv1d
    out_proj: nn.Linear
    activate = True
    """Is the convolution followed by SiLU?"""

    @abstractmethod
    def project(self, hidden_states: Tensor) -> Projected:
        """(..., d) -> the parts of the input projection."""

    @abstractmethod
    def scan(
        self,
        conv_out: Tensor,
        rest: tuple[Tensor, ...],
        *,
        mask: Tensor | None,
        seq_idx: Tensor | None,
        state: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Run the recurrence over (b, t, ...); return y (b, t, inner) and the last state.

        ``mask`` (b, t, 1) is zero at padding, which must leave the state as it is.
        """  # fmt: skip

    @abstractmethod
    def scan_token(self, conv_out: Tensor, rest: tuple[Tensor, ...], state: Tensor) -> Tensor:
        """Run the recurrence for one token, (b, ...) -> y (b, inner), bringing ``state`` forward in place."""

    def gate(self, y: Tensor, z: Tensor) -> Tensor:
        """Gate y (..., inner) by z, in the type of y."""
        return y * functional.silu(z.to(y.dtype))

    def mix(
        self, hidden_states: Tensor, *, states: States | None, attention_mask: Tensor | None, seq_idx: Tensor | None
    ) -> tuple[Tensor, States]:
        z, convolved, rest = self.project(hidden_states)
        mask = None if attention_mask is None else attention_mask[..., None].to(convolved.dtype)
        if mask is not None:
            convolved = convolved * mask
        before = None if states is None else states.conv
        conv_out = self.conv1d(convolved, seq_idx=seq_idx, initial_state=before)
        state = None if states is None else states.state
        with torch.autocast(hidden_states.device.type, enabled=False):
            y, state = self.scan(self._activated(conv_out), rest, mask=mask, seq_idx=seq_idx, state=state)
            y = self.gate(y, z)
        out = self.out_proj(y.to(hidden_states.dtype))
        lengths = None if attention_mask is None else real_lengths(attention_mask)
        return out, States(self.conv1d.last_inputs(convolved, initial_state=before, lengths=lengths), state)

    def step(self, hidden_states: Tensor, states: States) -> Tensor:
        if self.kernel == "reference":
            return super().step(hidden_states, states)
        z, convolved, rest = self.project(hidden_states)
        conv_out = self.conv1d.step(convolved, states.conv)
        with torch.autocast(hidden_states.device.type, enabled=False):
            y = self.gate(self.scan_token(self._activated(conv_out), rest, states.state), z)
        return skinny_linear(self.out_proj, y.to(hidden_states.dtype))

    def conv_outputs(
        self, hidden_states: Tensor, attention_mask: Tensor | None, seq_idx: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
        """What the recurrence reads in a sequence from its start: for :meth:`Mixer.matrix`, and to look inside."""
        _, convolved, rest = self.project(hidden_states)
        mask = None if attention_mask is None else attention_mask[..., None].to(convolved.dtype)
        convolved = convolved if mask is None else convolved * mask
        return self._activated(self.conv1d(convolved, seq_idx=seq_idx)), rest, mask

    def _activated(self, conv_out: Tensor) -> Tensor:
        return widen(functional.silu(conv_out) if self.activate else conv_out)


def check_range(**values: Any) -> None:
    """Raise ``ValueError`` unless ``0 < low <= high`` for the two values, named as the user names them."""
    (low_name, low), (high_name, high) = values.items()
    if not 0 < low <= high:
        raise ValueError(f"need 0 < {low_name} <= {high_name}, got {low} and {high}")


def check_at_least(minimum: int, why: str = "", **values: int | None) -> None:
    """Raise ``ValueError`` for a value, named as the user names it, below ``minimum``; ``None`` is never below."""
    for name, value in values.items():
        if value is not None and value < minimum:
            raise ValueError(f"{name} {value} is too small; it must be at least {minimum}{why}")
