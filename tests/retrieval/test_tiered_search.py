"""The tiers layout against the brute-force oracle: all modes and codecs, over segments, deletes and filters."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import retrieval.index.merge
import retrieval.search.batch
import retrieval.search.traversal
from retrieval import IndexWriter, SparseIndex
from retrieval.encoders.precomputed import PrecomputedEncoder
from retrieval.search.counters import SearchCounters
from runtime.activations import SparseActivations
from runtime.errors import UsageError
from tests.oracles.brute_force import scores_of, top_k

NUM_UNITS = 24


def random_vectors(generator: np.random.Generator, rows: int, most: int, weights: str) -> SparseActivations:
    """Skewed units; weights are few (ties everywhere), ordinary, or of very different sizes."""
    popularity = 1 / np.arange(1, NUM_UNITS + 1)
    made = []
    for _ in range(rows):
        size = int(generator.integers(0, most + 1))
        units = generator.choice(NUM_UNITS, size, replace=False, p=popularity / popularity.sum())
        values = {
            "few": lambda size: generator.choice([0.5, 1.0, 2.0], size),
            "ordinary": lambda size: generator.gamma(1.0, 1.0, size) + 0.01,
            "extreme": lambda size: 10.0 ** generator.uniform(-8, 8, size),
        }[weights](size)
        made.append((sorted(units.tolist()), values.tolist()))
    return SparseActivations.from_rows(made, NUM_UNITS)


def stored_rows(index: SparseIndex) -> tuple[SparseActivations, NDArray[np.bool_]]:
    """What an index holds, decoded, by row; and which rows are alive."""
    windows, alive = [], []
    for segment in index.segments:
        windows += [segment.window_rows(window, NUM_UNITS) for window in range(segment.num_windows)]
        alive.append(~segment.deleted)
    none = SparseActivations.from_rows([], NUM_UNITS)
    return SparseActivations.concat([none, *windows]), np.concatenate([np.zeros(0, np.bool_), *alive])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(1, 150), min_size=1, max_size=4),
    weights=st.sampled_from(["few", "ordinary", "extreme"]),
    codec=st.sampled_from(["float32", "uint8"]),
    k=st.sampled_from([1, 3, 10, 200]),
    window_postings=st.sampled_from([40, 200, 1 << 20]),
    deleted=st.sampled_from([0.0, 0.1, 0.9]),
    is_filtered=st.booleans(),
    merged=st.sampled_from(["all", "some", "none"]),
)
def test_every_mode_equals_the_oracle(
    seed: int, sizes: list[int], weights: str, codec: str, k: int, window_postings: int, deleted: float,
    is_filtered: bool, merged: str,
) -> None:  # fmt: skip
    generator = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval.index.merge, "TIERED_DOCUMENTS", 1)
        patch.setattr(retrieval.index.merge, "WINDOW_POSTINGS", window_postings)
        patch.setattr(retrieval.search.batch, "DOCUMENTS_PER_RESULT", 0)
        path = Path(folder) / "index"
        with IndexWriter.create(
            path, encoder=PrecomputedEncoder(num_units=NUM_UNITS), fields={"part": "int"}, impacts=codec
        ) as writer:
            count = 0
            for place, size in enumerate(sizes):
                ids = [str(count + row) for row in range(size)]
                vectors = random_vectors(generator, size, 12, weights)
                writer.add_vectors(ids, vectors, [{"_id": i, "part": int(i) % 3} for i in ids])
                count += size
                writer.commit()
                if merged == "some" and place == len(sizes) // 2:
                    writer.merge()
            writer.delete([str(row) for row in range(count) if generator.random() < deleted])
            if merged == "all":
                writer.merge()
        condition: Any = {"field": "part", "eq": 1} if is_filtered else None
        queries = random_vectors(generator, 6, 10, weights)
        with SparseIndex.open(path) as index:
            rows, allowed = stored_rows(index)
            ids = [index.segments[part].ids[row] for part, row in places(index)]
            if is_filtered:
                allowed &= np.array([int(identifier) % 3 == 1 for identifier in ids], np.bool_)
            found = [
                index.search(queries, k, filter=condition, mode=mode, threads=threads)
                for mode in ("exact", "exhaustive")
                for threads in (1, 2)
            ]
            if weights != "extreme":  # whose sums are too coarse to tell small documents from nothing
                # All postings added up, and more candidates than documents: nothing is out of reach.
                patch.setattr(
                    retrieval.search.traversal.Traversal, "num_candidates", lambda *_: max(count, k)
                )
                found.append(index.search(queries, k, filter=condition, effort=1.0))
            for row, query in enumerate(queries):
                best, scores = top_k(scores_of(query, rows), k, allowed)
                for hits in found:
                    assert hits.scores[row].tolist() == scores.tolist()
                    assert hits.ids[row] == [ids[place] for place in best]


def places(index: SparseIndex) -> list[tuple[int, int]]:
    return [
        (part, row) for part, segment in enumerate(index.segments) for row in range(segment.num_documents)
    ]


@pytest.fixture(scope="module", params=["float32", "uint8"])
def large(request: Any, tmp_path_factory: Any) -> tuple[SparseIndex, SparseActivations]:
    """12,000 documents in one segment of two windows, and what it holds."""
    path = tmp_path_factory.mktemp("tiered") / "index"
    generator = np.random.default_rng(3)
    num_units, count, size = 400, 12_000, 20
    units = np.minimum(generator.zipf(1.3, (count, size)) - 1, num_units - 1).astype(np.int32)
    weights = generator.gamma(1.0, 1.0, (count, size)).astype(np.float32) + np.float32(0.05)
    indptr = np.arange(0, count * size + 1, size, dtype=np.int64)
    vectors = SparseActivations(indptr, units.ravel(), weights.ravel(), num_units).coalesce()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval.index.merge, "WINDOW_POSTINGS", vectors.nnz // 3 + 20)
        with IndexWriter.create(
            path, encoder=PrecomputedEncoder(num_units=num_units), impacts=request.param
        ) as writer:
            writer.add_vectors([str(row) for row in range(count)], vectors)
            writer.commit()
            writer.add_vectors(["last"], vectors[:1])
            writer.merge()
    index = SparseIndex.open(path)
    (segment,) = index.segments
    assert segment.entry.layout == "tiers"
    assert segment.num_windows == 2
    rows = SparseActivations.concat([segment.window_rows(w, num_units) for w in range(segment.num_windows)])
    return index, rows


def queries_like(rows: SparseActivations, count: int) -> SparseActivations:
    """A third of the units of some documents, with other weights."""
    generator = np.random.default_rng(4)
    made = []
    for row in generator.integers(0, rows.num_rows, count).tolist():
        units = rows[row : row + 1].units[::3]
        made.append((units.tolist(), generator.gamma(2.0, 1.0, len(units)).tolist()))
    return SparseActivations.from_rows(made, rows.num_units)


@pytest.mark.parametrize("k", [1, 10, 100, 5000])
def test_proofs_hold_and_fall_back(
    large: tuple[SparseIndex, SparseActivations], k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, rows = large
    monkeypatch.setattr(retrieval.search.batch, "DOCUMENTS_PER_RESULT", 0)
    queries = queries_like(rows, 8)
    counters = SearchCounters()
    exact = index.search(queries, k, counters=counters)
    exhaustive = index.search(queries, k, mode="exhaustive")
    for row, query in enumerate(queries):
        best, scores = top_k(scores_of(query, rows), k, np.ones(rows.num_rows, bool))
        assert exact.scores[row].tolist() == exhaustive.scores[row].tolist() == scores.tolist()
        assert exact.ids[row] == exhaustive.ids[row]
        assert exact.ids[row] == ["last" if place == 12_000 else str(place) for place in best]
    # Both ways are taken: few results are proved, many are found by adding up everything.
    assert counters.queries == 8
    assert (counters.exhaustive < 8) if k <= 10 else True
    assert (counters.exhaustive == 8) if k == 5000 else True


def test_more_effort_finds_more(large: tuple[SparseIndex, SparseActivations]) -> None:
    index, rows = large
    queries = queries_like(rows, 50)
    exact = index.search(queries, 10)
    recalls = []
    for effort in (0.01, 0.1, 1.0):
        found = index.search(queries, 10, effort=effort)
        recalls.append(np.mean([len({*a} & {*b}) / 10 for a, b in zip(found.ids, exact.ids, strict=True)]))
        for row in range(len(queries)):  # what is found has its exact score
            scores = dict(zip(exact.ids[row], exact.scores[row].tolist(), strict=True))
            for identifier, score in zip(found.ids[row], found.scores[row].tolist(), strict=True):
                assert scores.get(identifier, score) == score
    assert recalls[0] <= recalls[1] + 0.02 <= recalls[2] + 0.04
    assert recalls[2] > 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "fast"}, "mode is 'fast'"),
        ({"mode": "exact", "effort": 0.5}, "effort is for approximate searches"),
        ({"mode": "exhaustive", "target_recall": 0.5}, "target_recall is for approximate searches"),
        ({"effort": 0.0}, "effort is 0.0"),
        ({"effort": 1.5}, "effort is 1.5"),
        ({"target_recall": 2.0}, "target_recall is 2.0"),
        ({"effort": 0.5, "target_recall": 0.9}, "not both"),
        ({"target_recall": 0.9}, "not calibrated"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    large: tuple[SparseIndex, SparseActivations], options: dict[str, Any], message: str
) -> None:
    index, rows = large
    with pytest.raises(UsageError, match=message):
        index.search(queries_like(rows, 1), 10, **options)


def test_weights_of_any_size_are_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole-number sums have a scale; where it leaves float32's range, everything is added up instead."""
    monkeypatch.setattr(retrieval.index.merge, "TIERED_DOCUMENTS", 1)
    monkeypatch.setattr(retrieval.search.batch, "DOCUMENTS_PER_RESULT", 0)
    tiny = [([0], [1e-37 * (1 + row / 4000)]) if row % 200 == 0 else ([], []) for row in range(4000)]
    rows = [
        (units + [1] * (row % 100 == 1), weights + [0.5 - row / 40_000] * (row % 100 == 1))
        for row, (units, weights) in enumerate(tiny)
    ]
    documents = SparseActivations.from_rows(rows, 2)
    with IndexWriter.create(tmp_path / "index", encoder=PrecomputedEncoder(num_units=2)) as writer:
        writer.add_vectors([str(row) for row in range(4000)], documents)
        writer.merge()
    with SparseIndex.open(tmp_path / "index", warm=True) as index:
        for weights in ([1e37, 1.0], [1e-35, 1e-36], [1e-38, 1.0], [1e30, 1e30]):
            query = SparseActivations.from_rows([([0, 1], weights)], 2)
            best, scores = top_k(scores_of(next(iter(query)), documents), 5, np.ones(4000, bool))
            found = index.search(query, 5)
            assert found.scores[0].tolist() == scores.tolist()
            assert found.ids[0] == [str(row) for row in best]


@pytest.mark.parametrize("kept", [0.005, 0.05, 0.5])
def test_approximate_search_finds_enough_under_a_filter(tmp_path: Path, kept: float) -> None:
    generator = np.random.default_rng(8)
    count, num_units = 9_000, 200
    units = np.minimum(generator.zipf(1.3, (count, 15)) - 1, num_units - 1).astype(np.int32)
    weights = generator.gamma(1.0, 1.0, (count, 15)).astype(np.float32) + np.float32(0.05)
    indptr = np.arange(0, count * 15 + 1, 15, dtype=np.int64)
    vectors = SparseActivations(indptr, units.ravel(), weights.ravel(), num_units).coalesce()
    with IndexWriter.create(
        tmp_path / "index", encoder=PrecomputedEncoder(num_units=num_units), fields={"kept": "int"}
    ) as writer:
        ids = [str(row) for row in range(count)]
        documents = [{"_id": i, "kept": int(generator.random() < kept)} for i in ids]
        writer.add_vectors(ids, vectors, documents)
        writer.merge()
    condition = {"field": "kept", "eq": 1}
    with SparseIndex.open(tmp_path / "index") as index:
        queries = queries_like(vectors, 30)
        exact = index.search(queries, 20, filter=condition)
        found = index.search(queries, 20, filter=condition, effort=0.2)
        assert [len(ids) for ids in found.ids] == [len(ids) for ids in exact.ids]
        pairs = zip(found.ids, exact.ids, strict=True)
        assert np.mean([len({*a} & {*b}) / max(1, len(b)) for a, b in pairs]) > 0.85


def test_impacts_are_rounded_once_however_often_they_are_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval.index.merge, "TIERED_DOCUMENTS", 1)
    generator = np.random.default_rng(12)
    for largest in generator.uniform(3, 6, 20).astype(np.float32).tolist():
        folder = tmp_path / str(largest)
        weights = np.concatenate([[largest], generator.uniform(0.01, largest / 2, 99)]).astype(np.float32)
        vectors = SparseActivations(
            np.arange(0, 101, 1, dtype=np.int64), np.zeros(100, np.int32), weights, NUM_UNITS
        )
        with IndexWriter.create(
            folder, encoder=PrecomputedEncoder(num_units=NUM_UNITS), impacts="uint8"
        ) as writer:
            writer.add_vectors([str(row) for row in range(100)], vectors)
            writer.merge()
            kept = []
            for deleted in ("99", "0", "98"):  # the largest impact among them
                writer.delete([deleted])
                writer.merge()
                with SparseIndex.open(folder) as index:
                    kept.append(index.segments[0].window_rows(0, NUM_UNITS).weights)
        assert kept[0][1:].tolist() == kept[1].tolist()
        assert kept[1][:-1].tolist() == kept[2].tolist()
