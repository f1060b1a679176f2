"""Impacts as whole numbers, which other engines' formats hold: ``round(scale · impact)``."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from retrieval.index.sparse_index import SparseIndex
from retrieval.interop.live_rows import live_rows
from runtime.activations import SparseActivations
from runtime.errors import InputError, UsageError

SCALE = 100.0
"""Anserini's convention for impacts that are not whole numbers."""

LARGEST = 2**31 - 1


def check_scale(scale: float) -> float:
    """Return `scale`, or raise UsageError unless it is finite and above 0."""
    if not (scale > 0 and math.isfinite(scale)):
        raise UsageError(f"the scale is {scale}, but must be above 0 (100 is usual)")
    return float(scale)


def scale_of(index: SparseIndex) -> float:
    """1 for an index whose impacts are whole numbers already, else `SCALE`: nothing is quantised twice."""
    for batch in live_rows(index):
        if (batch.vectors.weights != np.rint(batch.vectors.weights)).any():
            return SCALE
    return 1.0


def whole_numbers(weights: NDArray[np.float32], scale: float) -> NDArray[np.int64]:
    """``round(scale · weight)`` of each weight, halves to even.

    Raises:
        InputError: one does not fit 32 bits.
    """
    numbers = np.rint(np.asarray(weights, np.float64) * scale)
    if len(numbers) and numbers.max() > LARGEST:
        raise InputError(
            f"an impact of {float(np.max(weights)):g} times {scale:g} does not fit 32 bits; give a smaller scale"
        )
    return numbers.astype(np.int64)


def whole_rows(vectors: SparseActivations, scale: float) -> SparseActivations:
    """Rows with int64 whole numbers for weights; those that round to 0 are left out."""
    numbers = whole_numbers(vectors.weights, scale)
    kept = numbers > 0
    if kept.all():
        return SparseActivations(vectors.indptr, vectors.units, numbers, vectors.num_units)
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])[vectors.indptr]
    return SparseActivations(indptr, vectors.units[kept], numbers[kept], vectors.num_units)
