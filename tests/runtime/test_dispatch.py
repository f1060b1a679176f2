from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.activations import SparseActivations
from runtime.dispatch import Dispatch, dispatch, transpose
from runtime.errors import UsageError
from runtime.kernels.reference import row_dtype

BACKENDS = ["reference", "numba", "torch", "numba_tensors"]
capacities = st.none() | st.integers(0, 4)


def by_definition(
    activations: SparseActivations, capacity: int | None
) -> tuple[list[list[tuple[int, float, int]]], list[int]]:
    """Per unit, the ``(row, weight, place)`` of its entries; and the dropped places."""
    entries: list[list[tuple[int, float, int]]] = [[] for _ in range(activations.num_units)]
    dropped = []
    place = 0
    for row, (units, weights) in enumerate(activations):
        for unit, weight in zip(units.tolist(), weights.tolist(), strict=True):
            if capacity is None or len(entries[unit]) < capacity:
                entries[unit].append((row, weight, place))
            else:
                dropped.append(place)
            place += 1
    return entries, dropped


def on(backend: str, activations: SparseActivations) -> SparseActivations:
    return activations.torch() if backend in ("torch", "numba_tensors") else activations


def entries_of(result: Dispatch) -> list[list[tuple[int, float, int]]]:
    triples = list(
        zip(result.rows.tolist(), result.weights.tolist(), result.permutation.tolist(), strict=True)
    )
    return [triples[start:end] for start, end in pairwise(result.offsets.tolist())]


@pytest.mark.parametrize("backend", BACKENDS)
@given(activations=st.from_type(SparseActivations), capacity=capacities)
def test_dispatch_groups_by_unit_with_rows_ascending(
    backend: str, activations: SparseActivations, capacity: int | None
) -> None:
    result = dispatch(on(backend, activations), capacity, backend=backend)
    entries, dropped = by_definition(activations, capacity)
    assert entries_of(result) == entries
    assert result.dropped.tolist() == dropped
    assert result.load.tolist() == [len(of_unit) for of_unit in entries]
    assert np.asarray(result.rows).dtype == activations.units.dtype
    for array in (result.offsets, result.permutation, result.dropped):
        assert np.asarray(array).dtype == np.int64


@pytest.mark.parametrize("backend", BACKENDS)
@given(activations=st.from_type(SparseActivations), capacity=capacities)
def test_inverse_undoes_the_permutation_and_marks_dropped(
    backend: str, activations: SparseActivations, capacity: int | None
) -> None:
    result = dispatch(on(backend, activations), capacity, backend=backend)
    inverse, permutation = np.asarray(result.inverse), np.asarray(result.permutation)
    kept = np.setdiff1d(np.arange(activations.nnz), result.dropped)
    np.testing.assert_array_equal(permutation[inverse[kept]], kept)
    assert (inverse[np.asarray(result.dropped)] == -1).all()


@pytest.mark.parametrize("backend", BACKENDS)
@given(activations=st.from_type(SparseActivations))
def test_transpose_is_dispatch_without_capacity(backend: str, activations: SparseActivations) -> None:
    swapped = transpose(on(backend, activations), backend=backend).numpy()
    expected = dispatch(activations, backend="reference")
    assert (swapped.num_rows, swapped.num_units) == (activations.num_units, activations.num_rows)
    np.testing.assert_array_equal(swapped.indptr, expected.offsets)
    np.testing.assert_array_equal(swapped.units, expected.rows)
    np.testing.assert_array_equal(swapped.weights, expected.weights)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("unit", [-1, 3])
def test_unit_out_of_range_is_an_error(backend: str, unit: int) -> None:
    activations = SparseActivations(
        np.array([0, 1], np.int64), np.array([unit], np.int32), np.ones(1, np.float32), 3
    )
    with pytest.raises(ValueError, match=r"\[0, "):
        dispatch(on(backend, activations), backend=backend)
    with pytest.raises(ValueError, match=r"\[0, "):
        transpose(on(backend, activations), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_decreasing_indptr_is_an_error(backend: str) -> None:
    activations = SparseActivations(
        np.array([0, 9, 1], np.int64), np.zeros(1, np.int32), np.ones(1, np.float32), 3
    )
    with pytest.raises(ValueError, match="decrease"):
        dispatch(on(backend, activations), backend=backend)


def test_negative_capacity_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="capacity is -1"):
        dispatch(SparseActivations.empty(1, 1), capacity=-1)


def test_read_only_arrays_are_dispatched_without_a_copy() -> None:
    activations = SparseActivations.from_rows([([1, 0], [1.0, 2.0]), ([1], [3.0])], 2)
    for array in (activations.indptr, activations.units, activations.weights):
        array.flags.writeable = False
    assert transpose(activations).units.tolist() == [0, 0, 1]


def test_gradients_reach_dispatched_weights() -> None:
    weights = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    activations = SparseActivations(torch.tensor([0, 1, 3]), torch.tensor([1, 0, 1]), weights, 2)
    result = dispatch(activations, capacity=1)
    (result.weights * torch.tensor([10.0, 1.0])).sum().backward()
    assert weights.grad is not None
    assert weights.grad.tolist() == [1.0, 10.0, 0.0]


@pytest.mark.parametrize("num_rows", [2**31, 2**31 + 7])
def test_rows_become_int64_where_int32_ends(num_rows: int) -> None:
    units = np.zeros(0, np.int32)
    assert row_dtype(units, num_rows) == np.int64
    assert row_dtype(units, 2**31 - 1) == np.int32


def test_compiled_dispatch_of_tensors_keeps_the_gradients_of_weights() -> None:
    weights = torch.tensor([1.0, 2.0], requires_grad=True)
    activations = SparseActivations(torch.tensor([0, 1, 2]), torch.tensor([1, 0]), weights, 2)
    transpose(activations, backend="numba_tensors").weights.sum().backward()
    assert weights.grad is not None
    assert weights.grad.tolist() == [1.0, 1.0]
