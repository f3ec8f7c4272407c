"""torchmetrics of test-time accuracy: each keeps a :class:`~lit_thinkfast.metrics.grid.SampleGrid` and estimates on it.

Metrics of one grid size have equal states, so a ``MetricCollection`` of several rules and ks updates one grid;
:func:`accuracy_metrics` makes one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lit_thinkfast.metrics import functional
from lit_thinkfast.metrics.grid import SampleGrid
from lit_thinkfast.metrics.rows import Invalid, Ks, Subsets, Ties, are_several, choose, whole
from lit_thinkfast.metrics.tables import Grid
from lit_thinkfast.records import Rule

Transform = Literal["identity", "sigmoid"]


class AccuracyAtK(SampleGrid):
    """A metric of k samples on a grid. A new rule is a subclass with its own :meth:`accuracy`.

    Args:
        k: Samples drawn, from 1 to ``num_samples``.
        num_problems: Problems of the evaluation set, those that other processes see included.
        num_samples: Samples a problem at most.

    Raises:
        ValueError: k is no whole number, or not in 1 .. ``num_samples``.
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, k: int, *, num_problems: int, num_samples: int) -> None:
        super().__init__(num_problems, num_samples=num_samples)
        k = whole("k", k)
        if not 1 <= k <= num_samples:
            raise ValueError(f"k {k} is not in 1..{num_samples}, the samples a problem; use a smaller k or draw more")
        self.k = k

    def compute(self) -> Tensor:
        """Return the mean over the problems seen, float64."""
        return self.accuracy(super().compute())

    def accuracy(self, grid: Grid) -> Tensor:
        """Return the scalar that this rule makes of a grid."""
        raise NotImplementedError(f"{type(self).__name__} has no rule; write accuracy(grid)")

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot this value, or several, with torchmetrics; see ``torchmetrics.Metric``. Needs matplotlib.

        Args:
            val: Values of :meth:`compute` or ``forward``; by default the present one.
            ax: A matplotlib axis; by default a new figure.
        """
        return self._plot(val, ax)


class Coverage(AccuracyAtK):
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

    def accuracy(self, grid: Grid) -> Tensor:
        return functional.coverage(grid.correct, self.k, subsets=self.subsets)


class MajorityVoteAccuracy(AccuracyAtK):
    """Probability that the most frequent of k answers is correct; see :func:`functional.majority_vote_accuracy`.

    Args:
        k: Samples drawn.
        num_problems: Problems of the evaluation set.
        num_samples: Samples a problem at most.
        ties: ``split`` the credit, or the ``first`` seen wins.
        subsets: ``all`` k-subsets, or the first k (``prefix``).
        invalid: Samples without an answer ``abstain``, ``vote`` or ``drop`` out.
    """

    def __init__(
        self,
        k: int,
        *,
        num_problems: int,
        num_samples: int,
        ties: Ties = "split",
        subsets: Subsets = "all",
        invalid: Invalid = "abstain",
    ) -> None:
        super().__init__(k, num_problems=num_problems, num_samples=num_samples)
        self.ties: Ties = ties
        self.subsets: Subsets = subsets
        self.invalid: Invalid = invalid

    def accuracy(self, grid: Grid) -> Tensor:
        return functional.majority_vote_accuracy(
            grid.correct, grid.answers, self.k, ties=self.ties, subsets=self.subsets, invalid=self.invalid
        )


class BestOfNAccuracy(AccuracyAtK):
    """Probability that the best-scored of k samples is correct; see :func:`functional.best_of_n_accuracy`.

    Args:
        k: Samples drawn.
        num_problems: Problems of the evaluation set.
        num_samples: Samples a problem at most.
        ties: ``split`` the credit, or the ``first`` seen wins.
        subsets: ``all`` k-subsets, or the first k (``prefix``).
        invalid: Samples without an answer ``abstain``, ``vote`` or ``drop`` out; by default they are as good as others.
    """

    def __init__(
        self,
        k: int,
        *,
        num_problems: int,
        num_samples: int,
        ties: Ties = "split",
        subsets: Subsets = "all",
        invalid: Invalid = "vote",
    ) -> None:
        super().__init__(k, num_problems=num_problems, num_samples=num_samples)
        self.ties: Ties = ties
        self.subsets: Subsets = subsets
        self.invalid: Invalid = invalid

    def accuracy(self, grid: Grid) -> Tensor:
        _check_scored(grid)
        return functional.best_of_n_accuracy(
            grid.correct,
            grid.scores,
            self.k,
            ties=self.ties,
            subsets=self.subsets,
            answers=grid.answers,
            invalid=self.invalid,
        )


class WeightedBestOfNAccuracy(AccuracyAtK):
    """Probability that the answer with the most weight among k is correct.

    See :func:`functional.weighted_best_of_n_accuracy`. Scores are weights, as probabilities are, unless
    ``transform="sigmoid"`` says that they are log-odds, such as those of a reward model of ours. They are kept as
    float32, where probabilities near 1 run together and log-odds do not. Log-odds without that transform are an error
    as soon as one is negative, and what looks like probabilities brings a warning with it.

    Args:
        k: Samples drawn.
        num_problems: Problems of the evaluation set.
        num_samples: Samples a problem at most.
        transform: From score to weight, in float64. ``identity`` refuses negative scores.
        ties: ``split`` the credit, or the ``first`` seen wins.
        subsets: ``all`` k-subsets, or the first k (``prefix``).
        invalid: Samples without an answer ``abstain``, ``vote`` or ``drop`` out.
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
        invalid: Invalid = "abstain",
        num_subsets: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__(k, num_problems=num_problems, num_samples=num_samples)
        choose("transform", transform, Transform)
        self.transform = transform
        self.ties: Ties = ties
        self.subsets: Subsets = subsets
        self.invalid: Invalid = invalid
        self.num_subsets = num_subsets
        self.seed = seed

    def accuracy(self, grid: Grid) -> Tensor:
        _check_scored(grid)
        return functional.weighted_best_of_n_accuracy(
            grid.correct,
            grid.answers,
            _weights_of_log_odds(grid) if self.transform == "sigmoid" else grid.scores,
            self.k,
            ties=self.ties,
            subsets=self.subsets,
            invalid=self.invalid,
            num_subsets=self.num_subsets,
            seed=self.seed,
        )


def accuracy_metrics(
    ks: Ks,
    *,
    num_problems: int,
    num_samples: int,
    rules: Sequence[Rule] = ("coverage", "majority"),
    transform: Transform = "identity",
    ties: Ties = "split",
    subsets: Subsets = "all",
) -> MetricCollection:
    """Return the metrics of several rules at several k as ``coverage@8`` and so on, which fill one grid together.

    Args:
        ks: Samples drawn, each from 1 to ``num_samples``.
        num_problems: Problems of the evaluation set.
        num_samples: Samples a problem at most.
        rules: The best-of-N rules need a score with every sample.
        transform: From score to weight, of the weighted rule: ``sigmoid`` for log-odds, as reward models of ours give;
            by default, as there, scores are weights.
        ties: ``split`` the credit, or the ``first`` seen wins.
        subsets: ``all`` k-subsets, or the first k (``prefix``).

    Raises:
        ValueError: No ks, no rules, an unknown rule, or a k outside 1 .. ``num_samples``.

    >>> list(accuracy_metrics([1, 2], num_problems=1, num_samples=4, rules=["coverage"]))
    ['coverage@1', 'coverage@2']
    """
    n, p = num_samples, num_problems
    made: dict[Rule, Callable[[int], Metric]] = {
        "coverage": lambda k: Coverage(k, num_problems=p, num_samples=n, subsets=subsets),
        "majority": lambda k: MajorityVoteAccuracy(k, num_problems=p, num_samples=n, ties=ties, subsets=subsets),
        "best_of_n": lambda k: BestOfNAccuracy(k, num_problems=p, num_samples=n, ties=ties, subsets=subsets),
        "weighted_best_of_n": lambda k: WeightedBestOfNAccuracy(
            k, num_problems=p, num_samples=n, transform=transform, ties=ties, subsets=subsets
        ),
    }
    sizes = sorted({whole("k", k) for k in (ks if are_several(ks) else [ks])})  # type: ignore[union-attr]
    if not sizes or not rules or not set(rules) <= set(made):
        raise ValueError(f"rules {list(rules)} at ks {sizes}: name at least one k, and some of {', '.join(made)}")
    metrics: dict[str, Metric | MetricCollection] = {
        f"{rule}@{k}": made[rule](k) for k in sizes for rule in dict.fromkeys(rules)
    }
    return MetricCollection(metrics, compute_groups=[list(metrics)])


def _weights_of_log_odds(grid: Grid) -> Tensor:
    """Return the sigmoid of the scores, with a warning if they look like probabilities already."""
    there = grid.scores[grid.correct >= 0]
    if ((there >= 0) & (there <= 1)).all():
        warnings.warn(
            "transform='sigmoid' takes scores for log-odds, but all of them lie in 0..1, as probabilities do; for "
            "probabilities use transform='identity'",
            stacklevel=2,
        )
    return torch.sigmoid(grid.scores)


def _check_scored(grid: Grid) -> None:
    if not grid.scored:
        missing = int((grid.scores == -torch.inf)[grid.correct >= 0].sum())
        raise ValueError(f"{missing} samples have no score, which best-of-N needs; pass score to every update")
