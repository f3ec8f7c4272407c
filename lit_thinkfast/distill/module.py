"""The LightningModule that trains a student: from data alone, or to imitate a frozen teacher.

Leaves out how the student is made (:func:`lit_thinkfast.models.convert`) and what it is fed
(:class:`lit_thinkfast.data.MathDataModule`). Hyper-parameters are not stored in checkpoints: the config file is the
record, and a checkpoint then never overrides a flag.
"""

from __future__ import annotations

import logging
import re
from typing import Any, get_args

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_thinkfast.distill.evaluation import Evaluator
from lit_thinkfast.distill.losses import DistillLoss, held_out_measures
from lit_thinkfast.distill.optim import Schedule, lambda_lr, parameter_groups, select_trainable
from lit_thinkfast.distill.sharding import is_sharded, shard, within
from lit_thinkfast.distill.signals import SignalName, Signals, read_signals
from lit_thinkfast.distill.students import build_student
from lit_thinkfast.distill.teachers import Teacher
from lit_thinkfast.records import PackedBatch, Problem

log = logging.getLogger(__name__)


class DistillationModule(LightningModule):
    """Train a student to imitate a frozen teacher, or from labels alone when no loss needs a teacher.

    Pass other losses to change what is compared; override :meth:`shared_step` to change what is computed; set
    ``trainable`` to change what is learnt. The gradient of a step is that of the mean over all tokens of its
    micro-batches on all ranks, whatever their masks. That is exact where all losses average over the same tokens;
    otherwise micro-batches count by the tokens of the first one. With several micro-batches a step, other callbacks'
    ``on_before_optimizer_step`` sees gradients of sums, which are divided after them.

    Strategies: one device, DDP, and ``ModelParallelStrategy`` (FSDP2), under which the student's layers and, apart from
    them, the teacher's are spread over the ranks.

    Logs ``train/loss`` (the weighted sum), ``train/loss_<name>`` (unweighted), ``train/grad_norm`` before clipping,
    ``train/lr``; in validation ``val/loss_<name>`` and, with a teacher, ``val/kl`` (teacher || student, nats a token at
    temperature 1; ``val/kl_top_k``, a bound below it, with a cached teacher) and ``val/top1_agreement``, all token
    means over the held-out set on all ranks; with an evaluator, what it computes, such as ``val/coverage@4``. In a test
    the same of what it is given, under ``test/``.

    Args:
        student: Hugging Face folder or hub id. A folder with a config and no weights is freshly initialised.
        losses: What is minimised, by name. Parameters of their own are trained along.
        teacher: Who is imitated. It is loaded by ``setup``, never trained, and no part of checkpoints.
        weights: Weight of each loss by name; 1 where none is given.
        trainable: Regular expression searched in the student's parameter names; the others are frozen.
        optimizer: Called with the parameter groups; AdamW by default. Its own ``weight_decay`` is overridden by the
            argument below.
        weight_decay: Decay of matrices; norms, biases and the recurrences' ``A_log``, ``D``, ``dt_bias`` have none.
        schedule: Learning-rate schedule over ``trainer.max_steps``; constant when absent.
        evaluator: Samples answers to the data module's problems in validation and measures them.
        seed: Seed of a fresh student.
        compile: Compile the student's layers.
        gradient_checkpointing: Keep only layer inputs and compute the rest again in the backward pass.

    Raises:
        ValueError: No losses, a weight without a loss, a loss that needs a teacher without one; later, at setup, a
            teacher whose vocabulary differs, or what cannot be had with sharded weights.
    """

    student: Any
    teacher: Teacher | None

    def __init__(
        self,
        student: str,
        *,
        losses: dict[str, DistillLoss],
        teacher: Teacher | None = None,
        weights: dict[str, float] | None = None,
        trainable: str = ".*",
        optimizer: OptimizerCallable | None = None,
        weight_decay: float = 0.1,
        schedule: Schedule | None = None,
        evaluator: Evaluator | None = None,
        seed: int = 0,
        compile: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        _check_losses(losses, weights or {}, teacher)
        try:
            re.compile(trainable)
        except re.error as error:
            raise ValueError(f"trainable={trainable!r} is not a regular expression: {error}") from None
        self.student_path = student
        self.losses = nn.ModuleDict(losses)
        self.weights = {name: (weights or {}).get(name, 1.0) for name in losses}
        # Not by assignment: a teacher that is a torch module would become part of this one and of its checkpoints.
        self.__dict__["teacher"] = teacher
        self.trainable = trainable
        # as a default in the signature, its options would leak into a config that names another class
        self.optimizer: OptimizerCallable = torch.optim.AdamW if optimizer is None else optimizer
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.evaluator = evaluator
        self.seed = seed
        self.compile_layers = compile
        self.gradient_checkpointing = gradient_checkpointing
        self.needs = frozenset[str]().union(*(loss.needs for loss in losses.values()))
        self.teacher_needs = frozenset[str]().union(*(loss.asks() for loss in losses.values()))
        self.student = None
        self._problem_ids: dict[str, int] = {}
        self._sums: Tensor | None = None
        """Of the micro-batches of a step so far: tokens, and times the tokens the total and each loss."""

    def configure_model(self) -> None:
        if self.student is not None:
            return
        student = build_student(self.student_path, seed=self.seed)
        select_trainable(student, self.trainable)
        if self.gradient_checkpointing:
            student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if self.compile_layers:
            # In place: compiling the module itself would rename every key of the checkpoint.
            for layer in student.base_model.layers:
                layer.compile()
        if (mesh := self._mesh()) is not None:
            if any(True for _ in self.losses.parameters()):
                raise ValueError("a loss with parameters of its own cannot be sharded; use the strategy ddp")
            shard(student, mesh)
        self.student = student

    def setup(self, stage: str) -> None:
        self.configure_model()
        for loss in self.losses.values():
            loss.setup(self.student, getattr(self._data(), "tokenizer", None))  # type: ignore[operator]
        if self.teacher is None:
            return
        # The device of this process; the module itself is moved only after setup.
        ours, theirs = self.student.config.vocab_size, self.teacher.vocab_size()
        if ours != theirs:
            raise ValueError(
                f"the teacher {self.teacher} has a vocabulary of {theirs} and the student of {ours}; "
                "distillation on logits needs rows for the same tokens (pad the smaller with resize_token_embeddings)"
            )
        device, mesh = self.trainer.strategy.root_device, self._mesh()
        self.teacher.load(device) if mesh is None else self.teacher.load(device, mesh=mesh)

    def on_fit_start(self) -> None:
        if getattr(self._data(), "problem_set", None):
            self._check_problems()
        # transformers loads in eval mode and Lightning keeps whatever mode it finds.
        self.student.train()

    def on_train_start(self) -> None:
        batches, together = self.trainer.num_training_batches, self.trainer.accumulate_grad_batches
        if batches != float("inf") and batches % together and self.trainer.is_global_zero:
            log.warning(
                "an epoch of %d batches ends with a step of %d instead of %d; for equal steps make it a multiple "
                "(data.steps_per_epoch)",
                batches,
                batches % together,
                together,
            )

    def shared_step(
        self, batch: PackedBatch, *, also: frozenset[str] = frozenset()
    ) -> tuple[dict[str, Tensor], Signals, Signals | None]:
        """Return each unweighted loss by name, and the signals they were computed from.

        Args:
            batch: Packed rows.
            also: Signals wanted besides those that losses need.
        """
        teacher = None if self.teacher is None else self.teacher.signals(batch, self.teacher_needs | also)
        student = read_signals(self.student, batch, needs=self.needs | also)
        values = {name: loss(student, teacher, batch) for name, loss in self.losses.items()}
        for name, value in values.items():
            if value.ndim:
                kind, shape = type(self.losses[name]).__name__, tuple(value.shape)
                raise ValueError(f"the loss {name!r} ({kind}) gave a tensor of shape {shape}; a loss is one number")
        return values, student, teacher

    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        values, _, _ = within(self.student, lambda: self.shared_step(batch))
        total = torch.stack([self.weights[name] * value for name, value in values.items()]).sum()
        means = torch.stack([total, *values.values()]).detach()
        if self._micro_batches() == 1:
            self._log_losses(means)
            return total
        # Sums add up over micro-batches where means do not; the number of tokens divides before the optimiser's step.
        first: Any = next(iter(self.losses.values()))
        tokens: Tensor = first.tokens(batch).to(total.dtype)
        sums = torch.cat([tokens[None], means * tokens])
        self._sums = sums if self._sums is None else self._sums + sums
        return total * tokens

    def _log_losses(self, means: Tensor) -> None:
        """Log the total and, of several losses, each."""
        self.log("train/loss", means[0], prog_bar=True)
        if len(self.losses) > 1:
            self.log_dict({f"train/loss_{name}": mean for name, mean in zip(self.losses, means[1:], strict=True)})

    def _micro_batches(self) -> int:
        """How many micro-batches, over all ranks, an optimiser step has."""
        return self.trainer.accumulate_grad_batches * self.trainer.world_size

    def validation_step(self, batch: PackedBatch | list[Problem], batch_idx: int, dataloader_idx: int = 0) -> None:
        if isinstance(batch, list):
            self._evaluate(batch)
            return
        logged = within(self.student, lambda: self._held_out(batch))
        labels = (batch["labels"][:, 1:] != -100).sum()
        averaged: dict[str, Any] = {f"loss_{name}": loss.tokens(batch) for name, loss in self.losses.items()}  # type: ignore[operator]
        headline = "kl" if "kl" in logged else next(iter(logged))
        for name, value in logged.items():
            self.log(
                self._key(name),
                value,
                # times the ranks, because Lightning averages this weight over them and cuts it off to an integer
                batch_size=int(averaged.get(name, labels)) * self.trainer.world_size,
                sync_dist=True,
                add_dataloader_idx=False,
                prog_bar=name == headline,
            )

    def _held_out(self, batch: PackedBatch) -> dict[str, Tensor]:
        values, student, teacher = self.shared_step(batch, also=frozenset({"logits"}))
        measured = {} if teacher is None else held_out_measures(student, teacher, batch)
        return {**{f"loss_{name}": value for name, value in values.items()}, **measured}

    def test_step(self, batch: PackedBatch | list[Problem], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.validation_step(batch, batch_idx, dataloader_idx)

    def on_validation_epoch_start(self) -> None:
        if not self._has_problems():
            return
        self._check_problems()
        assert self.evaluator is not None
        problems: list[Problem] = self._data().problem_set
        self._problem_ids = {problem.id: index for index, problem in enumerate(problems)}
        self.evaluator.setup(len(problems))
        self.evaluator.reset()

    def _check_problems(self) -> None:
        """Refuse problems that nobody could sample answers to."""
        if self.evaluator is None:
            raise ValueError("the data module gives problems but no evaluator is set; set one, or no problems")
        if is_sharded(self.student):
            raise ValueError(
                "sampling needs whole weights on each rank, which a sharded student has not; leave out data.problems, "
                "and evaluate the exported student instead"
            )

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def _evaluate(self, problems: list[Problem]) -> None:
        if self.trainer.sanity_checking or self.evaluator is None:
            return
        ids = [self._problem_ids[problem.id] for problem in problems]
        self.evaluator.evaluate(self.student, self._data().tokenizer, problems, ids)

    def on_validation_epoch_end(self) -> None:
        if self.evaluator is None or not self._has_problems():
            return
        # Every rank computes the same numbers: the evaluator gathers its grid.
        self.log_dict({self._key(name): value for name, value in self.evaluator.compute().items()}, sync_dist=True)

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end()

    def _key(self, name: str) -> str:
        """Return what is logged as ``name`` in validation, or in a test."""
        return f"{'test' if self.trainer.testing else 'val'}/{name}"

    def _data(self) -> Any:
        return getattr(self._trainer, "datamodule", None)  # Lightning sets it only when there is one

    def _mesh(self) -> Any:
        """Ranks over which weights are spread, if the strategy does that."""
        if self.device_mesh is None:
            return None
        if self.device_mesh["tensor_parallel"].size() != 1:
            raise ValueError(
                "ModelParallelStrategy spreads weights over data-parallel ranks alone; set tensor_parallel_size to "
                "1 and data_parallel_size to the number of devices"
            )
        return self.device_mesh["data_parallel"]

    def _has_problems(self) -> bool:
        return not self.trainer.sanity_checking and bool(getattr(self._data(), "problem_set", None))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        if self._sums is not None:
            sums: Any = self.trainer.strategy.reduce(self._sums, reduce_op="sum")
            self._sums = None
            self._log_losses(sums[1:] / sums[0].clamp(min=1))
            # Lightning has divided by the micro-batches of a rank, and the strategy by the ranks
            torch._foreach_mul_(gradients, float(self._micro_batches() / sums[0].clamp(min=1)))
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or (self.global_step + 1) % every:
            return  # Lightning writes at the last step of every n
        norm = nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if not norm.isfinite():
            raise ValueError(
                f"the gradient is not finite at step {self.global_step + 1}, and weights are lost from the first such "
                "step on; go on from a checkpoint before it with a lower learning rate, clipping or a longer warm-up"
            )
        self.log("train/grad_norm", norm)
        self.log("train/lr", optimizer.param_groups[0]["lr"])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        groups = parameter_groups(self.student, self.weight_decay)
        if any(p.requires_grad for p in self.losses.parameters()):
            groups += [{**group, "matrix": False} for group in parameter_groups(self.losses, self.weight_decay)]
        optimizer = self.optimizer(groups)
        if self.schedule is None:
            return optimizer
        total_steps = int(self.trainer.max_steps)
        if total_steps <= 0:
            raise ValueError("a schedule needs to know the number of steps; set trainer.max_steps")
        scheduler = lambda_lr(optimizer, self.schedule, total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _check_losses(losses: dict[str, DistillLoss], weights: dict[str, float], teacher: Teacher | None) -> None:
    if not losses:
        raise ValueError("losses is empty; give at least one, for example {ce: CrossEntropy}")
    if unknown := sorted(weights.keys() - losses.keys()):
        raise ValueError(f"weights names {unknown[0]!r}, which is not among the losses {', '.join(losses)}")
    for name, loss in losses.items():
        if unknown := sorted((loss.needs | loss.asks()) - set(get_args(SignalName))):
            known = ", ".join(get_args(SignalName))
            raise ValueError(f"the loss {name!r} ({type(loss).__name__}) needs {unknown[0]!r}; there are {known}")
        if loss.needs_teacher and teacher is None:
            raise ValueError(f"the loss {name!r} ({type(loss).__name__}) needs a teacher and none was given")
