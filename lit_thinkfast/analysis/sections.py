"""The sections of the report: figures and tables with the words around them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lit_thinkfast.analysis.budget import SCORED
from lit_thinkfast.analysis.comparison import BestAt, Comparison
from lit_thinkfast.analysis.decode import QUANTITIES, decode_cells, decode_remarks, figure_decode
from lit_thinkfast.analysis.gain import selection_gains
from lit_thinkfast.analysis.page import chip, data_table, details, figure, section
from lit_thinkfast.analysis.plots import figure_curves, figure_front, figure_winners
from lit_thinkfast.analysis.runs import ModelRun, find
from lit_thinkfast.analysis.style import ModelStyle
from lit_thinkfast.analysis.svg import inline_svg
from lit_thinkfast.analysis.table import SHORT_RULES, attention_layers, budget_rows, shown_ks
from lit_thinkfast.analysis.text import (
    RULE_NAMES,
    RULES_IN_TEXT,
    count,
    duration,
    escape,
    factor,
    join,
    percent,
    points,
    shorten,
)
from lit_thinkfast.records import Rule

if TYPE_CHECKING:
    from lit_thinkfast.generation.points import DecodePoint

RULE_MEANINGS = {
    "coverage": "at least one of the k samples is right (pass@k)",
    "majority": "the most frequent answer is right; ties share the credit",
    "weighted_best_of_n": "the answer with the largest sum of reward-model scores is right",
    "best_of_n": "the answer of the best-scored sample is right",
}
_SETTINGS = ("device_name", "threads", "dtype", "batch_size", "temperature", "top_p", "max_new_tokens")


def ribbons(c: Comparison, styles: Mapping[str, ModelStyle]) -> str:
    """Return the figure of the best model at each budget; nothing where there is one model."""
    if len(c.runs) < 2:
        return ""
    title = "The best model at each time budget"
    svg = inline_svg(figure_winners(c.points, c.rules, styles=styles), name="winners", title=title)
    legend = f'<span class="legend">{" ".join(chip(name, styles) for name in c.runs)}</span>'
    caption = (
        "Solid: all models take part. Pale: some model has not finished its first sample yet, or has used all the "
        "samples that were drawn, so the lead there is cheap. Numbers are the budgets at which the lead changes."
    )
    return figure(title, legend, svg, caption=caption, wide=True)


def models_section(c: Comparison, styles: Mapping[str, ModelStyle]) -> str:
    """Return one card a model."""
    base = float(c.measured[c.baseline].sample_seconds.mean())
    cards = []
    for name, run in c.runs.items():
        own = float(c.measured[name].sample_seconds.mean())
        speed = "" if name == c.baseline else f" ({factor(base / own)} as fast)"
        facts = {
            "parameters": "not recorded" if run.num_parameters is None else count(run.num_parameters),
            "attention layers": attention_layers(run) if run.layer_mixers else "not recorded",
            "tokens per completion": f"{run.tokens_per_completion:.0f}",
            "engine time per sample": duration(own) + speed,
            "tokens per second": f"{run.tokens_per_completion / run.seconds_per_sample:,.0f}",
            "cut off by the token limit": percent(run.share_cut),
            "without an answer": percent(run.share_without_answer),
        }
        role = "the baseline" if name == c.baseline and len(c.runs) > 1 else ""
        note = ". ".join(part for part in (role.capitalize(), escape(run.note)) if part)
        cards.append(
            f'<div class="card model m{styles[name].index}"><h3>{escape(shorten(name, 60))}</h3>'
            + (f'<p class="note">{note}</p>' if note else "")
            + _layers(run)
            + "<dl>"
            + "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in facts.items())
            + "</dl></div>"
        )
    known = any(run.layer_mixers for run in c.runs.values())
    intro = "One square a layer: filled is attention, hollow is recurrent." if known else ""
    return section("The models", intro, f'<div class="grid">{"".join(cards)}</div>')


def _layers(run: ModelRun) -> str:
    mixers = run.layer_mixers
    if mixers is None:
        return ""
    squares = "".join(f"<i{' class=a' if m == 'attention' else ''}></i>" for m in mixers)
    label = f"{attention_layers(run)} layers use attention"
    return f'<div class="layers" role="img" aria-label="{label}">{squares}</div>'


def budgets_section(c: Comparison, styles: Mapping[str, ModelStyle]) -> str:
    """Return the table of the best model at round budgets."""
    rows = []
    for seconds, row in budget_rows(c).items():
        rows.append([f'<th scope="row">{duration(seconds)}</th>', *(_budget_cell(row.get(r), styles) for r in c.rules)])
    caption = (
        f"Below each winner: how many samples it finishes, and its lead in percentage points over "
        f"{chip(c.baseline, styles)} (or over the best other model, where that one wins) with the 95 % interval of the "
        "paired difference. A star marks leads whose interval leaves out zero."
    )
    return section(
        "The best model at round budgets",
        caption if len(c.runs) > 1 else "",
        data_table(["budget per problem", *(RULE_NAMES[r] for r in c.rules)], rows, left=True),
    )


def _budget_cell(b: BestAt | None, styles: Mapping[str, ModelStyle]) -> str:
    if b is None:
        return "<td>-</td>"
    out = b.model in b.short_of_samples
    small = f"{'all ' if out else ''}{b.k} sample{'s' if b.k > 1 else ''}"
    if b.margin is not None:
        m = b.margin
        small += f", {points(m.difference)} [{points(m.low)}, {points(m.high)}]{' *' if m.resolved else ''}"
    return f'<td class="left">{chip(b.model, styles, limit=22)} {percent(b.value)}<small>{small}</small></td>'


def fronts_section(c: Comparison, styles: Mapping[str, ModelStyle]) -> str:
    """Return the Pareto front of each rule."""
    if len(c.runs) < 2:
        return ""
    panels = [
        figure(
            RULE_NAMES[rule],
            RULE_MEANINGS[rule],
            inline_svg(
                figure_front(c.points, rule, styles=styles),
                name=f"front-{number}",
                title=f"Pareto front of {RULES_IN_TEXT[rule]} over time",
            ),
        )
        for number, rule in enumerate(c.rules)
    ]
    return section(
        "The Pareto front",
        "The thick line is the best that any model reaches within the time, in the colour of the model that reaches "
        "it; thin lines are the models by themselves. Markers are numbers of samples that no other choice beats.",
        f'<div class="grid two">{"".join(panels)}</div>',
    )


def curves_section(c: Comparison, styles: Mapping[str, ModelStyle]) -> str:
    """Return each rule against samples and against time."""
    parts = []
    for number, rule in enumerate(c.rules):
        pair = []
        for axis, told in (("k", "per sample"), ("seconds", "per second")):
            drawn = figure_curves(c.points, rule, axis="k" if axis == "k" else "seconds", styles=styles)
            title = f"{RULE_NAMES[rule]} against {'samples' if axis == 'k' else 'time'}"
            pair.append(figure(told.capitalize(), "", inline_svg(drawn, name=f"{axis}-{number}", title=title)))
        parts.append(f'<h3 class="rule">{RULE_NAMES[rule]}</h3><div class="grid two">{"".join(pair)}</div>')
    return section(
        "The same curves, per sample and per second",
        "Left, models are given equal numbers of samples; right, equal time. Bands are 95 % intervals over problems. "
        "Dotted: the model has used all its samples and its last value is held.",
        *parts,
    )


def decode_section(c: Comparison, benchmark: Sequence[DecodePoint], styles: Mapping[str, ModelStyle]) -> str:
    """Return speed and memory against batch size; nothing without a benchmark."""
    parts = []
    for number, lengths in enumerate(sorted({(p.prompt_tokens, p.generate_tokens) for p in benchmark})):
        own = [p for p in benchmark if (p.prompt_tokens, p.generate_tokens) == lengths]
        panels = []
        for quantity, (told, better) in QUANTITIES.items():
            drawn = figure_decode(own, quantity, styles=styles, baseline=c.baseline)
            svg = inline_svg(
                drawn, name=f"decode-{quantity.replace('_', '-')}-{number}", title=f"{told} against batch size"
            )
            panels.append(figure(told, better, svg))
        heading = f"Prompt of {lengths[0]} tokens, {lengths[1]} generated"
        parts.append(f'<h3 class="rule">{heading}</h3><div class="grid">{"".join(panels)}</div>')
        cells = [decode_cells(p) for p in own]
        rows = [
            [f'<th scope="row">{chip(p.model, styles)}</th>', *(f"<td>{escape(cell)}</td>" for cell in row.values())]
            for p, row in zip(own, cells, strict=True)
        ]
        parts.append(details("Every batch size", data_table(["model", *cells[0]], rows)))
    if not parts:
        return ""
    rounds = sorted({p.rounds for p in benchmark})
    known = any(p.predicted_seconds is not None for p in benchmark)
    roofline = (
        " Dashed: the roofline, the least time that this machine allows for the bytes and operations of a model, with "
        "the rates that were measured in the same run; reached is its share of the time taken."
    )
    remarks = [f'<p class="caution"><b>Mind:</b> {escape(text)}</p>' for text in decode_remarks(benchmark)]
    return section(
        "Decode speed and memory",
        f"The engine alone: a fixed prompt, a fixed number of tokens, prefill not counted, medians of "
        f"{' or '.join(map(str, rounds))} rounds in which the models take turns (bands: all rounds). Factors compare "
        f"with {chip(c.baseline, styles)} at the largest batch.{roofline if known else ''}",
        *([f'<div class="remarks">{"".join(remarks)}</div>'] if remarks else []),
        *parts,
    )


def values_section(c: Comparison, styles: Mapping[str, ModelStyle]) -> str:
    """Return the table of models and, folded, every point of every curve."""
    keys: list[tuple[Rule, int]] = [(c.rules[0], k) for k in shown_ks(c)] + [(r, c.ks[-1]) for r in c.rules[1:]]
    best = {key: max(p.value for name in c.runs if (p := c.point(name, *key))) for key in keys}
    rows = []
    for name, run in c.runs.items():
        cells = [
            f'<th scope="row">{chip(name, styles)}</th>',
            f"<td>{'-' if run.num_parameters is None else count(run.num_parameters)}</td>",
            f"<td>{attention_layers(run)}</td>",
            f"<td>{run.tokens_per_completion:.0f}</td>",
            f"<td>{duration(float(c.measured[name].sample_seconds.mean()))}</td>",
        ]
        for key in keys:
            p = c.point(name, *key)
            if p is None:
                cells.append("<td>-</td>")
                continue
            top = f' class="top m{styles[name].index}"' if p.value == best[key] else ""
            cells.append(f"<td{top}>{percent(p.value)}<small>{100 * p.low:.1f} to {100 * p.high:.1f}</small></td>")
        rows.append(cells)
    headings = ["model", "params", "attention", "tokens", "s per sample"]
    parts = [data_table(headings + [f"{SHORT_RULES[rule]}@{k}" for rule, k in keys], rows)]
    for rule in c.rules:
        lines = []
        for name in c.runs:
            own = [p for p in c.points if p.model == name and p.rule == rule]
            cells = [f"<td>{percent(p.value)}<small>{duration(p.seconds)}</small></td>" for p in own]
            lines.append([f'<th scope="row">{chip(name, styles)}</th>', *cells])
        told = f"{RULE_NAMES[rule]} for every number of samples <small>value and engine time per problem</small>"
        parts.append(details(told, data_table(["k", *(str(k) for k in c.ks)], lines)))
    return section(
        "The numbers", "Small: 95 % bootstrap interval over problems. Shaded: the best of the column.", *parts
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
        "difference over problems. A star marks those that leave out zero.",
        data_table(["model", *(f"{SHORT_RULES[g.rule]} over {g.over}" for g in first)], rows),
    )


def method_section(c: Comparison) -> str:
    """Return how times, values and intervals were made, and everything the runs recorded."""
    facts = [
        "<b>Time.</b> Each completion carries its share of the engine's time: prefill and decode steps are divided "
        "among the rows they serve. k samples of a problem cost k times the mean share of its samples; budgets are "
        "means over problems. This is throughput time at the batch size of the run, not the latency of one request.",
        "<b>Values.</b> Expectations over random k-subsets of the samples, averaged over problems: exact for coverage, "
        "majority vote and best-of-N, seeded random subsets for weighted best-of-N. Ties share the credit.",
        "<b>Between measured k</b> some problems get the smaller and some the larger number, hence lines that are "
        "straight in time. A model that has used all its samples keeps its last value; nothing is extrapolated.",
        "<b>Intervals.</b> Percentile bootstrap over problems, the same seeded resamples for all models. They cover "
        "the choice of problems, not a new training run. With an interval for every budget, some stars are luck.",
    ]
    if SCORED & set(c.rules) and any(run.scoring_seconds is not None for run in c.runs.values()):
        facts.append("<b>Reward model.</b> Its time is added to the budgets of the two rules that need it.")
    rows = []
    for name, run in c.runs.items():
        found = [find(run.meta, key) for key in _SETTINGS]
        cells = [f"<td>{'-' if value is None else escape(shorten(str(value), 48))}</td>" for value in found]
        rows.append([f'<th scope="row">{escape(shorten(name, 40))}</th>', *cells])
    graders = sorted({v.grader for run in c.runs.values() for v in run.verdicts if v.grader})
    rewards = sorted({v.reward_model for run in c.runs.values() for v in run.verdicts if v.reward_model})
    if graders:
        facts.append(f"<b>Graded by</b> {escape(join(graders[:4]))}.")
    if rewards:
        facts.append(f"<b>Scored by</b> {escape(join(rewards[:4]))}.")
    return section(
        "How this was measured",
        "",
        f'<ul class="plain">{"".join(f"<li>{fact}</li>" for fact in facts)}</ul>',
        data_table(["model", *(key.replace("_", " ") for key in _SETTINGS)], rows),
        *(
            details(
                f"Everything recorded about {escape(shorten(name, 40))}",
                f"<pre>{escape(json.dumps(run.meta, indent=2, ensure_ascii=False, default=str))}</pre>",
            )
            for name, run in c.runs.items()
            if run.meta
        ),
    )
