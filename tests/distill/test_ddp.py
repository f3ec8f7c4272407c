"""Two gloo ranks against one process: DDP, and weights spread over the ranks (FSDP2)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lit_thinkfast.models import convert

from . import two_ranks
from .conftest import llama_folder, pack

# rows of documents of very different lengths: a mean of the means of micro-batches is far from the mean over tokens
ROWS = [[24], [3], [9, 11], [4], [5, 6, 7], [3, 3], [21], [7]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    # Uneven validation: two batches on rank 0, one on rank 1.
    train = [pack(ROWS, seed=step) for step in range(6)]
    torch.save((train, [pack(ROWS[i : i + 2], seed=90 + i) for i in range(3)]), folder / two_ranks.BATCHES)
    teacher = llama_folder(folder / "teacher", seed=1)
    convert(teacher, attention_layers=[1]).save_pretrained(folder / "student")
    command = [sys.executable, two_ranks.__file__, str(folder / "student"), teacher, str(folder / "two")]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(root)}
    (folder / "two").mkdir()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, cwd=folder)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
@pytest.mark.parametrize("case", two_ranks.CASES)
def test_two_ranks_of_two_micro_batches_equal_one_batch(case, folder):
    """Gradients are those of the mean over all tokens. fp32 sums in another order: 1e-5 after 6 steps, bf16 3e-3."""
    (folder / "one").mkdir(exist_ok=True)
    two_ranks.run(case, str(folder / "student"), str(folder / "teacher"), str(folder / "one"), devices=1)
    one, two = (load_file(folder / name / case / "model.safetensors") for name in ("one", "two"))
    start = load_file(folder / "student" / "model.safetensors")
    assert max((one[name] - start[name]).abs().max() for name in one) > 1e-3
    tolerance = 3e-3 if "bf16" in case else 1e-5
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=tolerance, msg=name)
    measured = [json.loads((folder / name / f"{case}.json").read_text()) for name in ("one", "two")]
    assert measured[0].keys() == measured[1].keys()
    assert {"val/kl", "train/grad_norm", "train/loss"} <= measured[0].keys()
    for name, value in measured[0].items():
        assert measured[1][name] == pytest.approx(value, rel=tolerance), name
