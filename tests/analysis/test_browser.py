"""The page in a headless browser: it opens fast and quietly, works by keyboard, and nothing foreign comes alive."""

import csv
import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from lit_thinkfast.analysis import build_report, compare_models

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def browsing():
    yield load("browsing")
    for name in ("browsing", "report"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def made(browsing, tmp_path_factory):
    """A comparison of hostile runs, and its page."""
    report = load("report")
    problems = report.make_problems(60)
    runs = report.make_runs(problems, samples=4)
    hostile = dict(zip(["Llama-1B", *report.HOSTILE[:3]], runs.values(), strict=True))
    known = {p.id: p for p in problems}
    runs = {
        name: dataclasses.replace(
            run, note=report.HOSTILE[0], problems=known, meta={**run.meta, "device_name": report.HOSTILE[1]}
        )
        for name, run in hostile.items()
    }
    comparison = compare_models(runs, resamples=50)
    out = tmp_path_factory.mktemp("page") / "report.html"
    return comparison, build_report(comparison, out, title=report.HOSTILE[2], notes=report.HOSTILE)


@pytest.fixture(scope="module")
def running(browsing):
    with browsing.browser() as browser:
        if browser is None:
            pytest.skip("needs chromium and the Python package playwright")
        yield browser


@pytest.fixture
def tab(running, made, request):
    context = running.new_context(**{"viewport": {"width": 1280, "height": 900}, **getattr(request, "param", {})})
    tab = context.new_page()
    tab.goto(made[1].as_uri())
    yield tab
    context.close()


def visible_rows(tab):
    return tab.evaluate("[...document.querySelectorAll('.problems tbody tr')].filter((r) => r.offsetParent).length")


def test_it_opens_and_nothing_comes_alive(browsing, running, made):
    found = browsing.examine(made[1], running)
    assert found.errors == []
    assert found.requests == []
    assert found.foreign_links == []
    assert (found.scripts, found.handlers, found.embedded) == (0, 0, 0)
    assert found.title.startswith("</pre>")
    assert found.elements > 1000


@pytest.mark.parametrize("tab", [{"viewport": {"width": 390, "height": 844}}], indirect=True)
def test_a_phone_does_not_scroll_sideways(tab):
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    small = "getComputedStyle(document.querySelector('.intro')).fontSize"
    assert float(tab.evaluate(small).removesuffix("px")) >= 13


def test_light_and_dark_differ(running, made):
    seen = {}
    for scheme in ("light", "dark"):
        context = running.new_context(viewport={"width": 800, "height": 600}, color_scheme=scheme)
        tab = context.new_page()
        tab.goto(made[1].as_uri())
        colours = "(e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).color])(document.body)"
        seen[scheme] = (tab.screenshot(), *tab.evaluate(colours))
        context.close()
    light, dark = seen["light"], seen["dark"]
    assert all(a != b for a, b in zip(light, dark, strict=True))
    assert light[1] == "rgb(246, 247, 249)"
    assert dark[1] == "rgb(14, 17, 22)"


def test_filters_work_by_keyboard(tab, made):
    everything = visible_rows(tab)
    assert everything == made[0].num_problems
    tab.focus("#level-all")
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("document.activeElement.id") == "level-1"
    assert visible_rows(tab) == sum(p.level == 1 for p in made[0].problems.values())
    counted = "getComputedStyle(document.querySelector('.shown'), '::before').content"
    assert "counter" in tab.evaluate(counted)
    tab.keyboard.press("Tab")
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("document.activeElement.id") == "subject-1"
    both = sum(p.level == 1 and p.subject == "Algebra" for p in made[0].problems.values())
    assert visible_rows(tab) == both
    outline = "getComputedStyle(document.activeElement.nextElementSibling).outlineStyle"
    assert tab.evaluate(outline) == "solid"
    tab.keyboard.press("ArrowLeft")
    assert visible_rows(tab) > both


def test_details_open_by_keyboard_and_links_open_them(tab):
    tab.focus("#samples summary")
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.querySelector('#samples details').open")
    tab.keyboard.press("Tab")
    tab.keyboard.press("Space")
    assert tab.evaluate("document.querySelector('#samples details.problem').open")
    tab.focus('.problems a[href="#p40"]')
    tab.keyboard.press("Enter")
    tab.wait_for_function("document.querySelector('#p40').closest('details').open")
    place = tab.evaluate("document.querySelector('#p40').getBoundingClientRect().top")
    assert -5 <= place <= 900
    assert tab.is_visible("#p40 .sample")


def test_everything_that_scrolls_can_be_reached_by_keyboard(tab):
    unreached = """[...document.querySelectorAll('*')].filter((e) =>
        ['auto', 'scroll'].includes(getComputedStyle(e).overflowX) && e.scrollWidth > e.clientWidth + 1
        && e.tabIndex < 0).map((e) => e.className)"""
    tab.set_viewport_size({"width": 390, "height": 844})
    assert tab.evaluate(unreached) == []


def test_downloads_parse(tab, made, tmp_path):
    comparison = made[0]
    files = {}
    for link in tab.query_selector_all("a[download]"):
        with tab.expect_download() as waiting:
            link.click()
        path = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(path)
        files[path.name] = path
    assert set(files) == {"points.csv", "problems.csv", "comparison.json"}
    with open(files["points.csv"], newline="") as lines:
        assert len(list(csv.DictReader(lines))) == len(comparison.points) + len(comparison.deadline)
    assert json.loads(files["comparison.json"].read_text())["baseline"] == "Llama-1B"
    with open(files["problems.csv"], newline="") as lines:
        assert len(list(csv.DictReader(lines))) == comparison.num_problems * 4
