"""The code on the page about metrics runs and prints what it must, and the names it mentions exist."""

import re
from pathlib import Path

import pytest

import lit_thinkfast.metrics
from lit_thinkfast.metrics import COMPAT, functional, statistics

PAGE = (Path(__file__).parents[2] / "docs/metrics.md").read_text(encoding="utf-8")


def test_examples_run_one_after_the_other(capsys):
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(code, names)
    coverage, majority, better, nemo, scalars, steady = capsys.readouterr().out.splitlines()
    assert coverage == "tensor([0.2667, 0.5000, 1.0000], dtype=torch.float64)"
    assert majority.startswith("tensor([0.4")
    assert float(better.split()[0]) > 0
    assert "'majority@3': 50.0" in nemo
    assert "'majority@2': 0.3" in scalars
    assert steady == "0.5"
    assert names["steady"].compute().item() == pytest.approx(names["metrics"]["coverage@2"].compute().item())
    names["metrics"].update(names["problem"], names["sample"], *names["cells"])
    assert names["metrics"].compute()["steady@2"] == names["steady"].compute()


def test_names_exist():
    known = {*functional.__all__, *lit_thinkfast.metrics.__all__, *vars(statistics)}
    mentioned = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)(?:\(|`)", PAGE))
    switches = {"best_of_n", "weighted_best_of_n"}
    assert mentioned - switches <= known
    for tool in COMPAT:
        assert tool.replace("large-language-monkeys", "large_language_monkeys") in PAGE
