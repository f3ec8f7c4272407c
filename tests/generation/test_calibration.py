"""Calibration against products and copies timed by hand, and what counts as a disturbance."""

import time
from importlib import metadata

import pytest
import torch

from lit_thinkfast.generation import calibration
from lit_thinkfast.generation.calibration import DRIFT_LIMIT, calibrate, describe_machine, disturbance, disturbed, drift

RATES = {"gemm_gflops", "gemm_m1_gflops", "gemm_m16_gflops", "copy_gb_per_second"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rates_of_a_type(dtype):
    start = time.perf_counter()
    found = calibrate(dtype=dtype)
    assert time.perf_counter() - start < 10  # 0.3 s on an idle machine
    assert found.keys() - {"load_average"} == RATES
    assert all(found[name] > 0 for name in RATES)
    if dtype != torch.bfloat16:  # whose square products processors without instructions for it do slower than one row
        # one row cannot be multiplied faster than the weight is read, nor many slower than one
        assert found["gemm_m1_gflops"] < found["gemm_gflops"]


def test_rates_are_work_over_the_median_of_turns(monkeypatch):
    """On a clock on which every round is slower than the one before, but for the first, which is the slowest."""
    order = ["gemm_gflops", "gemm_m1_gflops", "gemm_m16_gflops", "copy_gb_per_second"]
    seconds = dict(zip(order, (0.001, 0.002, 0.004, 0.008), strict=True))

    class Watch:
        elapsed = 0.0
        turns = 0

        def __init__(self, device):
            pass

        def skip(self):
            pass

        def lap(self):
            round_, kind = divmod(self.turns, len(order))
            self.turns += 1
            return seconds[order[kind]] * (round_ / 5 if round_ else 50)  # of rounds 1 to 9 the median is the fifth

    monkeypatch.setattr(calibration, "Stopwatch", Watch)
    found = calibrate()
    assert found["gemm_gflops"] == round(2 * 512**3 / 0.001 / 1e9, 2)
    assert found["gemm_m1_gflops"] == round(2 * 4096 * 2048 / 0.002 / 1e9, 2)
    assert found["gemm_m16_gflops"] == round(2 * 16 * 4096 * 2048 / 0.004 / 1e9, 2)
    assert found["copy_gb_per_second"] == round(2 * 64 * 2**20 / 0.008 / 1e9, 2)


def test_the_machine_is_described():
    found = describe_machine()
    assert found["device"] == "cpu"
    assert found["threads"] == torch.get_num_threads()
    assert found["versions"]["torch"] == metadata.version("torch")


QUIET = {"gemm_gflops": 100.0, "gemm_m1_gflops": 5.0, "gemm_m16_gflops": 30.0, "copy_gb_per_second": 10.0}


@pytest.mark.parametrize("name", sorted(RATES))
@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_every_rate_counts_in_both_directions(name, factor):
    after = QUIET | {name: QUIET[name] * factor}
    assert drift(QUIET, after) == drift(after, QUIET) == pytest.approx(0.2)
    assert disturbed(QUIET, after)


def test_what_is_no_disturbance():
    limit = {name: value * (1 - DRIFT_LIMIT) for name, value in QUIET.items()}
    assert drift(QUIET, limit) == DRIFT_LIMIT
    assert not disturbed(QUIET, limit)
    assert not disturbed(QUIET, QUIET | {"load_average": 9.0})
    assert not disturbed(None, QUIET)
    assert not disturbed(QUIET, None)
    old = {"gemm_gflops": 100.0, "copy_gb_per_second": 10.0, "load_average": 0.1}  # of earlier versions
    assert drift(old, QUIET) == 0
    assert drift({}, QUIET) == 0


def test_the_note_of_a_disturbance():
    assert disturbance(DRIFT_LIMIT) == ""
    assert "changed by 16 %" in disturbance(0.16)
