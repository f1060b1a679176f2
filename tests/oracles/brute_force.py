"""Exact search the slow and obvious way."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.activations import SparseActivations


def scores_of(query: tuple[NDArray, NDArray], documents: SparseActivations) -> NDArray[np.float32]:
    """Float32 scores of all documents: products added in ascending order of units, as the index defines it."""
    dense = np.zeros((documents.num_rows, documents.num_units), np.float32)
    for row, (units, weights) in enumerate(documents):
        dense[row, units] = weights
    total = np.zeros(documents.num_rows, np.float32)
    for unit, weight in sorted(zip(query[0].tolist(), query[1].tolist(), strict=True)):
        total += np.float32(weight) * dense[:, unit]
    return total


def top_k(
    scores: NDArray[np.float32], k: int, allowed: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray]:
    """Rows and scores of the best `k` with a score above 0: highest first, equal ones by lower row."""
    rows = np.array([row for row in range(len(scores)) if scores[row] > 0 and allowed[row]], np.int64)
    order = sorted(rows.tolist(), key=lambda row: (-scores[row], row))[:k]
    return np.array(order, np.int64), scores[order] if order else np.zeros(0, np.float32)
