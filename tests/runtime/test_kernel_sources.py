"""Kernels kept on disk are made anew when a module changes that they call into."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from runtime.kernels.kernel_sources import digest_of_sources

BY_ARGUMENT = """
import numba
import {callee}
from {callee} import twice
from runtime.kernels.kernel_sources import digest_of_sources

@numba.njit(cache=True)
def entry(number, sources=digest_of_sources({callee})):
    return twice(number)
"""
FROM_AROUND = """
import numba
import {callee}
from {callee} import twice
from runtime.kernels.kernel_sources import digest_of_sources

def made(sources):
    @numba.njit(cache=True)
    def entry(number):
        if not sources:
            return 0
        return twice(number)

    return entry

entry = made(digest_of_sources({callee}))
"""
CALLEE = """
import numba

@numba.njit
def twice(number):
    return {factor} * number
"""


@pytest.mark.parametrize("caller", [BY_ARGUMENT, FROM_AROUND], ids=["by argument", "from around"])
def test_a_kernel_kept_on_disk_follows_what_it_calls(
    caller: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))  # type: ignore[no-untyped-call]
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    names = ("caller_of_twice", "callee_of_twice")
    (tmp_path / "caller_of_twice.py").write_text(caller.format(callee="callee_of_twice"))

    def entry(factor: int) -> Any:
        (tmp_path / "callee_of_twice.py").write_text(CALLEE.format(factor=factor))
        importlib.invalidate_caches()
        for name in names:
            sys.modules.pop(name, None)
        return importlib.import_module(names[0]).entry

    try:
        for factor, hits in ((2, 0), (2, 1), (3, 0), (2, 1)):
            kernel = entry(factor)
            assert kernel(7) == factor * 7
            assert sum(kernel.stats.cache_hits.values()) == hits
    finally:
        for name in names:
            sys.modules.pop(name, None)


def test_a_digest_is_of_the_text_alone(tmp_path: Path) -> None:
    def module(name: str, text: str) -> ModuleType:
        made = ModuleType(name)
        made.__file__ = str(tmp_path / f"{name}.py")
        Path(made.__file__).write_text(text)
        return made

    one, other = module("one", "x = 1\n"), module("other", "x = 2\n")
    digest = digest_of_sources(one, other)
    os.utime(str(one.__file__), (1, 1))
    assert digest_of_sources(other, one) == digest
    assert 1 <= digest <= 1 << 56
    module("other", "x = 3\n")
    assert digest_of_sources(one, other) != digest
