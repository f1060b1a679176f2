from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime.activations import SparseActivations, is_tensor
from runtime.errors import UsageError
from runtime.kernels.registry import kernel

BACKENDS = ["reference", "numba", "torch"]
a_batch = st.from_type(SparseActivations)


def dense_by_definition(activations: SparseActivations) -> NDArray[np.float64]:
    dense = np.zeros((activations.num_rows, activations.num_units))
    for row, (units, weights) in enumerate(activations):
        for unit, weight in zip(units.tolist(), weights.tolist(), strict=True):
            dense[row, unit] += weight
    return dense


def on(library: str, activations: SparseActivations) -> SparseActivations:
    return activations.torch() if library == "torch" else activations


def assert_same(left: SparseActivations, right: SparseActivations) -> None:
    left, right = left.numpy(), right.numpy()
    assert left.num_units == right.num_units
    for name in ("indptr", "units", "weights"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
        assert getattr(left, name).dtype == getattr(right, name).dtype


@pytest.mark.parametrize("backend", BACKENDS)
@given(activations=a_batch)
def test_to_dense_adds_repeated_units_up(backend: str, activations: SparseActivations) -> None:
    batch = on(backend, activations)
    arrays = batch.indptr, batch.units, batch.weights
    dense = kernel("to_dense", *arrays, backend=backend)(*arrays, batch.num_units)
    np.testing.assert_array_equal(np.asarray(dense), dense_by_definition(activations))
    assert dense.dtype == batch.weights.dtype


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_integer_sums_do_not_overflow(library: str) -> None:
    batch = SparseActivations(
        np.array([0, 2], np.int64), np.zeros(2, np.int32), np.array([200, 100], np.uint8), 1
    )
    batch = on(library, batch)
    assert batch.to_dense().tolist() == [[300]]
    assert batch.coalesce().weights.tolist() == [300]


@pytest.mark.parametrize("library", ["numpy", "torch"])
@given(activations=a_batch)
def test_from_dense_keeps_non_zeros_in_ascending_order(library: str, activations: SparseActivations) -> None:
    dense = on(library, activations).to_dense()
    sparse = SparseActivations.from_dense(dense)
    assert sparse.nnz == int((dense != 0).sum())
    assert sparse.weights.dtype == dense.dtype
    np.testing.assert_array_equal(np.asarray(sparse.to_dense()), np.asarray(dense))
    assert "int32" in str(sparse.units.dtype)
    assert all((np.diff(units) > 0).all() for units, _ in sparse.numpy())


@pytest.mark.parametrize("library", ["numpy", "torch"])
@given(activations=a_batch)
def test_transpose_transposes_the_dense_matrix(library: str, activations: SparseActivations) -> None:
    batch = on(library, activations)
    np.testing.assert_array_equal(
        np.asarray(batch.transpose().to_dense()), dense_by_definition(activations).T
    )


@given(activations=a_batch)
def test_transposing_twice_sorts_rows_and_keeps_dtypes(activations: SparseActivations) -> None:
    twice = activations.transpose().transpose()
    assert twice.units.dtype == activations.units.dtype
    for (units, weights), (again, moved) in zip(activations, twice, strict=True):
        order = np.argsort(units, kind="stable")
        np.testing.assert_array_equal(again, units[order])
        np.testing.assert_array_equal(moved, weights[order])


@pytest.mark.parametrize("library", ["numpy", "torch"])
@given(batches=st.lists(a_batch, min_size=1, max_size=3))
def test_concat_stacks_dense_rows(library: str, batches: list[SparseActivations]) -> None:
    together = SparseActivations.concat(on(library, batch) for batch in batches)
    width = max(batch.num_units for batch in batches)
    padded = [
        np.pad(dense, ((0, 0), (0, width - dense.shape[1]))) for dense in map(dense_by_definition, batches)
    ]
    np.testing.assert_array_equal(np.asarray(together.to_dense()), np.concatenate(padded))


def test_concat_of_nothing_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no batch"):
        SparseActivations.concat([])


@pytest.mark.parametrize("library", ["numpy", "torch"])
@given(activations=a_batch, data=st.data())
def test_rows_are_taken_as_numpy_takes_them(
    library: str, activations: SparseActivations, data: st.DataObject
) -> None:
    batch, dense = on(library, activations), dense_by_definition(activations)
    bound = st.none() | st.integers(-8, 8)
    rows = slice(data.draw(bound), data.draw(bound), data.draw(st.sampled_from([None, 1, 2, -1])))
    np.testing.assert_array_equal(np.asarray(batch[rows].to_dense()), dense[rows])
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(dense), max_size=len(dense))), bool)
    np.testing.assert_array_equal(np.asarray(batch[mask].to_dense()), dense[mask])
    np.testing.assert_array_equal(np.asarray(batch[[]].to_dense()), dense[:0])
    if len(dense):
        index = data.draw(st.lists(st.integers(-len(dense), len(dense) - 1), max_size=5))
        np.testing.assert_array_equal(np.asarray(batch[index].to_dense()), dense[np.array(index, np.int64)])
        row = data.draw(st.integers(-len(dense), len(dense) - 1))
        np.testing.assert_array_equal(np.asarray(batch[row].to_dense()), dense[[row]])


def test_row_out_of_range_is_an_index_error() -> None:
    batch = SparseActivations.empty(2, 3)
    for row in (2, -3):
        with pytest.raises(IndexError):
            batch[row]
        with pytest.raises(IndexError):
            batch[[row]]


def test_slices_share_units_and_weights() -> None:
    batch = SparseActivations.from_rows([([1], [1.0]), ([0, 2], [2.0, 3.0])], 3)
    for part in (batch[1:], batch[1], batch[np.int64(1)]):
        assert np.shares_memory(part.units, batch.units)
        assert np.shares_memory(part.weights, batch.weights)
        assert part.indptr.tolist() == [0, 2]


def test_two_billion_non_zeros_are_sliced_by_64_bit_offsets() -> None:
    # One value seen 2**31 + 5 times: the shape of a big index without its memory.
    nnz = 2**31 + 5
    units, weights = np.broadcast_to(np.int32(7), nnz), np.broadcast_to(np.float32(0.5), nnz)
    batch = SparseActivations(np.array([0, 2**31, nnz], np.int64), units, weights, 8)
    assert batch.nnz == nnz
    assert batch[1].indptr.tolist() == [0, 5]
    assert batch[1].to_dense()[0].tolist() == [0.0] * 7 + [2.5]
    assert batch[:1].nnz == 2**31
    assert batch[[1, 1]].indptr.tolist() == [0, 5, 10]


@pytest.mark.parametrize("dtype", [np.int32, np.uint64])
def test_offsets_of_another_dtype_are_refused(dtype: type[np.generic]) -> None:
    with pytest.raises(ValueError, match="int64"):
        SparseActivations(np.zeros(1, dtype), np.zeros(0, np.int32), np.zeros(0, np.float32), 1)


@pytest.mark.parametrize("backend", BACKENDS)
@given(activations=a_batch)
def test_coalesce_sorts_and_merges(backend: str, activations: SparseActivations) -> None:
    batch = on(backend, activations)
    arrays = batch.indptr, batch.units, batch.weights
    indptr, units, weights = kernel("coalesce", *arrays, backend=backend)(*arrays)
    merged = SparseActivations(indptr, units, weights, batch.num_units)
    np.testing.assert_array_equal(np.asarray(merged.to_dense()), dense_by_definition(activations))
    for (kept, _), (before, _) in zip(merged, activations, strict=True):
        assert kept.tolist() == sorted(set(before.tolist()))
    assert (units.dtype, weights.dtype) == (batch.units.dtype, batch.weights.dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@given(activations=a_batch)
def test_is_coalesced_tells_strictly_ascending_rows(backend: str, activations: SparseActivations) -> None:
    batch = on(backend, activations)
    expected = all((np.diff(units) > 0).all() for units, _ in activations)
    run = kernel("is_coalesced", batch.indptr, batch.units, backend=backend)
    assert run(batch.indptr, batch.units) == expected


@pytest.mark.parametrize("backend", BACKENDS)
@given(weights=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40))
def test_repeated_weights_are_added_in_order_on_every_backend(backend: str, weights: list[float]) -> None:
    expected = np.float32(0)
    for weight in weights:
        expected = np.float32(expected + np.float32(weight))
    batch = SparseActivations(
        np.array([0, len(weights)], np.int64),
        np.zeros(len(weights), np.int64),
        np.array(weights, np.float32),
        1,
    )
    batch = on(backend, batch)
    arrays = batch.indptr, batch.units, batch.weights
    assert kernel("coalesce", *arrays, backend=backend)(*arrays)[2].tolist() == [float(expected)]


def test_coalesced_batch_is_returned_as_it_is() -> None:
    batch = SparseActivations.from_rows([([0, 2], [1.0, 2.0]), ([0], [3.0])], 3)
    assert batch.coalesce() is batch


def test_gradients_flow_through_coalesce_and_to_dense() -> None:
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64, requires_grad=True)
    indptr, units = torch.tensor([0, 3, 4]), torch.tensor([2, 0, 2, 1])

    def dense(weights: torch.Tensor) -> torch.Tensor:
        batch = SparseActivations(indptr, units, weights, 3).coalesce()
        assert is_tensor(batch.weights)
        merged = batch.to_dense()
        assert is_tensor(merged)
        return merged

    assert torch.autograd.gradcheck(dense, (weights,))


@pytest.mark.parametrize("k", [0, 1, 3])
def test_from_topk_shares_a_routers_output(k: int) -> None:
    units, weights = np.arange(2 * k).reshape(2, k) % 4, np.ones((2, k), np.float32)
    batch = SparseActivations.from_topk(units, weights, 4)
    assert batch.indptr.tolist() == [0, k, 2 * k]
    assert k == 0 or (np.shares_memory(batch.units, units) and np.shares_memory(batch.weights, weights))
    tensors = SparseActivations.from_topk(torch.from_numpy(units), torch.from_numpy(weights), 4)
    assert_same(tensors, batch)
    assert k == 0 or np.shares_memory(np.asarray(tensors.units), units)


@given(activations=a_batch)
def test_numpy_and_torch_share_memory(activations: SparseActivations) -> None:
    tensors = activations.torch()
    assert is_tensor(tensors.indptr)
    back = tensors.numpy()
    assert_same(back, activations)
    for name in ("indptr", "units", "weights"):
        there = getattr(back, name)
        assert there.size == 0 or np.shares_memory(there, getattr(activations, name))


def test_numpy_takes_bfloat16_as_float32_and_leaves_gradients_behind() -> None:
    weights = torch.tensor([1.5], dtype=torch.bfloat16, requires_grad=True)
    batch = SparseActivations(torch.tensor([0, 1]), torch.tensor([0]), weights, 1).numpy()
    assert batch.weights.dtype == np.float32
    assert batch.weights.tolist() == [1.5]


@pytest.mark.parametrize("backend", BACKENDS)
def test_to_dense_refuses_a_unit_out_of_range(backend: str) -> None:
    batch = on(
        backend,
        SparseActivations(np.array([0, 1], np.int64), np.array([3], np.int32), np.ones(1, np.float32), 3),
    )
    arrays = batch.indptr, batch.units, batch.weights
    with pytest.raises(ValueError, match=r"\[0, "):
        kernel("to_dense", *arrays, backend=backend)(*arrays, 3)
