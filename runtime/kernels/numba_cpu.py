"""NumPy arrays on one core, compiled by Numba; the GIL is released, so threads overlap."""

from __future__ import annotations

import numpy as np
from numba import njit

from runtime.kernels.reference import Ints, Numbers, Offsets, row_dtype

NO_CAPACITY = np.iinfo(np.int64).max


def dispatch(
    indptr: Offsets, units: Ints, num_units: int, capacity: int | None = None
) -> tuple[Offsets, Ints, Offsets, Offsets]:
    offsets, num_kept = _offsets(indptr, units, num_units, NO_CAPACITY if capacity is None else capacity)
    rows = np.empty(num_kept, row_dtype(units, len(indptr) - 1))
    permutation = np.empty(num_kept, np.int64)
    dropped = np.empty(len(units) - num_kept, np.int64)
    _dispatch(indptr, units, offsets, rows, permutation, dropped)
    return offsets, rows, permutation, dropped


def transpose(
    indptr: Offsets, units: Ints, weights: Numbers, num_units: int
) -> tuple[Offsets, Ints, Numbers]:
    offsets, _ = _offsets(indptr, units, num_units, NO_CAPACITY)
    rows = np.empty(len(units), row_dtype(units, len(indptr) - 1))
    moved = np.empty(len(units), weights.dtype)
    _transpose(indptr, units, weights, offsets, rows, moved)
    return offsets, rows, moved


@njit(nogil=True, cache=True)
def _offsets(indptr: Offsets, units: Ints, num_units: int, capacity: int) -> tuple[Offsets, int]:
    # The kernels below do not check bounds: what they index with is checked here.
    for row in range(len(indptr) - 1):
        if indptr[row + 1] < indptr[row]:
            raise ValueError("indptr must not decrease")
    offsets = np.zeros(num_units + 1, np.int64)
    for unit in units:
        if unit < 0 or unit >= num_units:
            raise ValueError("a unit lies outside [0, num_units)")
        offsets[unit + 1] += 1
    for unit in range(num_units):
        offsets[unit + 1] = offsets[unit] + min(offsets[unit + 1], capacity)
    return offsets, offsets[num_units]


@njit(nogil=True, cache=True)
def _dispatch(
    indptr: Offsets, units: Ints, offsets: Offsets, rows: Ints, permutation: Offsets, dropped: Offsets
) -> None:
    cursor = offsets[:-1].copy()
    num_dropped = 0
    for row in range(len(indptr) - 1):
        for place in range(indptr[row], indptr[row + 1]):
            unit = units[place]
            target = cursor[unit]
            if target < offsets[unit + 1]:
                rows[target] = row
                permutation[target] = place
                cursor[unit] = target + 1
            else:
                dropped[num_dropped] = place
                num_dropped += 1


@njit(nogil=True, cache=True)
def _transpose(
    indptr: Offsets, units: Ints, weights: Numbers, offsets: Offsets, rows: Ints, moved: Numbers
) -> None:
    cursor = offsets[:-1].copy()
    for row in range(len(indptr) - 1):
        for place in range(indptr[row], indptr[row + 1]):
            target = cursor[units[place]]
            rows[target] = row
            moved[target] = weights[place]
            cursor[units[place]] = target + 1
