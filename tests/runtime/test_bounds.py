"""Indices out of range are the same error on every backend, in every operation that follows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.activations import SparseActivations
from runtime.combine import combine, score
from runtime.dispatch import Dispatch
from runtime.kernels.registry import backends, kernel

NUM_ROWS, NUM_UNITS = 2, 3
INDPTR = np.array([0, 1, 2], np.int64)
FLOATS = np.array([0.5, 2.0], np.float32)
OFFSETS = np.array([0, 1, 1, 2], np.int64)


def named(*arguments: Any) -> tuple[Any, ...]:
    return arguments


# The arguments of each operation, given two indices of which one may lie outside.
OF_UNITS: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    "dispatch": lambda units: named(INDPTR, units, NUM_UNITS),
    "transpose": lambda units: named(INDPTR, units, FLOATS, NUM_UNITS),
    "count_units": lambda units: named(INDPTR, units, NUM_UNITS),
    "to_dense": lambda units: named(INDPTR, units, FLOATS, NUM_UNITS),
    "score": lambda units: named(
        INDPTR, units, FLOATS, OFFSETS, np.array([0, 1], np.int32), FLOATS, NUM_ROWS
    ),
}
OF_ROWS: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    "combine": lambda rows: named(FLOATS[:, None], rows, FLOATS, NUM_ROWS),
    "score": lambda rows: named(INDPTR, np.array([0, 2], np.int32), FLOATS, OFFSETS, rows, FLOATS, NUM_ROWS),
}
OF_OFFSETS: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    "dispatch": lambda indptr: named(indptr, np.zeros(2, np.int32), NUM_UNITS),
    "transpose": lambda indptr: named(indptr, np.zeros(2, np.int32), FLOATS, NUM_UNITS),
    "count_units": lambda indptr: named(indptr, np.zeros(2, np.int32), NUM_UNITS),
    "to_dense": lambda indptr: named(indptr, np.zeros(2, np.int32), FLOATS, NUM_UNITS),
    "coalesce": lambda indptr: named(indptr, np.zeros(2, np.int32), FLOATS),
    "is_coalesced": lambda indptr: named(indptr, np.zeros(2, np.int32)),
    "take_rows": lambda indptr: named(indptr, np.zeros(2, np.int32), FLOATS, np.array([0, 1])),
    "grouped_matmul": lambda indptr: named(FLOATS[:, None], indptr, np.ones((2, 1, 1), np.float32)),
    "score": lambda indptr: named(indptr, np.zeros(2, np.int32), FLOATS, OFFSETS, *FOLLOWED),
}
FOLLOWED = np.array([0, 1], np.int32), FLOATS, NUM_ROWS


def run_everywhere(operation: str, arguments: tuple[Any, ...], error: type[Exception], said: str) -> None:
    """On NumPy arrays with every backend that has the operation, and on tensors."""
    for library in (np.asarray, torch.as_tensor):
        converted = [library(value) if isinstance(value, np.ndarray) else value for value in arguments]
        arrays = [value for value in converted if hasattr(value, "dtype")]
        for backend in backends(operation, *arrays):
            with pytest.raises(error, match=said):
                kernel(operation, *arrays, backend=backend)(*converted)


@pytest.mark.parametrize("bad", [-1, -3, NUM_UNITS, 2**31 - 1])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("operation", OF_UNITS)
def test_units_out_of_range_are_one_error(operation: str, dtype: type[np.generic], bad: int) -> None:
    said = rf"^units run from {min(bad, 1)} to {max(bad, 1)}, but must lie in \[0, {NUM_UNITS}\)$"
    for units in ([1, bad], [bad, 1]):
        run_everywhere(operation, OF_UNITS[operation](np.array(units, dtype)), ValueError, said)


@pytest.mark.parametrize("bad", [-1, -2, NUM_ROWS, 2**31 - 1])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("operation", OF_ROWS)
def test_rows_out_of_range_are_one_error(operation: str, dtype: type[np.generic], bad: int) -> None:
    said = rf"^rows run from -?\d+ to -?\d+, but must lie in \[0, {NUM_ROWS}\)$"
    for rows in ([1, bad], [bad, 1]):
        run_everywhere(operation, OF_ROWS[operation](np.array(rows, dtype)), ValueError, said)


@pytest.mark.parametrize("operation", OF_OFFSETS)
def test_decreasing_offsets_are_one_error(operation: str) -> None:
    arguments = OF_OFFSETS[operation](np.array([0, 3, 2], np.int64))
    run_everywhere(operation, arguments, ValueError, "^indptr must not decrease$")


@pytest.mark.parametrize("bad", [-1, 2])
def test_places_out_of_range_are_one_error(bad: int) -> None:
    run_everywhere(
        "invert_permutation", (np.array([0, bad]), 2), ValueError, r"^places run from .* \[0, 2\)$"
    )


@pytest.mark.parametrize("row", [2, -3])
def test_rows_that_are_not_there_cannot_be_taken(row: int) -> None:
    # An index error, as for any sequence; negative ones down to -num_rows count from the end.
    run_everywhere("take_rows", (INDPTR, np.zeros(2, np.int32), FLOATS, np.array([0, row])), IndexError, ".")


@given(data=st.data())
def test_backends_agree_on_what_they_score_and_what_they_refuse(data: st.DataObject) -> None:
    index = st.integers(-2, 3)
    units = np.array(data.draw(st.lists(index, min_size=2, max_size=2)), np.int32)
    rows = np.array(data.draw(st.lists(index, min_size=2, max_size=2)), np.int32)
    queries = SparseActivations(INDPTR, units, FLOATS, NUM_UNITS)
    postings = SparseActivations(OFFSETS, rows, FLOATS, NUM_ROWS)
    outcomes = []
    for backend in ("reference", "numba", "torch"):
        pair = (queries.torch(), postings.torch()) if backend == "torch" else (queries, postings)
        try:
            outcomes.append(str(score(*pair, backend=backend).tolist()))
        except ValueError as error:
            outcomes.append(str(error).partition(" ")[0])
    assert len(set(outcomes)) == 1, outcomes


def test_a_dispatch_that_lies_about_its_rows_is_refused() -> None:
    empty = np.zeros(0, np.int64)
    rows = np.array([0, 5], np.int32)
    lying = Dispatch(OFFSETS, rows, FLOATS, np.array([0, 1]), empty, NUM_ROWS)
    for backend in ("reference", "numba"):
        with pytest.raises(ValueError, match=r"rows run from 0 to 5"):
            combine(FLOATS, lying, backend=backend)
