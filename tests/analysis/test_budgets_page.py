"""The code on the page about budgets runs, and the names it mentions exist."""

import re
from pathlib import Path

import lit_thinkfast.analysis
from lit_thinkfast.records import write_jsonl

PAGE = Path(__file__).parents[2] / "docs/budgets.md"


def test_examples_run(tmp_path, monkeypatch, runs, problems, clocked, capsys):
    for name, run in ((name, clocked(run)) for name, run in runs.items()):
        for kind, records in (("completions", run.completions), ("verdicts", run.verdicts), ("problems", problems)):
            write_jsonl(records, tmp_path / "runs" / name / f"{kind}.jsonl")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        exec(code, names)
    assert "w/l/t" in capsys.readouterr().out
    c = names["c"]
    for expression in re.findall(r"`((?:c|pair)\.[a-z_.]+(?:\[rule\]|\([^`]*\))?)`", PAGE.read_text()):
        eval(expression, {**names, "rule": "coverage", "model": "student", "seconds": 1.0})
    functions = set(re.findall(r"`([a-z_]+)\(", PAGE.read_text())) | {"pareto_front", "seconds_to_reach"}
    assert functions <= set(lit_thinkfast.analysis.__all__)
    for expression in re.findall(r"`((?:winners|time_to_reach)\([^`]*\))`", PAGE.read_text()):
        eval(expression, {"c": c, **vars(lit_thinkfast.analysis)})
