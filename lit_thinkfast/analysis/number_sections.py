"""The tables of numbers: who is best at round budgets, landmarks, values, rewards, levels and subjects."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from lit_thinkfast.analysis.comparison import BestAt, Comparison
from lit_thinkfast.analysis.difference import STANDS_OUT
from lit_thinkfast.analysis.gain import selection_gains
from lit_thinkfast.analysis.page import chip, data_table, details, section
from lit_thinkfast.analysis.provenance import source
from lit_thinkfast.analysis.sections import price_note
from lit_thinkfast.analysis.style import ModelStyle
from lit_thinkfast.analysis.table import SHORT_RULES, attention_layers, budget_rows, shown_ks
from lit_thinkfast.analysis.text import (
    RULE_NAMES,
    RULES_IN_TEXT,
    count,
    dollars,
    duration,
    escape,
    factor,
    percent,
    points,
    shorten,
    span,
    whole,
)
from lit_thinkfast.records import Rule


def budgets_section(c: Comparison, styles: Mapping[str, ModelStyle]) -> str:
    """Return the table of the best model at round budgets; nothing without times."""
    if not c.timed or not c.best:
        return ""
    rows = []
    for seconds, row in budget_rows(c).items():
        head = f'<th scope="row">{duration(seconds)}{_money(c, seconds)}</th>'
        rows.append([head, *(_budget_cell(c, row.get(r), styles) for r in c.rules)])
    caption = (
        f"Below each winner: how many samples it finishes, and its lead in percentage points over "
        f"{chip(c.baseline, styles)} (or over the best other model, where that one wins; none while it has no sample) "
        f"with the 95 % interval of the paired difference. A star marks leads whose interval {STANDS_OUT}."
    )
    return section(
        "The best model at round budgets",
        (caption if len(c.runs) > 1 else "") + (f" {price_note(c)}" if c.prices else ""),
        data_table(["budget per problem", *(RULE_NAMES[r] for r in c.rules)], rows, left=True, label="Best at budgets"),
        anchor="budgets",
        source=escape(source(c)),
    )


def _budget_cell(c: Comparison, b: BestAt | None, styles: Mapping[str, ModelStyle]) -> str:
    if b is None:
        return '<td class="left">-</td>'
    out = b.model in b.short_of_samples
    small = f"{'all ' if out else ''}{b.k} sample{'s' if b.k > 1 else ''}"
    if b.model in c.prices and c.price_per_hour is None:
        small += f" for {dollars(c.dollars(b.model, b.seconds))}"
    if b.margin is not None:
        m = b.margin
        small += f", {points(m.difference)} [{points(m.low)}, {points(m.high)}]{' *' if m.resolved else ''}"
    return f'<td class="left">{chip(b.model, styles, limit=22)} {percent(b.value)}<small>{small}</small></td>'


def landmarks_section(c: Comparison, styles: Mapping[str, ModelStyle]) -> str:
    """Return when values are reached, when the lead changes hands and who is best on the whole; folded by rule."""
    marks = c.landmarks
    parts = []
    if marks.areas:
        rules = [r for r in c.rules if any(a.rule == r for a in marks.areas)]
        found = {(a.model, a.rule): a for a in marks.areas}
        rows = []
        for name in c.runs:
            cells = []
            for rule in rules:
                a = found.get((name, rule))
                best = a is not None and a.value == max(b.value for b in marks.areas if b.rule == rule)
                top = f' class="top m{styles[name].index}"' if best and len(c.runs) > 1 else ""
                cells.append(
                    f"<td{top}>{percent(a.value)}<small>{span(a.low, a.high)}</small></td>" if a else "<td>-</td>"
                )
            rows.append([f'<th scope="row">{chip(name, styles)}</th>', *cells])
        spans = {r: next(a for a in marks.areas if a.rule == r) for r in rules}
        heads = [f"{RULE_NAMES[r]}, {duration(a.start)} to {duration(a.end)}" for r, a in spans.items()]
        parts += ['<h3 class="rule">On the whole</h3>', data_table(["model", *heads], rows, label="Mean over log time")]
        parts.append(
            '<p class="note">The mean value of each curve over the budgets that all models share, every doubling of '
            "the time counting the same.</p>"
        )
    if marks.crossings:
        rows = [
            [
                f'<th scope="row">{RULE_NAMES[x.rule]}</th>',
                f'<td class="left">{chip(x.second, styles)}</td>',
                f'<td class="left">{chip(x.first, styles)}</td>',
                f'<td class="left">{duration(x.seconds)}{_money(c, x.seconds)}</td>',
                f'<td class="left">{_times(x.low, x.high)}</td>',
            ]
            for x in marks.crossings
        ]
        heads = ["rule", "this model", "overtakes", "from this budget on", "95 % interval"]
        parts += ['<h3 class="rule">When the lead changes</h3>', data_table(heads, rows, left=True, label="Crossings")]
    parts += [part for rule in c.rules if (part := _reach_table(c, rule, styles))]
    if not parts:
        return ""
    return section("Landmarks", "", *parts, anchor="landmarks", source=escape(source(c)))


def _reach_table(c: Comparison, rule: Rule, styles: Mapping[str, ModelStyle]) -> str:
    """Return, folded, when each model reaches which value of one rule, and how many times faster than the baseline."""
    own = {(r.model, r.value): r for r in c.landmarks.reach if r.rule == rule}
    faster = {(s.model, s.value): s for s in c.landmarks.speedups if s.rule == rule}
    values = sorted({value for _, value in own})
    if not values:
        return ""
    rows = []
    for name in c.runs:
        cells = []
        for value in values:
            r, s = own.get((name, value)), faster.get((name, value))
            told = "-" if r is None else f"{_never(r.seconds)}<small>{_times(r.low, r.high)}</small>"
            if s is not None and math.isfinite(s.factor) and s.factor > 0:
                told += f"<small>{factor(s.factor)} ({_factors(s.low, s.high)})</small>"
            cells.append(f"<td>{told}</td>")
        rows.append([f'<th scope="row">{chip(name, styles)}</th>', *cells])
    heads = ["model", *(percent(v, 0) for v in values)]
    table = data_table(heads, rows, label=f"Time to reach, {RULE_NAMES[rule]}")
    told = f"Time to reach a value: {RULES_IN_TEXT[rule]}"
    note = (
        "Small: 95 % interval; then how many times faster than the baseline, with its interval, where both get there."
    )
    return details(
        f"{told} <small>engine time a problem, with 95 % intervals</small>", table, f'<p class="note">{note}</p>'
    )


def groups_section(c: Comparison, styles: Mapping[str, ModelStyle], by: Literal["level", "subject"]) -> str:
    """Return the table of values in each level or subject; nothing where problems have none."""
    values = c.groups(by)
    groups = list(dict.fromkeys(str(v.group) for v in values))
    if not groups:
        return ""
    found = {(str(v.group), v.model, v.rule, v.k): v for v in values}
    keys: list[tuple[Rule, int]] = [(r, k) for r, k in _keys(c) if any(key[2:] == (r, k) for key in found)]
    keys = keys or sorted({(v.rule, v.k) for v in values})
    parts = []
    for number, (rule, k) in enumerate(keys):
        rows = []
        for group in groups:
            own = {name: found.get((group, name, rule, k)) for name in c.runs}
            known = [v for v in own.values() if v is not None and math.isfinite(v.value)]
            if not known:
                continue
            cells = []
            for name, v in own.items():
                if v is None or not math.isfinite(v.value):
                    cells.append("<td>-</td>")
                    continue
                top = v.value == max(o.value for o in known) > min(o.value for o in known)
                mark = f' class="top m{styles[name].index}"' if top else ""
                cells.append(f"<td{mark}>{percent(v.value)}<small>{span(v.low, v.high)}</small></td>")
            head = f'<th scope="row">{escape(shorten(group, 60))}</th>'
            rows.append([head, f"<td>{known[0].num_problems}</td>", *cells])
        head = "".join(f'<th scope="col">{chip(name, styles, limit=24)}</th>' for name in c.runs)
        title = f"{RULE_NAMES[rule]} with {'one sample' if k == 1 else f'{k} samples'}"
        table = data_table([by, "problems"], rows, label=f"{title} by {by}", more=head)
        parts.append(f'<h3 class="rule">{title}</h3>{table}' if number < 2 else details(title, table))
    return section(
        f"By {by}",
        "Small: 95 % bootstrap interval over the problems of the group. Shaded: the best of the row.",
        *parts,
        anchor=f"by-{by}",
        source=escape(source(c)),
    )


def values_section(c: Comparison, styles: Mapping[str, ModelStyle]) -> str:
    """Return the table of models and, folded, every point of every curve."""
    keys = _keys(c)
    best = {key: max(p.value for name in c.runs if (p := c.point(name, *key))) for key in keys}
    rows = []
    for name, run in c.runs.items():
        cells = [
            f'<th scope="row">{chip(name, styles)}</th>',
            f"<td>{'-' if run.num_parameters is None else count(run.num_parameters)}</td>",
            f"<td>{attention_layers(run)}</td>",
            f"<td>{whole(run.tokens_per_completion)}</td>",
            f"<td>{duration(float(c.measured[name].sample_seconds.mean()))}</td>",
        ]
        for key in keys:
            p = c.point(name, *key)
            if p is None:
                cells.append("<td>-</td>")
                continue
            top = f' class="top m{styles[name].index}"' if p.value == best[key] else ""
            cells.append(f"<td{top}>{percent(p.value)}<small>{span(p.low, p.high)}</small></td>")
        rows.append(cells)
    headings = ["model", "params", "attention", "tokens", "s per sample"]
    parts = [data_table(headings + [f"{SHORT_RULES[rule]}@{k}" for rule, k in keys], rows, label="Models and values")]
    for rule in c.rules:
        lines = []
        for name in c.runs:
            own = [p for p in c.points if p.model == name and p.rule == rule]
            cells = [f"<td>{percent(p.value)}<small>{duration(p.seconds)}</small></td>" for p in own]
            lines.append([f'<th scope="row">{chip(name, styles)}</th>', *cells])
        told = f"{RULE_NAMES[rule]} for every number of samples <small>value and engine time per problem</small>"
        parts.append(details(told, data_table(["k", *(str(k) for k in c.ks)], lines, label=RULE_NAMES[rule])))
    return section(
        "The numbers",
        "Small: 95 % bootstrap interval over problems. Shaded: the best of the column.",
        *parts,
        anchor="numbers",
        source=escape(source(c)),
    )


def reward_section(c: Comparison, styles: Mapping[str, ModelStyle]) -> str:
    """Return the table of what choosing with the reward model adds; nothing where there are no scores."""
    gains = {name: selection_gains(c.measured[name]) for name in c.runs}
    first = gains[c.baseline]
    if not first:
        return ""
    rows = []
    for name, own in gains.items():
        cells = [
            f"<td>{points(g.difference)}{' *' if g.resolved else ''}"
            f"<small>{points(g.low)} to {points(g.high)}</small></td>"
            for g in own
        ]
        rows.append([f'<th scope="row">{chip(name, styles)}</th>', *cells])
    return section(
        "What the reward model adds",
        f"Percentage points of problems solved with {first[0].k} samples. Small: 95 % interval of the paired "
        f"difference over problems. A star marks those whose interval {STANDS_OUT}.",
        data_table(["model", *(f"{SHORT_RULES[g.rule]} over {g.over}" for g in first)], rows, label="What scores add"),
        anchor="reward",
        source=escape(source(c)),
    )


def _keys(c: Comparison) -> list[tuple[Rule, int]]:
    """Return the columns of a short table: the first rule at one sample and at all, the others at all."""
    return [(c.rules[0], k) for k in shown_ks(c)] + [(r, c.ks[-1]) for r in c.rules[1:]]


def _never(seconds: float) -> str:
    return "never" if math.isinf(seconds) else duration(seconds)


def _times(low: float, high: float) -> str:
    if math.isnan(low) or math.isnan(high):
        return "-"
    return "never" if math.isinf(low) and math.isinf(high) else f"{_never(low)} to {_never(high)}"


def _factors(low: float, high: float) -> str:
    if math.isnan(low) or math.isnan(high):
        return "-"
    ends = ["any" if math.isinf(end) else factor(end) if end > 0 else "0" for end in (low, high)]
    return " to ".join(ends)


def _money(c: Comparison, seconds: float) -> str:
    known = c.price_per_hour is not None and math.isfinite(seconds)
    return f"<small>{dollars(seconds / 3600 * (c.price_per_hour or 0.0))}</small>" if known else ""
