"""Learned sparse retrieval: encoders, index and search."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrieval.encoders.encoder import SparseEncoder
    from retrieval.index.sparse_index import SparseIndex
    from retrieval.index.writer import IndexWriter

__all__ = ["IndexWriter", "SparseEncoder", "SparseIndex"]

_HOME = {
    "SparseEncoder": "retrieval.encoders.encoder",
    "SparseIndex": "retrieval.index.sparse_index",
    "IndexWriter": "retrieval.index.writer",
}


def __getattr__(name: str) -> Any:
    # Looked up when used: the command line imports this package and must not pay for Numba.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
