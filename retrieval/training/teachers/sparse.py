"""A sparse encoder as a teacher: any encoder of ours, BM25 among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.encoders.encoder import CountingEncoder, SparseEncoder
from retrieval.training.row_cache import CacheUse, SparseRows, text_keys
from retrieval.training.teachers.vectors import SparseTeacher
from runtime.activations import SparseActivations
from runtime.progress import Advance, progress

QUERIES_AT_ONCE = 256
"""Encoders do not tell how far they are within a call for queries."""


def encode_sparse(
    encoder: SparseEncoder,
    name: str,
    queries: Sequence[str],
    passages: Sequence[str],
    cache: Path,
    use: CacheUse,
) -> SparseTeacher:
    """Vectors of all texts, from the cache where they are there; BM25 that is not fitted takes its statistics
    from the passages."""
    if isinstance(encoder, CountingEncoder) and not encoder.is_fitted:
        encoder.fit(passages)

    def make_passages(places: NDArray[np.int64], advance: Advance) -> SparseActivations:
        return encoder.encode_documents([passages[place] for place in places.tolist()], advance).numpy()

    def make_queries(places: NDArray[np.int64], advance: Advance) -> SparseActivations:
        parts = [SparseActivations.empty(0, len(encoder.vocabulary))]
        for start in range(0, len(places), QUERIES_AT_ONCE):
            asked = places[start : start + QUERIES_AT_ONCE].tolist()
            parts.append(encoder.encode_queries([queries[place] for place in asked]).numpy())
            advance(len(asked))
        return SparseActivations.concat(parts)

    sides = []
    for role, texts, make in (("queries", queries, make_queries), ("passages", passages, make_passages)):
        rows = SparseRows(cache, use, "sparse", encoder.fingerprint, role)
        with progress(f"{name}: vectors of {role}", len(texts), role) as advance:
            made = rows.rows(text_keys(texts), make, advance)
        # Zeros and repeated units are allowed in a batch, and of no use to a teacher.
        made = made.coalesce()
        sides.append(
            replace(
                made, units=made.units.astype(np.int32, copy=False), weights=made.weights.astype(np.float32)
            )
        )
    return SparseTeacher(name, encoder.fingerprint, queries=sides[0], passages=sides[1])
