"""The decode benchmark on tiny models: exact counts and bytes, turns, and the memory budget."""

import json

import pytest
import torch

from lit_thinkfast.generation.benchmark import benchmark_decode, benchmark_to_file, read_points, weight_bytes
from lit_thinkfast.generation.calibration import calibrate
from lit_thinkfast.records import RecordError

SHORT = {"prompt_tokens": 5, "generate_tokens": 6, "rounds": 3}


def test_points_of_all_models_and_batch_sizes(all_models):
    turns = []
    points = benchmark_decode(
        all_models, batch_sizes=[1, 4], on_run=lambda done, total, name: turns.append((done, total, name)), **SHORT
    )
    assert [(p.model, p.batch_size) for p in points] == [(name, b) for name in all_models for b in (1, 4)]
    assert turns == [(i + 1, 18, name) for i, name in enumerate([*all_models] * 6)]
    for p in points:
        assert 0 < p.seconds_low <= p.seconds <= p.seconds_high
        assert p.tokens_per_second == pytest.approx(p.batch_size * 5 / p.seconds)
        assert p.prefill_seconds > 0
        assert (p.splits, p.rounds) == (1, 3)
        assert p.memory_bytes == p.weight_bytes + p.cache_bytes


def test_bytes_are_those_of_the_formula(all_models):
    points = {p.model: p for p in benchmark_decode(all_models, batch_sizes=[4], **SHORT)}
    heads, kv_heads, width, double = 4, 2, 8, 8
    keys_and_values = 2 * kv_heads * width * (5 + 6) * double
    states = ((heads + 2 * kv_heads) * width * 3 + heads * width * width) * double
    for name, attention_layers in (("attention", 3), ("hybrid", 1), ("recurrent", 0)):
        per_row = attention_layers * keys_and_values + (3 - attention_layers) * states
        assert points[name].cache_bytes == 4 * per_row
        assert points[name].weight_bytes == weight_bytes(all_models[name])


def test_a_memory_budget_splits_the_batch(all_models):
    model = all_models["attention"]
    per_row = benchmark_decode({"m": model}, batch_sizes=[1], **SHORT)[0].cache_bytes
    (point,) = benchmark_decode(
        {"m": model}, batch_sizes=[8], memory_budget_bytes=weight_bytes(model) + 3 * per_row + 5, **SHORT
    )
    assert (point.splits, point.cache_bytes) == (3, 3 * per_row)  # 3 + 3 + 2
    with pytest.raises(ValueError, match="exceed the memory budget"):
        benchmark_decode({"m": model}, batch_sizes=[8], memory_budget_bytes=weight_bytes(model), **SHORT)


def test_file_and_back(all_models, tmp_path):
    out = tmp_path / "decode.json"
    points = benchmark_to_file(all_models, out, batch_sizes=[2], **SHORT)
    assert read_points(out) == points
    document = json.loads(out.read_text())
    assert document["calibration"].keys() == {"before", "after", "drift"}
    assert document["settings"]["batch_sizes"] == [2]
    assert document["machine"]["threads"] == torch.get_num_threads()
    out.write_text("[]")
    with pytest.raises(RecordError, match="no list of points"):
        read_points(out)
    out.write_text("{")
    with pytest.raises(RecordError, match="not JSON"):
        read_points(out)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": {}}, "no models"),
        ({"generate_tokens": 1}, "generate_tokens 1"),
        ({"batch_sizes": []}, r"batch_sizes \[\]"),
        ({"rounds": 0}, "rounds 0"),
        ({"prompt_tokens": 126}, "exceed its 128 positions"),
    ],
)
def test_bad_input(all_models, changes, message):
    settings = {"models": all_models, "batch_sizes": [1], **SHORT, **changes}
    with pytest.raises(ValueError, match=message):
        benchmark_decode(settings.pop("models"), **settings)


def test_calibration_measures_something():
    found = calibrate()
    assert found["gemm_gflops"] > 0
    assert found["copy_gb_per_second"] > 0
