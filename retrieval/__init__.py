"""Learned sparse retrieval: encoders, index and search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from retrieval.encoders.encoder import SparseEncoder
    from retrieval.index.sparse_index import SparseIndex
    from retrieval.index.writer import IndexWriter

__all__ = ["IndexWriter", "SparseEncoder", "SparseIndex"]

_HOMES = {
    "SparseEncoder": "retrieval.encoders.encoder",
    "SparseIndex": "retrieval.index.sparse_index",
    "IndexWriter": "retrieval.index.writer",
}

__getattr__ = lazy_exports(__name__, _HOMES)
