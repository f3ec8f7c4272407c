"""The rooms' walls: who may import whom, and what must stay out of a bare import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lit_thinkfast

PACKAGE = Path(lit_thinkfast.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
NEVER = {
    "records.py": {"torch", "lightning", "transformers", "lit_thinkfast"},
    "data": {"lit_thinkfast.models", "lit_thinkfast.distill", "lit_thinkfast.generation"},
    "mixers": {"lit_thinkfast.models", "lit_thinkfast.distill", "lit_thinkfast.generation", "lightning"},
    "models": {"lit_thinkfast.distill", "lit_thinkfast.generation", "lit_thinkfast.data", "lightning"},
    "distill": {"lit_thinkfast.generation"},
    "generation": {"lit_thinkfast.distill", "lightning"},
    "verification": {"lit_thinkfast.models", "lit_thinkfast.distill", "lightning"},
    "metrics": {"lit_thinkfast.models", "lit_thinkfast.verification", "lit_thinkfast.distill", "sympy", "math_verify"},
    "analysis": {"lit_thinkfast.distill", "lit_thinkfast.models", "lightning"},
}
# The evaluator is where metrics meet a model: it asks for a sampler and a verifier, and imports them when it runs.
EXCEPTIONS = {("metrics/evaluator.py", "lit_thinkfast.verification")}
# lightning may be named at the top of these files only
TRAINING = {"distill/module.py", "data/module.py"} | {
    f"callbacks/{path.name}" for path in PACKAGE.glob("callbacks/*.py")
}
# never at the top of any file: what only some machines have, and what takes long
INSIDE_FUNCTIONS = {"matplotlib", "datasets", "mamba_ssm", "causal_conv1d", "flash_attn", "vllm", "fla", "gguf"}


def name_of(path):
    return path.relative_to(PACKAGE).as_posix()


def imports(path, *, top_only=False):
    """Absolute names that a file imports, leaving out what only type checkers see, and guarded ones if ``top_only``."""
    package = ("lit_thinkfast", *path.relative_to(PACKAGE).parts[:-1])

    def visit(nodes):
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = ".".join(
                    [*package[: len(package) + 1 - node.level], node.module or ""] if node.level else [node.module]
                )
                base = base.rstrip(".")
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                yield from visit(node.orelse)
            elif top_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Try)):
                continue
            else:
                yield from visit(ast.iter_child_nodes(node))

    return set(visit(ast.parse(path.read_text(encoding="utf-8")).body))


def among(names, forbidden):
    return {name for name in names for wall in forbidden if name == wall or name.startswith(wall + ".")}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_imports_through_a_wall(path):
    room = path.relative_to(PACKAGE).parts[0]
    allowed = {name for file, name in EXCEPTIONS if file == name_of(path)}
    assert not among(imports(path), NEVER.get(room, set()) - allowed)
    assert not among(imports(path, top_only=True), INSIDE_FUNCTIONS)
    if name_of(path) not in TRAINING:
        assert not among(imports(path, top_only=True), {"lightning", "pytorch_lightning"})
    assert not among(imports(path), {"pytorch_lightning"}), "its classes are not those of lightning.pytorch"


def test_the_walls_are_seen():
    """The reader of imports sees what it must see (and the rooms exist)."""
    assert {name for name in NEVER if not (PACKAGE / name).exists()} == set()
    module = PACKAGE / "distill" / "module.py"
    assert among(imports(module, top_only=True), {"lightning"})
    assert among(imports(PACKAGE / "cli.py"), {"lightning"})
    assert not among(imports(PACKAGE / "cli.py", top_only=True), {"lightning"})
    assert not among(imports(PACKAGE / "__init__.py"), {"lit_thinkfast.models"}), "type checking only"


def loaded_after(code, *names):
    script = f"import sys\n{code}\nprint(*[name for name in {names!r} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()


def test_a_bare_import_is_light():
    heavy = ("torch", "lightning", "datasets", "matplotlib", "transformers", "torchmetrics", "jsonargparse", "rich")
    assert loaded_after("import lit_thinkfast, lit_thinkfast.records, lit_thinkfast.cli", *heavy) == []


def test_importing_rooms_stays_clear_of_training_and_plotting():
    rooms = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py") if path.parent.name != "callbacks")
    assert rooms == ["analysis", "data", "distill", "generation", "metrics", "mixers", "models", "verification"]
    every = "\n".join(f"import lit_thinkfast.{room}" for room in rooms)
    assert loaded_after(every, "lightning", "datasets") == []
    # torchmetrics imports matplotlib itself where it is installed
    every = "\n".join(f"import lit_thinkfast.{room}" for room in rooms if room != "metrics")
    assert loaded_after(every, "lightning", "datasets", "matplotlib") == []
