"""The decode benchmark on tiny models: exact counts, bytes and ratios, turns, the memory budget, running out of it."""

import json
import statistics

import pytest
import torch

from lit_thinkfast.generation import benchmark
from lit_thinkfast.generation.benchmark import (
    benchmark_decode,
    benchmark_to_file,
    read_points,
    run_decode,
    weight_bytes,
)
from lit_thinkfast.generation.engine import DecodeTimes
from lit_thinkfast.generation.memory import model_bytes
from lit_thinkfast.generation.roofline import Machine, decode_costs, step_seconds
from lit_thinkfast.generation.shapes import Preset, preset_baselines, preset_configs, random_model
from lit_thinkfast.records import RecordError

SHORT = {"prompt_tokens": 5, "generate_tokens": 6, "rounds": 3}
RATES = {"gemm_gflops": 50.0, "gemm_m1_gflops": 1.0, "copy_gb_per_second": 10.0}


@pytest.fixture(autouse=True)
def calibrations(monkeypatch):
    """What the machine is said to do before and after."""
    given = [RATES, RATES | {"copy_gb_per_second": 9.0}]
    calls = iter(given * 20)
    monkeypatch.setattr(benchmark, "calibrate", lambda device, dtype: next(calls))
    return given


@pytest.fixture
def fake(monkeypatch):
    """In the place of the engine: seconds that the test sets, by parameters of the model and call."""
    calls = []

    def time_decode(model, prompt, *, rows, config, warmup):
        calls.append((model, rows, warmup))
        return fake.times(model, rows, len(calls))

    monkeypatch.setattr(benchmark, "time_decode", time_decode)
    fake = type("Fake", (), {"calls": calls, "times": None})
    return fake


def test_points_of_all_models_and_batch_sizes(all_models):
    turns = []
    points = benchmark_decode(
        all_models, batch_sizes=[1, 4], on_run=lambda done, total, name: turns.append((done, total, name)), **SHORT
    )
    assert [(p.model, p.batch_size) for p in points] == [(name, b) for name in all_models for b in (1, 4)]
    assert turns == [(i + 1, 18, name) for i, name in enumerate([*all_models] * 6)]
    for p in points:
        assert 0 < p.seconds_low <= p.seconds <= p.seconds_high
        assert p.tokens_per_second == pytest.approx(p.batch_size * 6 / p.seconds)
        assert p.prefill_seconds > 0
        assert p.warmup_seconds > 0
        assert 0 < p.overhead_share < 1
        assert (p.splits, p.planned_splits, p.rounds) == (1, 1, 3)
        assert p.memory_bytes == p.weight_bytes + p.cache_bytes
        assert p.fraction == p.predicted_seconds / p.seconds > 0
        assert p.peak_bytes is None
        assert p.drift == pytest.approx(0.1)
        assert not p.disturbed


def test_bytes_are_those_of_the_formula(all_models):
    points = {p.model: p for p in benchmark_decode(all_models, batch_sizes=[4], **SHORT)}
    heads, kv_heads, width, double = 4, 2, 8, 8
    keys_and_values = 2 * kv_heads * width * (5 - 1 + 6) * double  # the last token generated is never taken in
    states = ((heads + 2 * kv_heads) * width * 3 + heads * width * width) * double
    for name, attention_layers in (("attention", 3), ("hybrid", 1), ("recurrent", 0)):
        per_row = attention_layers * keys_and_values + (3 - attention_layers) * states
        assert points[name].cache_bytes == 4 * per_row
        assert points[name].weight_bytes == weight_bytes(all_models[name])


def test_medians_ratios_and_ranges_over_rounds_in_turn(all_models, fake):
    """Seconds of (base, other) in rounds, the machine slower and slower: ratios are taken within a round."""
    base, other = all_models["attention"], all_models["recurrent"]
    seconds = {id(base): [4.0, 6.0, 20.0], id(other): [1.0, 2.0, 4.0]}
    taken = {id(base): iter(seconds[id(base)]), id(other): iter(seconds[id(other)])}

    def times(model, rows, call):
        t = next(taken[id(model)])
        return DecodeTimes(prefill_seconds=t / 10, decode_seconds=t, model_seconds=0.75 * t, steps=6, cache_bytes=70)

    fake.times = times
    first, second = benchmark_decode({"base": base, "other": other}, batch_sizes=[2], **SHORT)
    assert [model for model, _, _ in fake.calls] == [base, other] * 3
    assert (second.seconds, second.seconds_low, second.seconds_high) == (2.0, 1.0, 4.0)
    assert (second.speedup, second.speedup_low, second.speedup_high) == (4.0, 3.0, 5.0)
    assert (first.speedup, first.speedup_low, first.speedup_high) == (1.0, 1.0, 1.0)
    assert second.overhead_share == 0.25
    assert second.prefill_seconds == pytest.approx(0.2)
    assert second.baseline == "base"


def test_baselines_may_differ(all_models, fake):
    fake.times = lambda model, rows, call: DecodeTimes(0.1, float(call), 0.5, 6, 1)
    names = {"a": "a", "b": "a", "c": "c"}
    models = dict(zip(names, all_models.values(), strict=True))
    a, b, c = benchmark_decode(models, batch_sizes=[1], baselines=names, **SHORT | {"rounds": 1})
    assert (a.speedup, b.speedup, c.speedup) == (1.0, 0.5, 1.0)
    assert [p.baseline for p in (a, b, c)] == list(names.values())
    for wrong in ({"a": "a"}, names | {"c": "nobody"}):
        with pytest.raises(ValueError, match="not among the models"):
            benchmark_decode(models, batch_sizes=[1], baselines=wrong, **SHORT)


def test_predictions_are_those_of_the_roofline_with_the_rates_of_the_run(all_models):
    """A slow loop over parts and steps, with the better of the two calibrations."""
    double = torch.float64
    machine = Machine("", bytes_per_second=10e9, flops_per_second=50e9)
    found = [model_bytes(model.config, dtype=double) for model in all_models.values()]
    sizes = {"length": 10, "prompt": 4, "prefill_chunk": 512}
    budget = max(f.total(1, **sizes) for f in found) + 20 * found[0].row(10)
    run = run_decode(all_models, batch_sizes=[3, 50], memory_budget_bytes=budget, **SHORT | {"rounds": 1})
    of_base = {}
    for p in run.points:
        costs = decode_costs(all_models[p.model].config, dtype=double)
        parts = [p.batch_size // p.splits + (i < p.batch_size % p.splits) for i in range(p.splits)]
        expected = sum(
            step_seconds(costs, batch=rows, length=length, machine=machine)
            for rows in parts
            for length in range(5, 5 + 6)  # with the new token: the prompt's last one is the first step's
        )
        assert p.predicted_seconds == pytest.approx(expected)
        base = of_base.setdefault(p.batch_size, expected)
        assert p.predicted_speedup == pytest.approx(base / expected)
    assert {p.splits for p in run.points} != {1}
    assert run.calibration["roofline"]["bytes_per_second"] == 10e9


def test_a_type_that_was_not_calibrated_is_not_predicted(llama, fake):
    from lit_thinkfast.models import convert

    fake.times = lambda *_: DecodeTimes(0.1, 1.0, 0.5, 6, 1)
    models = {"wide": convert(llama).double().eval(), "narrow": convert(llama).float().eval()}
    wide, narrow = benchmark_decode(models, batch_sizes=[1], **SHORT)
    assert wide.predicted_seconds is not None
    assert narrow.predicted_seconds is narrow.predicted_speedup is narrow.fraction is None
    assert narrow.speedup == 1


def test_a_memory_budget_splits_the_batch(all_models):
    model = all_models["attention"]
    found = model_bytes(model.config, dtype=torch.float64)
    sizes = {"length": 10, "prompt": 4, "prefill_chunk": 512}
    three = found.total(3, **sizes)
    (point,) = benchmark_decode({"m": model}, batch_sizes=[8], memory_budget_bytes=three, **SHORT)
    assert (point.splits, point.planned_splits) == (3, 3)  # 3 + 3 + 2
    assert point.cache_bytes == 3 * found.row(10)
    with pytest.raises(ValueError, match=r"^m: one row of 10 tokens .* exceeds the memory budget"):
        benchmark_decode({"m": model}, batch_sizes=[8], memory_budget_bytes=found.total(0, **sizes), **SHORT)


def test_memory_that_runs_out_all_the_same_splits_further(all_models, fake):
    """A device with room for five rows of one model, though nobody said so."""
    small, large = all_models["recurrent"], all_models["attention"]

    def times(model, rows, call):
        if model is large and rows > 5:
            raise torch.OutOfMemoryError("out of memory")
        return DecodeTimes(0.1, float(rows), 0.5 * rows, 6, 10 * rows)

    fake.times = times
    first, second = benchmark_decode({"small": small, "large": large}, batch_sizes=[16], **SHORT)
    assert (first.splits, first.planned_splits) == (1, 1)
    assert (second.splits, second.planned_splits, second.cache_bytes) == (4, 1, 40)
    assert second.rounds == 3
    assert second.seconds == 16.0
    assert [rows for model, rows, _ in fake.calls if model is large] == [16, 8, *[4] * 12]

    def never(model, rows, call):
        raise torch.OutOfMemoryError("out of memory")

    fake.times = never
    with pytest.raises(ValueError, match="small: memory ran out for a single sequence of 5"):
        benchmark_decode({"small": small}, batch_sizes=[4], **SHORT)


def test_rounds_of_other_parts_do_not_count(all_models, fake):
    """Memory that runs out in the second round: what was measured before was of another split."""

    def times(model, rows, call):
        if call == 3:
            raise torch.OutOfMemoryError("out of memory")
        return DecodeTimes(0.1, 100.0 if rows == 8 else 7.0, 0.5, 6, 1)

    fake.times = times
    base, point = benchmark_decode(dict(list(all_models.items())[:2]), batch_sizes=[8], **SHORT)
    assert (base.rounds, base.seconds, base.splits) == (2, 14.0, 2)
    assert (point.rounds, point.speedup) == (3, statistics.median([0.14, 0.14]))


@pytest.mark.parametrize(("backend", "warmup"), [("auto", 3), ("eager", 3), ("compile", 6)])
def test_the_warm_up_goes_through_whatever_is_made_for_lengths(all_models, fake, backend, warmup):
    fake.times = lambda *_: DecodeTimes(0.1, 1.0, 0.5, 6, 1)
    run = run_decode({"m": all_models["hybrid"]}, batch_sizes=[1], backend=backend, **SHORT)
    assert {w for _, _, w in fake.calls} == {warmup}
    assert run.settings["backend"] == backend


def test_file_and_back(all_models, tmp_path):
    out = tmp_path / "decode.json"
    points = benchmark_to_file(all_models, out, batch_sizes=[2], **SHORT)
    assert read_points(out) == points
    document = json.loads(out.read_text())
    calibration = document["calibration"]
    assert (calibration["before"], calibration["drift"], calibration["disturbed"]) == (RATES, 0.1, False)
    assert calibration["dtype"] == "float64"
    assert document["settings"]["batch_sizes"] == [2]
    assert document["settings"]["dtype"] == dict.fromkeys(all_models, "float64")
    assert document["settings"]["layer_mixers"]["hybrid"] == ["mamba2", "attention", "mamba2"]
    assert document["machine"]["threads"] == torch.get_num_threads()
    out.write_text("[]")
    with pytest.raises(RecordError, match="no list of points"):
        read_points(out)
    out.write_text("{")
    with pytest.raises(RecordError, match="not JSON"):
        read_points(out)


def test_files_of_earlier_versions(tmp_path):
    old = {
        "model": "m", "batch_size": 2, "prompt_tokens": 5, "generate_tokens": 6, "seconds": 2.0, "seconds_low": 1.0,
        "seconds_high": 3, "prefill_seconds": 0.1, "tokens_per_second": 5.0, "cache_bytes": 10, "weight_bytes": 20,
        "splits": 1, "rounds": 3,
    }  # fmt: skip
    out = tmp_path / "old.json"
    for calibration, drifted in (({"drift": 0.2}, 0.2), ({"drift": 0}, 0.0), ({}, 0.0), (None, 0.0), ("?", 0.0)):
        out.write_text(json.dumps({"points": [old], "calibration": calibration}))
        (point,) = read_points(out)
        assert (point.drift, point.disturbed) == (drifted, drifted > 0.15)
        assert point.fraction is point.speedup is point.predicted_seconds is point.overhead_share is None
    out.write_text(json.dumps({"points": [old]}))
    assert read_points(out)[0].drift == 0


def test_a_disturbed_run_says_so(all_models, fake, calibrations):
    fake.times = lambda *_: DecodeTimes(0.1, 1.0, 0.5, 6, 1)
    calibrations[1]["copy_gb_per_second"] = 8.0
    run = run_decode({"m": all_models["hybrid"]}, batch_sizes=[1], **SHORT)
    assert run.calibration["disturbed"]
    assert run.calibration["drift"] == 0.2
    assert run.points[0].disturbed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": {}}, "no models"),
        ({"generate_tokens": 0}, "generate_tokens 0"),
        ({"batch_sizes": []}, r"batch_sizes \[\]"),
        ({"batch_sizes": [2, 1, 2]}, "a size twice"),
        ({"rounds": 0}, "rounds 0"),
        ({"prompt_tokens": 126}, "exceed its 128 positions"),
    ],
)
def test_bad_input(all_models, changes, message):
    settings = {"models": all_models, "batch_sizes": [1], **SHORT, **changes}
    with pytest.raises(ValueError, match=message):
        benchmark_decode(settings.pop("models"), **settings)


def test_models_without_attention_have_no_positions_to_run_out_of(all_models):
    (point,) = benchmark_decode({"m": all_models["recurrent"]}, batch_sizes=[1], **SHORT | {"prompt_tokens": 200})
    assert point.seconds > 0


def test_presets_have_the_shapes_that_they_name():
    """Parameters as published or as worked out by hand, the kept layers, and a baseline in each family."""
    expected = {
        "paper": {
            "llama-1b": (1235814400, 16), "hybrid-1b-mamba1": (1293002752, 4), "llamba-1b": (1405159936, 0),
            "llama-3b": (3212749824, 28), "hybrid-3b-mamba1": (3447874560, 6), "llamba-3b": (3656994688, 0),
        },
        "smollm2": {"transformer": (134515008, 30), "hybrid": (142046994, 8), "pure": (144785898, 0)},
        "paper-regime": {"transformer": (5378304, 8), "hybrid": (5808528, 2)},
    }  # fmt: skip
    for name, models in expected.items():
        configs = preset_configs(name)
        for model, (parameters, attention) in models.items():
            assert model_bytes(configs[model]).weights == 4 * parameters
            assert len(configs[model].attention_layers) == attention
        baselines = preset_baselines(name)
        assert baselines.keys() == configs.keys()
        assert all(not set(configs[base].layer_mixers) - {"attention"} for base in baselines.values())
    assert preset_baselines("paper")["llamba-3b"] == "llama-3b"
    assert set(Preset.__args__) == set(expected)
    with pytest.raises(ValueError, match="unknown preset 'other'; known: paper"):
        preset_configs("other")


def test_random_models_are_made_in_their_type_and_leave_no_trace():
    config = preset_configs("paper-regime")["hybrid"]
    state = torch.get_rng_state()
    model, again = random_model(config, dtype=torch.bfloat16), random_model(config, dtype=torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float32
    assert model.dtype == torch.bfloat16
    assert model.model.layers[0].mixer.A_log.dtype == torch.float32
    assert not model.training
    for (name, a), b in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name
