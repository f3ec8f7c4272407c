"""What a training run costs: parameters, arithmetic, memory, and hours on a card, from configurations alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from lit_thinkfast.distill.flops import forward_flops_per_token, training_flops_per_token
from lit_thinkfast.distill.layerwise import MatrixOrientation
from lit_thinkfast.distill.losses import DistillLoss
from lit_thinkfast.distill.memory import Step, step_memory
from lit_thinkfast.mixers import ATTENTION

if TYPE_CHECKING:
    from lit_thinkfast.models import HybridConfig


@dataclass(frozen=True)
class Gpu:
    """A card, by its data sheet.

    Attributes:
        name: What it is called.
        bf16: Dense operations a second of its tensor cores in bfloat16.
        fp32: Operations a second in float32.
        memory: Bytes as it is sold.
    """

    name: str
    bf16: float
    fp32: float
    memory: float


GPUS = {
    "a100-40": Gpu("A100 40 GB", 312e12, 19.5e12, 40e9),
    "a100-80": Gpu("A100 80 GB", 312e12, 19.5e12, 80e9),
    "h100": Gpu("H100 SXM 80 GB", 989e12, 67e12, 80e9),
    "h200": Gpu("H200 SXM 141 GB", 989e12, 67e12, 141e9),
    "l40s": Gpu("L40S 48 GB", 362e12, 91.6e12, 48e9),
}
"""Cards that ``lit-thinkfast plan`` knows."""
USABLE = 0.95
"""Share of a card's memory that tensors may take; the rest is for the context of CUDA and what lies idle between."""


@dataclass(frozen=True)
class Training:
    """A run, as its configuration says.

    Attributes:
        student: Architecture of the student.
        teacher: That of the teacher, or ``None``.
        losses: By name.
        step: A micro-batch on one device.
        micro_batches: Of an optimiser step, on each device.
        steps: Optimiser steps, ``None`` if not limited.
        optimizer: Called with parameter groups.
        trainable: Pattern of what is trained.
        weight_decay: Passed on.
    """

    student: HybridConfig
    teacher: HybridConfig | None
    losses: Mapping[str, DistillLoss]
    step: Step
    micro_batches: int = 1
    steps: int | None = None
    optimizer: Callable[[Any], torch.optim.Optimizer] = torch.optim.AdamW
    trainable: str = ".*"
    weight_decay: float = 0.1


@dataclass(frozen=True)
class Costs:
    """What a run costs. Bytes are of one device.

    Attributes:
        parameters: Of the student by part, of which ``trainable``, and of the ``teacher``; ``total`` is the student's.
        flops: Operations a token, by part.
        memory: Bytes by phase and part, at each phase's peak.
        tokens_per_step: Of an optimiser step, all devices together.
        tokens: Of the whole run, or ``None``.
        tokens_per_second: Of all devices, or ``None`` without a card.
        gpu_hours: Or ``None``.
        days: Or ``None``.
        fits: Does the peak fit the card? ``None`` without one.
        remedies: What else would fit, with its peak in bytes.
    """

    parameters: dict[str, int]
    flops: dict[str, float]
    memory: dict[str, dict[str, int]]
    tokens_per_step: int
    tokens: int | None
    tokens_per_second: float | None = None
    gpu_hours: float | None = None
    days: float | None = None
    fits: bool | None = None
    remedies: dict[str, int] = field(default_factory=dict)

    @property
    def peak_phase(self) -> str:
        """The phase in which most is alive."""
        return max(self.memory, key=lambda phase: sum(self.memory[phase].values()))

    @property
    def peak(self) -> int:
        """The most bytes that are alive on a device."""
        return sum(self.memory[self.peak_phase].values())


def costs(training: Training, *, gpu: Gpu | None, utilisation: float) -> Costs:
    """Work out what a run costs.

    Args:
        training: The run.
        gpu: The card, or ``None``.
        utilisation: Share of the card's peak operations that the run reaches, above 0 and at most 1.
    """
    step = training.step
    flops = _flops(training)
    per_step = step.batch_size * step.seq_len * step.ranks * training.micro_batches
    tokens = None if training.steps is None else per_step * training.steps
    memory = memory_of(training)
    found = Costs(_parameters(training), flops, memory, per_step, tokens)
    if gpu is None:
        return found
    halves = step.autocast is not None or step.dtype != torch.float32
    speed = (gpu.bf16 if halves else gpu.fp32) * utilisation * step.ranks / sum(flops.values())
    days = None if tokens is None else tokens / speed / 86400
    fits = found.peak <= USABLE * gpu.memory
    return replace(
        found,
        tokens_per_second=speed,
        gpu_hours=None if days is None else days * 24 * step.ranks,
        days=days,
        fits=fits,
        remedies={} if fits else _remedies(training, USABLE * gpu.memory),
    )


def memory_of(training: Training) -> dict[str, dict[str, int]]:
    """Return :func:`~lit_thinkfast.distill.memory.step_memory` of a run."""
    return step_memory(
        training.student,
        training.teacher,
        training.losses,
        step=training.step,
        optimizer=training.optimizer,
        trainable=training.trainable,
        weight_decay=training.weight_decay,
    )


def _remedies(training: Training, limit: float) -> dict[str, int]:
    """Try what helps, one at a time and all together, until something fits; return each with its peak."""
    tried: dict[str, int] = {}
    together, names = training.step, []
    for name, changes in _changes(training):
        names.append(name)
        together = replace(together, **changes)
        for words, step in ((name, replace(training.step, **changes)), (" + ".join(names), together)):
            if words not in tried:
                memory = memory_of(replace(training, step=step))
                tried[words] = max(sum(parts.values()) for parts in memory.values())
                if tried[words] <= limit:
                    return tried
    return tried


def _changes(training: Training) -> Iterator[tuple[str, dict[str, Any]]]:
    step = training.step
    if step.ranks > 1 and not (step.sharded or step.views):
        yield "gradient_as_bucket_view true", {"views": True}
    if not step.gradient_checkpointing:
        yield "gradient_checkpointing true", {"gradient_checkpointing": True}
    if training.teacher is not None and step.teacher_dtype == torch.float32:
        yield "dtype bfloat16 of the teacher", {"teacher_dtype": torch.bfloat16}
    if step.ranks > 1 and not step.sharded:
        yield "strategy fsdp", {"sharded": True}
    if step.batch_size > 1:
        times = training.micro_batches * step.batch_size
        yield f"batch_size 1 with accumulate_grad_batches {times}", {"batch_size": 1, "accumulate": True}


def _parameters(training: Training) -> dict[str, int]:
    """Count the student's parameters by part; weights that are tied count once."""
    from lit_thinkfast.models import HybridForCausalLM

    with torch.device("meta"):
        model = HybridForCausalLM(training.student)
    parts: Counter[str] = Counter()
    trainable = 0
    names = training.student.layer_mixers or []
    for name, p in model.named_parameters():
        found = re.match(r"model\.layers\.(\d+)\.(\w+)", name)
        if found is None:
            part = "norms" if "norm" in name else "embeddings and head"
        elif found[2] in ("self_attn", "mixer"):
            part = names[int(found[1])]
        else:
            part = "MLP" if found[2] == "mlp" else "norms"
        parts[part] += p.numel()
        trainable += p.numel() if re.search(training.trainable, name) else 0
    counted = {**dict(parts.most_common()), "total": sum(parts.values()), "trainable": trainable}
    if training.teacher is not None:
        with torch.device("meta"):
            counted["teacher"] = sum(p.numel() for p in HybridForCausalLM(training.teacher).parameters())
    return counted


def _flops(training: Training) -> dict[str, float]:
    """Operations a token by part; of losses that run layers by themselves, an upper estimate.

    Such a loss is taken to run every layer whole, forward and backward, and stage 1 of MOHAWK to form the lower half of
    all matrices besides, the student's with gradients.
    """
    student, teacher, step = training.student, training.teacher, training.step
    length = float(step.seq_len)
    losses = training.losses.values()
    asked = [loss.asks() for loss in losses]
    parts: dict[str, float] = {}
    if teacher is not None:
        head = any("logits" in needs for needs in asked)
        parts["teacher forward"] = forward_flops_per_token(teacher, seq_len=length, head=head)
    whole = any(loss.needs != {"layers"} for loss in losses)
    head = any("logits" in loss.needs for loss in losses)
    runs = [head] if whole else []
    runs += [False for loss in losses if "layers" in loss.needs]  # each runs layers, without the head
    for head in runs:
        forward = forward_flops_per_token(student, seq_len=length, head=head)
        once = training_flops_per_token(student, seq_len=length, trainable=training.trainable, head=head)
        layers = forward_flops_per_token(student, seq_len=length, head=False) if step.gradient_checkpointing else 0.0
        for name, value in (
            ("student forward", forward), ("student backward", once - forward), ("recomputed forward", layers)
        ):  # fmt: skip
            parts[name] = parts.get(name, 0.0) + value
    if any(isinstance(loss, MatrixOrientation) for loss in losses):
        mixers = sum(name != ATTENTION for name in student.layer_mixers or [])
        width = student.num_attention_heads * (student.head_dim or 0)
        parts["matrices"] = mixers * (3 + 1) * 2.0 * width * length / 2
    return {name: value for name, value in parts.items() if value}
