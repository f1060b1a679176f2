"""The names that the package offers."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import evals


def test_every_name_is_there_however_often_and_in_whatever_order_it_is_asked_for() -> None:
    for module in set(evals._HOMES.values()):
        import_module(module)
    # A submodule of the same name would hide the function once it had been imported.
    for _ in range(2):
        assert all(callable(getattr(evals, name)) for name in evals.__all__)


def test_the_command_line_of_the_package_imports_nothing_heavy() -> None:
    heavy = {"torch", "numba", "matplotlib", "ir_measures", "ir_datasets", "numpy", "scipy"}
    code = "import sys, evals, evals.cli; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert heavy.isdisjoint(loaded)
