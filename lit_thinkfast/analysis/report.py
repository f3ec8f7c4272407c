"""One self-contained HTML page that says which model is best within which time, and shows how that was found."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import lit_thinkfast
from lit_thinkfast.analysis.budget import SCORED
from lit_thinkfast.analysis.comparison import Comparison, compare_models
from lit_thinkfast.analysis.page import chip, coloured, page, section, write_whole
from lit_thinkfast.analysis.runs import ModelRun, find
from lit_thinkfast.analysis.samples import sample_section
from lit_thinkfast.analysis.sections import (
    budgets_section,
    curves_section,
    decode_section,
    fronts_section,
    method_section,
    models_section,
    reward_section,
    ribbons,
    values_section,
)
from lit_thinkfast.analysis.story import Story, tell
from lit_thinkfast.analysis.style import ModelStyle, model_styles
from lit_thinkfast.analysis.text import escape, join, percent, shorten
from lit_thinkfast.records import Problem

if TYPE_CHECKING:
    from lit_thinkfast.generation.benchmark import DecodePoint

_TIMING = ("device_name", "threads", "dtype", "batch_size")


def build_report(
    runs: Mapping[str, ModelRun] | Comparison,
    out: str | os.PathLike[str],
    *,
    benchmark: Sequence[DecodePoint] | None = None,
    problems: Sequence[Problem] = (),
    notes: str | Sequence[str] = (),
    title: str = "Which model reasons best in a fixed time?",
    baseline: str | None = None,
) -> Path:
    """Write the report and return its path. Equal input gives equal bytes.

    Args:
        runs: Name -> run, in the order in which models are shown, or a comparison made before.
        out: The HTML file; it appears whole or not at all.
        benchmark: Decode speed and memory against batch size.
        problems: Questions and gold answers for the sample texts.
        notes: Remarks for the reader, one paragraph each, as plain text.
        title: Small line over the headline, which is computed from the numbers.
        baseline: See :func:`~lit_thinkfast.analysis.comparison.compare_models`; ignored for a comparison.

    Raises:
        ValueError: The runs cannot be compared.
    """
    c = runs if isinstance(runs, Comparison) else compare_models(runs, baseline=baseline)
    benchmark = list(benchmark or ())
    notes = [notes] if isinstance(notes, str) else notes
    styles = model_styles([*c.runs, *(p.model for p in benchmark)])
    story = tell(c, benchmark)
    body = [
        f'<header><p class="eyebrow">{escape(title)}</p><h1>{coloured(story.headline, styles)}</h1>'
        f'<p class="lede">{_lede(c)}</p></header>',
        _tiles(story, styles),
        ribbons(c, styles),
        section("What this shows", "", _paragraphs(story, styles), *_remarks(cautions(c), notes)),
        models_section(c, styles),
        budgets_section(c, styles),
        fronts_section(c, styles),
        curves_section(c, styles),
        decode_section(c, benchmark, styles),
        values_section(c, styles),
        reward_section(c, styles),
        section(
            "Sample solutions",
            "Problems from easy to hard; of each model the first right and the first wrong sample. Bars at the left, "
            "where there are any, are the reward model's probability that all is right so far.",
            sample_section(c, styles, {p.id: p for p in problems}),
        ),
        method_section(c),
        f"<footer>Made by lit-thinkfast {escape(lit_thinkfast.__version__)}. This page needs no network and runs no "
        "scripts.</footer>",
    ]
    return write_whole(page(title, [part for part in body if part]), out)


def cautions(c: Comparison) -> list[str]:
    """Return what makes the comparison weaker than it looks."""
    found = []
    for key in _TIMING:
        values = {name: find(run.meta, key) for name, run in c.runs.items()}
        known = {str(v) for v in values.values() if v is not None}
        if len(known) > 1:
            told = join([f"{shorten(name, 40)}: {value}" for name, value in values.items()])
            found.append(
                f"The runs differ in {key.replace('_', ' ')} ({told}), so their times differ for that reason too."
            )
    left_out = {name: len(run.by_problem) - c.num_problems for name, run in c.runs.items()}
    if any(left_out.values()):
        told = join([f"{n} of {shorten(name, 40)}" for name, n in left_out.items() if n])
        found.append(f"Only the {c.num_problems} problems that all models share are compared; left out are {told}.")
    cut = {name: run.share_cut for name, run in c.runs.items() if run.share_cut > 0.02}
    if cut:
        told = join([f"{percent(share, 0)} of {shorten(name, 40)}" for name, share in cut.items()])
        found.append(f"The token limit cut off completions ({told}); they count as wrong unless they hold an answer.")
    if SCORED & set(c.rules) and all(run.scoring_seconds is None for run in c.runs.values()):
        found.append("The reward model's own time was not measured and is not part of the budgets.")
    if c.num_problems < 30:
        found.append(f"{c.num_problems} problems are few: read the intervals before the values.")
    return found


def _tiles(story: Story, styles: Mapping[str, ModelStyle]) -> str:
    tiles = [
        f'<div class="tile m{styles[t.model].index}"><b>{escape(t.value)}</b>{chip(t.model, styles)}'
        f"<p>{coloured(t.label, styles)}</p></div>"
        for t in story.tiles
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _paragraphs(story: Story, styles: Mapping[str, ModelStyle]) -> str:
    parts = [f"<p><b>{escape(lead)}</b> {coloured(text, styles)}</p>" for lead, text in story.paragraphs]
    return f'<div class="card story">{"".join(parts)}</div>'


def _remarks(warnings: Sequence[str], notes: Sequence[str]) -> list[str]:
    rows = [f"<p>{escape(note)}</p>" for note in notes if note.strip()]
    rows += [f'<p class="caution"><b>Mind:</b> {escape(text)}</p>' for text in warnings]
    return [f'<div class="remarks">{"".join(rows)}</div>'] if rows else []


def _lede(c: Comparison) -> str:
    samples = c.ks[-1]
    setting = _setting(next(iter(c.runs.values())))
    where = f" Timed on {escape(setting)}." if setting else ""
    return (
        f"{len(c.runs)} model{'s' if len(c.runs) > 1 else ''}, {c.num_problems} problems, up to {samples} sampled "
        f"solution{'s' if samples > 1 else ''} a problem. Every number of samples is mapped to the engine time it "
        f"takes, and models are compared at equal time.{where}"
    )


def _setting(run: ModelRun) -> str:
    device, threads, batch = (find(run.meta, key) for key in ("device_name", "threads", "batch_size"))
    parts = [shorten(str(device), 60)] if device else []
    parts += [f"{threads} thread{'s' if threads != 1 else ''}"] if isinstance(threads, int) else []
    parts += [f"batches of {batch}"] if isinstance(batch, int) else []
    return ", ".join(parts)
