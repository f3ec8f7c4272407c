"""Run small distillations on two gloo ranks, as ``torchrun`` would start them: ``two_ranks.py STUDENT TEACHER FOLDER``.

The ranks are forked after the imports, which take longer than the runs.
"""

import faulthandler
import json
import os
import socket
import sys
import traceback

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from lit_thinkfast.callbacks import ExportStudent
from lit_thinkfast.data.loader import Batches
from lit_thinkfast.distill import CrossEntropy, DistillationModule, HFTeacher, ReverseKL
from lit_thinkfast.distill.layerwise import HiddenStateLoss, MatrixOrientation, MixerOutputLoss

BATCHES = "batches.pt"
MIXERS = r"layers\.0\.(mixer\.(in_proj|conv1d|D|A_log|dt_bias)|input_layernorm)"
CASES = {
    "kd_ddp": {"strategy": "ddp", "losses": lambda: {"kl": ReverseKL(), "ce": CrossEntropy()}},
    "kd_fsdp": {"strategy": "fsdp", "losses": lambda: {"kl": ReverseKL(), "ce": CrossEntropy()}},
    "clipped_fsdp": {"strategy": "fsdp", "losses": lambda: {"kl": ReverseKL()}, "clip": 0.1},
    "resumed_fsdp": {"strategy": "fsdp", "losses": lambda: {"kl": ReverseKL()}, "stop_after": 3},
    "bf16_fsdp": {"strategy": "fsdp", "losses": lambda: {"kl": ReverseKL()}, "precision": "bf16-mixed"},
    "own_states_ddp": {"strategy": "ddp", "losses": lambda: {"h": HiddenStateLoss()}, "trainable": "layers|embed"},
    "hidden_fsdp": {
        "strategy": "fsdp",
        "losses": lambda: {"h": HiddenStateLoss(teacher_forced=True)},
        "trainable": r"layers\.",
        "gradient_checkpointing": True,
    },
    "matrix_ddp": {"strategy": "ddp", "losses": lambda: {"m": MatrixOrientation()}, "trainable": MIXERS},
    "matrix_fsdp": {"strategy": "fsdp", "losses": lambda: {"m": MatrixOrientation()}, "trainable": MIXERS},
    "mixed_ddp": {
        "strategy": "ddp",
        "losses": lambda: {"x": MixerOutputLoss(layers=[0])},
        "trainable": r"layers\.0\.(mixer|input_layernorm)",
    },
}


class Data(LightningDataModule):
    """Global batches of eight rows: at once, or in two micro-batches of two rows on each of two ranks."""

    def __init__(self, path, held_out):
        super().__init__()
        self.train, batches = torch.load(path)
        self.held_out, self.skip = batches[:held_out], 0

    def train_dataloader(self):
        if self.trainer.world_size == 1:
            return Batches(self.train)
        pieces = [slice(start, start + 2) for start in (2 * self.trainer.global_rank, 4 + 2 * self.trainer.global_rank)]
        micro = [{k: rows[p].clone() for k, rows in batch.items()} for batch in self.train for p in pieces]
        return Batches(micro[self.skip :])

    def val_dataloader(self):
        return Batches(self.held_out[self.trainer.global_rank :: self.trainer.world_size])


def run(case, student, teacher, folder, *, devices):
    """Train six steps, export to ``folder/case``, and write what validation measured to ``folder/case.json``."""
    options = dict(CASES[case])
    wanted = options.pop("strategy")

    def strategy():
        if devices == 1:
            return "auto"
        return ModelParallelStrategy(data_parallel_size=devices, tensor_parallel_size=1) if wanted == "fsdp" else wanted

    precision, stop_after = options.pop("precision", "32-true"), options.pop("stop_after", None)
    clip = options.pop("clip", None)  # which hides how large a gradient is
    losses = options.pop("losses")
    out = os.path.join(folder, case)
    # three are uneven, which ranks that gather weights for every batch cannot have
    data = Data(os.path.join(os.path.dirname(folder), BATCHES), held_out=2 if "fsdp" in case else 3)

    def fit(steps, **resume):
        module = DistillationModule(
            student,
            losses=losses(),
            teacher=HFTeacher(teacher),
            optimizer=lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.5),
            **options,
        )
        trainer = Trainer(
            accelerator="cpu",
            devices=devices,
            strategy=strategy(),
            precision=precision,
            accumulate_grad_batches=devices,
            max_steps=steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            callbacks=[ExportStudent(out)],
            gradient_clip_val=clip,
            log_every_n_steps=1,
        )
        trainer.fit(module, datamodule=data, **resume)
        return trainer, module

    if stop_after is None or devices == 1:
        trainer, module = fit(6)
    else:
        first, _ = fit(stop_after)
        first.save_checkpoint(out + ".ckpt")
        data.skip = stop_after * devices
        trainer, module = fit(6, ckpt_path=out + ".ckpt", weights_only=False)
    trained = {k: v for k, v in trainer.callback_metrics.items() if k.startswith(("train/grad_norm", "train/loss"))}
    (measured,) = trainer.validate(module, datamodule=data, verbose=False)
    measured |= trained
    if trainer.is_global_zero:
        with open(out + ".json", "w") as file:
            json.dump({name: float(value) for name, value in measured.items()}, file)


def main(student, teacher, folder):
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
                faulthandler.dump_traceback_later(120, exit=True)  # a rank that waits for ever says where
                for case in CASES:
                    run(case, student, teacher, folder, devices=2)
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
