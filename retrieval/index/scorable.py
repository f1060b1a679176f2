"""Vectors that come from outside, made fit for scoring."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from runtime.activations import SparseActivations
from runtime.errors import InputError


def scorable(activations: SparseActivations, num_units: int) -> SparseActivations:
    """Vectors fit for scoring: float32 weights > 0, units ascending and distinct in a row.

    Raises:
        InputError: a weight that is negative or not finite, or a unit outside ``[0, num_units)``.
    """
    if is_scorable(activations, num_units):
        return activations
    units, weights = np.asarray(activations.units), np.asarray(activations.weights, np.float32)
    if len(units) and (units.min() < 0 or units.max() >= num_units):
        raise InputError(f"a vector has unit {int(units.max())}, but units run from 0 to {num_units - 1}")
    # Two numbers tell it all (where there is a NaN, it is both), without a temporary as long as the weights.
    lowest, highest = (weights.min(), weights.max()) if len(weights) else (1.0, 1.0)
    if not (lowest >= 0 and np.isfinite(highest)):
        raise InputError("a vector has a weight that is negative or not finite; weights must be 0 or more")
    rows = SparseActivations(activations.indptr, units, weights, num_units).coalesce()
    if lowest > 0:
        return rows
    keep = rows.weights > 0
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(keep)])[rows.indptr]
    return SparseActivations(indptr, rows.units[keep], rows.weights[keep], num_units)


def is_scorable(activations: SparseActivations, num_units: int) -> bool:
    """Whether vectors (NumPy) are fit as they are, with int32 units: as almost always, and told in microseconds."""
    return (
        activations.units.dtype == np.int32
        and activations.weights.dtype == np.float32
        and _is_scorable(activations.indptr, activations.units, activations.weights, num_units)
    )


@numba.njit(nogil=True, cache=True)
def _is_scorable(
    indptr: NDArray[np.int64], units: NDArray[np.int32], weights: NDArray[np.float32], num_units: int
) -> bool:
    for row in range(len(indptr) - 1):
        before = -1
        for place in range(indptr[row], indptr[row + 1]):
            if not before < units[place] < num_units or not 0 < weights[place] < np.inf:
                return False
            before = units[place]
    return True
