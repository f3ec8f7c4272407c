"""The benchmarks run, compare like with like, and say what they measured. Their figures are not tested."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def mixers():
    spec = importlib.util.spec_from_file_location("bench_mixers", ROOT / "benchmarks" / "mixers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_mixers(mixers, monkeypatch, capsys):
    monkeypatch.setattr(mixers, "peak_memory", lambda name, time_steps: 1.0 if name == "ours" else 2.0)
    with torch.no_grad():
        steps = mixers.bench_step([2], 1)
    result = {
        "mamba2_scan": mixers.bench_scan([70], 1),
        "mamba2_step": steps,
        "mamba1_scan": mixers.bench_mamba1([32], 20, 1),
    }
    for rows in result.values():
        assert rows[0]["error"] < 1e-5
    assert json.loads(json.dumps(result)) == result
    mixers.show(result)
    assert "T = 70" in capsys.readouterr().out


def test_ratios_are_those_of_rounds(mixers, monkeypatch):
    clock = iter([0, 4, 4, 5, 5, 11, 11, 13])  # two rounds of two functions: 4 and 1 seconds, then 6 and 2
    monkeypatch.setattr(mixers.time, "perf_counter", lambda: next(clock))
    found = mixers.compared({"slow": lambda: None, "fast": lambda: None}, rounds=2)
    assert found == {"milliseconds": {"slow": 5000.0, "fast": 1500.0}, "ratio": 3.5, "ratio_range": [3.0, 4.0]}
