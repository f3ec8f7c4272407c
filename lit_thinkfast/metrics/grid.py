"""The state of all our metrics: one cell for each (problem, sample), merged across processes by maximum.

Every process holds the whole grid, filled with a value below anything that can be observed; syncing takes the maximum
cell by cell. So a cell that two processes filled counts once, a process may have seen few problems or none, no tensor
changes its shape between processes, and any number of processes gives the grid, and the numbers, of one. All samples of
a problem must be numbered and compared in one place, since ``answer`` is only meaningful within a problem.

A cell takes nine bytes, six up to 127 samples a problem. Only types that both gloo and NCCL can gather are used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_thinkfast.metrics.tables import Grid


class SampleGrid(Metric):
    """Collect ``correct``, ``answer`` and ``score`` of every sample of an evaluation set.

    Args:
        num_problems: Rows of the grid.
        num_samples: Columns: samples a problem at most. Problems with fewer leave cells unseen.

    Raises:
        ValueError: A size below 1.

    >>> grid = SampleGrid(2, num_samples=3)
    >>> grid.update(torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([True, False]), torch.tensor([0, 1]))
    >>> grid.compute().correct.tolist()
    [[1, 0, -1]]
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    correct: Tensor
    answer: Tensor
    score: Tensor

    def __init__(self, num_problems: int, *, num_samples: int) -> None:
        super().__init__()
        for name, size in (("num_problems", num_problems), ("num_samples", num_samples)):
            if size < 1:
                raise ValueError(f"{name} {size} is below 1; an evaluation needs at least one")
        self.num_problems, self.num_samples = num_problems, num_samples
        shape = (num_problems, num_samples)
        self.add_state("correct", torch.full(shape, -1, dtype=torch.int8), dist_reduce_fx="max")
        label = torch.int8 if num_samples <= torch.iinfo(torch.int8).max else torch.int32
        self.add_state("answer", torch.full(shape, -1, dtype=label), dist_reduce_fx="max")
        self.add_state("score", torch.full(shape, -torch.inf, dtype=torch.float32), dist_reduce_fx="max")

    def update(
        self, problem: Tensor, sample: Tensor, correct: Tensor, answer: Tensor, score: Tensor | None = None
    ) -> None:
        """Fill cells. Filling a cell again with the same values changes nothing.

        Args:
            problem: ``(m,)`` row of each sample.
            sample: ``(m,)`` column of each sample.
            correct: ``(m,)`` bool.
            answer: ``(m,)`` int below ``num_samples``, equal within a problem where the answers are equal, by custom
                the column of the first sample that has it; -1 for no answer.
            score: ``(m,)`` reward, larger is better; kept as float32.

        Raises:
            ValueError: Lengths differ, an index is outside the grid, an answer is no such number, or a score is NaN.
        """
        given = {"problem": problem, "sample": sample, "correct": correct, "answer": answer}
        if score is not None:
            given["score"] = score
            if score.isnan().any():
                raise ValueError(
                    f"score {int(score.isnan().nonzero()[0])} is NaN; score every sample or pass no scores"
                )
        for name, values in given.items():
            if values.ndim != 1 or len(values) != len(problem):
                raise ValueError(f"{name} has shape {tuple(values.shape)}; expected ({len(problem)},) as problem has")
        for name, index, size in (("problem", problem, self.num_problems), ("sample", sample, self.num_samples)):
            if len(index) and not 0 <= int(index.min()) <= int(index.max()) < size:
                raise ValueError(
                    f"{name} {int(index.min())}..{int(index.max())} is outside the grid's 0..{size - 1}; "
                    f"make the grid with a larger num_{name}s"
                )
        if len(answer) and not -1 <= int(answer.min()) <= int(answer.max()) < self.num_samples:
            raise ValueError(
                f"answers {int(answer.min())}..{int(answer.max())} are outside -1..{self.num_samples - 1}; "
                "number an answer by the first sample that has it, -1 for none"
            )
        cell = problem.to(self.correct.device, torch.int64) * self.num_samples + sample.to(self.correct.device)
        self.correct = _raised(self.correct, cell, correct)
        self.answer = _raised(self.answer, cell, answer)
        if score is not None:
            self.score = _raised(self.score, cell, score)

    def compute(self) -> Any:
        """Return the :class:`~lit_thinkfast.metrics.tables.Grid` of the problems that were seen, on the CPU.

        Raises:
            ValueError: Nothing was seen.
        """
        correct, answer, score = self.correct.cpu(), self.answer.cpu(), self.score.cpu()
        seen = (correct >= 0).any(dim=1)
        if not seen.any():
            raise ValueError(f"none of the {self.num_problems} problems has a sample; update the metric before compute")
        rows = seen.nonzero().flatten()
        return Grid(tuple(map(str, rows.tolist())), correct[rows], answer[rows].long(), score[rows].double())

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """Give a grid of one cell the shape back that torchmetrics takes from all results of one element."""
        wrapped = super()._wrap_compute(compute)

        @functools.wraps(compute)
        def whole(*args: Any, **kwargs: Any) -> Any:
            value = wrapped(*args, **kwargs)
            if isinstance(value, Grid):
                shape = (len(value.problem_ids), self.num_samples)
                value = Grid(value.problem_ids, *(cells.view(shape) for cells in value[1:4]))
            return value

        return whole

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Any:
        """Move states to a device, never to another type: in half precision, scores that differ would tie."""

        def moved(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        return super()._apply(moved, exclude_state)


def _raised(state: Tensor, cell: Tensor, values: Tensor) -> Tensor:
    # A new tensor, never in place: under spawn the states of several CPU processes may share their memory.
    return state.flatten().scatter_reduce(0, cell, values.to(state), "amax").view_as(state)
