"""Two models on the same problems: who is better at equal samples and at equal time, how surely, and on which problems.

Problems are the unit of everything. Both models answered the same ones, so they are compared problem by problem: the
interval is a paired bootstrap over problems, the p-value that of a permutation test which swaps the two models on
random problems (exact where there are few problems that tell them apart). Rows are many and go together, so each also
has a p-value adjusted by Holm's method (Scand. J. Stat. 6, 1979), which holds whatever the dependence: of all rows, the
chance that even one with an adjusted p below 0.05 is luck is below 5 %.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lit_thinkfast.analysis.budget import (
    Array,
    Measured,
    measure,
    problem_weights,
    shared_problems,
)
from lit_thinkfast.analysis.comparison import round_budgets
from lit_thinkfast.analysis.deadline import common_problems, replay, why_not
from lit_thinkfast.analysis.difference import difference_draws, samples_within, values_within
from lit_thinkfast.analysis.flips import Flip, find_flips
from lit_thinkfast.analysis.runs import ModelRun, untimed_in_words
from lit_thinkfast.metrics.statistics import EQUAL, difference_interval, paired_permutation_test, weighted_means
from lit_thinkfast.records import Rule

Basis = Literal["samples", "time", "deadline"]


@dataclass(frozen=True, slots=True)
class PairRow:
    """The two models at one number of samples or one time budget, the first less the second.

    Attributes:
        basis: What is equal: ``samples``; ``time`` as k times the mean time of a sample; or a ``deadline`` of the run.
        rule: How the answer is selected.
        at: Samples a problem, or seconds a problem.
        first_k: Samples a problem of the first model (with a budget they need not be whole numbers; by a deadline the
            samples of the problem with most).
        second_k: Of the second.
        first: Share of problems that the first model solves.
        second: Share that the second solves.
        difference: ``first - second``.
        low: Lower end of its 95 % interval; NaN where there is but one problem.
        high: Upper end.
        p_value: Two-sided, of the permutation test; the times of the samples are taken as they are.
        adjusted: The p-value, adjusted for all rows.
        won: Problems of which the first model's value is the larger.
        lost: Problems of which the second's is.
        tied: Problems on which they are equal.
        short_of_samples: Models that had used all their samples before this budget.
    """

    basis: Basis
    rule: Rule
    at: float
    first_k: float
    second_k: float
    first: float
    second: float
    difference: float
    low: float
    high: float
    p_value: float
    adjusted: float
    won: int
    lost: int
    tied: int
    short_of_samples: tuple[str, ...] = ()

    @property
    def resolved(self) -> bool:
        """Whether the difference stands with all rows allowed for: an adjusted p-value below 0.05."""
        return self.adjusted < 0.05


@dataclass(frozen=True)
class PairComparison:
    """Two models, compared problem by problem.

    Attributes:
        first: Name of the first model.
        second: Name of the second.
        num_problems: Problems behind the rows at equal samples and equal time. Those at equal deadlines are of all
            problems that both runs were asked.
        k: The largest number of samples at which they are compared; that of the flips.
        rows: Equal samples, then equal time, then equal deadlines, each by rule.
        flips: Problems that one solves and the other does not.
        notes: What the rows leave out, in sentences.
    """

    first: str
    second: str
    num_problems: int
    k: int
    rows: Sequence[PairRow]
    flips: Sequence[Flip]
    notes: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; numbers that are not finite become ``None``."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain


def compare_pair(
    first: ModelRun,
    second: ModelRun,
    *,
    names: tuple[str, str] = ("first", "second"),
    ks: Sequence[int] | None = None,
    rules: Sequence[Rule] | None = None,
    resamples: int = 2000,
    permutations: int = 10_000,
    seed: int = 0,
    on_step: Callable[[str, Rule], None] | None = None,
) -> PairComparison:
    """Compare two runs, for every rule at every k, at round time budgets, and at round deadlines where both have them.

    Args:
        first: A run.
        second: Another on the same problems.
        names: Of the two models, different from each other.
        ks: Samples a problem; default half-octave steps up to what nine of ten problems have in both runs. Problems
            with fewer than the largest are left out, so that all rows are of the same problems.
        rules: Default: all that the runs allow.
        resamples: Bootstrap resamples of problems.
        permutations: Swaps tried at most by a permutation test.
        seed: Of bootstrap and permutations.
        on_step: Called when one model is through one rule.

    Raises:
        ValueError: The names are equal, or as :func:`~lit_thinkfast.analysis.budget.measure`.
    """
    if names[0] == names[1]:
        raise ValueError(f"both models are called {names[0]!r}; give them two names")
    runs = dict(zip(names, (first, second), strict=True))
    a, b = measure(runs, ks=ks, rules=rules, on_step=on_step).values()
    shared = shared_problems(runs)
    notes = _left_out(runs, len(shared))
    if few := len(shared) - len(a.problem_ids):
        notes.append(
            f"{few} problems have fewer than {a.ks[-1]} samples in one of the runs; only deadlines count them."
        )
    make = _Rows(resamples, permutations, seed)
    rows = [make.at_samples(a, b, rule, i) for rule in a.values for i in range(len(a.ks))]
    if a.timed and b.timed:
        rows += [make.at_time(a, b, rule, t) for rule in a.values for t in _budgets(a, b, rule)]
        found, note = _deadlines(runs, list(a.values), make)
        rows += found
        notes += note
    else:
        untimed = " and ".join(untimed_in_words(name, run) for name, run in runs.items() if run.num_untimed)
        notes.append(f"{untimed}: no engine seconds, so the models are compared at equal samples only.")
    rows = [dataclasses.replace(r, adjusted=p) for r, p in zip(rows, holm([r.p_value for r in rows]), strict=True)]
    problems = {**second.problems, **first.problems}
    flips = find_flips(a, b, (first, second), problems)
    return PairComparison(*names, len(a.problem_ids), a.ks[-1], rows, flips, notes)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm's method, in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, most = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        most = max(most, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = most
    return adjusted


@dataclass(frozen=True)
class _Rows:
    """Makes rows out of values a problem."""

    resamples: int
    permutations: int
    seed: int

    def at_samples(self, a: Measured, b: Measured, rule: Rule, i: int) -> PairRow:
        k = a.ks[i]
        return self._paired("samples", rule, k, (k, k), a.values[rule][:, i], b.values[rule][:, i])

    def at_time(self, a: Measured, b: Measured, rule: Rule, seconds: float) -> PairRow:
        """Return a row whose interval allows for the times as well: problems are drawn with their times."""
        draws = difference_draws(a, b, rule=rule, seconds=seconds, resamples=self.resamples, seed=self.seed)
        ks = (samples_within(a, rule, seconds), samples_within(b, rule, seconds))
        row = self._paired(
            "time", rule, seconds, ks, values_within(a, rule, seconds), values_within(b, rule, seconds), draws
        )
        ends = ((m.model, m.ks[-1] * float(m.seconds_for_one(rule).mean())) for m in (a, b))
        return dataclasses.replace(row, short_of_samples=tuple(name for name, end in ends if end < seconds))

    def at_deadline(self, rule: Rule, seconds: float, ks: tuple[float, float], one: Array, other: Array) -> PairRow:
        return self._paired("deadline", rule, seconds, ks, one, other)

    def _paired(
        self,
        basis: Basis,
        rule: Rule,
        at: float,
        ks: tuple[float, float],
        one: Array,
        other: Array,
        draws: Array | None = None,
    ) -> PairRow:
        difference = one - other
        if draws is None:
            draws = weighted_means(difference, problem_weights(len(difference), self.resamples, self.seed))
        low, high = difference_interval(difference, draws[1:])
        won, lost = int((difference > EQUAL).sum()), int((difference < -EQUAL).sum())
        p = paired_permutation_test(one, other, permutations=self.permutations, seed=self.seed)
        return PairRow(
            basis,
            rule,
            at,
            *ks,
            first=float(one.mean()),
            second=float(other.mean()),
            difference=float(draws[0]),
            low=low,
            high=high,
            p_value=p,
            adjusted=p,
            won=won,
            lost=lost,
            tied=len(difference) - won - lost,
        )


def _budgets(a: Measured, b: Measured, rule: Rule) -> list[float]:
    """Return round budgets from where both have a sample to where both have used all of theirs."""
    one, other = (float(m.seconds_for_one(rule).mean()) for m in (a, b))
    low, high = max(a.ks[0] * one, b.ks[0] * other), max(a.ks[-1] * one, b.ks[-1] * other)
    return round_budgets(low, high)


def _deadlines(runs: dict[str, ModelRun], rules: Sequence[Rule], make: _Rows) -> tuple[list[PairRow], list[str]]:
    reasons = {name: reason for name, run in runs.items() if (reason := why_not(run))}
    if reasons:
        told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        return [], [f"Not compared at equal deadlines. {told}."]
    problems = common_problems(runs)
    spans = [replay(name, run, problems, rules, steps=2).seconds for name, run in runs.items()]
    rows = []
    for rule in rules:
        low, high = max(s[rule][0] for s in spans), min(s[rule][-1] for s in spans)
        if low > high:
            continue
        budgets = round_budgets(low, high)
        one, other = (replay(name, run, problems, [rule], deadlines=budgets) for name, run in runs.items())
        rows += [
            make.at_deadline(
                rule,
                t,
                (float(one.most[rule][i]), float(other.most[rule][i])),
                one.values[rule][:, i],
                other.values[rule][:, i],
            )
            for i, t in enumerate(budgets)
        ]
    return rows, []


def _left_out(runs: dict[str, ModelRun], shared: int) -> list[str]:
    notes = []
    for name, run in runs.items():
        if more := len(run.by_problem) - shared:
            notes.append(f"{more} problems of {name} are left out: the other has no sample of them.")
        if run.removed_problems:
            notes.append(f"{len(run.removed_problems)} problems of {name} have no verdict and are left out.")
        if run.unsampled:
            notes.append(f"{len(run.unsampled)} problems of {name} have no finished sample; only deadlines count them.")
    return notes


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
