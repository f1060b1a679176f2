"""Generated vectors: reproducible in any order, and distributed as those of SPLADE."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from evals.search_bench.real_passages import real_queries
from evals.search_bench.splade_like import NUM_TERMS, SpladeLike
from evals.search_bench.truth import exact_truths
from evals.search_bench.vector_statistics import postings_touched, term_frequencies, vector_statistics
from runtime.activations import SparseActivations

DOCUMENTS = 3000


@pytest.fixture(scope="module")
def world() -> SpladeLike:
    return SpladeLike(seed=0)


@pytest.fixture(scope="module")
def documents(world: SpladeLike) -> SparseActivations:
    return world.documents(0, DOCUMENTS)


@pytest.fixture(scope="module")
def queries(world: SpladeLike) -> SparseActivations:
    return world.queries(1000, DOCUMENTS)


def test_a_document_is_the_same_in_every_chunk(world: SpladeLike, documents: SparseActivations) -> None:
    part = world.documents(1000, 1010)
    of_all = documents[1000:1010]
    assert np.array_equal(part.indptr, of_all.indptr)
    assert np.array_equal(part.units, of_all.units)
    assert np.array_equal(part.weights, of_all.weights)


def test_the_chunks_make_the_whole(world: SpladeLike, documents: SparseActivations) -> None:
    chunks = list(world.document_chunks(DOCUMENTS))
    assert sum(chunk.num_rows for chunk in chunks) == DOCUMENTS
    assert np.array_equal(np.concatenate([chunk.units for chunk in chunks]), documents.units)


def test_another_seed_gives_another_world(documents: SparseActivations) -> None:
    other = SpladeLike(seed=1).documents(0, 10)
    assert not np.array_equal(other.units[:50], documents.units[:50])


@pytest.mark.parametrize("kind", ["documents", "queries"])
def test_rows_are_ascending_distinct_and_positive(kind: str, request: pytest.FixtureRequest) -> None:
    vectors: SparseActivations = request.getfixturevalue(kind)
    assert vectors.num_units == NUM_TERMS
    assert vectors.weights.dtype == np.float32
    assert np.isfinite(vectors.weights).all()
    assert (vectors.weights > 0).all()
    for units, _ in vectors:
        assert (np.diff(units) > 0).all()


def test_documents_are_distributed_as_published(documents: SparseActivations) -> None:
    """119 non-zeros a document, three quarters of the mass in the 50 largest (Bruch et al. 2024)."""
    found = vector_statistics(documents)
    assert found.nnz_mean == pytest.approx(119, abs=5)
    assert found.mass_at[50] == pytest.approx(0.75, abs=0.03)
    assert found.frequency_at[1] > 3 * found.frequency_at[100] > 9 * found.frequency_at[1000]


def test_queries_are_distributed_as_those_of_splade(queries: SparseActivations, shared: Path) -> None:
    real = vector_statistics(real_queries(shared / "data", "ed", 6980))
    made = vector_statistics(queries)
    assert made.nnz_mean == pytest.approx(real.nnz_mean, abs=2)
    assert made.nnz_std == pytest.approx(real.nnz_std, rel=0.15)
    for number, share in real.mass_at.items():
        assert made.mass_at[number] == pytest.approx(share, abs=0.04)
    for rank in (1, 10, 100, 1000):
        assert made.frequency_at[rank] == pytest.approx(real.frequency_at[rank], rel=0.35)


def test_a_query_is_about_its_document(documents: SparseActivations, world: SpladeLike) -> None:
    about = np.random.default_rng((0, 1)).choice(DOCUMENTS, 100, replace=False)
    truth = exact_truths(documents, world.queries(100, DOCUMENTS), [10])[10]
    found = [truth.recall(row, np.array([document])) > 0 for row, document in enumerate(about)]
    assert np.mean(found) > 0.9


def test_the_work_of_a_query_is_that_of_splade(
    documents: SparseActivations, queries: SparseActivations
) -> None:
    dense = np.zeros((DOCUMENTS, NUM_TERMS), bool)
    rows = np.repeat(np.arange(DOCUMENTS), np.diff(documents.indptr))
    dense[rows, documents.units] = True
    share = dense.mean(axis=0)
    assert np.allclose(share, term_frequencies(documents))
    assert postings_touched(documents, queries) == pytest.approx(float(share @ term_frequencies(queries)))
    assert 1.5 < postings_touched(documents, queries) < 4


def test_statistics_of_a_small_batch() -> None:
    vectors = SparseActivations(
        np.array([0, 2, 3]), np.array([0, 4, 4], np.int32), np.array([3, 1, 5], np.float32), 6
    )
    found = vector_statistics(vectors)
    assert (found.nnz_mean, found.nnz_std, found.terms) == (1.5, 0.5, 2)
    assert found.mass_at[1] == pytest.approx((0.75 + 1) / 2)
    assert found.frequency_at[1] == 1.0


def test_real_queries_have_the_weights_of_the_file(shared: Path) -> None:
    data = shared / "data"
    with gzip.open(data / "sparse-queries/msmarco-passage.dev-subset.unicoil.jsonl.gz", "rt") as lines:
        first = json.loads(next(lines))["vector"]
    vocabulary = (data / "sparse-queries/bert-base-uncased.vocab.txt").read_text("utf-8").splitlines()
    units, weights = next(iter(real_queries(data, "unicoil", 10)))
    found = dict(zip([vocabulary[unit] for unit in units], weights.tolist(), strict=True))
    assert found == first
