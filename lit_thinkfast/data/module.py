"""``MathDataModule``: packed training rows, held-out rows and evaluation problems for the Lightning trainer."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn

from lit_thinkfast.data.corpora import Corpus
from lit_thinkfast.data.loader import Batches, PackedLoader, chunks, first_batches
from lit_thinkfast.data.packing import PackedStream
from lit_thinkfast.data.problems import load_problems
from lit_thinkfast.data.prompts import system_prompt
from lit_thinkfast.data.rows import RowPacker
from lit_thinkfast.reading import first_line
from lit_thinkfast.records import PackedBatch, Problem


class MathDataModule(LightningDataModule):
    """Everything a distillation run reads.

    ``fit`` gets endless batches of packed rows, ``steps_per_epoch`` of which the trainer calls an epoch. Validation
    gets dataloader 0, the same held-out rows each time, and, if ``problems`` are given, dataloader 1: lists of
    :class:`~lit_thinkfast.records.Problem`, each problem on exactly one rank. ``problem_set`` holds all in order.

    Each ``fit`` begins with the first training batch, or where the checkpoint of ``ckpt_path`` was; loaders made anew
    within one go on after the last batch taken. A test gets the problems alone, as no corpus has a third split.

    Args:
        corpus: Training texts; its validation split is what is held out.
        tokenizer: Folder, hub id or GGUF file of a fast tokenizer; ``arithmetic`` names the embedded one.
        seq_len: Tokens a row. Rows hold whole documents, so several times the usual length of one wastes least.
        batch_size: Rows a batch and rank.
        steps_per_epoch: Batches that make an epoch, on each rank.
        val_batches: Held-out batches, over all ranks; fewer if the split is smaller, or where weights are sharded and
            ranks do not divide them.
        problems: ``gsm8k``, ``math500``, ``arithmetic``, or a JSONL file of problems; ``null`` for none.
        problems_path: Local file of ``gsm8k`` or ``math500`` in the published format.
        problems_split: Split of ``problems``. By default ``test`` in a test, else ``validation`` where a
            set has one.
        problems_level: Difficulty of ``problems``, where the set has levels.
        num_problems: At most this many problems, drawn by ``seed``; of ``arithmetic``, the first ones.
        problem_batch_size: Problems a validation batch.
        system: System prompt of the training documents, as text or a name (``boxed``, ``search-and-learn``).
        num_workers: Processes that prepare batches on each rank.
        seed: Of the order of the examples, and of the draw of problems.
        num_shards: Parts of the stream; ranks times workers must divide it. See :mod:`lit_thinkfast.data.packing`.
        block_size: Examples packed together.
        reshuffle: Draw another order of the examples, and so other rows, for each pass of a finite corpus. With a
            cached teacher, which knows a row by its tokens, set it to false.

    Raises:
        ValueError: A number out of range; further errors of corpus, tokenizer and problems come in ``setup``.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        tokenizer: str,
        seq_len: int,
        batch_size: int,
        steps_per_epoch: int = 1000,
        val_batches: int = 8,
        problems: str | None = None,
        problems_path: str | None = None,
        problems_split: str | None = None,
        problems_level: int | None = None,
        num_problems: int | None = None,
        problem_batch_size: int = 16,
        system: str | None = None,
        num_workers: int = 0,
        seed: int = 0,
        num_shards: int = 24,
        block_size: int = 128,
        reshuffle: bool = True,
    ) -> None:
        super().__init__()
        limits = {"seq_len": (seq_len, 2), "num_workers": (num_workers, 0)}
        for name, value in {
            "batch_size": batch_size,
            "steps_per_epoch": steps_per_epoch,
            "val_batches": val_batches,
            "problem_batch_size": problem_batch_size,
            "num_shards": num_shards,
            "block_size": block_size,
        }.items():
            limits[name] = (value, 1)
        for name, (value, least) in limits.items():
            if value < least:
                raise ValueError(f"{name} {value} is below {least}")
        self.corpus, self.tokenizer_path = corpus, tokenizer
        self.seq_len, self.batch_size, self.steps_per_epoch = seq_len, batch_size, steps_per_epoch
        self.val_batches = val_batches
        self.problems, self.problems_path = problems, problems_path
        self.problems_split = problems_split
        self.problems_level, self.num_problems = problems_level, num_problems
        self.problem_batch_size, self.system = problem_batch_size, system_prompt(system)
        self.num_workers, self.seed, self.num_shards, self.block_size = num_workers, seed, num_shards, block_size
        self.allow_zero_length_dataloader_with_multiple_devices = True  # more ranks than problems is fine
        self.reshuffle = reshuffle
        self.tokenizer: Any = None
        self.problem_set: list[Problem] = []
        self._split_read: str | None = None
        self._held_out: list[PackedBatch] | None = None
        self._stream: PackedStream | None = None
        self._stream_settings: dict[str, Any] = {}
        self._restored: dict[str, Any] | None = None

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self._stream = self._restored = None
        if self.tokenizer is None:
            self.tokenizer = load_fast_tokenizer(self.tokenizer_path)
        if self.problems is None:
            return
        split = self.problems_split or ("validation" if self.problems == "arithmetic" and stage != "test" else "test")
        if split != self._split_read:
            self._split_read = split
            self.problem_set = load_problems(
                self.problems,
                path=self.problems_path,
                split=split,
                limit=self.num_problems,
                level=self.problems_level,
                seed=self.seed,
            )

    def train_dataloader(self) -> PackedLoader:
        rank, world_size = self._place()
        settings = {
            "corpus": self.corpus,
            "tokenizer": self.tokenizer,
            "seq_len": self.seq_len,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "system": self.system,
            "rank": rank,
            "world_size": world_size,
            "num_shards": self.num_shards,
            "block_size": self.block_size,
            "reshuffle": self.reshuffle,
        }
        if self._stream is None or settings != self._stream_settings:
            self._stream, self._stream_settings = PackedStream(length=self.steps_per_epoch, **settings), settings
        self._stream.length = self.steps_per_epoch
        if self._restored is not None:
            self._stream.load_state_dict(self._restored)
            self._restored = None
        return PackedLoader(self._stream, num_workers=self.num_workers, pin_memory=torch.cuda.is_available())

    def state_dict(self) -> dict[str, Any]:
        if self._restored is not None:
            return {"train": self._restored}
        return {"train": None if self._stream is None else self._stream.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Lightning hands a loader its own state back only if the checkpoint was written within an epoch or max_steps is
        # set; and validating a checkpoint comes here too, which must leave the training batches alone
        if self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING:
            self._restored = state_dict.get("train")
            if self._restored is None:  # from before the first batch, as a search for a learning rate leaves it
                self._stream = None

    def val_dataloader(self) -> list[Batches[Any]]:
        rank, world_size = self._place()
        batches = self.held_out_batches()
        if len(batches) < world_size:
            raise ValueError(
                f"{len(batches)} held-out batches cannot serve {world_size} ranks; raise val_batches, hold out more of "
                "the corpus, or lower batch_size"
            )
        if self.trainer is not None and isinstance(self.trainer.strategy, ModelParallelStrategy):
            # ranks gather weights together, for the same number of batches each
            batches = batches[: len(batches) - len(batches) % world_size]
        loaders: list[Batches[Any]] = [Batches(batches[rank::world_size])]
        if self.problem_set:
            loaders.append(chunks(self.problem_set[rank::world_size], self.problem_batch_size))
        return loaders

    def test_dataloader(self) -> Batches[Any]:
        rank, world_size = self._place()
        if not self.problem_set:
            raise ValueError("there is nothing to test on: name problems, for example data.problems=gsm8k")
        return chunks(self.problem_set[rank::world_size], self.problem_batch_size)

    def held_out_batches(self) -> list[PackedBatch]:
        """Return the held-out rows of all ranks, packed once.

        Raises:
            ValueError: The validation split has no usable example.
        """
        if self._held_out is None:
            packer = RowPacker(self.tokenizer, seq_len=self.seq_len, system=self.system)
            self._held_out = first_batches(
                # an endless split of unusable examples must not be read for ever
                itertools.islice(iter(self.corpus.examples("validation")), 100_000),
                packer,
                count=self.val_batches,
                batch_size=self.batch_size,
                block_size=self.block_size,
            )
            if not self._held_out:
                raise ValueError(f"the validation split of {type(self.corpus).__name__} has no usable example")
        return self._held_out

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move tensors; lists of problems are text and stay."""
        if isinstance(batch, list):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def _place(self) -> tuple[int, int]:
        """Return (rank, number of ranks) of this process."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)


def load_fast_tokenizer(path: str) -> Any:
    """Load a fast tokenizer from a folder, a GGUF file or the hub; ``arithmetic`` names the embedded one.

    Raises:
        ValueError: It cannot be loaded, or has no fast form.
    """
    from transformers import AutoTokenizer

    from lit_thinkfast.data.arithmetic import TOKENIZER

    where, options = str(TOKENIZER) if path == "arithmetic" else path, {}
    file = Path(path).expanduser()
    if file.suffix == ".gguf" and file.is_file():
        where, options = str(file.parent), {"gguf_file": file.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
    except Exception as error:  # the tokenizers library raises this very class
        raise ValueError(f"cannot load the tokenizer {path!r}: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise ValueError(f"the tokenizer {path!r} has no fast form; convert it to a tokenizer.json first")
    return tokenizer
