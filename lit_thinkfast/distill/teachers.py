"""Who is imitated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch

from lit_thinkfast.distill.sharding import is_sharded, shard, within
from lit_thinkfast.distill.signals import Signals, read_signals
from lit_thinkfast.records import PackedBatch

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@runtime_checkable
class Teacher(Protocol):
    """Gives the signals that losses compare the student's with."""

    def vocab_size(self) -> int:
        """Return the number of rows of the teacher's head; may be asked before ``load``."""

    def load(self, device: torch.device, *, mesh: DeviceMesh | None = None) -> None:
        """Get ready to answer on ``device``; called once by each process before the first batch.

        Args:
            device: Of this process.
            mesh: Ranks over which the weights may be spread, where the student's are.
        """

    def signals(self, batch: PackedBatch, needs: frozenset[str]) -> Signals:
        """Return the teacher's signals on ``batch``, without gradients."""


class HFTeacher:
    """A frozen causal LM of transformers: a folder or a hub id, stock or ours.

    It is not a module of anything: checkpoints, strategies and optimisers never see it. Constructing it is free; the
    weights are read when they are first asked for.

    Args:
        path: Hugging Face folder, hub id or GGUF file.
        dtype: Precision of its weights.
    """

    def __init__(self, path: str, *, dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32") -> None:
        self.path = path
        self.dtype: torch.dtype = getattr(torch, dtype)
        self._model: Any = None

    def __repr__(self) -> str:
        return self.path

    def vocab_size(self) -> int:
        config = _config(self.path) if self._model is None else self._model.config
        return int((config or self._loaded().config).vocab_size)

    @property
    def config(self) -> Any:
        """Configuration of the model, which is read where that is not done yet."""
        return self._loaded().config

    def load(self, device: torch.device, *, mesh: DeviceMesh | None = None) -> None:
        if mesh is None:
            self._loaded().to(device)
        elif not is_sharded(self._loaded()):
            shard(self._loaded(), mesh)

    @torch.no_grad()
    def signals(self, batch: PackedBatch, needs: frozenset[str]) -> Signals:
        model = self._loaded()
        return within(model, lambda: read_signals(model, batch, needs=needs))

    def _loaded(self) -> Any:
        if self._model is None:
            from lit_thinkfast.models.loading import load_model

            self._model = load_model(self.path, dtype=self.dtype).requires_grad_(False)
        return self._model


def _config(path: str) -> Any:
    """Return the configuration of a model without its weights, or ``None`` where only loading tells it."""
    from transformers import AutoConfig

    from lit_thinkfast.models.configuration import FAMILIES, HybridConfig
    from lit_thinkfast.models.loading import locate
    from lit_thinkfast.models.released import format_of
    from lit_thinkfast.reading import told_in_one_line

    where, options = locate(path)
    if options or format_of(where) is not None:
        return None
    with told_in_one_line(path):
        config = AutoConfig.from_pretrained(where)
    return config if isinstance(config, HybridConfig) or config.model_type in FAMILIES else None
