"""Our reward models with a head of their own: a linear unit on the last hidden state, in a file beside the model."""

from __future__ import annotations

import os

from lit_thinkfast.verification.heads import HEAD_FILE, read_head
from lit_thinkfast.verification.reward import ProcessRewardModel
from lit_thinkfast.verification.scores import Aggregation

__all__ = ["HEAD_FILE", "HeadRewardModel", "read_head"]


class HeadRewardModel(ProcessRewardModel):
    """Judges each line of a solution by one linear unit on the last hidden state at its newline.

    What the unit gives are the log-odds, as :class:`~lit_thinkfast.distill.rewards.HeadRewardLoss` trains them. The
    folder is that of a causal language model, which any program reads, with ``reward_head.safetensors`` beside it. It
    is :class:`ProcessRewardModel` with the protocol ``head``; arguments and errors are its.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        aggregation: Aggregation = "last",
        batch_size: int = 16,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        super().__init__(
            path, protocol="head", aggregation=aggregation, batch_size=batch_size, device=device, dtype=dtype
        )
