"""Memory of a training step, by part, of models that are never allocated.

The step is run as :class:`~lit_thinkfast.distill.module.DistillationModule` runs it, with its own losses and optimiser,
on tensors of ``FakeTensorMode``; layers are stand-ins that hold what a layer of their kind was seen to hold
(:mod:`~lit_thinkfast.distill.footprint`). Rows are taken as one document each, every token of which is labelled.
Left out: what an allocator adds, and what operators hold for themselves.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from lit_thinkfast.data.arithmetic import TOKENIZER
from lit_thinkfast.distill import chunked
from lit_thinkfast.distill.footprint import Setting, StandIns, autocast, layer_arguments
from lit_thinkfast.distill.ledger import Ledger
from lit_thinkfast.distill.losses import DistillLoss
from lit_thinkfast.distill.optim import parameter_groups, select_trainable
from lit_thinkfast.distill.signals import Layers, Signals
from lit_thinkfast.mixers import Mixer
from lit_thinkfast.models.loading import load_tokenizer

if TYPE_CHECKING:
    from lit_thinkfast.models import HybridConfig
    from lit_thinkfast.records import PackedBatch

PARTS = ("weights", "gradients", "optimizer", "activations", "loss", "teacher weights", "teacher activations", "ranks")
"""Parts of the memory. ``ranks``: buckets of DDP, or the gathered weights and gradients of FSDP."""
PHASES = ("teacher", "forward", "loss", "backward", "update")
"""Phases of a step. ``forward`` and ``loss`` of earlier steps leave gradients behind until the backward pass begins."""
_FEW = 16  # tokens
_SHARDED = ("weights", "gradients", "optimizer", "teacher weights")


@dataclass(frozen=True)
class Step:
    """A training step on one device.

    Attributes:
        batch_size: Rows of a micro-batch.
        seq_len: Tokens a row.
        autocast: Type of autocast where precision is mixed, else ``None``.
        dtype: Type of the student's weights.
        teacher_dtype: Type of the teacher's weights.
        gradient_checkpointing: Of the student's layers.
        accumulate: Gradients of other micro-batches are there during the backward pass.
        ranks: Devices that work together.
        sharded: They share weights, gradients and optimiser state (FSDP2); else each has all, and DDP's buckets.
        views: DDP's buckets are where the gradients are (``gradient_as_bucket_view``), not copies of them.
        accelerator: Not on a CPU: the optimiser works on all parameters at once, and losses on as many rows as there.
    """

    batch_size: int
    seq_len: int
    autocast: torch.dtype | None = None
    dtype: torch.dtype = torch.float32
    teacher_dtype: torch.dtype = torch.float32
    gradient_checkpointing: bool = False
    accumulate: bool = False
    ranks: int = 1
    sharded: bool = False
    views: bool = False
    accelerator: bool = False


def step_memory(
    student: HybridConfig,
    teacher: HybridConfig | None,
    losses: Mapping[str, DistillLoss],
    *,
    step: Step,
    optimizer: Callable[[Any], torch.optim.Optimizer] = torch.optim.AdamW,
    trainable: str = ".*",
    weight_decay: float = 0.1,
) -> dict[str, dict[str, int]]:
    """Return the bytes of each part at the moment of each phase when most are alive.

    The step is one of many: gradients of the one before are there until the backward pass begins.

    Args:
        student: Its configuration.
        teacher: That of the teacher, or ``None``.
        losses: By name.
        step: Sizes and choices.
        optimizer: Called with parameter groups.
        trainable: Pattern of the student's parameters that are trained.
        weight_decay: Passed on in the groups.

    Returns:
        By phase of :data:`PHASES`, by part of :data:`PARTS`; phases and parts that take nothing are left out.
    """
    ledger = Ledger(dict.fromkeys(_SHARDED, 1 / step.ranks) if step.sharded else None)
    losses = {name: _ready(loss, student, step) for name, loss in losses.items()}
    with FakeTensorMode(allow_non_fake_inputs=True), _Answers():
        ours = _Model(student, step, trainable=trainable)
        theirs = None if teacher is None else _Model(teacher, step, trainable=None)
        for loss in losses.values():
            hollow(loss)
        needs = frozenset[str]().union(*(loss.needs for loss in losses.values()))
        teacher_needs = frozenset[str]().union(*(loss.asks() for loss in losses.values()))

        own = [p for loss in losses.values() for p in loss.parameters() if p.requires_grad]
        learnt = [*(p for p in ours.model.parameters() if p.requires_grad), *own]
        ledger.book([*ours.model.parameters(), *own], "weights")
        if theirs is not None:
            ledger.book(theirs.model.parameters(), "teacher weights")
        groups = parameter_groups(ours.model, weight_decay)
        if own:
            groups.append({"params": own, "weight_decay": weight_decay, "matrix": False})
        rule = optimizer(groups)
        for group in rule.param_groups:
            if step.accelerator and group.get("foreach", False) is None and not group.get("fused"):
                group["foreach"] = True
        for p in learnt:
            p.register_post_accumulate_grad_hook(lambda p: ledger.book(_gradients([p]), "gradients"))
        with ledger:
            held = _held_for_ranks(ours, theirs, learnt, step, ledger)
            # The first step, on few tokens, shows which parameters get gradients, and so a state of the optimiser.
            for tokens in (min(_FEW, step.seq_len), step.seq_len):
                ledger.forget_peaks()
                total = _forward(ours, theirs, losses, needs, teacher_needs, step, tokens, ledger)
                ledger.begin("backward", part="activations")
                if not (step.accumulate or (step.views and step.ranks > 1)):
                    rule.zero_grad()
                total.backward()  # type: ignore[no-untyped-call]
                del total
                ledger.begin("update", part="optimizer")
                rule.step()
            del held
    return {phase: ledger.peaks[phase] for phase in PHASES if phase in ledger.peaks}


class _Model:
    """A model of fake tensors whose layers are stand-ins.

    Args:
        config: Its configuration.
        step: How it runs.
        trainable: Pattern of what is trained, ``None`` for a teacher.
    """

    def __init__(self, config: HybridConfig, step: Step, *, trainable: str | None) -> None:
        from lit_thinkfast.models import HybridForCausalLM

        self.config, self.step, self.frozen = config, step, trainable is None
        with torch.device("meta"):
            self.model: Any = HybridForCausalLM(config)
        hollow(self.model, dtype=step.teacher_dtype if self.frozen else step.dtype)
        self.model.requires_grad_(not self.frozen)
        if trainable is not None:
            select_trainable(self.model, trainable)
        self.setting = Setting(
            batch=step.batch_size,
            time=step.seq_len,
            autocast=step.autocast,
        )
        if step.gradient_checkpointing and not self.frozen:
            layer: Any
            for layer in self.model.model.layers:
                layer.gradient_checkpointing = True
                # states of random numbers are not fake
                layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        self.layers = StandIns(self.model.model.layers, config, self.setting)

    def signals(self, batch: PackedBatch, needs: frozenset[str]) -> Signals:
        """Do what ``read_signals`` does."""
        types = self.config.layer_types or []
        setting = replace(self.setting, time=batch["input_ids"].shape[1])
        arguments = {kind: layer_arguments(self.config, setting, kind) for kind in sorted(set(types))}
        self.layers.arguments = [arguments[kind] for kind in types]
        layers = _Layers(self.layers, self.config) if "layers" in needs else None
        if needs == {"layers"}:
            return Signals(layers=layers)
        hidden = self.model.model.embed_tokens(batch["input_ids"])
        states = [hidden]
        for index in range(len(self.layers)):
            hidden = self.layers.run(index, hidden)
            if "hidden_states" in needs:
                states.append(hidden)
        return Signals(
            last_hidden=self.model.model.norm(hidden),
            head=self.model.lm_head.weight,
            hidden_states=tuple(states) if "hidden_states" in needs else None,
            layers=layers,
        )

    def gathered(self) -> list[int]:
        """Numbers of weights that FSDP holds whole: the unit around the layers, and two of these."""
        sizes = [sum(p.numel() for p in layer.parameters()) for layer in self.layers.layers]
        rest = sum(p.numel() for p in self.model.parameters()) - sum(sizes)
        return [rest, *sorted(sizes)[-2:]]


class _Layers(Layers):
    def __init__(self, layers: StandIns, config: HybridConfig) -> None:
        self._layers = layers
        self.kinds = config.layer_mixers or []

    def _run(self, index: int, hidden_states: Tensor, part: str) -> Any:
        return self._layers.run(index, hidden_states, part)


def _ready(loss: DistillLoss, student: HybridConfig, step: Step) -> DistillLoss:
    """Return a copy that knows the student, and a tokenizer: of any, losses take ids, on which no size depends."""
    from lit_thinkfast.models import HybridForCausalLM

    loss = copy.deepcopy(loss)
    if step.accelerator and getattr(loss, "chunk_tokens", 0) is None:
        loss.chunk_tokens = chunked.default_chunk("cuda", step.batch_size * step.seq_len)  # type: ignore[assignment]
    with torch.device("meta"):
        model = HybridForCausalLM(student)
    loss.setup(model, load_tokenizer(TOKENIZER))
    return loss


def _forward(
    ours: _Model,
    theirs: _Model | None,
    losses: Mapping[str, DistillLoss],
    needs: frozenset[str],
    teacher_needs: frozenset[str],
    step: Step,
    tokens: int,
    ledger: Ledger,
) -> Tensor:
    """Return the sum of the losses on a batch, as ``training_step`` does; signals are gone when it returns."""
    ledger.part = "teacher activations"
    names = ("input_ids", "labels", "position_ids", "seq_idx")
    batch: Any = {name: torch.zeros(step.batch_size, tokens, dtype=torch.long) for name in names}
    batch["seq_idx"] = batch["seq_idx"].int()
    with autocast(step.autocast):
        told = None
        if theirs is not None:
            ledger.begin("teacher")
            with torch.no_grad():
                told = theirs.signals(batch, teacher_needs)
        ledger.begin("forward", part="activations")
        said = ours.signals(batch, needs)
        ledger.begin("loss", part="loss")
        total = torch.stack([loss(said, told, batch) for loss in losses.values()]).sum()
    ours.layers.end_autocast()
    return total


def _held_for_ranks(
    ours: _Model, theirs: _Model | None, learnt: list[nn.Parameter], step: Step, ledger: Ledger
) -> list[Tensor]:
    """Allocate what devices need to work together: copies of gradients, or whole weights of what runs."""
    sizes: list[tuple[int, torch.dtype]] = []
    if step.sharded:
        whole = ours.gathered()
        sizes += [(size, step.dtype) for size in (*whole, max(whole[1:]))]  # and the gradient of a layer
        sizes += [] if theirs is None else [(size, step.teacher_dtype) for size in theirs.gathered()]
    elif step.ranks > 1 and not step.views:
        sizes += [(p.numel(), p.dtype) for p in learnt]
    with ledger.booking("ranks"):
        return [torch.empty(size, dtype=dtype) for size, dtype in sizes]


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def hollow(module: nn.Module, *, dtype: torch.dtype | None = None) -> None:
    """Replace parameters and buffers by fake ones of the same shape, in place; a mode of fake tensors must be on.

    Args:
        module: The module.
        dtype: Of the parameters, but for those that mixers keep in float32.
    """
    made: dict[int, nn.Parameter] = {}
    for part in module.modules():
        precise = part.full_precision if isinstance(part, Mixer) else ()
        for name, p in part._parameters.items():
            if p is not None:
                if id(p) not in made:
                    values = torch.empty(p.shape, dtype=p.dtype if dtype is None or name in precise else dtype)
                    made[id(p)] = nn.Parameter(values, requires_grad=p.requires_grad)
                part._parameters[name] = made[id(p)]
        for name, b in part._buffers.items():
            if b is not None:
                part._buffers[name] = torch.empty(b.shape, dtype=b.dtype)


class _Answers(TorchDispatchMode):
    """Answer what depends on values that fake tensors do not have: every label counts, and numbers are one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.nonzero.default:
            return torch.empty(args[0].numel(), args[0].ndim, dtype=torch.long)
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 1
        if func is torch.ops.aten.index.Tensor:
            args = args[0], [part for index in args[1] for part in _places(index)]
        return func(*args, **(kwargs or {}))


def _places(index: Tensor | None) -> list[Tensor | None]:
    """Of a mask, all places; an index as it is."""
    if index is None or index.dtype != torch.bool:
        return [index]
    return [torch.empty(index.numel(), dtype=torch.long) for _ in range(index.ndim)]
