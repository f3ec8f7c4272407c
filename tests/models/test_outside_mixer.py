"""A mixer of another package (``outside_mixer.py``): one subclass and one line in ``MIXERS`` are all it takes."""

import importlib.util
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lit_thinkfast.mixers import MIXERS
from lit_thinkfast.models import HybridCache, convert, load_model

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def outside():
    """Import the other package, and forget its mixer after the test."""
    before = dict(MIXERS)
    spec = importlib.util.spec_from_file_location("outside_mixer", HERE / "outside_mixer.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    yield
    for name in set(MIXERS) - set(before):
        del MIXERS[name]


@pytest.fixture(params=[[1], []], ids=["hybrid", "recurrent"])
def student(helpers, request):
    made = convert(helpers.teacher(), attention_layers=request.param, mixer="gla", mixer_options={"floor": 0.5})
    assert MIXERS["gla"].__module__ == "outside_mixer"
    return made


def test_it_is_short():
    lines = [line for line in (HERE / "outside_mixer.py").read_text().splitlines() if line.strip()]
    assert len(lines) <= 60


def test_it_converts(student, helpers):
    attention = helpers.teacher().model.layers[0].self_attn
    assert torch.equal(student.model.layers[0].mixer.k_proj.weight, attention.k_proj.weight)
    assert student.config.mixer_options == {"gla": {"floor": 0.5}}


def test_it_trains(student, helpers):
    student.train()
    ids = helpers.tokens(4, 12)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = student(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_it_runs_packed_padded_and_cached(student, helpers):
    student.double()
    ids = helpers.tokens(1, 14)
    seq_idx = torch.tensor([[0] * 5 + [1] * 9])
    packed = student(ids, seq_idx=seq_idx).logits
    for a, b in itertools.pairwise([0, 5, 14]):
        torch.testing.assert_close(packed[:, a:b], student(ids[:, a:b]).logits, rtol=1e-7, atol=1e-7)
    alone = student(ids[:, 4:], use_cache=False).logits
    mask = torch.tensor([[0] * 4 + [1] * 10])
    torch.testing.assert_close(student(ids, attention_mask=mask).logits[:, 4:], alone, rtol=1e-7, atol=1e-7)
    for cache in (None, HybridCache(student.config, 1, 10, dtype=torch.float64)):
        steps = []
        with torch.no_grad():
            for t in range(4, 14):
                out = student(ids[:, t : t + 1], past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                steps.append(out.logits)
        torch.testing.assert_close(torch.cat(steps, 1), alone, rtol=1e-7, atol=1e-7)


def test_it_generates_saves_and_loads(student, helpers, tmp_path):
    student.save_pretrained(tmp_path)
    ids = helpers.tokens(2, 6)
    expected = student.generate(ids, max_new_tokens=8, do_sample=False)
    for loaded in (AutoModelForCausalLM.from_pretrained(tmp_path), load_model(tmp_path)):
        assert torch.equal(loaded.generate(ids, max_new_tokens=8, do_sample=False), expected)
    assert torch.equal(student.generate(ids, max_new_tokens=8, do_sample=False, use_cache=False), expected)
    student.generate(ids, max_new_tokens=4, do_sample=False, num_beams=2)
    del MIXERS["gla"]
    with pytest.raises(ValueError, match=r"unknown mixer 'gla'|which is no mixer"):
        load_model(tmp_path)


def test_the_command_line_takes_it(tiny_teacher, tmp_path):
    command = ["convert", "--teacher", str(tiny_teacher), "--out", str(tmp_path / "out"), "--mixer", "gla"]
    options = ["--mixer-options.floor", "0.7", "--attention-layers", "1", "--allow-import", "outside_mixer"]
    ran = subprocess.run(
        [sys.executable, "-m", "lit_thinkfast", *command, *options],
        cwd=HERE, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "layers gla attention" in ran.stdout
    assert load_model(tmp_path / "out").config.mixer_options == {"gla": {"floor": 0.7}}


def test_in_bfloat16_decoding_agrees_with_the_whole(helpers, tmp_path):
    """Decays close to one must not be rounded away, neither in a scan nor in a cache."""
    student = convert(helpers.teacher(), mixer="gla", mixer_options={"floor": 0.999}).bfloat16()
    ids = helpers.tokens(1, 240)
    cache = HybridCache(student.config, 1, 240, dtype=torch.bfloat16)
    with torch.no_grad():
        whole = student(ids, use_cache=False).logits
        steps = torch.cat([student(ids[:, t : t + 1], past_key_values=cache).logits for t in range(240)], 1)
    assert (steps - whole).abs().max() < 0.05 * whole.abs().max()
