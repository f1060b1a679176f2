from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.activations import SparseActivations
from runtime.combine import combine, gather, grouped_matmul, score
from runtime.dispatch import dispatch
from runtime.errors import UsageError

BACKENDS = ["reference", "numba", "torch"]


def eighths(data: st.DataObject, *shape: int) -> np.ndarray[Any, Any]:
    """Small multiples of 1/8, whose products and sums are exact in float32."""
    size = int(np.prod(shape))
    drawn = data.draw(st.lists(st.integers(-16, 16), min_size=size, max_size=size))
    return (np.array(drawn, np.float32) / 8).reshape(shape)


def on(backend: str, array: Any) -> Any:
    if backend not in ("torch", "numba_tensors"):
        return array
    return array.torch() if isinstance(array, SparseActivations) else torch.from_numpy(array)


@pytest.mark.parametrize("backend", [*BACKENDS, "numba_tensors"])
@given(activations=st.from_type(SparseActivations), data=st.data())
def test_combine_weighs_and_adds_entries_to_their_rows(
    backend: str, activations: SparseActivations, data: st.DataObject
) -> None:
    width = data.draw(st.integers(0, 3))
    dispatched = dispatch(on(backend, activations), data.draw(st.none() | st.integers(0, 3)))
    values = eighths(data, len(dispatched.rows), width)
    expected = np.zeros((activations.num_rows, width), np.float32)
    for row, weight, value in zip(dispatched.rows, dispatched.weights, values, strict=True):
        expected[int(row)] += float(weight) * value
    combined = combine(on(backend, values), dispatched, backend=backend)
    np.testing.assert_array_equal(np.asarray(combined), expected)
    assert np.asarray(combined).dtype == np.float32
    for column in range(width):
        of_column = combine(on(backend, values[:, column].copy()), dispatched, backend=backend)
        np.testing.assert_array_equal(np.asarray(of_column), expected[:, column])


@pytest.mark.parametrize("backend", ["reference", "torch"])
@given(data=st.data())
def test_grouped_matmul_multiplies_each_group_with_its_matrix(backend: str, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 3), max_size=4))
    inner, outer = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    offsets = np.cumsum([0, *sizes]).astype(np.int64)
    values, matrices = eighths(data, sum(sizes), inner), eighths(data, len(sizes), inner, outer)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    expected = np.einsum("ni,nio->no", values, matrices[groups])
    product = grouped_matmul(
        on(backend, values), on(backend, offsets), on(backend, matrices), backend=backend
    )
    np.testing.assert_array_equal(np.asarray(product), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@given(documents=st.from_type(SparseActivations), data=st.data())
def test_score_is_the_dot_product_of_queries_and_documents(
    backend: str, documents: SparseActivations, data: st.DataObject
) -> None:
    pairs = st.tuples(st.integers(0, documents.num_units - 1), st.integers(-16, 16))
    rows = data.draw(st.lists(st.lists(pairs, max_size=4), max_size=3))
    queries = SparseActivations.from_rows(
        [([unit for unit, _ in row], [weight / 8 for _, weight in row]) for row in rows], documents.num_units
    )
    scores = score(on(backend, queries), on(backend, documents).transpose(), backend=backend)
    np.testing.assert_array_equal(np.asarray(scores), queries.to_dense() @ documents.to_dense().T)
    expected = np.float64 if documents.weights.dtype == np.float64 else np.float32
    assert np.asarray(scores).dtype == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_scoring_is_combining_postings_that_carry_the_query_weight(backend: str) -> None:
    documents = SparseActivations.from_rows([([0, 1], [1.0, 2.0]), ([1], [3.0]), ([], [])], 2)
    query = SparseActivations.from_rows([([0, 1], [5.0, 7.0])], 2)
    postings = dispatch(documents)
    carried = np.repeat(np.array([5.0, 7.0], np.float32), postings.load)
    scores = score(on(backend, query), on(backend, documents.transpose()), backend=backend)
    assert scores.tolist() == [combine(carried, postings).tolist()] == [[19.0, 21.0, 0.0]]


def test_integer_impacts_score_without_overflow() -> None:
    documents = SparseActivations(
        np.array([0, 1], np.int64), np.zeros(1, np.int32), np.array([200], np.uint8), 1
    )
    assert score(documents, documents.transpose()).tolist() == [[40000.0]]


def test_a_vocabulary_that_grew_is_scored_and_one_that_shrank_refused() -> None:
    query = SparseActivations.from_rows([([1], [2.0])], 2)
    documents = SparseActivations.from_rows([([1, 4], [3.0, 1.0])], 5)
    assert score(query, documents.transpose()).tolist() == [[6.0]]
    with pytest.raises(UsageError, match="5 units meet postings of 2"):
        score(documents, query.transpose())


def test_a_layer_of_experts_equals_its_loop_over_tokens_with_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(5, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    experts = torch.randn(4, 3, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    gates = torch.rand(5, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    chosen = torch.tensor([[0, 3], [3, 1], [0, 1], [3, 0], [1, 0]])  # expert 2 gets no token

    def layer(tokens: torch.Tensor, experts: torch.Tensor, gates: torch.Tensor) -> Any:
        routed = dispatch(SparseActivations.from_topk(chosen, gates, 4))
        return combine(grouped_matmul(gather(tokens, routed), routed.offsets, experts), routed)

    expected = torch.einsum("rk,ri,rkio->ro", gates, tokens, experts[chosen])
    torch.testing.assert_close(layer(tokens, experts, gates), expected)
    assert torch.autograd.gradcheck(layer, (tokens, experts, gates))


def test_values_in_half_precision_stay_in_it() -> None:
    gates = SparseActivations(torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([0.5]), 1)
    combined = combine(torch.ones(1, 2, dtype=torch.bfloat16), dispatch(gates))
    assert combined.dtype == torch.bfloat16
    half = SparseActivations.from_rows([([0], [0.5])], 1)
    assert combine(np.ones((1, 2), np.float16), dispatch(half)).tolist() == [[0.5, 0.5]]


def test_what_does_not_fit_is_a_usage_error() -> None:
    routed = dispatch(SparseActivations.from_rows([([0], [1.0])], 2))
    offsets, matrices = np.array([0, 1, 1], np.int64), np.ones((2, 3, 4), np.float32)
    with pytest.raises(UsageError, match="2 values for 1 rows"):
        gather(np.ones((2, 3)), routed)
    with pytest.raises(UsageError, match="of 1 entries"):
        combine(np.ones((2, 3)), routed)
    with pytest.raises(UsageError, match="floating"):
        combine(np.ones((1, 3), np.int64), routed)
    for values in (np.ones((2, 3), np.float32), np.ones((1, 2), np.float32), np.ones(1, np.float32)):
        with pytest.raises(UsageError, match=r"\[groups, in, out\]|number of entries"):
            grouped_matmul(values, offsets, matrices)
    with pytest.raises(UsageError, match="convert"):
        grouped_matmul(np.ones((1, 3)), offsets, matrices)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scoring_refuses_indices_out_of_range(backend: str) -> None:
    one = np.ones(1, np.float32)
    bounds = np.array([0, 1], np.int64)
    outside = SparseActivations(bounds, np.array([5], np.int32), one, 6)
    query = SparseActivations(bounds, np.array([0], np.int32), one, 1)
    lying = SparseActivations(bounds, outside.units, one, 2)
    with pytest.raises(ValueError, match=r"rows run from 5 to 5, but must lie in \[0, 2\)"):
        score(on(backend, query), on(backend, lying), backend=backend)
