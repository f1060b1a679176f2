"""Every operation in plain NumPy, as close to its formula as it gets: the oracle for all other backends."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer[Any]]
Offsets = NDArray[np.int64]
Numbers = NDArray[Any]


def dispatch(
    indptr: Offsets, units: Ints, num_units: int, capacity: int | None = None
) -> tuple[Offsets, Ints, Offsets, Offsets]:
    """Stable counting sort of the non-zeros by unit.

    Args:
        indptr: int64 ``[num_rows + 1]``.
        units: int ``[nnz]``.
        num_units: number of units.
        capacity: most entries that a unit takes; later ones, in order of row, are dropped.

    Returns:
        ``offsets`` int64 ``[num_units + 1]``; ``rows`` ``[kept]`` and ``permutation`` int64 ``[kept]``, the
        row and the place of each kept non-zero, unit by unit; ``dropped`` int64, the ascending places of
        the others.

    Raises:
        ValueError: a unit is outside ``[0, num_units)``, or `indptr` decreases.
    """
    counts = count_units(indptr, units, num_units)
    permutation = np.argsort(units, kind="stable").astype(np.int64)
    dropped = np.zeros(0, np.int64)
    if capacity is not None:
        starts = np.concatenate([[0], np.cumsum(counts)])[:-1]
        rank = np.arange(len(units)) - np.repeat(starts, counts)
        dropped = np.sort(permutation[rank >= capacity])
        permutation = permutation[rank < capacity]
        counts = np.minimum(counts, capacity)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return offsets, rows_of_nonzeros(indptr, units)[permutation], permutation, dropped


def transpose(
    indptr: Offsets, units: Ints, weights: Numbers, num_units: int
) -> tuple[Offsets, Ints, Numbers]:
    """`dispatch` without capacity that moves the weights and keeps no permutation: offsets, rows, weights."""
    offsets, rows, permutation, _ = dispatch(indptr, units, num_units)
    return offsets, rows, weights[permutation]


def invert_permutation(permutation: Offsets, nnz: int) -> Offsets:
    """Where each of the `nnz` places went, int64 ``[nnz]``; -1 for those that `permutation` leaves out."""
    inverse = np.full(nnz, -1, np.int64)
    inverse[permutation] = np.arange(len(permutation))
    return inverse


def count_units(indptr: Offsets, units: Ints, num_units: int) -> Offsets:
    """How often each unit occurs, int64 ``[num_units]``; refuses arrays that are not what they claim."""
    if np.any(indptr[1:] < indptr[:-1]):
        raise ValueError("indptr must not decrease")
    if len(units) and not 0 <= units.min() <= units.max() < num_units:
        raise ValueError(f"units run from {units.min()} to {units.max()}, but must lie in [0, {num_units})")
    return np.bincount(units, minlength=num_units).astype(np.int64, copy=False)


def rows_of_nonzeros(indptr: Offsets, units: Ints) -> Ints:
    """The row of each non-zero ``[nnz]``, in `row_dtype`."""
    num_rows = len(indptr) - 1
    return np.repeat(np.arange(num_rows, dtype=row_dtype(units, num_rows)), np.diff(indptr))


def row_dtype(units: Ints, num_rows: int) -> np.dtype[Any]:
    """Row ids take the dtype of the units, so that transposing twice restores it; int64 from 2**31 rows."""
    return np.dtype(np.int64) if num_rows > np.iinfo(np.int32).max else units.dtype
