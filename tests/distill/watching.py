"""A small run that somebody watches: on one process, or on two gloo ranks as ``watching.py STUDENT OUT``."""

import os
import socket
import sys

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_thinkfast.callbacks import ExportStudent, LogReasoningFigure, LogSamples, Throughput, TokensProgress
from lit_thinkfast.data import corpora
from lit_thinkfast.data.module import MathDataModule
from lit_thinkfast.distill import CrossEntropy, DistillationModule
from lit_thinkfast.generation import SamplingConfig
from lit_thinkfast.metrics import ReasoningEvaluator

SHORT = SamplingConfig(temperature=0.0, num_samples=1, max_new_tokens=6)


def data(**changes):
    settings = {"tokenizer": "arithmetic", "seq_len": 512, "batch_size": 2, "val_batches": 2, "num_shards": 4}
    problems = {"problems": "arithmetic", "problems_level": 1, "num_problems": 3}
    return MathDataModule(corpora.ArithmeticCorpus(level=1), **{**settings, **problems, **changes})


def model(student, *, lr=0.0, **changes):
    """With a rate of 0 the student is the same on any number of ranks, to the last bit."""
    settings = {
        "losses": {"ce": CrossEntropy()},
        "optimizer": lambda groups: torch.optim.SGD(groups, lr=lr),
        "evaluator": ReasoningEvaluator(SamplingConfig(num_samples=2, max_new_tokens=4)),
    }
    return DistillationModule(student, **{**settings, **changes})


def watchers(*, sharded=False):
    prompts = ["1 + 1?", "2 + 2?"] if sharded else None
    return [Throughput(peak_tflops=1.0), LogSamples(prompts=prompts, count=2, sampling=SHORT), LogReasoningFigure()]


def run(student, out, *, devices=1, module=None, callbacks=None, problems="arithmetic", **options):
    """Train four steps of two batches each, log every second, and validate at the end."""
    settings = {
        "accelerator": "cpu",
        "devices": devices,
        "strategy": "ddp" if devices > 1 else "auto",
        "max_steps": 4,
        "accumulate_grad_batches": 2 // devices,
        "log_every_n_steps": 2,
        "val_check_interval": 8 // devices,
        "check_val_every_n_epoch": None,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "logger": TensorBoardLogger(out, name="log", version=0),
        "callbacks": watchers() if callbacks is None else callbacks,
    }
    Trainer(**{**settings, **options}).fit(module or model(student), datamodule=data(problems=problems))


def events(out):
    accumulator = EventAccumulator(os.path.join(out, "log", "version_0"))
    accumulator.Reload()
    return accumulator


def text(accumulator, tag):
    (event,) = accumulator.Tensors(f"{tag}/text_summary")
    (value,) = event.tensor_proto.string_val
    return value.decode()


def on_rank(rank, port, student, out):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", GROUP_RANK="0")
    os.environ.update(TORCHELASTIC_RUN_ID="test", RANK=str(rank), LOCAL_RANK=str(rank))
    for name in ("ddp", "fsdp"):
        where = os.path.join(out, name)
        options = {"devices": 2, "enable_progress_bar": True}
        if name == "fsdp":
            options["strategy"] = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
            options["problems"] = None  # the module does not evaluate sharded students
        shown = [TokensProgress(line_seconds=0.0), ExportStudent(os.path.join(where, "model"))]
        run(student, where, callbacks=watchers(sharded=name == "fsdp") + shown, **options)


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    torch.multiprocessing.start_processes(on_rank, (port, *sys.argv[1:]), nprocs=2, start_method="fork")
