"""A page in a headless Chromium: how long it takes to open, and what came alive in it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# No sandbox, since containers run as root; nothing that asks the network
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
# What runs in the browser. Playwright's own evaluation is no part of the page and is not bound by its policy.
_COUNT = """() => {
  const all = [...document.querySelectorAll('*')];
  const links = [...document.querySelectorAll('[href],[src],[srcset],[action],[data],[poster]')];
  const known = (e) => {
    const to = e.getAttribute('href') || '';
    const file = e.tagName === 'A' && e.hasAttribute('download');
    return to.startsWith('#') || (file && /^data:(text\\/csv|application\\/json);/.test(to));
  };
  return {
    elements: all.length,
    scripts: document.scripts.length,
    handlers: all.filter((e) => e.getAttributeNames().some((n) => n.startsWith('on'))).length,
    foreign: links.filter((e) => !known(e)).map((e) => e.outerHTML.slice(0, 120)),
    embedded: document.querySelectorAll('iframe,object,embed,img,video,audio,base,form,link').length,
    title: document.title,
  };
}"""


@dataclass(frozen=True)
class Found:
    """What a browser found in a page.

    Attributes:
        load_seconds: From asking for the page to its load event and the first drawn frame after it.
        elements: Of the document.
        scripts: Script elements.
        handlers: Elements with an ``on...`` attribute.
        embedded: Frames, pictures, forms and the like.
        foreign_links: What leads elsewhere than into the page or to a file within it.
        requests: Addresses that the page asked for, itself left out.
        errors: Errors on the console and those that nobody caught.
        title: Of the document.
    """

    load_seconds: float
    elements: int
    scripts: int
    handlers: int
    embedded: int
    foreign_links: list[str]
    requests: list[str]
    errors: list[str]
    title: str


def chromium_path() -> str | None:
    """Return where a Chromium is, or ``None``; the variable CHROMIUM names one."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def browser() -> Iterator[Any]:
    """Give a headless browser, or ``None`` where Chromium or playwright is missing."""
    path = chromium_path()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = None
    if path is None:
        yield None
        return
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield running
        finally:
            running.close()


def examine(page: Path, running: Any) -> Found:
    """Open a page in a fresh context and look at it."""
    context = running.new_context(viewport={"width": 1280, "height": 900})
    try:
        tab = context.new_page()
        errors, requests = [], []
        tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url[:120]))
        start = time.perf_counter()
        tab.goto(page.resolve().as_uri(), wait_until="load")
        tab.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        seconds = time.perf_counter() - start
        seen = tab.evaluate(_COUNT)
    finally:
        context.close()
    return Found(
        load_seconds=seconds,
        elements=seen["elements"],
        scripts=seen["scripts"],
        handlers=seen["handlers"],
        embedded=seen["embedded"],
        foreign_links=seen["foreign"],
        requests=requests[1:],
        errors=errors,
        title=seen["title"],
    )
