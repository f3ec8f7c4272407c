"""What README and docs say is what runs."""

import importlib
import re
from pathlib import Path

import pytest
import yaml

from lit_thinkfast.cli import TOOL_VERBS, TRAINER_VERBS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_library_example_runs(tiny_teacher, tmp_path, monkeypatch, capsys):
    (code,) = blocks(README, "python")
    for said, instead in (
        ('TEACHER = "models/teacher"', f"TEACHER = {str(tiny_teacher)!r}"),
        ("max_steps=200", "max_steps=1, enable_progress_bar=False, limit_val_batches=1, enable_model_summary=False"),
        ("seq_len=1408", "seq_len=64, val_batches=1, block_size=4"),
        ("max_new_tokens=1024", "max_new_tokens=4"),
        ('accelerator="auto"', 'accelerator="cpu"'),
    ):
        assert code.count(said) == 1
        code = code.replace(said, instead)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert "'coverage@8'" in capsys.readouterr().out


def test_the_mixer_of_the_docs_works(tiny_teacher, monkeypatch):
    import torch

    from lit_thinkfast import MIXERS, convert

    code = blocks((ROOT / "docs" / "extending.md").read_text(encoding="utf-8"), "python")[1]
    before = dict(MIXERS)
    try:
        exec(compile(code, "extending.md", "exec"), {})
        student = convert(tiny_teacher, mixer="gla")
        ids, mask = torch.tensor([[3, 4, 5, 6, 7]]), torch.tensor([[0, 0, 1, 1, 1]])
        alone = student(ids[:, 2:]).logits
        torch.testing.assert_close(student(ids, attention_mask=mask).logits[:, 2:], alone, rtol=1e-4, atol=1e-4)
        options = {"max_new_tokens": 5, "do_sample": False}
        assert torch.equal(student.generate(ids, **options), student.generate(ids, **options, use_cache=False))
    finally:
        for name in set(MIXERS) - set(before):
            del MIXERS[name]


def test_the_table_of_verbs_is_complete():
    rows = [line.split("|")[1] for line in README.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == {*TOOL_VERBS, *TRAINER_VERBS}


def test_the_configuration_in_the_docs_is_accepted(cli, tmp_path):
    (text,) = blocks((ROOT / "docs" / "command-line.md").read_text(encoding="utf-8"), "yaml")
    file = tmp_path / "fit.yaml"
    file.write_text(text)
    code, said, err = cli("fit", "--config", file, "--print_config")
    assert code == 0, err
    assert yaml.safe_load(said)["model"]["class_path"] == "lit_thinkfast.DistillationModule"


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/**/*.yaml")), ids=lambda path: path.name)
def test_every_configuration_is_accepted(cli, path, monkeypatch):
    """Files with a trainer are read by ``fit``; the others say in their first line which verb takes them."""
    monkeypatch.chdir(ROOT)
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "trainer" not in values:
        pytest.skip("not a training run")
    code, _, err = cli("fit", "--config", path, "--print_config")
    assert code == 0, err


def test_every_function_of_the_paper_map_exists():
    import importlib

    text = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    rooms = "|".join(path.parent.name for path in (ROOT / "lit_thinkfast").glob("*/__init__.py"))
    names = re.findall(rf"`((?:{rooms})\.[\w.]+)", text)
    assert len(names) > 20
    for name in names:
        room, module, *attributes = name.split(".")
        value = importlib.import_module(f"lit_thinkfast.{room}.{module}")
        for attribute in attributes:
            value = getattr(value, attribute)


@pytest.mark.parametrize(
    "page", [*sorted(ROOT.glob("docs/*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda p: p.name
)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_public_name_has_a_place_in_the_reference():
    import lit_thinkfast

    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^(?:::: lit_thinkfast\.[\w.]*?|### `)(\w+)`?$", page, flags=re.MULTILINE))
    assert named == set(lit_thinkfast.__all__)
    for path in re.findall(r"^::: (\S+)$", page, flags=re.MULTILINE):
        module, _, name = path.rpartition(".")
        assert getattr(importlib.import_module(module), name) is getattr(lit_thinkfast, name)


def test_every_cell_of_the_table_of_abilities_is_a_test(request):
    """Cells read ``file::name[case]``: the test is there, and if its file is collected, with that case."""
    page = (ROOT / "docs" / "mixers.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if "test_" in line and line.startswith("| ")]
    assert len(rows) >= 10
    files = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    collected = {item.nodeid for item in request.session.items}
    for row in rows:
        assert len(row) == 4
        for cell in row[1:]:
            (file, name, case) = re.search(r"`(\w+)::(\w+)(?:\[(\w+)\])?`", cell).groups()
            assert f"def {name}(" in files[file], cell
            cases = {node for node in collected if f"/{file}.py::{name}" in node}
            if cases and case:
                assert any(re.search(rf"(?<![a-z_]){case}(?![a-z0-9])", node.partition("[")[2]) for node in cases), cell
