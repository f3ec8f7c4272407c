"""The figures of the report with the words around them: fronts, ribbons, curves, deadlines, decoding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from lit_thinkfast.analysis.comparison import Comparison
from lit_thinkfast.analysis.decode import QUANTITIES, decode_cells, decode_remarks, figure_decode
from lit_thinkfast.analysis.page import chip, data_table, details, figure, section
from lit_thinkfast.analysis.plots import figure_curves, figure_front, figure_winners
from lit_thinkfast.analysis.provenance import benchmark_source, source
from lit_thinkfast.analysis.style import ModelStyle
from lit_thinkfast.analysis.svg import inline_svg
from lit_thinkfast.analysis.text import RULE_NAMES, RULES_IN_TEXT, dollars, escape, join, percent, shorten
from lit_thinkfast.records import BudgetPoint, Rule

if TYPE_CHECKING:
    from lit_thinkfast.generation.points import DecodePoint

RULE_MEANINGS = {
    "coverage": "at least one of the k samples is right (pass@k)",
    "majority": "the most frequent answer is right; ties share the credit",
    "weighted_best_of_n": "the answer with the largest sum of reward-model scores is right",
    "best_of_n": "the answer of the best-scored sample is right",
}
FRONT_NOTE = (
    "The thick line is the best model at each time, in its colour; thin lines are the models by themselves, and fall "
    "where more samples choose worse. Markers are numbers of samples that no other choice beats; as they are picked "
    "with the values in hand, they are for the eye, and intervals are those of the lines. The band on top repeats who "
    "is best; it is pale where some model has no finished sample yet or none left."
)


def leading_rules(c: Comparison) -> list[Rule]:
    """Return the rules of the first figure: coverage, and the best way there is to choose one answer."""
    choosing: list[Rule] = ["weighted_best_of_n", "majority", "best_of_n"]
    found: list[Rule] = ["coverage", *(rule for rule in choosing if rule in c.rules)]
    return [rule for rule in found if rule in c.rules][:2] or c.rules[:2]


def hero(c: Comparison, styles: Mapping[str, ModelStyle], *more: str) -> str:
    """Return the first section: the Pareto front of the leading rules, or their curves over k, and ``more`` below."""
    panels = [
        figure(f"{RULE_NAMES[rule]}{' over time' if c.timed else ' over samples'}", RULE_MEANINGS[rule], svg, level=2)
        for rule in leading_rules(c)
        for svg in [_front(c, rule, styles) if c.timed else _curve(c, rule, styles, axis="k", name="hero")]
    ]
    note = FRONT_NOTE if c.timed else "Bands are 95 % intervals over problems. No engine time was recorded."
    if not c.timed or len(c.runs) < 2:
        note = note.replace(FRONT_NOTE, "The value that can be reached within a time.")
    priced = f" {price_note(c)}" if c.prices and c.timed else ""
    return (
        f'<section class="hero" id="front" aria-label="{"Pareto front" if c.timed else "Curves over samples"}">'
        f'<div class="grid two">{"".join(panels)}</div><p class="intro">{note}{priced}</p>{"".join(more)}'
        f'<p class="source">Source: {escape(source(c))}. <a href="#provenance">Provenance</a></p></section>'
    )


def price_note(c: Comparison) -> str:
    """Return how seconds become dollars, as markup."""
    if c.price_per_hour is not None:
        price = c.price_per_hour
        return f"At {dollars(price)} an hour, one second of engine time costs {dollars(price / 3600)}."
    told = [f"{escape(shorten(name, 40))} {dollars(price)}" for name, price in c.prices.items()]
    return f"An hour of engine time costs {join(told)}." if told else ""


def ribbons(c: Comparison, styles: Mapping[str, ModelStyle]) -> str:
    """Return the figure of the best model at each budget; nothing for one model or without times."""
    if len(c.runs) < 2 or not c.timed:
        return ""
    title = "The best model at each time budget"
    svg = inline_svg(figure_winners(c.points, c.rules, styles=styles), name="winners", title=title)
    legend = f'<span class="legend">{" ".join(chip(name, styles) for name in c.runs)}</span>'
    caption = (
        "Solid: all models take part. Pale: some model has not finished its first sample yet, or has used all the "
        "samples that were drawn, so the lead there is cheap. Numbers are the budgets at which the lead changes."
    )
    return figure(title, legend, svg, caption=caption, wide=True, level=2)


def fronts_section(c: Comparison, styles: Mapping[str, ModelStyle]) -> str:
    """Return the Pareto fronts of the rules that are not at the top of the page."""
    rest = [rule for rule in c.rules if rule not in leading_rules(c)]
    if len(c.runs) < 2 or not c.timed or not rest:
        return ""
    panels = [figure(RULE_NAMES[rule], RULE_MEANINGS[rule], _front(c, rule, styles)) for rule in rest]
    return section(
        "The Pareto front by other rules",
        "As in the first figure.",
        f'<div class="grid two">{"".join(panels)}</div>',
        anchor="fronts",
        source=escape(source(c)),
    )


def curves_section(c: Comparison, styles: Mapping[str, ModelStyle]) -> str:
    """Return each rule against samples and, where times are known, against time."""
    parts = []
    for rule in c.rules:
        pair = [figure("Per sample", "", _curve(c, rule, styles, axis="k"), level=4)]
        if c.timed:
            pair.append(figure("Per second", "", _curve(c, rule, styles, axis="seconds"), level=4))
        parts.append(f'<h3 class="rule">{RULE_NAMES[rule]}</h3><div class="grid two">{"".join(pair)}</div>')
    told = (
        "Left, models are given equal numbers of samples; right, equal time. Bands are 95 % intervals over problems. "
        "Dotted: the model has used all its samples and its last value is held."
    )
    return section(
        "The same curves, per sample and per second" if c.timed else "Curves over samples",
        told if c.timed else "Bands are 95 % intervals over problems.",
        *parts,
        anchor="curves",
        source=escape(source(c)),
    )


def deadline_section(c: Comparison, styles: Mapping[str, ModelStyle]) -> str:
    """Return the curves by a real deadline; nothing where the runs do not tell when samples were finished."""
    rules = [rule for rule in c.rules if any(p.rule == rule for p in c.deadline)]
    panels = [
        figure(
            RULE_NAMES[rule],
            "",
            inline_svg(
                figure_curves(c.deadline, rule, axis="seconds", styles=styles),
                name=f"deadline-{rule.replace('_', '-')}",
                title=_seen(c.deadline, rule, f"{RULE_NAMES[rule]} by a deadline"),
            ),
        )
        for rule in rules
    ]
    if not panels:
        return ""
    lacking = " ".join(
        f"{escape(shorten(name, 40))} has no such curve: {escape(why)}." for name, why in c.no_deadline.items()
    )
    return section(
        "By a real deadline",
        "The second definition of a time budget: the engine stops at a moment of its own clock, and every problem is "
        "answered with the samples that are finished by then; a problem without one is not solved. Short solutions are "
        "finished more often, so this differs from the mean time of k samples above. The axis is the engine's time "
        f"divided by the number of problems. {lacking}",
        f'<div class="grid two">{"".join(panels)}</div>',
        anchor="deadline",
        source=escape(source(c)),
    )


def decode_section(
    c: Comparison,
    benchmark: Sequence[DecodePoint],
    styles: Mapping[str, ModelStyle],
    meta: Mapping[str, Any] | None = None,
) -> str:
    """Return speed and memory against batch size; nothing without a benchmark. ``meta`` is what it recorded."""
    parts = []
    for number, lengths in enumerate(sorted({(p.prompt_tokens, p.generate_tokens) for p in benchmark})):
        own = [p for p in benchmark if (p.prompt_tokens, p.generate_tokens) == lengths]
        panels = []
        for quantity, (told, better) in QUANTITIES.items():
            drawn = figure_decode(own, quantity, styles=styles, baseline=c.baseline)
            svg = inline_svg(
                drawn, name=f"decode-{quantity.replace('_', '-')}-{number}", title=f"{told} against batch size"
            )
            panels.append(figure(told, better, svg, level=4))
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
        anchor="decode",
        source=escape(benchmark_source(benchmark, meta or {})),
    )


def _front(c: Comparison, rule: Rule, styles: Mapping[str, ModelStyle]) -> str:
    return inline_svg(
        figure_front(c.points, rule, styles=styles),
        name=f"front-{rule.replace('_', '-')}",
        title=_seen(c.points, rule, f"Pareto front of {RULES_IN_TEXT[rule]} over time"),
    )


def _curve(
    c: Comparison,
    rule: Rule,
    styles: Mapping[str, ModelStyle],
    *,
    axis: Literal["k", "seconds"],
    name: str = "curve",
) -> str:
    return inline_svg(
        figure_curves(c.points, rule, axis=axis, styles=styles),
        name=f"{name}-{axis}-{rule.replace('_', '-')}",
        title=_seen(c.points, rule, f"{RULE_NAMES[rule]} against {'samples' if axis == 'k' else 'time'}"),
    )


def _seen(points: Sequence[BudgetPoint], rule: Rule, title: str) -> str:
    """Return a title with where each line begins and ends, for who cannot see the figure."""
    told = []
    for model in dict.fromkeys(p.model for p in points):
        own = [p for p in points if p.model == model and p.rule == rule and math.isfinite(p.value)]
        if own:
            told.append(f"{shorten(model, 40)} from {percent(own[0].value)} to {percent(own[-1].value)}")
    return f"{title}. {'; '.join(told)}."
