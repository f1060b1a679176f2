"""Evaluation: collections, runs, metrics, reports and plots."""

from __future__ import annotations

from runtime.lazy_exports import lazy_exports

_HOMES = {
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

__all__ = list(_HOMES)

__getattr__ = lazy_exports(__name__, _HOMES)
