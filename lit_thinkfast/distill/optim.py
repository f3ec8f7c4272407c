"""Which parameters decay, and how the learning rate moves."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters of ``model`` into hidden weight matrices, other weights, and what does not decay.

    No decay on anything of fewer than two dimensions (norm weights, biases, and a mixer's ``A_log``, ``D``,
    ``dt_bias``), nor on parameters that a module marks with a true ``_no_weight_decay``, as state-space layers do.
    Decaying them would pull every head's memory towards one length. The matrices of hidden layers carry
    ``matrix=True``, for optimisers such as :class:`~lit_thinkfast.distill.muon.Muon` that treat them apart;
    embeddings, output heads and convolutions do not.

    Raises:
        ValueError: No parameter is trainable, or the decay is negative.
    """
    if weight_decay < 0:
        raise ValueError(f"weight_decay must not be negative, got {weight_decay}")
    heads: list[Any] = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    if (output := getattr(model, "get_output_embeddings", None)) is not None:
        heads.append(output())
    ends = {id(m.weight) for m in heads if m is not None}
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": weight_decay, "matrix": True},
        {"params": [], "weight_decay": weight_decay, "matrix": False},
        {"params": [], "weight_decay": 0.0, "matrix": False},
    ]
    for p in model.parameters():
        if p.requires_grad:
            spared = p.ndim < 2 or getattr(p, "_no_weight_decay", False)
            groups[2 if spared else 1 if p.ndim > 2 or id(p) in ends else 0]["params"].append(p)
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError("no parameter is trainable; loosen the pattern `trainable`")
    return groups


@runtime_checkable
class Schedule(Protocol):
    """A learning rate as a multiple of the optimiser's own."""

    def multiplier(self, step: int, total_steps: int) -> float:
        """Return the multiple for the step of index ``step``, from 0 to ``total_steps - 1``."""


class WarmupStableDecay:
    """Linear warm-up, a plateau, linear decay (MOHAWK's schedule, arXiv:2408.10189).

    Args:
        warmup: Steps of warm-up: an ``int`` counts steps, a ``float`` below 1 is a share of all steps.
        decay: Steps of decay at the end, in the same units.
        floor: Multiple reached at the end.
    """

    def __init__(self, *, warmup: int | float = 0.1, decay: int | float = 0.1, floor: float = 0.0) -> None:
        self.warmup = _checked_span("warmup", warmup)
        self.decay = _checked_span("decay", decay)
        self.floor = floor

    def multiplier(self, step: int, total_steps: int) -> float:
        """Rise as ``(step + 1) / warmup``, stay at 1, fall to ``floor`` at ``total_steps``.

        >>> schedule = WarmupStableDecay(warmup=2, decay=4)
        >>> [schedule.multiplier(step, 8) for step in range(8)]
        [0.5, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
        """
        warmup, decay = _steps(self.warmup, total_steps), _steps(self.decay, total_steps)
        rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
        fall = min(1.0, max(0.0, (total_steps - step) / decay)) if decay else 1.0
        return min(rise, self.floor + (1 - self.floor) * fall)


class WarmupCosine:
    """Linear warm-up, then half a cosine (Loshchilov and Hutter, 2017, arXiv:1608.03983).

    Args:
        warmup: Steps of warm-up: an ``int`` counts steps, a ``float`` below 1 is a share of all steps.
        floor: Multiple reached at the end.
    """

    def __init__(self, *, warmup: int | float = 0.03, floor: float = 0.0) -> None:
        self.warmup = _checked_span("warmup", warmup)
        self.floor = floor

    def multiplier(self, step: int, total_steps: int) -> float:
        """Rise as ``(step + 1) / warmup``, then fall to ``floor`` at ``total_steps``.

        >>> schedule = WarmupCosine(warmup=2)
        >>> [round(schedule.multiplier(step, 6), 4) for step in range(6)]
        [0.5, 1.0, 1.0, 0.8536, 0.5, 0.1464]
        """
        warmup = _steps(self.warmup, total_steps)
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))


def lambda_lr(optimizer: Optimizer, schedule: Schedule, total_steps: int) -> LambdaLR:
    """Return ``schedule`` as a scheduler to be stepped once after each optimiser step."""
    # A plain function, because the state of a callable object would be written into every checkpoint.
    return LambdaLR(optimizer, lambda step: schedule.multiplier(step, total_steps))


def select_trainable(model: nn.Module, pattern: str) -> None:
    """Freeze every parameter of ``model`` whose name ``pattern`` (a regular expression, searched) does not match.

    Raises:
        ValueError: The pattern matches no parameter.
    """
    names: Iterable[tuple[str, nn.Parameter]] = list(model.named_parameters())
    matched = {name for name, _ in names if re.search(pattern, name)}
    if not matched:
        raise ValueError(f"trainable={pattern!r} matches no parameter; names look like {next(iter(names))[0]!r}")
    for name, parameter in names:
        parameter.requires_grad_(name in matched)


def _checked_span(name: str, value: int | float) -> int | float:
    if value < 0 or (isinstance(value, float) and value > 1):
        raise ValueError(f"{name} is a number of steps (int) or a share between 0.0 and 1.0, got {value}")
    return value


def _steps(span: int | float, total_steps: int) -> int:
    return span if isinstance(span, int) else round(span * total_steps)
