from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from moe.post_import import when_imported

NAME = "awaited_package.registry"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "awaited_package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "registry.py").write_text("def known():\n    return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    finders = list(sys.meta_path)
    yield
    sys.meta_path[:] = finders
    for name in ("awaited_package", NAME):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("package")
def test_acts_after_the_import_and_not_before() -> None:
    seen: list[ModuleType] = []
    finders = list(sys.meta_path)
    for _ in range(2):
        when_imported(NAME, seen.append)
    importlib.import_module("awaited_package")
    assert seen == []
    module = importlib.import_module(NAME)
    assert seen == [module]
    assert module.known() == 1
    assert sys.meta_path == finders
    assert inspect.getsource(module.known) == "def known():\n    return 1\n"


@pytest.mark.usefixtures("package")
def test_acts_at_once_when_it_is_imported_already() -> None:
    module = importlib.import_module(NAME)
    seen: list[ModuleType] = []
    when_imported(NAME, seen.append)
    assert seen == [module]


@pytest.mark.usefixtures("package")
def test_a_module_that_fails_to_import_fails_as_ever(tmp_path: Path) -> None:
    (tmp_path / "awaited_package" / "registry.py").write_text("raise RuntimeError('broken')\n")
    seen: list[ModuleType] = []
    when_imported(NAME, seen.append)
    with pytest.raises(RuntimeError, match="broken"):
        importlib.import_module(NAME)
    assert seen == []


def test_a_module_that_is_not_there_is_still_not_found() -> None:
    finders = list(sys.meta_path)
    when_imported("awaited_package_that_is_not_there", print)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("awaited_package_that_is_not_there")
    sys.meta_path[:] = finders
