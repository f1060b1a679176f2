"""The search of tiers says of all modules that its kernel was made of."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import CodeType
from typing import Any

from retrieval.search import tiered
from runtime.kernels.kernel_sources import digest_of_sources


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
