"""The page is whole, self-contained, harmless, repeatable, and says what the numbers say."""

import dataclasses
import itertools
import re
from html.parser import HTMLParser

import pytest

from lit_thinkfast.analysis import ModelRun, build_report, compare_models, latex_table, markdown_summary, table
from lit_thinkfast.analysis.page import page as page_around
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
MARKUP = """
    html head meta title style body main header nav section article h1 h2 h3 h4 p a b i span small div dl dt dd ul li
    figure figcaption table thead tbody tr th td details summary pre footer fieldset legend label input
    svg g defs path use clippath rect
"""
ALLOWED = set(MARKUP.split())


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
        if name in {"href", "xlink:href"} and not (tag == "a" and value.startswith("data:")):
            assert value.startswith("#")
            assert value[1:] in page.ids
        elif name in {"href", "xlink:href"}:
            assert re.fullmatch(r"data:(text/csv|application/json);charset=utf-8;base64,[A-Za-z0-9+/=]*", value)
            assert ("a", "download") in {(t, n) for t, n, _ in page.attributes}
        assert not re.search(r"url\((?!#)", value)
        assert "://" not in value
        assert "javascript:" not in value or name == "aria-label"
    heads = [int(tag[1]) for tag in page.tags if re.fullmatch("h[1-6]", tag)]
    assert heads.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise([0, *heads]))  # no level is left out
    scopes = [value for tag, name, value in page.attributes if tag == "th" and name == "scope"]
    assert len(scopes) == page.tags.count("th")
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


def test_headline_doubts_leads_that_are_not_clear(run_maker):
    few = {"teacher": run_maker(problems=5, seed=4), "student": run_maker(problems=5, seconds=0.8, skill=0.55, seed=5)}
    c = compare_models(few)
    wins = [b.margin for b in c.best if b.model == "student" and not b.short_of_samples and b.margin is not None]
    assert wins
    assert not any(m.resolved for m in wins)
    assert unmarked(tell(c).headline).endswith(", but never clearly")


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


def test_of_one_problem_no_interval_is_shown(run_maker, clocked, tmp_path):
    for timed in (True, False):
        both = {"teacher": clocked(run_maker(problems=1)), "student": clocked(run_maker(problems=1, seed=1))}
        if not timed:
            both = {
                name: dataclasses.replace(
                    run, completions=[dataclasses.replace(c, seconds=0.0) for c in run.completions]
                )
                for name, run in both.items()
            }
        c = compare_models(both, resamples=20)
        shown = shown_text(build_report(c, tmp_path / f"{timed}.html")) + latex_table(c) + markdown_summary(c)
        assert not re.search(r"\bnan\b", shown)
        assert "1 problem is few" in shown
        assert not any(b.margin is not None and b.margin.resolved for b in c.best)


def test_problems_left_out_for_lack_of_samples_are_on_the_page(runs, tmp_path):
    whole = runs["teacher"]
    cut = [c for c in whole.completions if (c.problem_id, c.sample) != ("p3", 7)]
    verdicts = [v for v in whole.verdicts if (v.problem_id, v.sample) != ("p3", 7)]
    c = compare_models({**runs, "teacher": dataclasses.replace(whole, completions=cut, verdicts=verdicts)}, ks=[1, 8])
    assert c.few_samples == ("p3",)
    shown = shown_text(build_report(c, tmp_path / "r.html"))
    told = "1 problem (p3) is left out, since some run has fewer than 8 samples of it"
    assert told in shown
    assert "of the same 11 problems" in shown
    assert told.split(", ")[1] in markdown_summary(c)


def test_there_is_no_lead_over_a_baseline_that_has_no_sample_yet(run_maker):
    slow = run_maker(seconds=100.0, skill=0.9)
    every = {"teacher": slow, "good": run_maker(skill=0.8, seed=1), "bad": run_maker(skill=0.1, seed=2)}
    c = compare_models(every, baseline="teacher", rules=["coverage"], resamples=50)
    early = [b for b in c.best if b.seconds < c.measured["teacher"].sample_seconds.mean()]
    assert early
    assert all(b.margin is None for b in early)  # not a lead over the other student
    for b in c.best:
        if b.margin is not None:
            assert "teacher" in (b.margin.first, b.margin.second)


@pytest.fixture
def plain_runs(run_maker):
    """Without scores: fewer rules, so fewer figures to draw."""
    return {
        "teacher": run_maker(name="teacher", skill=0.6, layers=("attention",) * 2, scored=False),
        "student": run_maker(name="student", seconds=0.3, seed=1, scored=False),
    }


def shown_text(path):
    return "".join(check_harmless(path.read_text()).text)


def without_seconds(run):
    return ModelRun([dataclasses.replace(c, seconds=0.0) for c in run.completions], run.verdicts, meta=run.meta)


def test_headline_then_front_then_the_rest(tmp_path, plain_runs):
    text = build_report(plain_runs, tmp_path / "r.html").read_text()
    places = [text.index(part) for part in ("<h1>", 'id="front"', "<svg", 'class="tiles"', 'id="story"', 'id="models"')]
    assert places == sorted(places)
    assert "Pareto front of coverage over time" in text
    page = check_harmless(text)
    links = [value for tag, name, value in page.attributes if tag == "a" and name == "href" and value.startswith("#")]
    assert len(links) > 12 + 10


def test_untimed_comparison_speaks_of_samples_only(tmp_path, plain_runs):
    bare = {name: without_seconds(run) for name, run in plain_runs.items()}
    c = compare_models(bare, resamples=50)
    assert not c.timed
    shown = shown_text(build_report(c, tmp_path / "r.html"))
    assert "With 8 samples a problem" in unmarked(tell(c).headline)
    for absent in (r"\bnan\b", r"\binf\b", "Per second", "round budgets", "over time", "engine seconds per"):
        assert not re.search(absent, shown), absent
    assert "No engine time was recorded for teacher and student" in shown
    mixed = compare_models({"teacher": plain_runs["teacher"], "student": bare["student"]}, resamples=50)
    assert not re.search(r"\bnan\b", shown_text(build_report(mixed, tmp_path / "m.html")))
    alone = compare_models({"teacher": bare["teacher"]}, resamples=50)
    best = max(alone.point("teacher", rule, 8).value for rule in alone.rules if rule != "coverage")
    assert f"{100 * best:.1f}" in tell(alone).headline


def test_untimed_headline_names_the_best(run_maker):
    runs = {"weak": run_maker(skill=0.2, scored=False), "strong": run_maker(skill=0.8, scored=False, seed=1)}
    c = compare_models({name: without_seconds(run) for name, run in runs.items()}, resamples=50)
    assert unmarked(tell(c).headline) == "With 8 samples a problem, strong is best by every rule"


def test_every_section_says_where_its_numbers_come_from(tmp_path, plain_runs):
    session = {
        "started": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-03T03:04:05+00:00",
        "git": {"commit": "f" * 40, "changed": True},
        "versions": {"torch": "2.6.0", "lit-thinkfast": "9.8.7"},
    }
    told = dataclasses.replace(plain_runs["teacher"], meta={**plain_runs["teacher"].meta, "sessions": [session]})
    path = build_report({"teacher": told, "student": plain_runs["student"]}, tmp_path / "r.html")
    text, shown = path.read_text(), shown_text(path)
    for section in re.findall(r'<section[^>]*id="([a-z-]+)"', text):
        part = text[text.index(f'id="{section}"') :]
        part = part[: part.index("</section>")]
        numbers = section not in ("story", "method", "provenance", "download")
        assert ('class="source"' in part) == numbers, section
    for fact in ("2026-01-02 to 2026-01-03", "git ffffffffff with changes (teacher)", "lit-thinkfast 9.8.7", "seed 0"):
        assert fact in shown
    assert "not recorded (student)" in shown


def test_levels_subjects_prices_and_removed_problems(tmp_path, plain_runs):
    known = {f"p{i}": Problem(f"p{i}", "?", "1", level=1 + i // 6, subject=("A & B", "C")[i % 2]) for i in range(12)}
    extra = dataclasses.replace(plain_runs["teacher"].completions[0], problem_id="gone")
    teacher = ModelRun(
        [*plain_runs["teacher"].completions, extra], plain_runs["teacher"].verdicts, meta=plain_runs["teacher"].meta
    )
    c = compare_models({"teacher": teacher, "student": plain_runs["student"]}, prices=3.6, resamples=50)
    path = build_report(c, tmp_path / "r.html", problems=list(known.values()))
    text, shown = path.read_text(), shown_text(path)
    assert "1 problem is left out since no sample of it has a verdict" in shown
    assert "At $3.60 an hour, one second of engine time costs $0.0010." in shown
    graded = dataclasses.replace(c, runs={n: dataclasses.replace(r, problems=known) for n, r in c.runs.items()})
    for by, group in (("level", "2"), ("subject", "A & B")):
        part = text[text.index(f'id="by-{by}"') :]
        part = part[: part.index("</section>")]
        for v in graded.groups(by):
            if v.group == group and v.k == 1 and v.rule == "coverage":
                assert f"{100 * v.value:.1f}" in part
        assert group.replace("&", "&amp;") in part


def test_deadline_and_landmarks_are_shown(tmp_path, plain_runs):
    timed = {}
    for name, run in plain_runs.items():
        completions, clock = [], 0.0
        for c in sorted(run.completions, key=lambda c: (c.sample, c.problem_id)):
            clock += c.seconds
            completions.append(dataclasses.replace(c, finished_seconds=clock, latency_seconds=c.seconds))
        timed[name] = ModelRun(completions, run.verdicts, meta=run.meta)
    c = compare_models(timed, resamples=50)
    assert c.deadline
    path = build_report(c, tmp_path / "r.html")
    text, shown = path.read_text(), shown_text(path)
    assert 'id="deadline-coverage' in text or "By a real deadline" in shown
    assert "By a real deadline" in shown
    assert "Time to reach a value: coverage" in shown
    for area in c.landmarks.areas:
        assert f"{100 * area.value:.1f}" in shown
    assert "By a real deadline" not in shown_text(build_report(plain_runs, tmp_path / "none.html"))


def test_outcomes_are_counted_apart(tmp_path, run_maker):
    run = run_maker(problems=2, samples=4)
    ends = ["correct", "incorrect", "unparsable", "timeout", "oom", "crashed", "truncated", "correct"]
    verdicts = [dataclasses.replace(v, outcome=end) for v, end in zip(run.verdicts, ends, strict=True)]
    text = build_report({"m": ModelRun(run.completions, verdicts)}, tmp_path / "r.html").read_text()
    table = text[text.index("How the samples ended") :]
    table = table[: table.index("</table>")]
    assert re.findall(r"<small>(\d+)</small>", table) == ["2", "1", "1", "1", "1", "1", "1"]
    assert "Grading failed for some samples" in text


def test_colours_have_contrast():
    """Text on its background has at least the contrast that WCAG 2.2 asks for (1.4.3: 4.5 to 1), light and dark."""
    from lit_thinkfast.analysis.style import THEME

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        return sum(
            w * (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4)
            for w, p in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
        )

    def contrast(one, other):
        high, low = sorted((luminance(one), luminance(other)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    sheet = re.search(r"<style>(.*?)</style>", page_around("t", []), re.DOTALL)[1]
    pages = re.findall(r"--page: (#\w+); --line: #\w+; --good: (#\w+); --bad: (#\w+)", sheet)[:2]
    for number, (page, good, bad) in enumerate(pages):
        grounds = (page, THEME["paper"][number])
        inks = [good, bad, *(THEME[name][number] for name in THEME if name not in ("grid", "paper"))]
        names = ["good", "bad", *(name for name in THEME if name not in ("grid", "paper"))]
        for ground in grounds:
            for name, ink in zip(names, inks, strict=True):
                assert contrast(ink, ground) >= 4.5, (name, number, ground, contrast(ink, ground))


def test_the_benchmark_says_where_it_comes_from(tmp_path, plain_runs, benchmark_points):
    meta = {"settings": {"seed": 7}, "machine": {"device_name": "a card", "versions": {"torch": "2.6.0"}}}
    path = build_report(plain_runs, tmp_path / "r.html", benchmark=benchmark_points, benchmark_meta=meta)
    told = "decode benchmark of teacher and student; seed 7; a card; dates not recorded; torch 2.6.0; git not recorded"
    assert told in shown_text(path)
