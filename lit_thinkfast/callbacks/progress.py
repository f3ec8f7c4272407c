"""The progress bar of training, in optimiser steps and in tokens of the budget."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks.progress.progress_bar import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from lit_thinkfast.analysis.text import count
from lit_thinkfast.callbacks.clock import TrainingClock


class TokensProgress(ProgressBar):
    """A progress bar over optimiser steps, with tokens done of the budget, tokens per second and the time left.

    Tokens are those of the rows, over all ranks. The budget is what ``max_steps`` come to, at the present batch size.
    Validation and checkpoints are left out of the speed, which is that of the last 64 batches. Where standard error is
    not a terminal, a line is printed now and then instead.

    Args:
        refresh_seconds: Time between updates of the bar.
        line_seconds: Time between lines where there is no terminal.
    """

    def __init__(self, *, refresh_seconds: float = 0.5, line_seconds: float = 30.0) -> None:
        super().__init__()
        self.refresh_seconds = refresh_seconds
        self.line_seconds = line_seconds
        self._enabled = True
        self._console = Console(stderr=True)
        self._progress: Progress | None = None
        self._training: TaskID | None = None
        self._validating: TaskID | None = None
        self._clock = TrainingClock()
        self._recent: deque[float] = deque(maxlen=65)  # seconds at the end of each batch
        self._step = self._batches = 0  # optimiser steps, and the batches that went into them
        self._shown = 0.0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if not trainer.is_global_zero:
            self.disable()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clock = TrainingClock()
        self._recent.clear()
        self._recent.append(0.0)
        self._step, self._batches = trainer.global_step, trainer.fit_loop.total_batch_idx + 1
        if self._terminal():
            self._training = self._bar().add_task(
                "train", total=_total_steps(trainer), completed=trainer.global_step, text=""
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._clock.resume()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._recent.append(self._clock.read())
        if trainer.global_step > self._step:
            self._step, self._batches = trainer.global_step, trainer.fit_loop.total_batch_idx + 1
        now = time.perf_counter()
        total = _total_steps(trainer)
        due = self.refresh_seconds if self._terminal() else self.line_seconds
        if not self._enabled or (now - self._shown < due and trainer.global_step != total):
            return
        self._shown = now
        text = self._text(trainer, total, batch["input_ids"].numel() * trainer.world_size)
        if self._progress is not None and self._training is not None:
            self._progress.update(self._training, completed=trainer.global_step, text=text, refresh=True)
        else:
            self._console.print(f"step {trainer.global_step}/{total or '?'}  {text}", highlight=False, soft_wrap=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clock.pause()
        if self._terminal() and not trainer.sanity_checking:
            total = sum(trainer.num_test_batches if trainer.testing else trainer.num_val_batches)
            self._validating = self._bar().add_task(
                "test" if trainer.testing else "validate", total=int(total) if total < float("inf") else None, text=""
            )

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._progress is not None and self._validating is not None:
            self._progress.update(self._validating, advance=1, refresh=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._progress is not None and self._validating is not None:
            self._progress.remove_task(self._validating)
            self._validating = None
            if self._training is None:
                self._stop()

    on_test_start, on_test_batch_end, on_test_end = on_validation_start, on_validation_batch_end, on_validation_end

    def state_dict(self) -> dict[str, Any]:
        self._clock.pause()  # a checkpoint is being made; no other hook comes before those of an export
        return {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop()

    def _terminal(self) -> bool:
        return self._enabled and self._console.is_terminal

    def _bar(self) -> Progress:
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=16),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True, min_width=40)),
                console=self._console,
                auto_refresh=False,
            )
            self._progress.start()
        return self._progress

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._training = self._validating = None

    def _text(self, trainer: Trainer, total: int | None, tokens: int) -> str:
        """Return what stands beside the bar; ``tokens`` are those of one batch, over all ranks."""
        batches = len(self._recent) - 1
        seconds = max(self._recent[-1] - self._recent[0], 1e-9)
        done = tokens * self._batches
        parts = [f"{count(done)} tokens", f"{tokens * batches / seconds:,.0f} tokens/s"]
        if total is not None:
            left = (total - trainer.global_step) * trainer.accumulate_grad_batches
            parts[0] = f"{count(done)}/{count(done + tokens * left)} tokens"
            parts.append(f"{_clock(left * seconds / batches)} left")
        return "  ".join(
            parts + [f"{name} {value:.4g}" for name, value in _scalars(trainer.progress_bar_metrics).items()]
        )


def _total_steps(trainer: Trainer) -> int | None:
    return trainer.max_steps if trainer.max_steps > 0 else None


def _scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name.removeprefix("train/"): float(value) for name, value in metrics.items()}


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
