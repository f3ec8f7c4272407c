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


@pytest.fixture
def distill(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("bench_distill", ROOT / "benchmarks" / "distill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_distill(distill, monkeypatch, capsys):
    sizes = distill.Sizes(vocab=96, hidden=32, intermediate=48, heads=2, kv_heads=1, layers=2)
    monkeypatch.setattr(distill, "peak_memory", lambda section, name, *rest: 1.0 if name == "ours" else 4.0)
    result = {
        "kl": distill.bench_kl([40], 1, None, sizes),
        "step": distill.bench_step(2, (5, 9), 1, sizes),
        "packing": distill.bench_packing([(3, 9), (5, 12), (7, 4), (2, 8)], 26, 20, 1, sizes),
        "stage1": distill.bench_stage1([150], 1, sizes),
    }
    for found in [*result["kl"], result["step"], *result["packing"], *result["stage1"]]:
        assert found["error"] < 1e-5
    assert result["kl"][0]["error"] < 1e-6
    assert result["kl"][0]["gradient_error"] < 1e-5
    assert result["packing"][0]["filled"] == {"padded to 20": 0.625, "packed": 0.641}
    assert json.loads(json.dumps(result)) == result
    distill.show(result)
    assert "T = 150" in capsys.readouterr().out


def test_distill_measures_memory_in_a_process_of_its_own(distill):
    sizes = distill.Sizes(vocab=4096, hidden=32)
    textbook, ours = (distill.peak_memory("kl", name, 512, None, sizes) for name in ("textbook", "ours"))
    # two log-softmaxes and what comes of them, 8 MiB each, against chunks of 48 rows
    assert 16 < textbook < 80
    assert ours < 0.5 * textbook


@pytest.fixture
def decode(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("bench_decode", ROOT / "benchmarks" / "decode.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shapes(decode, **changes):
    from lit_thinkfast.models import HybridConfig

    sizes = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True, "max_position_embeddings": 256,
    }  # fmt: skip
    return HybridConfig(**sizes | changes)


def test_decode_compares_equal_tokens(decode):
    hybrid = shapes(decode, layer_mixers=["mamba2", "attention"])
    gates = decode.bench_gates({"hybrid": hybrid}, 6)["hybrid"]
    assert gates.pop("of") == 15
    assert set(gates.values()) == {15}
    stock = decode.bench_hybrid(hybrid, [3], 1, 9, 4) + decode.bench_llama(shapes(decode), [3], 1, 9, 4)
    for found in stock:
        assert set(found["rows_with_equal_tokens"].values()) == {1.0}
        assert min(found["ratio"].values()) > 0
    served = decode.bench_serving(hybrid, problems=3, samples=4, prompt=9, new=30, ends=4, rounds=1)
    assert served["equal_completions"] == served["of"] == 12
    assert served["lengths"]["max"] > served["lengths"]["median"]
    (point,) = decode.bench_regime({"hybrid": hybrid}, [2], 1, 9, 4)
    assert 0 < point["predicted_seconds"] < point["seconds"]


def test_decode_plans_memory_and_counts_overhead(decode):
    two = {"transformer": shapes(decode), "pure": shapes(decode, layer_mixers=["mamba2"] * 2)}
    memory = decode.bench_memory(two, gib=0.1, prompt=100, new=100, run=False)
    assert memory["transformer"]["over_teacher"] == 1
    assert memory["pure"]["over_teacher"] > 1
    overhead = decode.bench_overhead({"pure": two["pure"]}, problems=2, prompt=5, new=6)["pure"]
    assert overhead["samples"] == 128
    assert 0 < overhead["share"] < 1
    assert overhead["wall_seconds"] > overhead["model_seconds"]
