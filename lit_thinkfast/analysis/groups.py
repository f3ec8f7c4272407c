"""Values by difficulty level or by subject, for problems that say theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from lit_thinkfast.analysis.budget import Measured, problem_weights
from lit_thinkfast.metrics.statistics import share_intervals
from lit_thinkfast.records import Problem, Rule

Grouping = Literal["level", "subject"]


@dataclass(frozen=True, slots=True)
class GroupValue:
    """A model's value on the problems of one group.

    Attributes:
        group: The level, as a number in text, or the subject.
        model: Name of the model.
        rule: How the answer is selected from k samples.
        k: Samples a problem.
        value: Share of problems solved.
        low: Lower end of the 95 % interval over the problems of the group; NaN where there is but one.
        high: Upper end.
        num_problems: Problems behind ``value``.
    """

    group: str
    model: str
    rule: Rule
    k: int
    value: float
    low: float
    high: float
    num_problems: int


def group_values(
    measured: Mapping[str, Measured],
    problems: Mapping[str, Problem],
    by: Grouping,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> list[GroupValue]:
    """Return every model's value for every rule and k in every group, levels from easy to hard, subjects by name.

    Problems that do not say theirs are in no group.

    Args:
        measured: Models that were measured together.
        problems: Problem id -> problem, at least those that are to be grouped.
        by: What to group by.
        resamples: Bootstrap resamples within each group, the same for all models.
        seed: Of the bootstrap.

    Raises:
        ValueError: ``by`` is something else.
    """
    if by not in get_args(Grouping):
        raise ValueError(f"by {by!r} is not one of {', '.join(get_args(Grouping))}")
    rows = grouped(next(iter(measured.values())).problem_ids, problems, by)
    found = []
    for group, places in rows.items():
        weights = problem_weights(len(places), resamples, seed)
        for name, m in measured.items():
            for rule, values in m.values.items():
                columns = zip(m.ks, *share_intervals(values[places], weights[1:]), strict=True)
                found += [
                    GroupValue(group, name, rule, k, float(mean), float(low), float(high), len(places))
                    for k, mean, low, high in columns
                ]
    return found


def grouped(problem_ids: Sequence[str], problems: Mapping[str, Problem], by: Grouping) -> dict[str, list[int]]:
    """Return group -> places of its problems in ``problem_ids``, in the order in which groups are shown."""
    rows: dict[int | str, list[int]] = {}
    for place, problem_id in enumerate(problem_ids):
        problem = problems.get(problem_id)
        group = None if problem is None else problem.level if by == "level" else problem.subject or None
        if group is not None:
            rows.setdefault(group, []).append(place)
    return {str(group): rows[group] for group in sorted(rows)}  # type: ignore[type-var]
