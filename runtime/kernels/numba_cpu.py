"""NumPy arrays on one core, compiled by Numba; the GIL is released, so threads overlap.

Compiled code does not check bounds, so every index that it follows is checked here beforehand or on the way.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from runtime.kernels.bounds import check_bounds
from runtime.kernels.reference import Ints, Numbers, Offsets, row_dtype, sum_dtype

NO_CAPACITY = np.iinfo(np.int64).max


def dispatch(
    indptr: Offsets, units: Ints, num_units: int, capacity: int | None = None
) -> tuple[Offsets, Ints, Offsets, Offsets]:
    offsets = _unit_offsets(indptr, units, num_units, NO_CAPACITY if capacity is None else capacity)
    rows = np.empty(offsets[-1], row_dtype(units, len(indptr) - 1))
    permutation = np.empty(offsets[-1], np.int64)
    dropped = np.empty(len(units) - offsets[-1], np.int64)
    _dispatch(indptr, units, offsets, rows, permutation, dropped)
    return offsets, rows, permutation, dropped


def transpose(
    indptr: Offsets, units: Ints, weights: Numbers, num_units: int
) -> tuple[Offsets, Ints, Numbers]:
    offsets = _unit_offsets(indptr, units, num_units, NO_CAPACITY)
    rows = np.empty(len(units), row_dtype(units, len(indptr) - 1))
    moved = np.empty(len(units), weights.dtype)
    _transpose(indptr, units, weights, offsets, rows, moved)
    return offsets, rows, moved


def count_units(indptr: Offsets, units: Ints, num_units: int) -> Offsets:
    return np.diff(_unit_offsets(indptr, units, num_units, NO_CAPACITY))


def coalesce(indptr: Offsets, units: Ints, weights: Numbers) -> tuple[Offsets, Ints, Numbers]:
    _check_offsets(indptr, len(units))
    merged, sums = np.empty_like(units), np.empty(len(units), sum_dtype(weights))
    offsets = _coalesce(indptr, units, weights, merged, sums)
    return offsets, merged[: offsets[-1]], sums[: offsets[-1]]


def to_dense(indptr: Offsets, units: Ints, weights: Numbers, num_units: int) -> Numbers:
    _check_offsets(indptr, len(units))
    check_bounds("units", units, num_units)
    dense = np.zeros((len(indptr) - 1, num_units), sum_dtype(weights))
    _to_dense(indptr, units, weights, dense)
    return dense


def top_k(scores: Numbers, k: int) -> tuple[Ints, Numbers]:
    units = np.empty((len(scores), k), np.int32)
    if k:
        _top_k(scores, units)
    return units, np.take_along_axis(scores, units, axis=1)


def combine(values: Numbers, rows: Ints, weights: Numbers, num_rows: int) -> Numbers:
    check_bounds("rows", rows, num_rows)
    combined = np.zeros((num_rows, values.shape[1]), values.dtype)
    _combine(values, rows, weights, combined)
    return combined


def score(
    indptr: Offsets,
    units: Ints,
    weights: Numbers,
    offsets: Offsets,
    rows: Ints,
    impacts: Numbers,
    num_rows: int,
) -> Numbers:
    _check_offsets(indptr, len(units))
    _check_offsets(offsets, len(rows))
    check_bounds("units", units, len(offsets) - 1)
    scores = np.zeros((len(indptr) - 1, num_rows), weights.dtype)
    bad = _score(indptr, units, weights, offsets, rows, impacts, scores)
    if bad >= 0:
        check_bounds("rows", rows[offsets[bad] : offsets[bad + 1]], num_rows)
    return scores


def _unit_offsets(indptr: Offsets, units: Ints, num_units: int, capacity: int) -> Offsets:
    _check_offsets(indptr, len(units))
    check_bounds("units", units, num_units)
    offsets: Offsets = _count_into_offsets(units, num_units, capacity)
    return offsets


@njit(nogil=True, cache=True)
def is_coalesced(indptr: Offsets, units: Ints) -> bool:
    _check_offsets(indptr, len(units))
    for row in range(len(indptr) - 1):
        for place in range(indptr[row] + 1, indptr[row + 1]):
            if units[place] <= units[place - 1]:
                return False
    return True


@njit(nogil=True, cache=True)
def _check_offsets(offsets: Offsets, length: int) -> None:
    for index in range(len(offsets) - 1):
        if offsets[index + 1] < offsets[index]:
            raise ValueError("indptr must not decrease")
    if offsets[0] != 0 or offsets[-1] != length:
        raise ValueError("indptr must run from 0 to the number of units")


@njit(nogil=True, cache=True)
def _count_into_offsets(units: Ints, num_units: int, capacity: int) -> Offsets:
    offsets = np.zeros(num_units + 1, np.int64)
    for unit in units:
        offsets[unit + 1] += 1
    for unit in range(num_units):
        offsets[unit + 1] = offsets[unit] + min(offsets[unit + 1], capacity)
    return offsets


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


@njit(nogil=True, cache=True)
def _coalesce(indptr: Offsets, units: Ints, weights: Numbers, merged: Ints, sums: Numbers) -> Offsets:
    offsets = np.zeros(len(indptr), np.int64)
    end = 0
    for row in range(len(indptr) - 1):
        start = indptr[row]
        # Stable, so that equal units add up in the order in which they stand.
        for index in np.argsort(units[start : indptr[row + 1]], kind="mergesort"):
            unit, weight = units[start + index], weights[start + index]
            if end > offsets[row] and merged[end - 1] == unit:
                sums[end - 1] += weight
            else:
                merged[end] = unit
                sums[end] = weight
                end += 1
        offsets[row + 1] = end
    return offsets


@njit(nogil=True, cache=True)
def _to_dense(indptr: Offsets, units: Ints, weights: Numbers, dense: Numbers) -> None:
    for row in range(len(indptr) - 1):
        for place in range(indptr[row], indptr[row + 1]):
            unit = units[place]
            dense[row, unit] += weights[place]


@njit(nogil=True, cache=True)
def _top_k(scores: Numbers, units: Ints) -> None:
    """A heap of the k best so far, its worst on top: lowest score, and of equal ones the highest unit."""
    num_rows, width = scores.shape
    k = units.shape[1]
    for row in range(num_rows):
        heap = units[row]
        for unit in range(k):
            heap[unit] = unit
        for position in range(k // 2 - 1, -1, -1):
            _sift_down(scores[row], heap, position)
        for unit in range(k, width):
            # Units come in ascending order, so one that only equals the worst loses to it.
            if scores[row, unit] > scores[row, heap[0]]:
                heap[0] = unit
                _sift_down(scores[row], heap, 0)
        heap.sort()


@njit(nogil=True, cache=True)
def _sift_down(scores: Numbers, heap: Ints, position: int) -> None:
    unit = heap[position]
    while 2 * position + 1 < len(heap):
        child = 2 * position + 1
        if child + 1 < len(heap) and _is_worse(scores, heap[child + 1], heap[child]):
            child += 1
        if not _is_worse(scores, heap[child], unit):
            break
        heap[position] = heap[child]
        position = child
    heap[position] = unit


@njit(nogil=True, cache=True)
def _is_worse(scores: Numbers, unit: int, other: int) -> bool:
    return scores[unit] < scores[other] or (scores[unit] == scores[other] and unit > other)


@njit(nogil=True, cache=True)
def _combine(values: Numbers, rows: Ints, weights: Numbers, combined: Numbers) -> None:
    for entry in range(len(rows)):
        row, weight = rows[entry], weights[entry]
        for column in range(values.shape[1]):
            combined[row, column] += weight * values[entry, column]


@njit(nogil=True, cache=True)
def _score(
    indptr: Offsets,
    units: Ints,
    weights: Numbers,
    offsets: Offsets,
    rows: Ints,
    impacts: Numbers,
    scores: Numbers,
) -> int:
    """Only the rows that are followed are checked; the first unit with one out of range, or -1."""
    for query in range(len(indptr) - 1):
        for place in range(indptr[query], indptr[query + 1]):
            unit, weight = units[place], weights[place]
            for posting in range(offsets[unit], offsets[unit + 1]):
                row = rows[posting]
                if row < 0 or row >= scores.shape[1]:
                    return unit
                scores[query, row] += weight * impacts[posting]
    return -1
