"""The report and everything beside it: page, figures of the paper, tables for papers and notes, numbers as files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_thinkfast.analysis.cautions import cautions
from lit_thinkfast.analysis.comparison import Comparison
from lit_thinkfast.analysis.downloads import everything_json, points_csv, problems_csv
from lit_thinkfast.analysis.latex import latex_table
from lit_thinkfast.analysis.markdown import markdown_summary
from lit_thinkfast.analysis.page import write_whole
from lit_thinkfast.analysis.paper_figures import save_figures
from lit_thinkfast.analysis.report import build_report, with_problems
from lit_thinkfast.analysis.samples import BUDGET
from lit_thinkfast.records import Problem

if TYPE_CHECKING:
    from lit_thinkfast.generation.points import DecodePoint


def write_bundle(
    comparison: Comparison,
    out: str | os.PathLike[str],
    *,
    benchmark: Sequence[DecodePoint] | None = None,
    benchmark_meta: Mapping[str, Any] | None = None,
    problems: Sequence[Problem] = (),
    notes: str | Sequence[str] = (),
    title: str = "Which model reasons best in a fixed time?",
    sample_bytes: int = BUDGET,
) -> list[Path]:
    """Write the page ``out`` and, in a folder beside it with its name and ``-files``, all other forms of it.

    These are ``figure1``, ``figure3``, ``figure4`` and ``figure5`` as PNG and SVG, ``table.tex``, ``summary.md``,
    ``points.csv``, ``problems.csv`` and ``comparison.json``. Equal input gives equal bytes. Arguments as
    :func:`~lit_thinkfast.analysis.report.build_report`.

    Returns:
        All paths, the page first.
    """
    c = with_problems(comparison, problems)
    texts = {  # made before anything is written
        "table.tex": latex_table(c),
        "summary.md": markdown_summary(c),
        "points.csv": points_csv(c),
        "problems.csv": problems_csv(c),
        "comparison.json": everything_json(c, cautions=cautions(c)),
    }
    page = build_report(
        c,
        out,
        benchmark=benchmark,
        benchmark_meta=benchmark_meta,
        notes=notes,
        title=title,
        sample_bytes=sample_bytes,
    )
    folder = page.with_name(f"{page.stem}-files")
    paths = [write_whole(text, folder / name) for name, text in texts.items()]
    return [page, *paths, *save_figures(c, folder)]
