"""Figures, LaTeX and Markdown: complete, repeatable, and foreign names are set rather than acted upon."""

import dataclasses
import re

import pytest

from lit_thinkfast.analysis import ModelRun, compare_models, latex_table, markdown_summary, save_figures
from lit_thinkfast.analysis.latex import latex_text
from lit_thinkfast.analysis.markdown import markdown_text
from lit_thinkfast.analysis.paper_figures import paper_figures
from lit_thinkfast.analysis.text import plain, shorten

HOSTILE = (
    "\\input{/etc/passwd} $x_1$ & 100% #1 ~^",
    "<script>alert(1)</script> & <b>bold</b>",
    "a|b `code` *em* __strong__ [link](javascript:alert(1)) ![i](x) ~~no~~",
    "https://evil.example/ www.evil.example <https://evil.example>",
    "1. list",
    "- item --- ?` !` \\\\ %",
    "\x1b[31mred \u202e $$ \\end{tabular}",
)


@pytest.fixture
def hostile(run_maker):
    runs = {name: run_maker(name=name, seconds=1 + i, seed=i, samples=3, problems=4) for i, name in enumerate(HOSTILE)}
    return compare_models(
        {n: dataclasses.replace(r, note=n, meta={**r.meta, "device_name": n}) for n, r in runs.items()}, resamples=20
    )


def untimed(run):
    return ModelRun([dataclasses.replace(c, seconds=0.0) for c in run.completions], run.verdicts, meta=run.meta)


def test_figures_show_the_points(runs):
    c = compare_models(runs, resamples=20)
    figures = paper_figures({"": c})
    axes = figures["figure3"].axes
    assert [a.get_title() for a in axes] == ["Coverage", "Majority vote", "Weighted best-of-N"]
    markers = [line for line in axes[0].lines if line.get_marker() != "None"]
    for line, name in zip(markers, c.runs, strict=True):
        assert list(line.get_xdata()) == list(c.ks)
        assert list(line.get_ydata()) == [c.point(name, "coverage", k).value for k in c.ks]


def test_two_sets_stand_side_by_side_or_below_each_other(runs):
    c = compare_models(runs, rules=["coverage", "majority"], resamples=20)
    figures = paper_figures({"MATH": c, "GSM8K": c})
    assert [a.get_title() for a in figures["figure4"].axes] == ["MATH: coverage", "GSM8K: coverage"]
    assert len(figures["figure1"].axes) == 4
    told = " ".join(t.get_text() for t in figures["figure4"].texts)
    assert "MATH: runs teacher and student; 12 problems" in " ".join(told.split())


def test_without_seconds_there_is_the_figure_over_samples(runs, tmp_path):
    c = compare_models({name: untimed(run) for name, run in runs.items()}, resamples=20)
    assert {p.name for p in save_figures(c, tmp_path)} == {"figure3.png", "figure3.svg"}
    assert "time a sample" in latex_table(c)
    assert "round budgets" not in markdown_summary(c)
    with pytest.raises(ValueError, match="nothing to draw"):
        save_figures({}, tmp_path)


def test_hostile_names_can_be_drawn(hostile, tmp_path):
    points = [p for p in hostile.points if p.rule == "coverage"]
    measured = {
        n: dataclasses.replace(m, values={"coverage": m.values["coverage"]}) for n, m in hostile.measured.items()
    }
    paths = save_figures(dataclasses.replace(hostile, points=points, measured=measured), tmp_path)
    assert [p.name for p in paths] == [f"figure{n}.{e}" for n in (1, 3, 4) for e in ("png", "svg")]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    for path in paths:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
        else:
            assert not re.search(r"<!--|<script|onload|javascript:|evil|metadata", path.read_text())


@pytest.mark.parametrize("name", HOSTILE)
def test_latex_sets_letters(name):
    text = latex_text(name)
    bare = re.sub(r"\\text[a-z]+\{\}|\\dots\{\}|\\[{}$&#%_]|\$\\times\$|\$-\$|-\{\}|\{[\[\]]\}", "", text)
    assert not re.search(r"[\\{}$&#%_^~<>|\"`']", bare), bare
    assert "--" not in text


def test_latex_table_is_one_table(hostile):
    text = latex_table(hostile)
    body = text[text.index("\\midrule") : text.index("\\bottomrule")]
    rows = [line for line in body.split("\n")[1:] if line.strip()]
    assert len(rows) == 2 * len(HOSTILE)
    columns = re.search(r"begin\{tabular\}\{@\{\}(l+r+)@\{\}\}", text)[1]
    for row in rows:
        assert len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1
    plainly = re.sub(r"\\[{}]", "", text)
    assert plainly.count("{") == plainly.count("}")
    text = text.split("\n", 1)[1]  # the first line is a comment
    assert text.count("\\end{tabular}") == text.count("\\end{table}") == 1
    assert "toprule" in text
    assert all(ord(ch) < 0x100 for ch in text)
    with pytest.raises(ValueError, match="must be made of letters"):
        latex_table(hostile, label="a}b")


def test_latex_marks_the_best(runs):
    c = compare_models(runs, resamples=20)
    best = max(c.point(name, "majority", c.ks[-1]).value for name in c.runs)
    assert f"\\textbf{{{100 * best:.1f}}}" in latex_table(c)


def tokens_of(text):
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_shows_names_as_they_are(name):
    for around in ("{}", "| a |\n| --- |\n| {} |", "- {}", "# {}"):
        inline = [t for t in tokens_of(around.format(markdown_text(name))) if t.type == "inline"][-1]
        kinds = {child.type for child in inline.children}
        assert kinds <= {"text", "text_special"}, kinds
        assert "".join(child.content for child in inline.children) == " ".join(plain(name).split())


def test_markdown_summary_is_headline_tables_and_provenance(hostile):
    found = tokens_of(markdown_summary(hostile))
    assert not [t for t in found if t.type in ("html_block", "code_block", "fence")]
    inner = [child for t in found if t.type == "inline" for child in t.children]
    assert {child.type for child in inner} <= {"text", "text_special", "strong_open", "strong_close", "softbreak"}
    assert [t.tag for t in found if t.type == "heading_open"].count("h1") == 1
    cells = [t.content for t in found if t.type == "inline"]
    assert "not recorded" in cells
    text = "".join(child.content for child in inner)
    assert shorten(HOSTILE[1], 40) in text


def test_summary_says_the_headline(runs):
    from lit_thinkfast.analysis.story import tell, unmarked

    c = compare_models(runs, resamples=20)
    assert unmarked(tell(c).headline) in markdown_summary(c).split("\n")[0].replace("\\", "")
