"""Time spent in training, and the tokens of packed rows: what the progress bar and ``Throughput`` both measure by."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_thinkfast.generation.clock import Stopwatch
from lit_thinkfast.records import PackedBatch


class TrainingClock:
    """Seconds of training, without those between :meth:`pause` and :meth:`resume`.

    A callback pauses it where a validation or a checkpoint begins and resumes it where the next batch does. Waiting for
    data counts, but for the first batch after a pause; so does a checkpoint of weights alone, for no callback hears of
    it.

    Args:
        device: Waited for at each pause and reading. With ``cpu`` nothing is waited for, so that work which a GPU has
            only been given counts as done.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._watch = Stopwatch(device)
        self._running = True

    def pause(self) -> None:
        """Stop counting; without effect where it is stopped."""
        if self._running:
            self._watch.lap()
            self._running = False

    def resume(self) -> None:
        """Go on counting; without effect where it runs."""
        if not self._running:
            self._watch.skip()
            self._running = True

    def read(self) -> float:
        """Return the seconds so far."""
        if self._running:
            self._watch.lap()
        return self._watch.elapsed


def document_tokens(batch: PackedBatch) -> Tensor:
    """Return how many tokens of the rows belong to documents, an integer on the batch's device.

    What fills up the end of a row is a last document without any label; a real one has at least one.
    """
    last = batch["seq_idx"] == batch["seq_idx"][:, -1:]
    padded = ~((batch["labels"] != -100) & last).any(dim=1, keepdim=True)
    return (~(last & padded)).sum()


def context_tokens(batch: PackedBatch) -> Tensor:
    """Return the number of tokens that each token sees, itself included and within its document, summed over the rows.

    Attention that keeps documents apart forms this many scores; a document of n tokens has ``n (n + 1) / 2``.
    """
    return (batch["position_ids"] + 1).sum()
