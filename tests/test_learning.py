"""The evidence that students learn: arms compare like with like, chain their stages, and are not run twice."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
TINY = {"steps": 2, "batch_size": 1, "seq_len": 1024, "points": 2, "val_batches": 1, "problems": 2, "samples": 2}
ARGUMENTS = [f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, "max_new_tokens": 8}.items()]


@pytest.fixture(scope="module")
def learning():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        spec = importlib.util.spec_from_file_location("learning", BENCHMARKS / "learning.py")
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "learning", module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def out(learning, tmp_path_factory):
    """A folder with a tiny table: the embedded teacher as it is, and trained on."""
    folder = tmp_path_factory.mktemp("learning")
    learning.main(["--table", "ft", "--out", str(folder), *ARGUMENTS])
    return folder


def tiny(learning, **changes):
    return learning.Settings(**{**TINY, "max_new_tokens": 8, **changes})


def test_a_table(learning, out):
    written = json.loads((out / "ft.json").read_text())
    rows = written["arms"]
    assert rows.keys() == learning.TABLES["ft"].arms.keys()
    untrained, tuned = rows.values()
    assert untrained["kl"] == pytest.approx(0, abs=1e-6)
    assert untrained["top1"] == 1
    assert tuned["kl"] > 0
    assert [point["step"] for point in tuned["curves"][0]] == [0, 1, 2]
    text = (out / "ft.md").read_text().splitlines()
    assert len(text) == 2 + len(rows)
    assert {line.count("|") for line in text} == {len(learning.cells(untrained)) + 3}
    figure = (out / "ft.svg").read_text()
    assert figure.rstrip().endswith("</svg>")
    assert len(figure) < 200_000


def test_a_finished_run_is_not_repeated(learning, out, monkeypatch):
    before = {path: path.read_bytes() for path in out.glob("*-0.json")}
    assert len(before) == 2
    monkeypatch.setattr(learning, "measure", None)  # calling it would fail
    settings = tiny(learning)
    assert learning.run("teacher-ft", 0, out, settings)["steps"] == 2
    assert {path: path.read_bytes() for path in out.glob("*-0.json")} == before
    with pytest.raises(ValueError, match="other settings"):
        learning.run("teacher-ft", 0, out, dataclasses.replace(settings, steps=5))


def test_stages_are_chained_by_folders(learning, tmp_path, monkeypatch):
    monkeypatch.setattr(learning, "measure", lambda place, settings: {"kl": 0.0, "top1": 0.0, "ce": 0.0, "right": [0]})
    found = learning.run("llamba-123", 0, tmp_path, tiny(learning, steps=10, points=1))
    folder = tmp_path / "llamba-123-0"
    assert [path.name for path in sorted(folder.iterdir())] == ["0_matrices", "1_hidden", "2_kl", "start"]
    assert found["model"] == str(folder / "2_kl")
    first, oriented = (weights(folder / name) for name in ("start", "0_matrices"))
    moved = {name for name in first if not torch.equal(first[name], oriented[name])}
    assert any("in_proj" in name for name in moved)
    assert all("mixer." in name or "input_layernorm" in name for name in moved)
    assert found["curve"][-1]["kl"] < found["curve"][0]["kl"]
    assert found["steps"] == 10


def test_a_stage_without_steps_is_refused(learning, tmp_path):
    with pytest.raises(ValueError, match="4 steps leave a stage of llamba-123 without any"):
        learning.run("llamba-123", 0, tmp_path, tiny(learning, steps=4))


def test_arms_have_equal_budgets_and_held_out_rows(learning):
    for name, arm in learning.ARMS.items():
        if arm.stages:
            assert sum(stage.share for stage in arm.stages) == pytest.approx(1), name
    held_out, trained = [], []
    for seed in (0, 1):
        module = learning.data(learning.ArithmeticCorpus(seed=seed), tiny(learning), 0)
        module.setup("fit")
        held_out.append(module.held_out_batches()[0]["input_ids"])
        trained.append(next(iter(module.train_dataloader()))["input_ids"])
    assert torch.equal(*held_out)
    assert not torch.equal(*trained)


def test_means_and_intervals(learning):
    """Against means formed here; every problem is in a resample as often as it is drawn, so equal ones give no width."""
    runs = [
        {"seed": 0, "kl": 1.0, "top1": 0.5, "ce": 2.0, "right": [1.0, 0.0, 0.5, 1.0], "curve": [], "steps": 2},
        {"seed": 1, "kl": 3.0, "top1": 0.7, "ce": 4.0, "right": [0.0, 0.0, 0.5, 1.0], "curve": [], "steps": 2},
    ]
    row = learning.summary(runs)
    assert (row["kl"], row["ce"], row["accuracy"]) == (2.0, 3.0, 0.5)
    rng = np.random.default_rng(1)
    means = np.array([0.5, 0.0, 0.5, 1.0])[rng.integers(0, 4, size=(20_000, 4))].mean(1)
    assert row["interval"] == pytest.approx(np.quantile(means, [0.025, 0.975]).tolist(), abs=0.13)
    assert row["runs"]["accuracy"] == [0.625, 0.375]
    same = learning.summary([runs[0] | {"right": [0.5, 0.5]}])
    assert same["interval"] == [0.5, 0.5]
    better = learning.summary([runs[0] | {"right": [right + 0.25 for right in row["right"]]}])
    assert (
        sys.modules["learning_report"].difference(better, row) == "+25.0 points (+25.0 to +25.0)"
    )  # paired: the problems' spread cancels
    assert learning.cells(row)[:2] == ["2", "2.0000 (1.0000, 3.0000)"]


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")
