"""The roofline against a published-shape table worked out by hand, and against bytes and operations that are counted."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lit_thinkfast.generation.calibration import calibrate
from lit_thinkfast.generation.memory import model_bytes, split
from lit_thinkfast.generation.roofline import (
    MACHINES,
    Machine,
    crossover_batch,
    crossover_length,
    decode_costs,
    decode_seconds,
    prefill_seconds,
    row_bytes,
    step_bytes,
    step_flops,
    step_seconds,
)
from lit_thinkfast.generation.shapes import preset_configs, random_model
from lit_thinkfast.models import HybridConfig
from lit_thinkfast.models.decoding import decode_step
from lit_thinkfast.models.slots import SlotCache

BATCHES = (1, 8, 32, 64, 128, 256, 512)
# Ideal seconds on an H100 for a prompt of 512 tokens and 512 generated, prefill included; all in bfloat16.
SECONDS = {
    "llama-1b": (0.38, 0.42, 0.54, 0.71, 1.03, 1.69, 3.00),
    "hybrid-1b-mamba1": (0.40, 0.42, 0.48, 0.56, 0.73, 1.06, 1.72),
    "hybrid-1b-mamba2": (0.40, 0.42, 0.50, 0.61, 0.82, 1.25, 2.11),
    "llamba-1b": (0.43, 0.45, 0.52, 0.62, 0.81, 1.19, 1.95),
    "llama-3b": (1.00, 1.12, 1.52, 2.06, 3.13, 5.28, 10.6),  # the last in two halves
    "hybrid-3b-mamba1": (1.05, 1.10, 1.28, 1.51, 1.97, 2.90, 4.76),
    "hybrid-3b-mamba2": (1.06, 1.14, 1.43, 1.81, 2.58, 4.12, 7.19),
    "llamba-3b": (1.13, 1.18, 1.36, 1.61, 2.10, 3.07, 5.03),
}
BFLOAT16 = {"dtype": torch.bfloat16, "state_dtype": torch.bfloat16}


@pytest.fixture(scope="module")
def paper():
    return preset_configs("paper")


@pytest.mark.parametrize("name", SECONDS)
def test_the_table_of_the_papers_models(paper, name):
    """Within 1.5 %: by hand, convolutions kept four inputs (three are enough) and attention cost no operations."""
    costs = decode_costs(paper[name], **BFLOAT16)
    machine = MACHINES["h100"]
    for batch, expected in zip(BATCHES, SECONDS[name], strict=True):
        parts = split(batch, 256 if name == "llama-3b" else batch)
        seconds = sum(
            prefill_seconds(costs, batch=rows, prompt=512, machine=machine)
            + decode_seconds(costs, batch=rows, prompt=512, steps=512, machine=machine)
            for rows in parts
        )
        assert seconds == pytest.approx(expected, rel=0.015, abs=0.006)


def test_ratios_at_the_papers_operating_point(paper):
    """Decode only, Llama-3B as 2 x 256: 3.0 for Mamba-1, 1.65 for Mamba-2, 2.9 for Llamba; 11.6 s are no A100's."""

    def seconds(name, *parts, machine="h100"):
        costs = decode_costs(paper[name], **BFLOAT16)
        return sum(decode_seconds(costs, batch=b, prompt=512, steps=512, machine=MACHINES[machine]) for b in parts)

    teacher = seconds("llama-3b", 256, 256)
    for name, ratio in (("hybrid-3b-mamba1", 3.0), ("hybrid-3b-mamba2", 1.65), ("llamba-3b", 2.9)):
        assert teacher / seconds(name, 512) == pytest.approx(ratio, rel=0.02)
    assert seconds("llama-3b", 256, 256, machine="a100") == pytest.approx(teacher * 3.35 / 2.04)


# T* in tokens, by hand. In its paper-sized rows convolutions kept four inputs.
CROSSOVERS = {
    ("llama-3b", "hybrid-3b-mamba1"): 60,
    ("llama-3b", "hybrid-3b-mamba2"): 404,
    ("llama-3b", "llamba-3b"): 220,
    ("llama-1b", "hybrid-1b-mamba1"): 80,
    ("llama-1b", "hybrid-1b-mamba2"): 280,
    ("llama-1b", "llamba-1b"): 304,
}


@pytest.mark.parametrize("pair", CROSSOVERS)
def test_crossover_lengths_of_the_papers_models(paper, pair):
    teacher, student = (decode_costs(paper[name], **BFLOAT16) for name in pair)
    found = crossover_length(student, teacher)
    fourth_input = model_bytes(paper[pair[1]], **BFLOAT16).conv / 3
    by_hand = found + 2 * fourth_input / (teacher.kappa - student.kappa)
    assert by_hand == pytest.approx(CROSSOVERS[pair], abs=1.5)


def test_crossover_lengths_of_smollm2():
    shapes = preset_configs("smollm2")
    teacher, hybrid = (decode_costs(shapes[name]) for name in ("transformer", "hybrid"))
    assert crossover_length(hybrid, teacher) == pytest.approx(207, abs=0.5)
    values = shapes["transformer"].to_dict() | {"layer_mixers": ["discrete_mamba2"] * 30}
    values = {name: v for name, v in values.items() if name not in ("model_type", "layer_types")}
    assert crossover_length(decode_costs(HybridConfig(**values)), teacher) == pytest.approx(219, abs=0.5)


def test_crossover_batches_of_the_papers_models(paper):
    teacher = decode_costs(paper["llama-3b"], **BFLOAT16)
    for name, batch in (("hybrid-3b-mamba1", 7), ("hybrid-3b-mamba2", 13)):
        found = crossover_batch(decode_costs(paper[name], **BFLOAT16), teacher, length=768)
        assert found == pytest.approx(batch, abs=0.6)


def test_both_sides_of_every_crossover(paper):
    """At a length the rows' bytes are equal, below it the teacher's are fewer; at a batch all bytes are."""
    for size in ("1b", "3b"):
        costs = [decode_costs(config) for name, config in paper.items() if size in name]
        for a, b in itertools.permutations(costs, 2):
            length = crossover_length(a, b)
            near = {0.0: [1, 1e9], float("inf"): [1e9]}.get(length, [length * 0.99, length * 1.01])
            fewer = [row_bytes(a, length=n) <= row_bytes(b, length=n) for n in near]
            assert fewer == {0.0: [True, True], float("inf"): [False]}.get(length, [False, True])

            batch = crossover_batch(a, b, length=2000)
            near = {0.0: [1, 1e9], float("inf"): [1e9]}.get(batch, [batch * 0.99, batch * 1.01])
            fewer = [step_bytes(a, batch=n, length=2000) <= step_bytes(b, batch=n, length=2000) for n in near]
            assert fewer == {0.0: [True, True], float("inf"): [False]}.get(batch, [False, True])


def small(*mixers, **changes):
    values = {
        "vocab_size": 90, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": len(mixers),
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    }  # fmt: skip
    return HybridConfig(**values | {"layer_mixers": list(mixers)} | changes)


SHAPES = {
    "attention": small("attention", "attention"),
    "tied": small("attention", "mamba2", tie_word_embeddings=True),
    "all kinds": small("mamba1", "attention", "discrete_mamba2", mixer_options={"mamba1": {"d_state": 8}}),
    "recurrent": small("mamba2", "mamba1"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_bytes_are_those_of_a_model_and_its_cache(name):
    config, batch, length = SHAPES[name], 5, 33
    costs = decode_costs(config)
    model, cache = random_model(config), SlotCache(config, batch, length)
    attention = sum(layer.nbytes for layer in cache.layers if hasattr(layer, "keys"))
    states = cache.nbytes - attention
    weights = sum(p.nbytes for p in model.parameters())
    if not config.tie_word_embeddings:
        weights -= model.model.embed_tokens.weight.nbytes  # a few rows of it are looked up
    assert step_bytes(costs, batch=batch, length=length) == weights + attention + 2 * states
    assert costs.kappa * batch * length == attention


@pytest.mark.parametrize("name", SHAPES)
def test_operations_are_those_that_torch_counts(name):
    """Counted are products; the rest of a step is a few per cent of it."""
    config, batch, length = SHAPES[name], 3, 40
    model, cache = random_model(config), SlotCache(config, batch, length)
    cache.lengths.fill_(length - 1)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        decode_step(model, torch.zeros(batch, dtype=torch.int64), cache, longest=length)
    flops = step_flops(decode_costs(config), batch=batch, length=length)
    counted = counter.get_total_flops()
    # of a state's decay, input and output torch counts the output at most, and no convolution
    states = batch * 6 * sum(layer.state[0].numel() for layer in cache.layers if not hasattr(layer, "keys"))
    assert counted <= flops
    assert flops - states <= 1.03 * counted


def test_sliding_windows_stop_growing():
    full = decode_costs(small("attention", "attention", "mamba2"))
    kinds = ["sliding_attention", "full_attention", "linear_attention"]
    config = small("attention", "attention", "mamba2", sliding_window=10, base_model_type="qwen2", layer_types=kinds)
    mixed = decode_costs(config)
    same = decode_costs(small("attention", "attention", "mamba2", base_model_type="qwen2"))
    for function in (step_bytes, step_flops):
        at = {n: function(mixed, batch=2, length=n) for n in (10, 11, 20, 30)}
        assert at[10] == function(same, batch=2, length=10)
        assert at[30] - at[20] == (function(full, batch=2, length=30) - function(full, batch=2, length=20)) / 2
    assert mixed.kappa == full.kappa


def test_a_step_is_bound_by_bytes_or_by_operations():
    costs = decode_costs(SHAPES["all kinds"])
    for batch, length in ((1, 5), (64, 300)):
        moved, done = (f(costs, batch=batch, length=length) for f in (step_bytes, step_flops))
        slow_memory = Machine("", bytes_per_second=10.0, flops_per_second=1e30)
        slow_sums = Machine("", bytes_per_second=1e30, flops_per_second=10.0)
        assert step_seconds(costs, batch=batch, length=length, machine=slow_memory) == moved / 10
        assert step_seconds(costs, batch=batch, length=length, machine=slow_sums) == done / 10
    machine = Machine("", 1e6, 1e6)
    steps = [step_seconds(costs, batch=7, length=n, machine=machine) for n in (21, 22, 23)]
    assert decode_seconds(costs, batch=7, prompt=20, steps=3, machine=machine) == pytest.approx(sum(steps))


def test_the_machine_that_was_measured():
    old = {"gemm_gflops": 40.0, "copy_gb_per_second": 9.0}
    assert Machine.calibrated(old) == Machine("calibrated", 9e9, 40e9)
    read_faster = old | {"gemm_m1_gflops": 6.0}  # a multiply-add for each number read
    assert Machine.calibrated(read_faster).bytes_per_second == 12e9
    assert Machine.calibrated(read_faster, dtype=torch.bfloat16).bytes_per_second == 9e9
    assert Machine.calibrated(calibrate(), name="here").flops_per_second > 1e6
