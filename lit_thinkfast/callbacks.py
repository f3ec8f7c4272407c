"""Callbacks of training: exporting the student as a Hugging Face folder, progress in tokens, the config in the log."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks.progress.progress_bar import ProgressBar
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from lit_thinkfast.distill.students import check_export_target, export_folder, has_tokenizer


class ExportStudent(Callback):
    """Save the student as a Hugging Face folder at every checkpoint and when fitting ends.

    Rank 0 writes; the folder is replaced as a whole, so that a reader never meets half of it.

    Args:
        path: The folder to write.
        tokenizer_from: Folder or hub id whose tokenizer goes along. By default the student's own folder, if it has one.

    Raises:
        ValueError: At setup, when ``path`` holds something that is not a model folder.
    """

    def __init__(self, path: str, *, tokenizer_from: str | None = None) -> None:
        self.path = path
        self.tokenizer_from = tokenizer_from

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            check_export_target(self.path)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._export(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._export(trainer, pl_module)

    def _export(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        source = self.tokenizer_from
        if source is None and has_tokenizer(str(pl_module.student_path)):
            source = str(pl_module.student_path)
        export_folder(pl_module.student, self.path, tokenizer_from=source)


class TokensProgress(ProgressBar):
    """A progress bar over optimiser steps, with tokens per second over all ranks and the time left.

    Validation is left out of the speed. Where standard error is not a terminal, a line is printed now and then instead.

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
        self._recent: deque[tuple[int, float]] = deque(maxlen=64)
        self._mark = self._shown = 0.0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if not trainer.is_global_zero:
            self.disable()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._recent.clear()
        self._mark = time.perf_counter()
        if self._terminal():
            self._training = self._bar().add_task(
                "train", total=_total_steps(trainer), completed=trainer.global_step, text=""
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        self._recent.append((batch["input_ids"].numel() * trainer.world_size, now - self._mark))
        self._mark = now
        total = _total_steps(trainer)
        due = self.refresh_seconds if self._terminal() else self.line_seconds
        if not self._enabled or (now - self._shown < due and trainer.global_step != total):
            return
        self._shown = now
        text = self._text(trainer, total)
        if self._progress is not None and self._training is not None:
            self._progress.update(self._training, completed=trainer.global_step, text=text, refresh=True)
        else:
            self._console.print(f"step {trainer.global_step}/{total or '?'}  {text}", highlight=False, soft_wrap=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
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
        self._mark = time.perf_counter()

    on_test_start, on_test_batch_end, on_test_end = on_validation_start, on_validation_batch_end, on_validation_end

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

    def _text(self, trainer: Trainer, total: int | None) -> str:
        tokens, seconds = (sum(column) for column in zip(*self._recent, strict=True))
        parts = [f"{tokens / max(seconds, 1e-9):,.0f} tokens/s"]
        if total is not None:
            batches = (total - trainer.global_step) * trainer.accumulate_grad_batches
            parts.append(f"{_clock(batches * seconds / len(self._recent))} left")
        return "  ".join(
            parts + [f"{name} {value:.4g}" for name, value in _scalars(trainer.progress_bar_metrics).items()]
        )


class LogConfig(SaveConfigCallback):
    """Save the config of a training beside its checkpoints and show it in TensorBoard as text."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # other stages leave nothing that a config could belong to
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        text = self.parser.dump(self.config, skip_none=False)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                indented = "\n".join(f"    {line}" for line in text.splitlines())
                logger.experiment.add_text("config", indented, trainer.global_step)


def _total_steps(trainer: Trainer) -> int | None:
    return trainer.max_steps if trainer.max_steps > 0 else None


def _scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name.removeprefix("train/"): float(value) for name, value in metrics.items()}


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
