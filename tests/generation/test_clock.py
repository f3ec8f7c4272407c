"""The stopwatch on a clock of its own: laps add up, and a device is waited for before every look."""

import pytest
import torch

from lit_thinkfast.generation import clock
from lit_thinkfast.generation.clock import Stopwatch


def test_laps_and_what_is_left_out_add_up():
    times = [0.0, 1.0, 1.5, 4.0, 10.0, 10.25]
    watch = Stopwatch(now=iter(times).__next__)
    laps = [watch.lap(), watch.lap()]
    watch.skip()
    laps += [watch.lap(), watch.lap()]
    assert laps == [1.0, 0.5, 6.0, 0.25]
    assert watch.elapsed == sum(laps) == times[-1] - (4.0 - 1.5)


@pytest.mark.parametrize(("kind", "calls"), [("cuda", "cuda"), ("mps", "mps"), ("cpu", None), ("meta", None)])
def test_the_device_is_waited_for_before_every_look(monkeypatch, kind, calls):
    seen = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: seen.append("cuda"))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: seen.append("mps"))

    def now():
        seen.append("look")
        return float(len(seen))

    watch = Stopwatch(kind, now=now)
    watch.lap()
    watch.skip()
    one = ["look"] if calls is None else [calls, "look"]
    assert seen == 3 * one


def test_the_clock_does_not_run_backwards():
    assert clock.time.get_clock_info("perf_counter").monotonic
    watch = Stopwatch()
    assert all(watch.lap() >= 0 for _ in range(100))
