"""Exact answers by sums over postings equal a dense product, and recall counts ties as hits."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from evals.search_bench.truth import Truth, exact_truths
from runtime.activations import SparseActivations


def random_rows(random: np.random.Generator, rows: int, units: int, density: float) -> SparseActivations:
    # Few different weights, so that scores tie.
    dense = random.integers(1, 4, (rows, units)) * (random.random((rows, units)) < density)
    return SparseActivations.from_dense(dense.astype(np.float32))


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 12))
def test_the_exact_top_k_is_all_that_scores_as_the_kth(seed: int, rows: int, k: int) -> None:
    random = np.random.default_rng(seed)
    documents, queries = random_rows(random, rows, 8, 0.4), random_rows(random, 3, 8, 0.5)
    truth = exact_truths(documents, queries, [k])[k]
    scores = queries.to_dense() @ documents.to_dense().T
    for row in range(3):
        matching = np.sort(scores[row][scores[row] > 0])[::-1]
        least = matching[min(k, len(matching)) - 1] if len(matching) else np.inf
        found = truth.documents[truth.indptr[row] : truth.indptr[row + 1]]
        assert found.tolist() == np.flatnonzero(scores[row] >= least).tolist()
        assert truth.recall(row, np.argsort(-scores[row], kind="stable")) == 1.0


def test_any_of_tied_documents_counts_and_never_more_than_k() -> None:
    truth = Truth(2, np.array([0, 4]), np.array([1, 5, 7, 9]))
    assert truth.recall(0, np.array([7, 9])) == 1.0
    assert truth.recall(0, np.array([7, 2])) == 0.5
    assert truth.recall(0, np.array([2, 3, 7, 9])) == 0.0
    assert truth.recall(0, np.array([], np.int64)) == 0.0


def test_a_query_that_matches_nothing_is_answered() -> None:
    truth = Truth(2, np.array([0, 0]), np.array([], np.int64))
    assert truth.recall(0, np.array([], np.int64)) == 1.0
