"""torchmetrics of test-time accuracy: each keeps a :class:`~lit_thinkfast.metrics.grid.SampleGrid` and estimates on it.

Metrics of one grid size have equal states, so a ``MetricCollection`` of several rules and ks updates one grid.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lit_thinkfast.metrics import functional
from lit_thinkfast.metrics.functional import Subsets, Ties
from lit_thinkfast.metrics.grid import SampleGrid
from lit_thinkfast.metrics.tables import Grid

Transform = Literal["identity", "sigmoid"]


class _AtK(SampleGrid):
    """A metric of k samples on a grid.

    Args:
        k: Samples drawn, from 1 to ``num_samples``.
        num_problems: Problems of the evaluation set, those that other processes see included.
        num_samples: Samples a problem at most.

    Raises:
        ValueError: k is larger than the number of samples.
    """

    def __init__(self, k: int, *, num_problems: int, num_samples: int) -> None:
        super().__init__(num_problems, num_samples=num_samples)
        if not 1 <= k <= num_samples:
            raise ValueError(f"k {k} is not in 1..{num_samples}, the samples a problem; use a smaller k or draw more")
        self.k = k

    def compute(self) -> Tensor:
        """Return the mean over the problems seen, float64."""
        return self._accuracy(super().compute())

    def _accuracy(self, grid: Grid) -> Tensor:
        raise NotImplementedError


class Coverage(_AtK):
    """Probability that at least one of k samples is correct (pass@k); see :func:`functional.coverage`.

    Args:
        k: Samples drawn.
        num_problems: Problems of the evaluation set.
        num_samples: Samples a problem at most.
        subsets: ``all`` k-subsets, or the first k (``prefix``).

    >>> metric = Coverage(2, num_problems=1, num_samples=4)
    >>> metric.update(torch.zeros(4).long(), torch.arange(4), torch.tensor([1, 0, 0, 0]), torch.tensor([0, 1, 2, 3]))
    >>> metric.compute().item()
    0.5
    """

    def __init__(self, k: int, *, num_problems: int, num_samples: int, subsets: Subsets = "all") -> None:
        super().__init__(k, num_problems=num_problems, num_samples=num_samples)
        self.subsets: Subsets = subsets

    def _accuracy(self, grid: Grid) -> Tensor:
        return functional.coverage(grid.correct, self.k, subsets=self.subsets)


class MajorityVoteAccuracy(_AtK):
    """Probability that the most frequent of k answers is correct; see :func:`functional.majority_vote_accuracy`.

    Args:
        k: Samples drawn.
        num_problems: Problems of the evaluation set.
        num_samples: Samples a problem at most.
        ties: ``split`` the credit, or the ``first`` seen wins.
        subsets: ``all`` k-subsets, or the first k (``prefix``).
    """

    def __init__(
        self, k: int, *, num_problems: int, num_samples: int, ties: Ties = "split", subsets: Subsets = "all"
    ) -> None:
        super().__init__(k, num_problems=num_problems, num_samples=num_samples)
        self.ties: Ties = ties
        self.subsets: Subsets = subsets

    def _accuracy(self, grid: Grid) -> Tensor:
        return functional.majority_vote_accuracy(
            grid.correct, grid.answers, self.k, ties=self.ties, subsets=self.subsets
        )


class BestOfNAccuracy(_AtK):
    """Probability that the best-scored of k samples is correct; see :func:`functional.best_of_n_accuracy`.

    Args:
        k: Samples drawn.
        num_problems: Problems of the evaluation set.
        num_samples: Samples a problem at most.
        ties: ``split`` the credit, or the ``first`` seen wins.
        subsets: ``all`` k-subsets, or the first k (``prefix``).
    """

    def __init__(
        self, k: int, *, num_problems: int, num_samples: int, ties: Ties = "split", subsets: Subsets = "all"
    ) -> None:
        super().__init__(k, num_problems=num_problems, num_samples=num_samples)
        self.ties: Ties = ties
        self.subsets: Subsets = subsets

    def _accuracy(self, grid: Grid) -> Tensor:
        _check_scored(grid)
        return functional.best_of_n_accuracy(grid.correct, grid.scores, self.k, ties=self.ties, subsets=self.subsets)


class WeightedBestOfNAccuracy(_AtK):
    """Probability that the answer with the most weight among k is correct.

    See :func:`functional.weighted_best_of_n_accuracy`. Scores are kept as float32, where probabilities near 1 run
    together: give log-odds and ``transform="sigmoid"`` to keep them apart.

    Args:
        k: Samples drawn.
        num_problems: Problems of the evaluation set.
        num_samples: Samples a problem at most.
        transform: From score to weight, in float64. ``identity`` refuses negative scores.
        ties: ``split`` the credit, or the ``first`` seen wins.
        subsets: ``all`` k-subsets, or the first k (``prefix``).
        num_subsets: Random subsets a problem where there are too many to visit.
        seed: Seed of the random subsets.
    """

    def __init__(
        self,
        k: int,
        *,
        num_problems: int,
        num_samples: int,
        transform: Transform = "identity",
        ties: Ties = "split",
        subsets: Subsets = "all",
        num_subsets: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__(k, num_problems=num_problems, num_samples=num_samples)
        if transform not in ("identity", "sigmoid"):
            raise ValueError(f"transform {transform!r} is not one of identity, sigmoid")
        self.transform = transform
        self.ties: Ties = ties
        self.subsets: Subsets = subsets
        self.num_subsets = num_subsets
        self.seed = seed

    def _accuracy(self, grid: Grid) -> Tensor:
        _check_scored(grid)
        return functional.weighted_best_of_n_accuracy(
            grid.correct,
            grid.answers,
            torch.sigmoid(grid.scores) if self.transform == "sigmoid" else grid.scores,
            self.k,
            ties=self.ties,
            subsets=self.subsets,
            num_subsets=self.num_subsets,
            seed=self.seed,
        )


def _check_scored(grid: Grid) -> None:
    if not grid.scored:
        missing = int((grid.scores == -torch.inf)[grid.correct >= 0].sum())
        raise ValueError(f"{missing} samples have no score, which best-of-N needs; pass score to every update")
