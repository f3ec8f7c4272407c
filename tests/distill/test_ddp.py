"""Two gloo ranks against one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from . import two_ranks
from .conftest import loader


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_two_ranks_equal_one(tmp_path, teacher_folder, student_folder):
    """With equal token counts the mean over ranks is the token mean. fp32 sums in another order: 1e-5 after 6 steps."""
    # Uneven validation: two batches on rank 0, one on rank 1.
    torch.save((list(loader(24, 4)), list(loader(6, 2, seed=9))), tmp_path / two_ranks.BATCHES)
    two_ranks.run(student_folder, teacher_folder, str(tmp_path / "one"), devices=1)
    command = [sys.executable, two_ranks.__file__, student_folder, teacher_folder, str(tmp_path / "two")]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]

    one, two, start = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two", "student"))
    assert max((one[name] - start[name]).abs().max() for name in one) > 1e-2
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5, msg=name)
    measured = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two")]
    assert measured[0].keys() == measured[1].keys()
    for name, value in measured[0].items():
        assert measured[1][name] == pytest.approx(value, rel=1e-5), name
