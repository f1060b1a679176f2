"""The index against the brute-force oracle: any mixture of commits, replacements, deletes, merges and filters."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import retrieval.index.merge
import retrieval.index.sparse_index
import retrieval.search.batch
from retrieval import IndexWriter, SparseIndex
from retrieval.search.explain import TermShare
from runtime.activations import SparseActivations
from runtime.errors import InputError, NotFoundError, UsageError
from tests.oracles.brute_force import scores_of, top_k

NUM_UNITS = 16
# Few distinct weights, so that ties are everywhere.
WEIGHTS = st.sampled_from([0.25, 0.5, 1.0, 1.1, 2.0])
VECTORS = st.dictionaries(st.integers(0, NUM_UNITS - 1), WEIGHTS, max_size=6)
STEPS = st.one_of(
    st.tuples(st.just("add"), st.lists(st.tuples(st.integers(0, 30), VECTORS), min_size=1, max_size=12)),
    st.tuples(st.just("delete"), st.lists(st.integers(0, 30), max_size=4)),
    st.tuples(st.just("commit"), st.none()),
    st.tuples(st.just("merge"), st.none()),
    st.tuples(st.just("reopen"), st.none()),
)


def text_of(vector: dict[int, float]) -> str:
    return " ".join(f"{unit}:{weight}" for unit, weight in vector.items())


def rows_of(vectors: Sequence[dict[int, float]]) -> SparseActivations:
    rows = [(sorted(vector), [vector[unit] for unit in sorted(vector)]) for vector in vectors]
    return SparseActivations.from_rows(rows, NUM_UNITS)


class Model:
    """What the index should hold: documents in the order in which they were last added."""

    def __init__(self) -> None:
        self.documents: dict[str, dict[int, float]] = {}

    def add(self, identifier: str, vector: dict[int, float]) -> None:
        self.documents.pop(identifier, None)
        self.documents[identifier] = vector

    def search(self, query: dict[int, float], k: int, allowed: Any) -> tuple[list[str], list[float]]:
        ids = list(self.documents)
        vectors = rows_of(list(self.documents.values()))
        mask = np.array([allowed(identifier) for identifier in ids], bool)
        rows, scores = top_k(scores_of(next(iter(rows_of([query]))), vectors), k, mask)
        return [ids[row] for row in rows], scores.tolist()


def year_of(identifier: str) -> int | None:
    number = int(identifier)
    return None if number % 7 == 0 else 2000 + number % 5


def language_of(identifier: str) -> str:
    return ("en", "de", "日本")[int(identifier) % 3]


FILTERS: list[tuple[Any, Any]] = [
    (None, lambda _: True),
    ({"field": "year", "gte": 2002}, lambda i: (year_of(i) or 0) >= 2002),
    ({"field": "lang", "in": ["en", "日本", "xx"]}, lambda i: language_of(i) != "de"),
    ({"field": "year", "exists": False}, lambda i: year_of(i) is None),
    (
        {"all": [{"field": "year", "gt": 2000, "lt": 2004}, {"not": {"field": "lang", "eq": "en"}}]},
        lambda i: 2000 < (year_of(i) or 0) < 2004 and language_of(i) != "en",
    ),
    ({"any": [{"field": "year", "in": [2001]}, {"field": "lang", "eq": "de"}]},
     lambda i: year_of(i) == 2001 or language_of(i) == "de"),
    ({"any": []}, lambda _: False),
    ({"all": []}, lambda _: True),
]  # fmt: skip


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(
    st.lists(STEPS, min_size=1, max_size=10),
    st.lists(VECTORS, min_size=1, max_size=4),
    st.integers(1, 40),
    st.sampled_from(FILTERS),
    st.booleans(),
    st.booleans(),
)
def test_search_equals_the_oracle_after_any_history(
    number_encoder: Any, steps: Any, queries: Any, k: int, chosen: Any, split: bool, tiered: bool
) -> None:
    condition, allowed = chosen
    committed, model = Model(), Model()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        if split:  # single queries are divided among threads only on large indexes
            patch.setattr(retrieval.index.sparse_index, "SPLIT_POSTINGS", -1)
        if tiered:  # as merged segments of many documents are
            patch.setattr(retrieval.index.merge, "TIERED_DOCUMENTS", 1)
            patch.setattr(retrieval.search.batch, "DOCUMENTS_PER_RESULT", 0)
        path = Path(folder) / "index"
        fields = {"year": "int", "lang": "keyword"}
        writer = IndexWriter.create(path, encoder=number_encoder, fields=fields)
        writer.commit()
        for step, argument in steps:
            if step == "add":
                for number, vector in argument:
                    model.add(str(number), vector)
                writer.add(
                    {"_id": str(n), "text": text_of(v), "year": year_of(str(n)), "lang": language_of(str(n))}
                    for n, v in argument
                )
            elif step == "delete":
                there = {str(number) for number in argument} & set(model.documents)
                assert writer.delete([str(number) for number in argument]) == len(there)
                for identifier in there:
                    del model.documents[identifier]
            else:
                if step == "commit":
                    writer.commit()
                elif step == "merge":
                    writer.merge()
                    assert writer.num_segments <= 1
                else:  # what was not committed is given up
                    writer.close()
                    writer = IndexWriter.open(path)
                    model.documents = dict(committed.documents)
                committed.documents = dict(model.documents)
        writer.close()
        with SparseIndex.open(path) as index:
            index.verify()
            assert index.num_documents == len(committed.documents)
            hits = index.search([text_of(query) for query in queries], k, filter=condition)
            again = index.search(rows_of(queries), k, filter=condition, threads=1, mode="exhaustive")
            for row, query in enumerate(queries):
                ids, scores = committed.search(query, k, allowed)
                assert hits.ids[row] == again.ids[row] == ids
                assert hits.scores[row].tolist() == again.scores[row].tolist() == scores
                for identifier, score in zip(ids, scores, strict=True):
                    explanation = index.explain(text_of(query), identifier)
                    assert explanation.score == score == sum(share.share for share in explanation.shares)
            for identifier in map(str, range(31)):
                document = index.document(identifier)
                if identifier not in committed.documents:
                    assert document is None
                else:
                    year = {} if year_of(identifier) is None else {"year": year_of(identifier)}
                    text = text_of(committed.documents[identifier])
                    stored = {"_id": identifier, "lang": language_of(identifier), **year}
                    assert document == stored | ({"text": text} if text else {})


def test_windows_of_large_segments_are_all_searched(number_encoder: Any, tmp_path: Path) -> None:
    """Three windows in one segment, ties across their borders, deletes, and a merge that moves the borders."""
    generator = np.random.default_rng(1)
    count = 2 * 65536 + 1000
    units = generator.integers(0, NUM_UNITS, (count, 2))
    vectors = SparseActivations(
        np.arange(0, 2 * count + 1, 2, dtype=np.int64),
        units.reshape(-1).astype(np.int32),
        generator.choice(np.array([0.5, 1.0, 1.5], np.float32), 2 * count),
        NUM_UNITS,
    ).coalesce()
    with IndexWriter.create(tmp_path / "index", encoder=number_encoder) as writer:
        writer.add_vectors([str(row) for row in range(count)], vectors)
    alive = np.ones(count, bool)

    def check() -> None:
        dense = vectors.to_dense()
        with SparseIndex.open(tmp_path / "index") as index:
            for query in ({3: 1.0, 7: 0.5}, {0: 1.0}):
                scores = np.zeros(count, np.float32)
                for unit, weight in sorted(query.items()):
                    scores += np.float32(weight) * dense[:, unit]
                scores[~alive] = 0
                order = np.lexsort((np.arange(count), -scores))
                for k in (10, 1000, count):
                    hits = index.search([text_of(query)], k)
                    expected = order[: min(k, np.count_nonzero(scores))]
                    assert hits.ids[0] == [str(row) for row in expected]
                    assert np.array_equal(hits.scores[0], scores[expected])

    check()
    alive[::3] = False
    with IndexWriter.open(tmp_path / "index") as writer:
        assert writer.delete([str(row) for row in range(0, count, 3)]) == np.count_nonzero(~alive)
    check()
    with IndexWriter.open(tmp_path / "index") as writer:
        writer.merge()
    check()


def test_bad_requests_are_one_sentence(number_encoder: Any, tmp_path: Path) -> None:
    with IndexWriter.create(tmp_path / "index", encoder=number_encoder, fields={"year": "int"}) as writer:
        writer.add([{"_id": "a", "text": "1:1", "year": 1999}])
    index = SparseIndex.open(tmp_path / "index")
    with pytest.raises(UsageError, match="k is 0"):
        index.search(["1:1"], 0)
    with pytest.raises(UsageError, match="list of one"):
        index.search("1:1")
    with pytest.raises(NotFoundError, match="no document 'z'"):
        index.explain("1:1", "z")
    for condition in (
        {"field": "yaer", "eq": 1},
        {"field": "year", "eq": "1999"},
        {"field": "year", "like": 1},
        {"field": "year"},
        {"year": 1999},
        {"all": {"field": "year", "eq": 1}},
        {"any": [1]},
        {"field": ["year"], "eq": 1},
        [],
        {"field": "year", "in": 1999},
        {"field": "year", "exists": 1},
    ):
        with pytest.raises(UsageError, match=r"filter|field"):
            index.search(["1:1"], filter=condition)  # type: ignore[arg-type]
    for weight in (-1.0, np.nan, np.inf):
        with pytest.raises(InputError, match="weight"):
            index.search(SparseActivations.from_rows([([1], [weight])], NUM_UNITS))
    with pytest.raises(InputError, match="unit 99"):
        index.search(SparseActivations.from_rows([([99], [1.0])], 100))


def test_an_explanation_names_all_terms_of_both_sides(number_encoder: Any, tmp_path: Path) -> None:
    with IndexWriter.create(tmp_path / "index", encoder=number_encoder) as writer:
        writer.add([{"_id": "a", "text": "1:0.5 3:2 9:1"}, {"_id": "b", "text": "1:4"}])
    with SparseIndex.open(tmp_path / "index") as index:
        explanation = index.explain("3:1 1:2 4:7", "a")
        assert explanation.shares == [TermShare("u3", 1.0, 2.0, 2.0), TermShare("u1", 2.0, 0.5, 1.0)]
        assert explanation.score == 3.0
        assert explanation.query_terms == [("u4", 7.0), ("u1", 2.0), ("u3", 1.0)]
        assert explanation.document_terms == [("u3", 2.0), ("u9", 1.0), ("u1", 0.5)]
        nothing = index.explain("4:1", "b")
        assert (nothing.score, nothing.shares) == (0.0, [])
