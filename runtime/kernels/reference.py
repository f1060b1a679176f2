"""Every operation in plain NumPy, as close to its formula as it gets: the oracle for all other backends."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.kernels.bounds import check_bounds, check_offsets
from runtime.kernels.expert_activations import numpy_activation

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
    """Where each of the `nnz` places went, int64 ``[nnz]``; -1 for those that `permutation` leaves out.

    Raises:
        ValueError: a place is outside ``[0, nnz)``.
    """
    check_bounds("places", permutation, nnz)
    inverse = np.full(nnz, -1, np.int64)
    inverse[permutation] = np.arange(len(permutation))
    return inverse


def is_coalesced(indptr: Offsets, units: Ints) -> bool:
    """Whether the units of every row ascend strictly; ValueError if `indptr` decreases."""
    check_offsets(indptr)
    ascends = units[1:] > units[:-1]
    # A row that begins inside the array need not continue the ascent of the row before.
    begins = indptr[(indptr > 0) & (indptr < len(units))]
    ascends[begins - 1] = True
    return bool(ascends.all())


def coalesce(indptr: Offsets, units: Ints, weights: Numbers) -> tuple[Offsets, Ints, Numbers]:
    """Sort each row by unit; equal units become one with the sum of their weights, added in order.

    Raises:
        ValueError: `indptr` decreases.
    """
    check_offsets(indptr)
    rows = rows_of_nonzeros(indptr, units)
    order = np.lexsort((units, rows))
    rows, units, weights = rows[order], units[order], weights[order]
    first = np.ones(len(units), bool)
    first[1:] = (rows[1:] != rows[:-1]) | (units[1:] != units[:-1])
    sums = np.zeros(int(first.sum()), sum_dtype(weights))
    np.add.at(sums, np.cumsum(first) - 1, weights)
    return offsets_of(np.bincount(rows[first], minlength=len(indptr) - 1)), units[first], sums


def to_dense(indptr: Offsets, units: Ints, weights: Numbers, num_units: int) -> Numbers:
    """``dense[row, unit] += weight`` for every non-zero."""
    count_units(indptr, units, num_units)
    dense = np.zeros((len(indptr) - 1, num_units), sum_dtype(weights))
    np.add.at(dense, (rows_of_nonzeros(indptr, units), units), weights)
    return dense


def from_mask(dense: Numbers, mask: NDArray[np.bool_]) -> tuple[Offsets, Ints, Numbers]:
    """CSR of the entries of ``[rows, units]`` where `mask` is true; int32 units."""
    _, units = np.nonzero(mask)
    return offsets_of(np.count_nonzero(mask, axis=1)), units.astype(np.int32), dense[mask]


def take_rows(indptr: Offsets, units: Ints, weights: Numbers, rows: Any) -> tuple[Offsets, Ints, Numbers]:
    """CSR of the rows that an index array or a mask names, in its order; negative rows count from the end.

    Raises:
        IndexError: a row that is not there, or a mask of another length.
        ValueError: `indptr` decreases.
    """
    check_offsets(indptr)
    rows = np.asarray(rows)
    lengths = np.diff(indptr)[rows]
    taken = offsets_of(lengths)
    places = np.repeat(indptr[:-1][rows] - taken[:-1], lengths) + np.arange(taken[-1])
    return taken, units[places], weights[places]


def top_k(scores: Numbers, k: int) -> tuple[Ints, Numbers]:
    """The `k` highest scores of each row, equal ones by lower unit.

    Args:
        scores: ``[rows, units]`` without NaN.
        k: at most the number of units.

    Returns:
        int32 units ``[rows, k]``, ascending, and their scores.
    """
    # Reversed, so that among equals a stable ascending sort puts the lower unit last, where it is kept.
    order = scores.shape[1] - 1 - np.argsort(scores[:, ::-1], axis=1, kind="stable")
    units = np.sort(order[:, scores.shape[1] - k :], axis=1)
    return units.astype(np.int32), np.take_along_axis(scores, units, axis=1)


def top_p(scores: Numbers, p: float) -> NDArray[np.bool_]:
    """Mask of the fewest highest scores of each row that make up the fraction `p` of its sum.

    Args:
        scores: non-negative ``[rows, units]`` without NaN.
        p: in (0, 1].
    """
    order = scores.shape[1] - 1 - np.argsort(scores[:, ::-1], axis=1, kind="stable")[:, ::-1]
    descending = np.take_along_axis(scores, order, axis=1)
    mass = np.zeros((len(scores), scores.shape[1] + 1))
    np.cumsum(descending, axis=1, dtype=np.float64, out=mass[:, 1:])
    # A unit is kept while those before it are not enough; a row without mass keeps none.
    mask = np.zeros(scores.shape, bool)
    np.put_along_axis(mask, order, mass[:, :-1] < p * mass[:, -1:], axis=1)
    return mask


def combine(values: Numbers, rows: Ints, weights: Numbers, num_rows: int) -> Numbers:
    """``combined[rows[i]] += weights[i] · values[i]``, `i` ascending.

    Args:
        values: floating ``[entries, width]``.
        rows: ``[entries]``.
        weights: ``[entries]``, of the dtype of `values`.
        num_rows: rows of the result.

    Raises:
        ValueError: a row is outside ``[0, num_rows)``.
    """
    check_bounds("rows", rows, num_rows)
    combined = np.zeros((num_rows, values.shape[1]), values.dtype)
    np.add.at(combined, rows, weights[:, None] * values)
    return combined


def grouped_matmul(values: Numbers, offsets: Offsets, matrices: Numbers) -> Numbers:
    """``values[i] @ matrices[j]`` for every entry `i` of group `j`.

    Args:
        values: ``[entries, in]``, group by group.
        offsets: int64 ``[groups + 1]``.
        matrices: ``[groups, in, out]``.

    Raises:
        ValueError: offsets decrease.
    """
    check_offsets(offsets)
    result = np.empty((len(values), matrices.shape[2]), np.result_type(values, matrices))
    for group, matrix in enumerate(matrices):
        entries = slice(offsets[group], offsets[group + 1])
        result[entries] = values[entries] @ matrix
    return result


def expert_mlp(
    values: Numbers,
    offsets: Offsets,
    up: Numbers,
    down: Numbers,
    *,
    activation: str,
    gated: bool,
    up_bias: Numbers | None = None,
    down_bias: Numbers | None = None,
) -> Numbers:
    """``down[j] · act(up[j] · value)`` for every entry of group `j`; see `runtime.expert_mlp.expert_mlp`.

    Raises:
        ValueError: offsets decrease.
    """
    check_offsets(offsets)
    activate = numpy_activation(activation)
    result = np.zeros_like(values)
    for group in range(len(up)):
        entries = slice(offsets[group], offsets[group + 1])
        if offsets[group] == offsets[group + 1]:
            continue
        hidden = values[entries] @ up[group].T
        if up_bias is not None:
            hidden = hidden + up_bias[group]
        if gated:
            gate, linear = np.split(hidden, 2, axis=1)
            hidden = activate(gate) * linear
        else:
            hidden = activate(hidden)
        result[entries] = hidden @ down[group].T
        if down_bias is not None:
            result[entries] += down_bias[group]
    return result


def score(
    indptr: Offsets,
    units: Ints,
    weights: Numbers,
    offsets: Offsets,
    rows: Ints,
    impacts: Numbers,
    num_rows: int,
) -> Numbers:
    """``scores[query, row] = Σ_unit weight(query, unit) · impact(unit, row)``, added in the query's order.

    Args:
        indptr, units, weights: the queries, CSR.
        offsets, rows, impacts: the postings of each unit, CSR; `impacts` of the dtype of `weights`.
        num_rows: number of documents.

    Raises:
        ValueError: a unit is outside ``[0, len(offsets) - 1)``, the row of a posting of these units is outside
            ``[0, num_rows)``, or offsets decrease.
    """
    check_offsets(indptr)
    check_offsets(offsets)
    check_bounds("units", units, len(offsets) - 1)
    scores = np.zeros((len(indptr) - 1, num_rows), weights.dtype)
    for query in range(len(indptr) - 1):
        for place in range(indptr[query], indptr[query + 1]):
            postings = slice(offsets[units[place]], offsets[units[place] + 1])
            check_bounds("rows", rows[postings], num_rows)
            np.add.at(scores[query], rows[postings], weights[place] * impacts[postings])
    return scores


def count_units(indptr: Offsets, units: Ints, num_units: int) -> Offsets:
    """How often each unit occurs, int64 ``[num_units]``; refuses arrays that are not what they claim."""
    check_offsets(indptr)
    check_bounds("units", units, num_units)
    return np.bincount(units, minlength=num_units).astype(np.int64, copy=False)


def rows_of_nonzeros(indptr: Offsets, units: Ints) -> Ints:
    """The row of each non-zero ``[nnz]``, in `row_dtype`."""
    num_rows = len(indptr) - 1
    return np.repeat(np.arange(num_rows, dtype=row_dtype(units, num_rows)), np.diff(indptr))


def row_dtype(units: Ints, num_rows: int) -> np.dtype[Any]:
    """Row ids take the dtype of the units, so that transposing twice restores it; int64 from 2**31 rows."""
    return np.dtype(np.int64) if num_rows > np.iinfo(np.int32).max else units.dtype


def offsets_of(lengths: Ints) -> Offsets:
    """int64 ``[len + 1]`` offsets of consecutive pieces of the given lengths."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def sum_dtype(weights: Numbers) -> np.dtype[Any]:
    """The dtype in which weights add up: integers as wide as NumPy's own sum, floats as they are."""
    return weights.dtype if weights.dtype.kind == "f" else weights[:0].sum().dtype
