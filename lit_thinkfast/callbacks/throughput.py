"""Tokens per second, utilisation and tokens so far, in the log.

Lightning's ``ThroughputMonitor`` is not used: it waits for the device at every batch, counts checkpoints as training,
takes functions that a config file cannot name, starts again from 0 when a run is resumed, and takes rank 0's tokens for
those of all. Nor is its table of peaks, which has no entry under the name that an H200 gives itself, and for H100 NVL
and H200 holds values with sparsity, about twice what a dense product can reach.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_thinkfast.callbacks.clock import TrainingClock, context_tokens, document_tokens
from lit_thinkfast.distill.flops import training_flops_per_token
from lit_thinkfast.records import PackedBatch

PEAK_TFLOPS = {
    "H200 NVL": 835.0,
    "H200": 989.4,
    "GH200": 989.4,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.4,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
}
"""Dense bf16 products of NVIDIA's data sheets, 10^12 operations a second, by words in the device's name."""


class Throughput(Callback):
    """Log speed and tokens so far, each ``log_every_n_steps`` and over the steps since the last time.

    - ``train/tokens_per_second``: tokens of the rows, over all ranks;
    - ``train/useful_tokens_per_second``: those that belong to documents, without what fills up the rows;
    - ``train/steps_per_second``: of the optimiser;
    - ``train/mfu``: model FLOPs utilisation (arXiv:2204.02311, app. B), the share of the devices' peak, where that is
      known. Counted are, for all tokens of the rows and with attention within documents, a forward pass of the teacher,
      one of the student, and what of the backward pass is needed for the trainable parameters. Layers computed again
      for gradient checkpointing are not counted, nor are losses. None where losses run parts of layers by themselves;
    - ``train/tokens``: tokens of the rows so far, over all ranks. Kept in checkpoints.

    Validation and checkpoints are left out of the time, waiting for data is not. The first value of a run has the
    warm-up in it.

    Args:
        peak_tflops: What one device can do, in 10^12 operations a second. By default, the dense bf16 peak of the CUDA
            device, whatever the precision of the run; none, and so no ``train/mfu``, on others.

    Raises:
        ValueError: ``peak_tflops`` is not above 0.
    """

    def __init__(self, *, peak_tflops: float | None = None) -> None:
        if peak_tflops is not None and not peak_tflops > 0:
            raise ValueError(f"peak_tflops {peak_tflops} is not above 0; leave it out where it is not known")
        self.peak_tflops = peak_tflops
        self._tokens: int | None = None
        self._clock = TrainingClock()
        self._peak: float | None = None
        self._step = 0
        self._begin(0.0)

    def _begin(self, seconds: float) -> None:
        """Start an interval between two values."""
        self._since, self._since_step = seconds, self._step
        self._rows = 0
        self._sums: Tensor | None = None  # of this rank: tokens of documents, tokens seen

    def state_dict(self) -> dict[str, Any]:
        self._clock.pause()  # comes before any callback's on_save_checkpoint, in which an export may take its time
        return {"tokens": self._tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._tokens = state_dict["tokens"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0:
            self._tokens = 0  # this object may have been through another fit
        device = trainer.strategy.root_device
        self._peak = self.peak_tflops or peak_tflops(device)
        self._clock, self._step = TrainingClock(device), trainer.global_step
        self._begin(0.0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._clock.resume()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PackedBatch, batch_idx: int
    ) -> None:
        rows = batch["input_ids"].numel() * trainer.world_size
        if self._tokens is None:  # resumed from a checkpoint without this callback
            self._tokens = rows * trainer.fit_loop.total_batch_idx
        self._tokens += rows
        self._rows += rows
        sums = torch.stack([document_tokens(batch), context_tokens(batch)])
        self._sums = sums if self._sums is None else self._sums + sums
        stepped, self._step = trainer.global_step > self._step, trainer.global_step
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not stepped or not every or self._step % every:
            return
        sums = trainer.strategy.reduce(self._sums, reduce_op="sum")  # type: ignore[assignment]
        now = self._clock.read()
        useful, seen = sums.tolist()
        seconds = max(now - self._since, 1e-9)
        values = {
            "tokens_per_second": self._rows / seconds,
            "useful_tokens_per_second": useful / seconds,
            "steps_per_second": (self._step - self._since_step) / seconds,
            "tokens": float(self._tokens),
        }
        if self._peak is not None and "layers" not in pl_module.needs:  # type: ignore[operator]
            done = self._rows * _flops_per_token(pl_module, mean_context=seen / self._rows)
            values["mfu"] = done / seconds / (self._peak * 1e12 * trainer.world_size)
        pl_module.log_dict({f"train/{name}": value for name, value in values.items()})
        self._begin(now)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clock.pause()


def peak_tflops(device: torch.device) -> float | None:
    """Return the dense bf16 peak of a device in 10^12 operations a second, or ``None`` where it is not known."""
    return named_peak(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def named_peak(name: str) -> float | None:
    """Return the peak of the device that calls itself ``name``.

    >>> named_peak("NVIDIA H100 80GB HBM3"), named_peak("NVIDIA A100-SXM4-80GB"), named_peak("NVIDIA GeForce GTX 970")
    (989.4, 312.0, None)
    """
    words = name.replace("-", " ").split()
    return next((peak for key, peak in PEAK_TFLOPS.items() if set(key.split()) <= set(words)), None)


def _flops_per_token(pl_module: LightningModule, *, mean_context: float) -> float:
    """Return the operations of a training step for one token, which sees ``mean_context`` tokens."""
    return training_flops_per_token(
        pl_module.student.config,  # type: ignore[union-attr, arg-type]
        seq_len=2 * mean_context,
        # a teacher that answers from a file has no pass to be counted
        teacher=getattr(pl_module.teacher, "config", None),
        trainable=str(pl_module.trainable),
    )
