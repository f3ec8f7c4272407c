"""The student as a Hugging Face folder, written while it is trained."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_thinkfast.distill.sharding import full_student
from lit_thinkfast.distill.students import check_export_target, export_folder, has_tokenizer


class ExportStudent(Callback):
    """Save the student as a Hugging Face folder at every checkpoint and when fitting ends.

    Rank 0 writes; the folder is replaced as a whole, so that a reader never meets half of it. A student that is spread
    over ranks is put together first.

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
        student = full_student(pl_module.student)  # on every rank: each has a part of a sharded student
        if student is None or not trainer.is_global_zero:
            return
        if bad := next((name for name, weight in student.named_parameters() if not weight.isfinite().all()), None):
            raise ValueError(f"the student's weights are not finite ({bad}), and {self.path} is left as it was")
        source = self.tokenizer_from
        if source is None and has_tokenizer(str(pl_module.student_path)):
            source = str(pl_module.student_path)
        losses: Any = pl_module.losses
        beside = [loss.save_with for loss in losses.values()]
        export_folder(student, self.path, tokenizer_from=source, beside=beside)
