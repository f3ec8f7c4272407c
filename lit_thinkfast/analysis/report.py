"""One self-contained HTML page that says which model is best within which time, and shows how that was found."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lit_thinkfast
from lit_thinkfast.analysis.cautions import cautions
from lit_thinkfast.analysis.comparison import Comparison, compare_models
from lit_thinkfast.analysis.method_section import downloads_section, method_section, provenance_section
from lit_thinkfast.analysis.model_section import models_section
from lit_thinkfast.analysis.number_sections import (
    budgets_section,
    groups_section,
    landmarks_section,
    reward_section,
    values_section,
)
from lit_thinkfast.analysis.page import chip, coloured, page, section, write_whole
from lit_thinkfast.analysis.problem_table import filter_styles, problem_note, problem_table
from lit_thinkfast.analysis.provenance import source
from lit_thinkfast.analysis.runs import ModelRun, find
from lit_thinkfast.analysis.samples import BUDGET, by_difficulty, sample_browser
from lit_thinkfast.analysis.sections import (
    curves_section,
    deadline_section,
    decode_section,
    fronts_section,
    hero,
    ribbons,
)
from lit_thinkfast.analysis.story import Story, tell
from lit_thinkfast.analysis.style import ModelStyle, model_styles
from lit_thinkfast.analysis.text import escape, shorten
from lit_thinkfast.records import Problem

if TYPE_CHECKING:
    from lit_thinkfast.generation.points import DecodePoint

# Anchors of sections, and what the links on top of the page call them
_PLACES = {
    "story": "What this shows",
    "models": "Models",
    "budgets": "Budgets",
    "landmarks": "Landmarks",
    "curves": "Curves",
    "deadline": "Deadline",
    "decode": "Decoding",
    "numbers": "Numbers",
    "by-level": "Levels",
    "by-subject": "Subjects",
    "problems": "Problems",
    "samples": "Samples",
    "method": "Method",
    "provenance": "Provenance",
    "download": "Download",
}


def build_report(
    runs: Mapping[str, ModelRun] | Comparison,
    out: str | os.PathLike[str],
    *,
    benchmark: Sequence[DecodePoint] | None = None,
    benchmark_meta: Mapping[str, Any] | None = None,
    problems: Sequence[Problem] = (),
    notes: str | Sequence[str] = (),
    title: str = "Which model reasons best in a fixed time?",
    baseline: str | None = None,
    sample_bytes: int = BUDGET,
) -> Path:
    """Write the report and return its path. Equal input gives equal bytes.

    Args:
        runs: Name -> run, in the order in which models are shown, or a comparison made before.
        out: The HTML file; it appears whole or not at all.
        benchmark: Decode speed and memory against batch size.
        benchmark_meta: What the benchmark recorded about itself: the document of its file, for the provenance.
        problems: Questions, gold answers, levels and subjects of problems that the runs do not know themselves.
        notes: Remarks for the reader, one paragraph each, as plain text.
        title: Small line over the headline, which is computed from the numbers.
        baseline: See :func:`~lit_thinkfast.analysis.comparison.compare_models`; ignored for a comparison.
        sample_bytes: What the texts of samples may take of the page, in bytes. The page says how many are shown.

    Raises:
        ValueError: The runs cannot be compared.
    """
    c = runs if isinstance(runs, Comparison) else compare_models(runs, baseline=baseline)
    c = with_problems(c, problems)
    benchmark = list(benchmark or ())
    notes = [notes] if isinstance(notes, str) else notes
    styles = model_styles([*c.runs, *(p.model for p in benchmark)])
    story, warnings, order = tell(c, benchmark), cautions(c), by_difficulty(c)
    told_samples, samples = sample_browser(c, styles, budget=sample_bytes)
    origin = escape(source(c))
    body = [
        hero(c, styles, _tiles(story, styles), ribbons(c, styles)),
        section("What this shows", "", _paragraphs(story, styles), *_remarks(warnings, notes), anchor="story"),
        models_section(c, styles),
        budgets_section(c, styles),
        landmarks_section(c, styles),
        fronts_section(c, styles),
        curves_section(c, styles),
        deadline_section(c, styles),
        decode_section(c, benchmark, styles, benchmark_meta),
        values_section(c, styles),
        reward_section(c, styles),
        groups_section(c, styles, "level"),
        groups_section(c, styles, "subject"),
        section(
            "Problem by problem",
            escape(problem_note(c)),
            problem_table(c, styles, order),
            anchor="problems",
            source=origin,
        ),
        section("Samples", escape(told_samples), samples, anchor="samples", source=origin),
        method_section(c),
        provenance_section(c),
        downloads_section(c, warnings),
        f"<footer>Made by lit-thinkfast {escape(lit_thinkfast.__version__)}. This page needs no network and runs no "
        "scripts.</footer>",
    ]
    body = [part for part in body if part]
    header = (
        f'<header><p class="eyebrow">{escape(title)}</p><h1>{coloured(story.headline, styles)}</h1>'
        f'<p class="lede">{_lede(c)}</p>{_navigation(body)}</header>'
    )
    return write_whole(page(title, [header, *body], styles=filter_styles(c)), out)


def with_problems(c: Comparison, problems: Sequence[Problem]) -> Comparison:
    """Return the comparison with these problems where its runs do not know them."""
    if not problems:
        return c
    given = {p.id: p for p in problems}
    runs = {name: dataclasses.replace(run, problems={**given, **run.problems}) for name, run in c.runs.items()}
    return dataclasses.replace(c, runs=runs)


def _navigation(body: Sequence[str]) -> str:
    """Return links to the sections that are there."""
    links = [
        f'<a href="#{anchor}">{told}</a>'
        for anchor, told in _PLACES.items()
        if any(part.startswith(f'<section id="{anchor}">') for part in body)
    ]
    return f'<nav aria-label="Sections">{" ".join(links)}</nav>'


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
    where = f" Timed on {escape(setting)}." if setting and c.timed else ""
    method = (
        ("Every number of samples is mapped to the engine time it takes", "models are compared at equal time")
        if c.timed
        else ("No engine time was recorded", "models are compared at equal numbers of samples")
    )
    return (
        f"{len(c.runs)} model{'s' if len(c.runs) > 1 else ''}, {c.num_problems} problems, up to {samples} sampled "
        f"solution{'s' if samples > 1 else ''} a problem. {', so '.join(method[: len(c.runs)][:2])}.{where}"
    )


def _setting(run: ModelRun) -> str:
    device, threads, batch = (find(run.meta, key) for key in ("device_name", "threads", "batch_size"))
    parts = [shorten(str(device), 60)] if device else []
    parts += [f"{threads} thread{'s' if threads != 1 else ''}"] if isinstance(threads, int) else []
    parts += [f"batches of {batch}"] if isinstance(batch, int) else []
    return ", ".join(parts)
