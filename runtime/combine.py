"""Combine: per unit gather, transform, scale, and scatter-add back to the rows.

A layer of experts reads like its definition::

    routed = dispatch(gates)                                          # gates: SparseActivations
    hidden = grouped_matmul(gather(tokens, routed), routed.offsets, experts)
    output = combine(hidden, routed)

and so does the scoring of an inverted index, in which the value that every posting of a term carries is the
weight of that term in the query: ``score(queries, documents.transpose())``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from runtime.activations import Array, SparseActivations, is_tensor
from runtime.dispatch import Dispatch
from runtime.errors import UsageError
from runtime.group_offsets import check_group_offsets
from runtime.kernels.registry import kernel


def gather(values: Array, dispatch: Dispatch) -> Array:
    """The value of each entry's row, unit by unit: ``[num_rows, …]`` to ``[entries, …]``."""
    if len(values) != dispatch.num_rows:
        raise UsageError(f"there are {len(values)} values for {dispatch.num_rows} rows")
    # Indexing does the same, with a backward that is many times slower.
    gathered: Array = values.index_select(0, dispatch.rows) if is_tensor(values) else values[dispatch.rows]
    return gathered


def grouped_matmul(values: Array, offsets: Array, matrices: Array, *, backend: str | None = None) -> Array:
    """Multiply each group of entries with its own matrix.

    Args:
        values: ``[entries, in]``, group by group.
        offsets: int64 ``[groups + 1]``; group `j` has the entries ``offsets[j]:offsets[j + 1]``.
        matrices: ``[groups, in, out]``, of the dtype of `values`.

    Returns:
        ``[entries, out]``.

    Raises:
        UsageError: shapes or dtypes do not fit, or offsets decrease or do not run from 0 to the number of entries.
    """
    if values.ndim != 2 or matrices.ndim != 3 or values.shape[1] != matrices.shape[1]:
        raise UsageError(
            f"values {tuple(values.shape)} and matrices {tuple(matrices.shape)} must be [entries, in] and "
            "[groups, in, out]"
        )
    check_group_offsets(offsets, len(matrices), len(values))
    if values.dtype != matrices.dtype:
        raise UsageError(f"values are {values.dtype}, but matrices {matrices.dtype}; convert one of them")
    run = kernel("grouped_matmul", values, offsets, matrices, backend=backend)
    product: Array = run(values, offsets, matrices)
    return product


def combine(values: Array, dispatch: Dispatch, *, backend: str | None = None) -> Array:
    """Scale each entry by its weight and add it to its row: ``combined[row] += weight · value``.

    Entries are added in their order, except on a GPU, where the order is only fixed under
    ``torch.use_deterministic_algorithms``. A row of which nothing was dispatched is 0.

    Args:
        values: floating, ``[entries]`` or ``[entries, width]``, unit by unit as `dispatch` has them.
        dispatch: where they belong, and with what weight.

    Returns:
        ``[num_rows]`` or ``[num_rows, width]``, of the dtype of `values`.

    Raises:
        UsageError: `values` are not floating or not one per entry.
    """
    if values.ndim not in (1, 2) or len(values) != len(dispatch.rows):
        raise UsageError(
            f"values {tuple(values.shape)} must be [entries] or [entries, width] of {len(dispatch.rows)} entries"
        )
    if not _is_floating(values):
        raise UsageError(f"values must be floating, not {values.dtype}")
    flat: Any = values[:, None] if values.ndim == 1 else values
    weights = _cast(dispatch.weights, values.dtype)
    run = kernel("combine", flat, dispatch.rows, weights, backend=backend)
    combined: Array = run(flat, dispatch.rows, weights, dispatch.num_rows)
    return combined[:, 0] if values.ndim == 1 else combined


def score(queries: SparseActivations, postings: SparseActivations, *, backend: str | None = None) -> Array:
    """Dot product of every query with every document, from the postings alone.

    Args:
        queries: ``[num_queries, num_units]``.
        postings: ``[num_units, num_documents]``, what `SparseActivations.transpose` makes of documents. It may
            have more units than the queries (a vocabulary that grew), not fewer.

    Returns:
        ``[num_queries, num_documents]``, float64 where queries or impacts are, else float32. Shares are added
        in the order of the query's units.

    Raises:
        UsageError: the queries have units that the postings lack.
    """
    if queries.num_units > postings.num_rows:
        raise UsageError(f"queries of {queries.num_units} units meet postings of {postings.num_rows} units")
    double = "float64" in f"{queries.weights.dtype} {postings.weights.dtype}"
    weights = _to_float(queries.weights, double)
    impacts = _to_float(postings.weights, double)
    arrays = queries.indptr, queries.units, weights, postings.indptr, postings.units, impacts
    scores: Array = kernel("score", *arrays, backend=backend)(*arrays, postings.num_units)
    return scores


def _is_floating(array: Any) -> bool:
    return bool(array.is_floating_point() if is_tensor(array) else array.dtype.kind == "f")


def _cast(array: Any, dtype: Any) -> Array:
    cast: Array = array.to(dtype) if is_tensor(array) else array.astype(dtype, copy=False)
    return cast


def _to_float(array: Any, double: bool) -> Array:
    if is_tensor(array):
        return array.double() if double else array.float()
    return _cast(array, np.float64 if double else np.float32)
