"""Evaluation: collections, runs, metrics, reports and plots."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Collection": "evals.collections.collection",
    "load_collection": "evals.collections.catalogue",
    "evaluate": "evals.evaluation",
    "Report": "evals.report",
    "measure": "evals.metrics",
    "compare": "evals.comparison",
    "read_run": "retrieval.interop.trec_run",
    "write_run": "retrieval.interop.trec_run",
    "read_qrels": "evals.qrels",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    # Imported when asked for: the metrics and the plots bring heavy packages along.
    if name not in _EXPORTS:
        raise AttributeError(f"module 'evals' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
