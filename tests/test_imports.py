"""Imports point downwards only, and the command line starts without anything heavy."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

MAY_IMPORT = {
    "runtime": {"runtime"},
    "retrieval": {"retrieval", "runtime"},
    "moe": {"moe", "runtime"},
    "evals": {"evals", "retrieval", "moe", "runtime"},
    "serving": {"serving", "evals", "retrieval", "moe", "runtime"},
}
"""serving → evals → retrieval, moe → runtime; and nobody imports the command line."""

REGISTRY_ENTRIES = {("retrieval/encoders/backbones.py", "moe.models")}
"""The one way around: an encoder's model may have experts, and its model type names the module that registers it.
That module is imported when such a folder is loaded, and nothing in retrieval knows what is in it."""

OURS = {*MAY_IMPORT, "lexpert", "tests", "bench"}
HEAVY = ("torch", "numba", "ray", "transformers", "matplotlib", "ir_measures", "ir_datasets")


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """``(line, module)`` of every import in a file, wherever it stands, lazy ones by `import_module` too."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield node.lineno, module
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            # Lazy exports and catalogues name modules as text: "package.module" or "package.module:Name".
            module = node.value.partition(":")[0]
            if module.partition(".")[0] in MAY_IMPORT and is_module(module):
                yield node.lineno, module


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split(".")) if all(name.split(".")) else ROOT / "no module"
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def modules_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_downwards(package: str) -> None:
    assert modules_of(package)
    upward = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in modules_of(package)
        for line, module in imported_modules(path)
        if module.partition(".")[0] in OURS - MAY_IMPORT[package]
        and (path.relative_to(ROOT).as_posix(), module) not in REGISTRY_ENTRIES
    ]
    assert upward == []


def test_every_registry_entry_is_there_and_lazy() -> None:
    for file, module in REGISTRY_ENTRIES:
        assert module in {found for _, found in imported_modules(ROOT / file)}
        assert module not in {
            alias.name if isinstance(node, ast.Import) else node.module
            for node in ast.walk(ast.parse((ROOT / file).read_bytes()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }


def test_the_command_line_imports_only_cli_modules_and_errors() -> None:
    ours = {
        module
        for _, module in imported_modules(ROOT / "lexpert.py")
        if module.partition(".")[0] in OURS and is_module(module)
    }
    assert {module for module in ours if not module.endswith(".cli") and module != "runtime.errors"} == set()


def test_an_upward_import_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    for package in ("runtime", "serving"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    file = tmp_path / "runtime" / "kernel.py"
    for line in (
        "from serving import app",
        "def f():\n    import serving.app",
        "X = 'serving'\nY = 'serving.app'",
    ):
        file.write_text(line)
        (tmp_path / "serving" / "app.py").touch()
        assert "serving" in {module.partition(".")[0] for _, module in imported_modules(file)}
    file.write_text("from . import activations\nfrom .kernels import registry")
    assert {module for _, module in imported_modules(file)} == {
        "runtime",
        "runtime.activations",
        "runtime.kernels",
        "runtime.kernels.registry",
    }


@pytest.mark.parametrize(
    "module", ["lexpert", *MAY_IMPORT, *sorted(f"{path.parent.name}.cli" for path in ROOT.glob("*/cli.py"))]
)
def test_the_command_line_starts_without_anything_heavy(module: str) -> None:
    program = f"import json, sys, {module}; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == []
