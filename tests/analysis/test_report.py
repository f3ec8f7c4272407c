"""The page is whole, self-contained, harmless, repeatable, and says what the numbers say."""

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from lit_thinkfast.analysis import ModelRun, build_report, compare_models, table
from lit_thinkfast.analysis.story import tell, unmarked
from lit_thinkfast.generation.benchmark import DecodePoint
from lit_thinkfast.records import Problem

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style></title><iframe src='https://evil.example/'></iframe>",
    "<svg/onload=alert(1)> javascript:alert(1) <!-- --> ]]> &lt;b&gt;",
    "\x1b[31mred\x1b[0m \u202egnp.exe \x00 \ud800",
    "$\\frac{1}{0}$ $x [bold]a[/bold] %s {0}",
    "=cmd|' /C calc'!A0",
)
VOID = {"meta", "img", "br", "hr", "link", "input", "source", "use", "path"}
ALLOWED = set(
    [
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "header",
        "section",
        "h1",
        "h2",
        "h3",
        "p",
        "b",
        "i",
        "span",
        "small",
        "div",
        "dl",
        "dt",
        "dd",
        "ul",
        "li",
        "figure",
        "figcaption",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "details",
        "summary",
        "pre",
        "footer",
        "svg",
        "g",
        "defs",
        "path",
        "use",
        "clippath",
        "rect",
    ]
)


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open, self.ids = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def check_harmless(text):
    page = Page(text)
    assert page.open == []
    assert set(page.tags) <= ALLOWED
    assert len(page.ids) == len(set(page.ids))
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in {"src", "srcset", "action", "formaction", "data", "poster", "srcdoc", "xmlns"}
        if name in {"href", "xlink:href"}:
            assert value.startswith("#")
            assert value[1:] in page.ids
        assert not re.search(r"url\((?!#)", value)
        assert "://" not in value
        assert "javascript:" not in value or name == "aria-label"
    style = re.findall(r"<style>(.*?)</style>", text, flags=re.DOTALL)
    assert len(style) == 1
    assert "url(" not in style[0]
    assert "@import" not in style[0]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)
    return page


def test_report_is_whole_and_repeatable(tmp_path, runs, problems, benchmark_points):
    options = {"benchmark": benchmark_points, "problems": problems, "notes": "A remark."}
    first = build_report(runs, tmp_path / "deep" / "a.html", **options)
    again = build_report(compare_models(runs), tmp_path / "b.html", **options)
    assert first.read_bytes() == again.read_bytes()
    assert [p.name for p in first.parent.iterdir()] == ["a.html"]
    text = first.read_text()
    page = check_harmless(text)
    assert page.tags.count("svg") == 1 + 4 + 8 + 3
    assert "Content-Security-Policy" in text
    shown = "".join(page.text)
    for part in ("teacher", "student", "1.23M", "Question number", "A remark.", "Weighted best-of-N", "a processor"):
        assert part in shown
    assert "var(--model0)" in text


def test_hostile_content_is_escaped(tmp_path, run_maker):
    runs, problems = {}, [Problem(f"p{i}", HOSTILE[i % len(HOSTILE)], HOSTILE[-i % len(HOSTILE)]) for i in range(8)]
    for i, name in enumerate(HOSTILE):
        run = run_maker(problems=8, samples=2, seconds=1 + i, seed=i)
        completions = [
            dataclasses.replace(c, text="\n".join(HOSTILE[n:] + HOSTILE[:n])) for n, c in enumerate(run.completions)
        ]
        verdicts = [
            dataclasses.replace(v, answer=name, grader=name, reward_model=name, step_scores=(0.0,) * len(HOSTILE))
            for v in run.verdicts
        ]
        meta = {**run.meta, name: {name: [name]}, "device_name": name, "layer_mixers": [name, "attention"]}
        runs[name] = ModelRun(completions, verdicts, meta=meta, note=name)
    bench = [DecodePoint(n, b, 4, 4, 1.0 * b, b, b, 0.1, 3.0, 10, 10, 1, 1) for n in HOSTILE for b in (1, 2)]
    comparison = compare_models(runs, resamples=50)
    out = build_report(
        comparison, tmp_path / "r.html", problems=problems, notes=HOSTILE, title=HOSTILE[1], benchmark=bench
    )
    page = check_harmless(out.read_text(encoding="utf-8"))
    shown = "".join(page.text)
    assert "<script>alert(1)</script>" in shown
    assert "\\x1b[31mred" in shown

    from rich.console import Console

    console = Console(width=300, record=True, force_terminal=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(comparison))
    console.print(table({"[bold]a[/bold]": run_maker(samples=1)}))
    printed = console.export_text()
    assert "\x1b" not in printed
    assert "[bold]a[/bold]" in printed


def test_other_shapes(tmp_path, run_maker):
    """One model and one sample; no scores; no metadata; unequal numbers of samples; more models than colours."""
    one = {"only": run_maker(samples=1, problems=1)}
    check_harmless(build_report(one, tmp_path / "one.html").read_text())
    bare = run_maker(scored=False, samples=3, problems=3)
    uneven = ModelRun(bare.completions[:-1], bare.verdicts[:-1])
    many = {f"m{i}": run_maker(scored=False, samples=3, problems=3, seconds=1 + i) for i in range(7)} | {"bare": uneven}
    text = build_report(many, tmp_path / "many.html").read_text()
    check_harmless(text)
    assert "Best-of-N" not in text


def test_story_says_who_wins(run_maker):
    teacher = run_maker(seconds=1.0, skill=0.7, problems=40)
    bad = compare_models({"teacher": teacher, "weak": run_maker(seconds=0.9, skill=0.1, problems=40, seed=1)})
    assert unmarked(tell(bad).headline) == "No student beats teacher at any time budget that all models share"
    assert any("no student wins" in text for _, text in tell(bad).paragraphs)
    good = compare_models({"teacher": teacher, "fast": run_maker(seconds=0.2, skill=0.69, problems=40, seed=1)})
    assert unmarked(tell(good).headline) == "fast beats teacher at every time budget that all models share"
    apart = compare_models({"teacher": teacher, "quick": run_maker(seconds=0.01, skill=0.5, problems=40)})
    assert "No time budget is shared" in tell(apart).headline
    assert tell(compare_models({"teacher": teacher})).paragraphs[0][0] == "One model."


def test_headline_names_the_budget_at_which_the_lead_passes(run_maker):
    runs = {
        "teacher": run_maker(seconds=1.0, skill=0.75, problems=60, samples=16),
        "student": run_maker(seconds=0.35, skill=0.55, problems=60, samples=16, seed=1),
    }
    c = compare_models(runs, rules=["coverage", "best_of_n"])
    for rule in c.rules:
        front = [s for s in c.fronts[rule] if s.contested]
        assert {s.model for s in front} <= set(runs)
    assert unmarked(tell(c).headline).startswith("Students beat teacher") or "every" in tell(c).headline


def test_baseline_is_the_transformer_unless_named(runs):
    turned = dict(reversed(runs.items()))
    assert compare_models(turned, ks=[1]).baseline == "teacher"
    assert compare_models(turned, ks=[1], baseline="student").baseline == "student"
    with pytest.raises(ValueError, match="baseline 'x' is not among the models student, teacher"):
        compare_models(turned, baseline="x")


def test_best_at_budgets_agrees_with_the_curves(runs):
    c = compare_models(runs)
    assert c.best
    for b in c.best:
        k = c.measured[b.model].ks
        assert b.k <= k[-1]
        stretch = next(s for s in c.fronts[b.rule] if s.start <= b.seconds <= s.end)
        assert b.value >= min(stretch.start_value, stretch.end_value) - 1e-9
        if b.margin is not None:
            assert b.margin.difference >= -1e-9
