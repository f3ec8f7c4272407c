"""Run one small distillation on two gloo ranks, as ``torchrun`` would start them: ``two_ranks.py STUDENT TEACHER OUT``.

The ranks are forked after the imports, which take longer than the run.
"""

import json
import os
import socket
import sys
import traceback

import torch
from lightning.pytorch import LightningDataModule, Trainer

from lit_thinkfast.callbacks import ExportStudent
from lit_thinkfast.data.loader import Batches
from lit_thinkfast.distill import CrossEntropy, DistillationModule, HFTeacher, HiddenStateLoss, ReverseKL

BATCHES = "batches.pt"


class Data(LightningDataModule):
    """Global batches of four rows of equal token counts, of which each rank takes its share."""

    def __init__(self, path):
        super().__init__()
        self.train, self.held_out = torch.load(path)

    def train_dataloader(self):
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return Batches([{name: rows[rank::world].clone() for name, rows in batch.items()} for batch in self.train])

    def val_dataloader(self):
        return Batches(self.held_out[self.trainer.global_rank :: self.trainer.world_size])


def run(student, teacher, out, *, devices):
    """Train six steps, export to ``out``, and write what validation measured to ``out.json``."""
    module = DistillationModule(
        student,
        losses={"kl": ReverseKL(), "hidden": HiddenStateLoss(), "ce": CrossEntropy()},
        teacher=HFTeacher(teacher),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.05),
    )
    data = Data(os.path.join(os.path.dirname(out), BATCHES))
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_steps=6,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[ExportStudent(out)],
        gradient_clip_val=1.0,
    )
    trainer.fit(module, datamodule=data)
    (measured,) = trainer.validate(module, datamodule=data, verbose=False)
    if trainer.is_global_zero:
        with open(out + ".json", "w") as file:
            json.dump({name: float(value) for name, value in measured.items()}, file)


def main(student, teacher, out):
    torch.set_num_threads(1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
    }
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.environ.update(common, RANK=str(rank), LOCAL_RANK=str(rank))
                run(student, teacher, out, devices=2)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
