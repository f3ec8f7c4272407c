"""What is shown while a run goes on."""

import io

import pytest
from rich.console import Console

from lit_thinkfast import terminal
from lit_thinkfast.generation.progress import Progress
from lit_thinkfast.terminal import line_now_and_then, progress_bar, sampling_progress


def test_time_left():
    assert Progress(0, 4, 10, 1.0).eta_seconds is None
    assert Progress(1, 4, 10, 2.0).eta_seconds == 6
    assert Progress(1, None, 10, 2.0).eta_seconds is None
    assert Progress(1, None, 10, 2.0, time_budget=30.0, spent=5.0).eta_seconds == 23
    assert Progress(1, None, 10, 40.0, time_budget=30.0).eta_seconds == 0
    assert Progress(1, 4, 10, 2.0, time_budget=30.0).eta_seconds == 6, "whichever ends first"
    assert (Progress(0, 4, 0, 0.0).samples_per_second, Progress(0, 4, 0, 0.0).tokens_per_second) == (0, 0)


@pytest.mark.parametrize(
    ("progress", "shown"),
    [
        (Progress(0, 64, 0, 0.0), (0, 64, "0.0 samples/s  0 tokens/s  0 rows")),
        (Progress(5, 64, 9000, 2.0, 8), (5, 64, "2.5 samples/s  4,500 tokens/s  8 rows  0:24 left")),
        (Progress(1, 7201, 9, 1.0, 8), (1, 7201, "1.0 samples/s  9 tokens/s  8 rows  2:00:00 left")),
        (
            Progress(5, None, 9000, 2.0, 8, time_budget=60.0, spent=20.0),
            (22, 60, "5 samples  2.5 samples/s  4,500 tokens/s  8 rows  0:38 left"),
        ),
        (
            Progress(5, None, 9000, 2.5, 8, time_budget=2.0),
            (2, 2, "5 samples  2.0 samples/s  3,600 tokens/s  8 rows  0:00 left"),
        ),
    ],
)
def test_what_stands_behind_the_bar(progress, shown):
    assert sampling_progress(progress) == shown


def test_where_there_is_no_terminal_a_line_comes_now_and_then():
    shown, clock = [], [0.0]
    update = line_now_and_then(shown.append, "sampling", seconds=30.0, now=lambda: clock[0])
    for second in range(0, 100):
        clock[0] = float(second)
        update(second, None if second < 50 else 99, "fast")
    assert shown == ["sampling: 30/?  fast", "sampling: 60/99  fast", "sampling: 90/99  fast"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_is_for_terminals(monkeypatch, is_terminal):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=is_terminal, width=120, force_interactive=is_terminal)
    monkeypatch.setattr("rich.console.Console", lambda **_: console)
    monkeypatch.setattr(terminal, "_LINE_SECONDS", 0.0)
    with progress_bar("sampling [x]", time_left=False) as update:
        for done in range(3):
            update(*sampling_progress(Progress(done, 3, 10 * done, 1.0, 1)))
    assert "sampling [x]" in screen.getvalue()
    assert "samples/s" in screen.getvalue()
    assert ("\x1b[" in screen.getvalue()) is is_terminal
    before = screen.getvalue()
    with progress_bar("sampling", quiet=True) as update:
        update(1, 2, "text")
    assert screen.getvalue() == before
