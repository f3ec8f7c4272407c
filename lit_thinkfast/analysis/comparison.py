"""All numbers behind a report, computed once: curves, fronts, landmarks and who is best at round budgets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from lit_thinkfast.analysis.budget import Measured, checked_prices, measure, measured_points, shared_problems
from lit_thinkfast.analysis.deadline import deadline_points
from lit_thinkfast.analysis.difference import Difference, compare
from lit_thinkfast.analysis.groups import Grouping, GroupValue, group_values
from lit_thinkfast.analysis.landmarks import Landmarks, find_landmarks
from lit_thinkfast.analysis.pareto import Stretch, curves, winners
from lit_thinkfast.analysis.runs import ModelRun
from lit_thinkfast.analysis.text import shorten
from lit_thinkfast.records import BudgetPoint, Problem, Rule


@dataclass(frozen=True)
class BestAt:
    """The best model within one time budget.

    Attributes:
        seconds: The budget, engine seconds a problem.
        rule: How the answer is selected.
        model: The winner.
        k: Samples a problem that the winner finishes, at most as many as it drew.
        value: Its value there.
        margin: Against the baseline, or against the best other model where the baseline wins; ``None`` where that one
            has not finished a sample yet.
        short_of_samples: Models that have used all they drew before this budget.
    """

    seconds: float
    rule: Rule
    model: str
    k: int
    value: float
    margin: Difference | None
    short_of_samples: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Several models on the same problems.

    Where some model has no engine seconds, ``fronts`` and ``best`` are empty and so are the landmarks: there are curves
    over k only.

    Attributes:
        runs: Name -> run, in the order in which models are shown.
        baseline: The model that the others are compared with, usually the teacher.
        measured: Name -> per-problem values.
        points: All curves with intervals; time is k times the mean time of a sample.
        fronts: Rule -> who is best where.
        best: One entry for each rule and round budget, budgets outermost.
        num_problems: Problems that all models share and have samples of for the largest k: all curves but those over
            a deadline are of these.
        few_samples: The other problems that all models share; some model has fewer samples of them.
        deadline: Curves over a real deadline (:mod:`lit_thinkfast.analysis.deadline`) of the models that have one.
        no_deadline: Name -> why a model has none.
        landmarks: When values are reached, how much faster than by the baseline, when models overtake each other, and
            the areas under the curves.
        prices: Name -> dollars an hour; empty where no price was given.
        resamples: Bootstrap resamples behind every interval.
        seed: Of the bootstrap.
    """

    runs: Mapping[str, ModelRun]
    baseline: str
    measured: Mapping[str, Measured]
    points: Sequence[BudgetPoint]
    fronts: Mapping[Rule, Sequence[Stretch]]
    best: Sequence[BestAt]
    num_problems: int
    few_samples: tuple[str, ...] = ()
    deadline: Sequence[BudgetPoint] = ()
    no_deadline: Mapping[str, str] = field(default_factory=dict)
    landmarks: Landmarks = field(default_factory=Landmarks)
    prices: Mapping[str, float] = field(default_factory=dict)
    resamples: int = 2000
    seed: int = 0

    @property
    def rules(self) -> list[Rule]:
        return list(self.measured[self.baseline].values)

    @property
    def ks(self) -> tuple[int, ...]:
        return self.measured[self.baseline].ks

    @property
    def timed(self) -> bool:
        """Whether all models have engine seconds, so that they can be compared at equal time."""
        return all(m.timed for m in self.measured.values())

    @property
    def unscored(self) -> tuple[str, ...]:
        """Models that lack reward scores; where there are any, the two rules that need scores are left out."""
        return tuple(name for name, run in self.runs.items() if not run.has_scores)

    @property
    def price_per_hour(self) -> float | None:
        """The price of an hour if it is the same for all models, else ``None``."""
        return next(iter(self.prices.values())) if len(set(self.prices.values())) == 1 else None

    def dollars(self, model: str, seconds: float) -> float:
        """Return the cost of engine seconds of one model; NaN where no price was given."""
        return seconds / 3600 * self.prices.get(model, math.nan)

    @cached_property
    def problems(self) -> dict[str, Problem]:
        """Problem id -> problem, as far as some run knows it."""
        return {p.id: p for run in reversed(list(self.runs.values())) for p in run.problems.values()}

    def groups(self, by: Grouping) -> list[GroupValue]:
        """Return the values by ``level`` or ``subject``; nothing where no problem says its own.

        Raises:
            ValueError: ``by`` is something else.
        """
        return group_values(self.measured, self.problems, by, resamples=self.resamples, seed=self.seed)

    def point(self, model: str, rule: Rule, k: int) -> BudgetPoint | None:
        """Return one point, or ``None`` where it was not measured."""
        return next((p for p in self.points if (p.model, p.rule, p.k) == (model, rule, k)), None)


def compare_models(
    runs: Mapping[str, ModelRun],
    *,
    baseline: str | None = None,
    ks: Sequence[int] | None = None,
    rules: Sequence[Rule] | None = None,
    prices: Mapping[str, float] | float | None = None,
    resamples: int = 2000,
    seed: int = 0,
    on_step: Callable[[str, Rule], None] | None = None,
) -> Comparison:
    """Measure all models and compare them at round budgets.

    Args:
        runs: Name -> run.
        baseline: Default: the first whose layers are known to be attention only, else the first.
        ks: Samples a problem; default half-octave steps up to what nine of ten problems have in every run. Problems
            with fewer than the largest are left out, so that all curves are of the same problems.
        rules: Default: all that the runs allow.
        prices: Dollars an hour of what the models ran on, one for all or one for each.
        resamples: Bootstrap resamples of problems.
        seed: Of the bootstrap.
        on_step: Called when one model is through one rule, which takes most of the time.

    Raises:
        ValueError: As :func:`~lit_thinkfast.analysis.budget.measure`, the baseline is not among the runs, or a
            price is no price; two names are the same once shortened.
    """
    if baseline is not None and baseline not in runs:
        raise ValueError(f"the baseline {baseline!r} is not among the models {', '.join(runs)}")
    _check_names(runs)
    hourly = checked_prices(prices, runs)
    measured = measure(runs, ks=ks, rules=rules, on_step=on_step)
    if baseline is None:
        pure = (name for name, run in runs.items() if set(run.layer_mixers or ()) == {"attention"})
        baseline = next(pure, next(iter(runs)))
    chosen = list(measured[baseline].values)
    points = measured_points(measured, resamples=resamples, seed=seed)
    deadline, no_deadline = deadline_points(runs, rules=chosen, resamples=resamples, seed=seed)
    fronts: dict[Rule, list[Stretch]] = {}
    best: list[BestAt] = []
    landmarks = Landmarks()
    if all(m.timed for m in measured.values()):
        fronts = {rule: winners(points, rule) for rule in chosen}
        ends = [s for front in fronts.values() for s in (front[0].start, front[-1].end)]
        best = [
            _best_at(measured, points, baseline, rule, seconds, resamples, seed)
            for seconds in round_budgets(min(ends), max(ends))
            for rule, front in fronts.items()
            if front[0].start <= seconds
        ]
        landmarks = find_landmarks(measured, chosen, baseline, resamples=resamples, seed=seed)
    return Comparison(
        runs,
        baseline,
        measured,
        points,
        fronts,
        best,
        num_problems=len(measured[baseline].problem_ids),
        few_samples=tuple(p for p in shared_problems(runs) if p not in set(measured[baseline].problem_ids)),
        deadline=deadline,
        no_deadline=no_deadline,
        landmarks=landmarks,
        prices=hourly,
        resamples=resamples,
        seed=seed,
    )


def _check_names(names: Iterable[str]) -> None:
    """Refuse names that are the same where they are shortened to fit a table."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(shorten(name, 40), name)
        if other != name:
            raise ValueError(
                f"the names {other!r} and {name!r} cannot be told apart once shortened; use 40 characters at most"
            )


def round_budgets(low: float, high: float, *, most: int = 10) -> list[float]:
    """Return 1-2-5 steps inside a range, thinned evenly where there are more than ``most``.

    >>> round_budgets(0.3, 6.0)
    [0.5, 1.0, 2.0, 5.0]
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = [float(f"{d}e{e}") for e in decades for d in (1, 2, 5) if low <= float(f"{d}e{e}") <= high]
    return steps[:: math.ceil(len(steps) / most)] if steps else [high]


def _best_at(
    measured: Mapping[str, Measured],
    points: Sequence[BudgetPoint],
    baseline: str,
    rule: Rule,
    seconds: float,
    resamples: int,
    seed: int,
) -> BestAt:
    every = {c.model: c for c in curves(points, rule)}
    ranked = sorted((c for c in every.values() if seconds >= c.seconds[0]), key=lambda c: -c.at(seconds))
    top = ranked[0]
    if len(ranked) > 1 and every[baseline].at(seconds) == top.at(seconds):
        top = every[baseline]  # a tie is not a win over the baseline
    others = [c.model for c in ranked if c.model != top.model]
    rival = next(iter(others), None) if top.model == baseline else baseline if baseline in others else None
    margin = None
    if rival is not None:
        margin = compare(
            measured[top.model], measured[rival], rule=rule, seconds=seconds, resamples=resamples, seed=seed
        )
    own = measured[top.model]
    k = min(int(seconds / own.seconds_for_one(rule).mean() * (1 + 1e-9)), own.ks[-1])
    short = tuple(c.model for c in every.values() if c.seconds[-1] < seconds)
    return BestAt(seconds, rule, top.model, k, top.at(seconds), margin, short)
