"""The table of all problems, one row each, with filters that need no script.

A filter is a group of radio buttons; the style sheet hides the rows that lack the class of the button that is chosen.
Filters of different groups hold together. A counter of the style sheet counts the rows that are left.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lit_thinkfast.analysis.comparison import Comparison
from lit_thinkfast.analysis.page import chip
from lit_thinkfast.analysis.style import ModelStyle
from lit_thinkfast.analysis.text import RULES_IN_TEXT, clip, duration, escape, join, shorten
from lit_thinkfast.records import Rule

SHORT: dict[Rule, str] = {"majority": "m", "weighted_best_of_n": "w", "best_of_n": "b"}
_MOST_CHOICES = 24


@dataclass(frozen=True)
class Filter:
    """One group of choices.

    Attributes:
        name: Part of ids and classes.
        legend: Said before the choices.
        choices: Class that rows have -> words, in order; "all" comes first by itself.
        counts: Class -> how many rows have it.
    """

    name: str
    legend: str
    choices: Mapping[str, str]
    counts: Mapping[str, int]

    def markup(self) -> str:
        """Return a fieldset of radio buttons, the first chosen: all."""
        parts = []
        for number, (key, told) in enumerate({f"{self.name}-all": "all", **self.choices}.items()):
            checked = "" if number else " checked"
            many = f" <small>{self.counts[key]}</small>" if number else ""
            button = f'<input type="radio" name="{self.name}" id="{key}"{checked}>'
            parts.append(f"<label>{button}<span>{escape(told)}{many}</span></label>")
        return f'<fieldset class="filter"><legend>{escape(self.legend)}</legend>{"".join(parts)}</fieldset>'

    def rules(self) -> str:
        """Return the style rules that hide rows."""
        return "\n".join(
            f".problems:has(#{key}:checked) tbody tr:not(.{key}) {{ display: none; }}" for key in self.choices
        )


def problem_filters(c: Comparison) -> tuple[list[Filter], dict[str, list[str]]]:
    """Return the filters that tell problems apart here, and the classes of each problem's row."""
    classes: dict[str, list[str]] = {}
    ids = c.measured[c.baseline].problem_ids
    many = len(c.runs) > 1
    told = {"show-every": "solved by all", "show-none": "solved by none", "show-never": "no sample right"}
    if many:
        told = {"show-differ": "models disagree", **told}
    else:
        told = {"show-every": "solved", "show-none": "not solved", "show-never": "no sample right"}
    rule = deciding_rule(c)
    for row, problem in enumerate(ids):
        solved = [_at_last(c, name, rule, row) > 0.5 for name in c.runs]
        own = ["show-every" if all(solved) else "show-differ" if any(solved) else "show-none"]
        if not any(v.correct for run in c.runs.values() for _, v in run.by_problem[problem]):
            own.append("show-never")
        classes[problem] = own
    used = Counter(key for own in classes.values() for key in own)
    filters = [Filter("show", "Show", {key: text for key, text in told.items() if key in used}, used)]
    known = {problem: p for problem in ids if (p := c.problems.get(problem))}
    for name, legend, value in (
        ("level", "Level", lambda p: "" if p.level is None else str(p.level)),
        ("subject", "Subject", lambda p: p.subject),
    ):
        values = {problem: value(known[problem]) if problem in known else "" for problem in ids}
        common = [v for v, _ in Counter(v for v in values.values() if v).most_common(_MOST_CHOICES)]
        common.sort(key=lambda v: (len(v), v) if name == "level" else (0, v))
        if len(common) < 2:
            continue
        keys = {v: f"{name}-{number}" for number, v in enumerate(common, start=1)}
        for problem, v in values.items():
            if v in keys:
                classes[problem].append(keys[v])
        counts = {keys[v]: number for v, number in Counter(values.values()).items() if v in keys}
        filters.append(Filter(name, legend, {keys[v]: shorten(v, 40) for v in common}, counts))
    return filters, classes


def deciding_rule(c: Comparison) -> Rule:
    """Return the rule by which a problem counts as solved in the table: majority vote where it was measured."""
    return "majority" if "majority" in c.rules else c.rules[0]


def problem_table(c: Comparison, styles: Mapping[str, ModelStyle], order: Sequence[str]) -> str:
    """Return filters and table; a row's problem links to its samples.

    Args:
        c: The comparison.
        styles: Of the models.
        order: Problem ids in the order of rows; the samples of the n-th are at ``#p<n>``.
    """
    filters, classes = problem_filters(c)
    rows_of = {problem: row for row, problem in enumerate(c.measured[c.baseline].problem_ids)}
    votes = [rule for rule in c.rules if rule != "coverage"]
    body = []
    for number, problem in enumerate(order):
        known = c.problems.get(problem)
        told = clip(known.question if known else problem, 90)
        about = [f"level {known.level}"] if known and known.level is not None else []
        about += [shorten(known.subject, 40)] if known and known.subject else []
        small = escape(" · ".join([*about, shorten(problem, 48)]))
        cells = [f'<th scope="row"><a href="#p{number}">{number + 1}. {escape(told)}</a><small>{small}</small></th>']
        for name, run in c.runs.items():
            samples = run.by_problem[problem]
            right = sum(v.correct for _, v in samples)
            row = rows_of[problem]
            marks = [f"{SHORT[rule]}\N{NO-BREAK SPACE}{_mark(_at_last(c, name, rule, row))}" for rule in votes]
            seconds = float(c.measured[name].sample_seconds[row])
            marks += [duration(seconds)] if math.isfinite(seconds) else []
            cells.append(
                f'<td class="share m{styles[name].index}" style="--p:{100 * right / len(samples):.0f}%">'
                f"{right}/{len(samples)}<small>{' '.join(marks)}</small></td>"
            )
        body.append(f'<tr class="{" ".join(classes[problem])}">{"".join(cells)}</tr>')
    heads = ["<th scope=col>problem</th>"]
    heads += [f"<th scope=col>{chip(name, styles, limit=24)}</th>" for name in c.runs]
    lines = "\n".join(body)
    return (
        f'<div class="problems"><div class="filters">{"".join(f.markup() for f in filters)}</div>'
        '<div class="scroll tall" role="region" tabindex="0" aria-label="Table of problems">'
        f"<table><thead><tr>{''.join(heads)}</tr></thead><tbody>\n{lines}\n</tbody></table></div>"
        f'<p class="shown">of {len(order)} problems</p></div>'
    )


def problem_note(c: Comparison) -> str:
    """Return what the table's cells and filters mean, as text."""
    rule = deciding_rule(c)
    name = RULES_IN_TEXT[rule] if rule != "coverage" else "any of its samples"
    letters = join([f"{SHORT[r]} for {RULES_IN_TEXT[r]}" for r in c.rules if r in SHORT] or ["none here"])
    return (
        "Problems from easy to hard, each a link to its samples. In a model's column: how many of its samples are "
        f"right, what each way of choosing among all of them makes of it ({letters}; a share where ties are split), "
        f"and the mean time of a sample. Solved means right by {name}."
    )


def filter_styles(c: Comparison) -> str:
    """Return the style rules of all filters."""
    return "\n".join(f.rules() for f in problem_filters(c)[0])


def _at_last(c: Comparison, name: str, rule: Rule, row: int) -> float:
    """Return a problem's value with the most samples for which it has one; NaN where it has none."""
    values = c.measured[name].values[rule][row]
    known = [float(v) for v in values if math.isfinite(v)]
    return known[-1] if known else math.nan


def _mark(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "\N{CHECK MARK}" if value > 0.999 else "\N{BALLOT X}" if value < 0.001 else f"{100 * value:.0f}%"
