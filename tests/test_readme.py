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
