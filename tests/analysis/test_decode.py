"""Decode points in figures, tables and words: with the roofline beside them, with a disturbed machine, and of old files."""

import dataclasses

import numpy as np
import pytest

from lit_thinkfast.analysis import compare_models, figure_decode, save_decode_figures
from lit_thinkfast.analysis.decode import decode_cells, decode_remarks, disturbance, gain, predicted_gain
from lit_thinkfast.analysis.sections import decode_section
from lit_thinkfast.analysis.story import tell, unmarked
from lit_thinkfast.analysis.style import model_styles


@pytest.fixture
def known(benchmark_points):
    """The points with what newer files know: medians of ratios that differ from the ratios of medians."""
    return [
        dataclasses.replace(
            p,
            baseline="teacher",
            speedup=1.0 if p.model == "teacher" else 4.0,
            predicted_seconds=p.seconds / (2 if p.model == "teacher" else 5),
            overhead_share=0.04,
            planned_splits=1,
        )
        for p in benchmark_points
    ]


def lines(figure, style):
    """The values of each line of a model, by whether it has markers (measured) or not (allowed)."""
    own = [line for line in figure.axes[0].lines if line.get_color() == style.colour and len(line.get_xdata())]
    return {line.get_marker() != "None": (list(line.get_xdata()), list(line.get_ydata())) for line in own}


@pytest.mark.parametrize("quantity", ["seconds", "tokens_per_second", "memory"])
def test_what_the_machine_allows_is_dashed_beside_what_was_measured(known, quantity):
    figure = figure_decode(known, quantity)
    for model, style in model_styles(["teacher", "student"]).items():
        own = [p for p in known if p.model == model]
        drawn = lines(figure, style)
        assert drawn[True][0] == [1, 4, 16]
        if quantity == "memory":
            assert drawn.keys() == {True}
            continue
        allowed = {
            "seconds": [p.predicted_seconds for p in own],
            "tokens_per_second": [p.batch_size * 7 / p.predicted_seconds for p in own],
        }
        np.testing.assert_allclose(drawn[False][1], allowed[quantity])
        low, high = figure.axes[0].get_ylim()
        assert all(low < value < high for value in (*drawn[True][1], *drawn[False][1]))


def test_points_of_old_files_have_no_roofline(benchmark_points):
    figure = figure_decode(benchmark_points, "seconds")
    assert lines(figure, model_styles(["teacher"])["teacher"]).keys() == {True}
    cells = decode_cells(benchmark_points[-1])
    assert {cells[name] for name in ("speed-up", "roofline", "reached", "overhead")} == {"-"}
    assert predicted_gain(benchmark_points[-1], benchmark_points[0]) is None


def factors(figure):
    return [text.get_text().split("\n")[-1] for text in figure.axes[0].texts]


def test_factors_are_medians_of_ratios_where_rounds_were_shared(known, benchmark_points):
    at_16 = (0.5 + 0.3 * 16) / (0.5 + 0.1 * 16)
    assert "4.0\N{MULTIPLICATION SIGN} faster" in factors(figure_decode(known, "seconds"))
    assert "4.0\N{MULTIPLICATION SIGN} faster" in factors(figure_decode(known, "tokens_per_second"))
    assert f"{at_16:.1f}\N{MULTIPLICATION SIGN} faster" in factors(figure_decode(benchmark_points, "seconds"))
    smaller = (5000 + 4800) / (5000 + 1600)
    assert f"{smaller:.2f}\N{MULTIPLICATION SIGN} smaller" in factors(figure_decode(known, "memory"))
    # seen from the other side there are no shared rounds to go by
    assert f"{1 / at_16:.2f}\N{MULTIPLICATION SIGN} its speed" in factors(
        figure_decode(known, "seconds", baseline="student")
    )
    assert gain(known[-1], known[2], "seconds") == 4.0
    assert predicted_gain(known[-1], known[2]) == pytest.approx(at_16 * 5 / 2)


def test_each_model_is_held_against_its_own_baseline(known):
    large = [dataclasses.replace(p, model="large", baseline="large", seconds=9.0) for p in known[:3]]
    figure = figure_decode([*known, *large], "memory")
    assert [t.get_text() for t in figure.axes[0].texts if "large" in t.get_text()] == ["large"]
    assert sum("smaller" in t.get_text() for t in figure.axes[0].texts) == 1


def test_cells(known):
    cells = decode_cells(dataclasses.replace(known[-1], splits=2))
    assert cells["batch"] == "16 in 2"
    assert cells["speed-up"] == "4.0\N{MULTIPLICATION SIGN}"
    assert cells["reached"] == "20\N{NO-BREAK SPACE}%"
    assert cells["overhead"] == "4.0\N{NO-BREAK SPACE}%"
    assert cells["memory"] == "6.6\N{NO-BREAK SPACE}kB"
    assert decode_cells(known[0])["speed-up"] == "-"


def shown(table):
    from rich.console import Console

    console = Console(width=80, record=True, force_terminal=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def test_the_terminal_shows_what_is_known(known, benchmark_points):
    from lit_thinkfast.terminal import decode_table

    text = shown(decode_table(known))
    assert all(
        heading in text for heading in ("model", "batch", "tokens/s", "speed-up", "roofline", "reached", "memory")
    )
    assert "…" not in text
    text = shown(decode_table(benchmark_points))
    assert "tokens/s" in text
    assert "roofline" not in text
    named = dataclasses.replace(known[0], model="[bold]a[/bold]\x1b[31m")
    assert "[bold]" in shown(decode_table([named]))
    assert "\x1b" not in shown(decode_table([named]))


def test_a_disturbed_machine_is_seen_everywhere(known, runs):
    from lit_thinkfast.terminal import decode_table

    quiet = [dataclasses.replace(p, drift=0.15) for p in known]
    loud = [dataclasses.replace(p, drift=0.31) for p in known]
    mixed = [*loud[:1], *quiet[1:]]
    note = "31 %"
    assert disturbance(quiet) == ""
    assert note in disturbance(loud)
    assert disturbance(mixed) == disturbance(loud)
    c = compare_models(runs, resamples=50)
    for points, seen in ((quiet, False), (loud, True)):
        assert (note in shown(decode_table(points))) == seen
        for quantity in ("seconds", "tokens_per_second"):
            assert any(note in t.get_text() for t in figure_decode(points, quantity).axes[0].texts) == seen
        assert not any("disturbed" in t.get_text() for t in figure_decode(points, "memory").axes[0].texts)
        words = unmarked(dict(tell(c, points).paragraphs)["The engine alone."])
        assert (note in words) == seen
        assert any("disturbed" in t.label for t in tell(c, points).tiles) == seen
        section = decode_section(c, points, model_styles(runs))
        assert ("disturbed: the machine&#x27;s speed changed by 31 % during the run" in section) == seen


def test_the_report_tells_what_the_roofline_gives(known, benchmark_points, runs):
    c = compare_models(runs, resamples=50)
    words = unmarked(dict(tell(c, known).paragraphs)["The engine alone."])
    allowed = predicted_gain(known[-1], known[2])
    assert (
        "student has 4.0\N{MULTIPLICATION SIGN} the speed and 67\N{NO-BREAK SPACE}% of the memory of teacher" in words
    )
    assert f"(the roofline gives {allowed:.1f}\N{MULTIPLICATION SIGN} the speed)" in words
    section = decode_section(c, known, model_styles(runs))
    assert "Dashed: the roofline" in section
    assert section.count(">reached</th>") == 1
    assert "the roofline" not in decode_section(c, benchmark_points, model_styles(runs))
    assert "the roofline" not in dict(tell(c, benchmark_points).paragraphs)["The engine alone."]


def test_parts_that_were_not_planned_are_told(known):
    assert decode_remarks(known) == []
    (remark,) = decode_remarks([*known, dataclasses.replace(known[-1], splits=4, planned_splits=2)])
    assert remark == "student ran out of memory at batch 16 in 2 as planned; it was decoded in 4 parts."


def test_figures_are_saved_beside_the_result(known, tmp_path):
    out = tmp_path / "deep" / "speed.json"
    files = save_decode_figures(known, out)
    assert [f.name for f in files] == ["speed.seconds.png", "speed.seconds.svg", "speed.memory.png", "speed.memory.svg"]
    first = [f.read_bytes() for f in files]
    assert first[0].startswith(b"\x89PNG")
    assert b"<svg" in first[1]
    again = save_decode_figures(known, out)
    assert [f.read_bytes() for f in again] == first
    longer = dataclasses.replace(known[0], generate_tokens=16)
    names = {f.name for f in save_decode_figures([known[0], longer], out)}
    assert {"speed.16+8.seconds.svg", "speed.16+16.memory.png"} <= names
    assert len(names) == 8
