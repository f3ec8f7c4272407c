"""The planner against what is really allocated: caches to the byte, work by a ledger, and a process of its own."""

import multiprocessing
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lit_thinkfast.distill.ledger import Ledger
from lit_thinkfast.generation.config import SamplingConfig
from lit_thinkfast.generation.engine import time_decode
from lit_thinkfast.generation.memory import model_bytes, plan_rows, split
from lit_thinkfast.generation.shapes import preset_configs, random_model
from lit_thinkfast.mixers import MIXERS, Mixer, States, StateShapes
from lit_thinkfast.mixers.heads import at_least_fp32
from lit_thinkfast.models import HybridCache, HybridConfig
from lit_thinkfast.models.slots import SlotCache

SIZES = {
    "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 4096,
}  # fmt: skip
MEBIBYTE = 2**20


class Mean(Mixer):
    """A mixer of another package: a running sum, without a convolution."""

    full_precision = ("rate",)

    def __init__(self, config, layer_idx: int, *, size: int = 5) -> None:
        super().__init__(config, layer_idx)
        self.rate = nn.Parameter(torch.ones(7, dtype=at_least_fp32()))
        self.inner = nn.Linear(config.hidden_size, config.hidden_size)

    def reset_parameters(self):
        pass

    def init_from_attention(self, attention):
        pass

    @classmethod
    def state_shapes(cls, config, options):
        return StateShapes(conv=(0, 0), state=(options.get("size", 5), config.hidden_size))

    def mix(self, hidden_states, *, states, attention_mask, seq_idx):
        state = hidden_states.new_zeros(len(hidden_states), 5, 64) if states is None else states.state
        state = state + hidden_states.sum(1)[:, None]
        return self.inner(hidden_states), States(hidden_states.new_empty(len(hidden_states), 0, 0), state)


@pytest.fixture(autouse=True)
def outside_mixer(monkeypatch):
    monkeypatch.setitem(MIXERS, "mean", Mean)


def config(*mixers, **changes):
    return HybridConfig(**SIZES | {"layer_mixers": list(mixers), "num_hidden_layers": len(mixers)} | changes)


CONFIGS = {
    "attention": lambda **changes: config("attention", "attention", **changes),
    "hybrid": lambda **changes: config(
        "mamba2", "attention", "mamba2", mixer_options={"mamba2": {"d_conv": 3}}, **changes
    ),
    "all kinds": lambda **changes: config(
        *("mamba1", "attention", "discrete_mamba2"),
        tie_word_embeddings=True,
        mixer_options={"mamba1": {"d_state": 8}, "discrete_mamba2": {"num_qk_heads": 2, "d_state": 32}},
        **changes,
    ),
    "qwen, outside": lambda **changes: config("mean", "attention", base_model_type="qwen2", **changes),
    "recurrent": lambda **changes: config("mamba2", "mamba2", "mean", **changes),
}


@pytest.fixture(params=CONFIGS)
def any_config(request):
    return CONFIGS[request.param]()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_weights_and_caches_are_those_that_are_made(any_config, dtype):
    found = model_bytes(any_config, dtype=dtype)
    model = random_model(any_config, dtype=dtype)
    assert found.weights == sum(p.numel() * p.element_size() for p in model.parameters())
    looked_up = 0 if any_config.tie_word_embeddings else model.model.embed_tokens.weight.nbytes
    assert found.weights - found.read_weights == looked_up
    for length in (1, 37):
        assert SlotCache(any_config, 3, length, dtype=dtype).nbytes == 3 * found.row(length)
        assert HybridCache(any_config, 3, length, dtype=dtype).nbytes == 3 * found.row(length)
        on_a_card = SlotCache(any_config, 3, length, dtype=dtype, device="meta")  # another order of axes
        assert on_a_card.nbytes == 3 * found.row(length)


def peak(model, *, rows, prompt, new, chunk):
    """Most bytes of tensors alive in a decode, weights included."""
    ledger = Ledger()
    with ledger:
        ledger.book([*model.parameters(), *model.buffers()], "weights")
        ledger.begin("run")
        settings = SamplingConfig(max_new_tokens=new, prefill_chunk=chunk, num_samples=1)
        time_decode(model, [i % 100 for i in range(prompt)], rows=rows, config=settings)
    return ledger.peak()


# Each makes another part of the work large against what is taken whatever the batch.
WORK = {
    "logits": ({"vocab_size": 20000}, {"rows": 300, "prompt": 3, "new": 2, "chunk": 8}),
    "a thin layer": ({"intermediate_size": 2048}, {"rows": 800, "prompt": 3, "new": 2, "chunk": 8}),
    "scores": (
        {"num_attention_heads": 16, "num_key_value_heads": 1},
        {"rows": 96, "prompt": 900, "new": 1, "chunk": 8},
    ),
    "a long prompt": ({"intermediate_size": 400}, {"rows": 1, "prompt": 3000, "new": 1, "chunk": 3000}),
    "chunks": ({}, {"rows": 1, "prompt": 3000, "new": 1, "chunk": 1000}),
}


@pytest.mark.parametrize(
    ("name", "work"),
    [
        *(("attention", work) for work in WORK),
        *(("all kinds", work) for work in ("logits", "a thin layer", "a long prompt", "chunks")),
        *(("recurrent", work) for work in ("a thin layer", "a long prompt")),
    ],
)
def test_the_estimate_is_above_what_tensors_take_and_not_by_much(name, work):
    changes, run = WORK[work]
    shape = CONFIGS[name](**changes)
    seen = peak(random_model(shape), **run)
    found = model_bytes(shape)
    last = run["prompt"] - 1
    estimate = found.tensors(run["rows"], length=last + run["new"], prompt=last, prefill_chunk=run["chunk"])
    assert seen <= estimate
    assert estimate - found.step - found.chunk <= 1.45 * seen


def test_half_the_bytes_in_half_precision():
    shape = CONFIGS["all kinds"](vocab_size=20000)
    seen = peak(random_model(shape, dtype=torch.bfloat16), rows=300, prompt=40, new=2, chunk=8)
    found = model_bytes(shape, dtype=torch.bfloat16)
    estimate = found.tensors(300, length=41, prompt=39, prefill_chunk=8)
    assert seen <= estimate
    assert estimate - found.step - found.chunk <= 1.45 * seen


def test_the_plan_is_the_largest_batch_within_the_budget(any_config):
    model = random_model(any_config)
    found = model_bytes(any_config)
    for prompt, chunk in ((2000, 2000), (10, 4)):  # the prompt decides, or the step does
        sizes = {"length": prompt + 20, "prompt": prompt, "prefill_chunk": chunk}
        for budget in (60 * MEBIBYTE, 61.7 * MEBIBYTE, 150e6):
            rows = plan_rows(model, budget_bytes=budget, **sizes)
            assert found.total(rows, **sizes) <= budget < found.total(rows + 1, **sizes)
    assert plan_rows(model.to("meta"), budget_bytes=budget, **sizes) == rows


def test_a_budget_too_small_for_one_row():
    found = model_bytes(config("attention"))
    sizes = {"length": 50, "prompt": 20, "prefill_chunk": 512}
    least = found.total(1, **sizes)
    assert least >= 1.036 * found.tensors(1, **sizes)  # the most that an allocator was seen to add
    assert found.rows(least, **sizes) == 1
    with pytest.raises(ValueError, match=r"one row of 50 tokens takes .* exceeds the memory budget of .* raise the b"):
        found.rows(least - 1, **sizes)


@pytest.mark.parametrize(("batch", "rows"), [(1, 1), (7, 3), (512, 300), (512, 256), (5, 9), (10, 1)])
def test_parts_are_few_and_equal(batch, rows):
    parts = split(batch, rows)
    assert sum(parts) == batch
    assert max(parts) <= rows
    assert max(parts) - min(parts) <= 1
    assert len(parts) == next(n for n in range(1, batch + 1) if n * rows >= batch)


# Cache alone in 72 GB, as calculated by hand for the shapes of the paper (bfloat16, states too): at 1024 and 4096.
MAX_BATCH = {
    "llama-3b": (558, 139),
    "hybrid-3b-mamba2": (1502, 548),
    "hybrid-3b-mamba1": (2338, 630),
    "llamba-3b": (5128, 5128),
}


@pytest.mark.parametrize("name", MAX_BATCH)
def test_capacities_of_the_papers_models(name):
    found = model_bytes(preset_configs("paper")[name], dtype=torch.bfloat16, state_dtype=torch.bfloat16)
    for length, rows in zip((1024, 4096), MAX_BATCH[name], strict=True):
        # by hand, convolutions kept four inputs; three are enough
        row = found.row(length) + found.conv // 3
        assert (72e9 - found.weights) / row == pytest.approx(rows, rel=0.01)


@pytest.mark.parametrize("preset", ["smollm2", "paper-regime"])
def test_students_fit_as_many_more_rows_as_their_states_are_smaller(preset):
    budget = 2**30
    rows, predicted = {}, {}
    for name, shape in preset_configs(preset).items():
        found = model_bytes(shape)
        rows[name] = found.rows(budget, length=1023, prompt=511, prefill_chunk=512)
        predicted[name] = (budget - found.weights) // found.row(1023)
    for student in ("hybrid", "pure"):
        measured = rows[student] / rows["transformer"]
        assert measured == pytest.approx(predicted[student] / predicted["transformer"], rel=0.1)


def fill(budget, queue):
    """In a process of its own: decode a planned batch and tell by how much the resident memory grew."""

    def status(key):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])

    def run(name, budget):
        settings = SamplingConfig(max_new_tokens=3, prefill_chunk=128, num_samples=1)
        model = random_model(preset_configs("paper-regime")[name])
        rows = plan_rows(model, length=514, prompt=511, budget_bytes=budget, prefill_chunk=128)
        return time_decode(model, list(range(512)), rows=rows, config=settings).cache_bytes

    torch.set_num_threads(1)
    run("pure", 60 * MEBIBYTE)  # what is loaded once
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    cache = run("transformer", budget)
    queue.put((cache, status("VmHWM") - before))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_planned_batch_stays_within_the_budget_of_its_process():
    budget = 240 * MEBIBYTE
    context = multiprocessing.get_context("fork")  # tests run on one thread, and imports take ten times as long
    queue = context.Queue()
    child = context.Process(target=fill, args=(budget, queue))
    child.start()
    cache, grown = queue.get(timeout=120)
    child.join()
    assert cache > 0.8 * budget  # it is filled
    assert grown <= budget  # less where the process had memory to spare
