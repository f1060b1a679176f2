"""Kernels kept on disk are made anew when a module changes that they call into."""

from __future__ import annotations

import ast
import importlib
import os
import sys
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import pytest

from retrieval.search import tiered
from retrieval.search.kernel_sources import digest_of_sources

CALLER = """
import numba
import {callee}
from {callee} import twice
from retrieval.search.kernel_sources import digest_of_sources

@numba.njit(cache=True)
def entry(number, sources=digest_of_sources({callee})):
    return twice(number)
"""
CALLEE = """
import numba

@numba.njit
def twice(number):
    return {factor} * number
"""


def test_a_kernel_kept_on_disk_follows_what_it_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))  # type: ignore[no-untyped-call]
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    names = ("caller_of_twice", "callee_of_twice")
    (tmp_path / "caller_of_twice.py").write_text(CALLER.format(callee="callee_of_twice"))

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
    assert 0 <= digest < 1 << 63
    module("other", "x = 3\n")
    assert digest_of_sources(one, other) != digest


def names_used(code: CodeType) -> set[str]:
    used = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            used |= names_used(constant)
    return used


def modules_used(kernel: Any, found: set[str]) -> None:
    """Names of our modules that a kernel's callees and constants are imported from, and those of its callees."""
    function = getattr(kernel, "py_func", kernel)
    tree = ast.parse(Path(function.__code__.co_filename).read_bytes())
    imported = {
        alias.asname or alias.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for alias in node.names
    }
    for name in names_used(function.__code__) & set(function.__globals__):
        module = imported.get(name, "")
        if module.startswith(("retrieval.", "runtime.")):
            found.add(module)
        value = function.__globals__[name]
        if hasattr(value, "py_func"):
            modules_used(value, found)


def test_the_search_of_tiers_names_all_modules_that_its_kernel_uses() -> None:
    used: set[str] = set()
    modules_used(tiered._search_queries, used)
    assert {"retrieval.search.tiered_proof", "retrieval.search.top_k", "runtime.kernels.prefetch"} <= used
    assert digest_of_sources(*(importlib.import_module(name) for name in used)) == tiered.SOURCES
