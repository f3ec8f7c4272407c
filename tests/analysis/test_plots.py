"""Figures show what they are given and leave matplotlib's settings alone."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from lit_thinkfast.analysis import budget_points, figure_curves, figure_decode, figure_front, figure_winners
from lit_thinkfast.analysis.axes import _apart, ticks_125
from lit_thinkfast.analysis.style import MODEL_COLOURS, model_styles
from lit_thinkfast.analysis.svg import inline_svg


def test_curves_pass_through_their_points(runs):
    points = budget_points(runs, ks=[1, 2, 4])
    axes = figure_curves(points, "coverage", axis="seconds").axes[0]
    markers = [line for line in axes.lines if line.get_marker() != "None"]
    for line, model in zip(markers, runs, strict=True):
        own = [p for p in points if p.model == model and p.rule == "coverage"]
        np.testing.assert_allclose(line.get_xdata(), [p.seconds for p in own])
        np.testing.assert_allclose(line.get_ydata(), [p.value for p in own])
    assert axes.get_xscale() == "log"


def test_one_colour_per_model_in_every_figure(runs, benchmark_points):
    styles = model_styles(runs)
    points = budget_points(runs, ks=[1, 2, 4])
    figures = [
        figure_curves(points, "majority", axis="k", styles=styles),
        figure_front(points, "majority", styles=styles),
        figure_decode(benchmark_points, "memory", styles=styles),
    ]
    for figure in figures:
        labels = {t.get_text().split("\n")[0]: t.get_color() for t in figure.axes[0].texts}
        assert labels == {"teacher": MODEL_COLOURS[0][0], "student": MODEL_COLOURS[1][0]}


def test_settings_are_restored_and_pyplot_is_not_needed(runs):
    import matplotlib

    before = dict(matplotlib.rcParams)
    inline_svg(figure_winners(budget_points(runs, ks=[1, 2]), ["coverage"]), name="w", title="t")
    assert dict(matplotlib.rcParams) == before


def test_import_is_light():
    code = "import sys, lit_thinkfast.analysis; print([m for m in ('matplotlib', 'rich', 'lightning', 'datasets') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.11), (0.003, 7000.0), (1.0, 2.0)])
def test_ticks_are_few_and_inside(low, high):
    ticks = ticks_125(low, high, most=6)
    assert 1 <= len(ticks) <= 6
    assert all(low <= t <= high for t in ticks)


def test_labels_are_pushed_apart():
    placed = _apart([(0.9, 0.2), (0.95, 0.2), (1.0, 0.2)], 1.0)
    assert all(b - a >= 0.2 - 1e-3 for a, b in itertools.pairwise(placed))
