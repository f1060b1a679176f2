"""Merges that go on while the writer does: nothing is lost, nothing comes back, readers see what was committed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import retrieval.index.merge
import retrieval.index.writer
from retrieval import IndexWriter, SparseIndex
from retrieval.index.manifest import read_manifest
from retrieval.index.merge_policy import MergePolicy
from runtime.activations import SparseActivations
from runtime.errors import LexpertError
from tests.oracles.brute_force import scores_of, top_k

NUM_UNITS = 16
EAGER = MergePolicy(segments_per_tier=2, max_deleted=0.2, max_postings=1 << 20, smallest=1)
NUMBERS = st.integers(0, 40)
VECTORS = st.dictionaries(st.integers(0, NUM_UNITS - 1), st.sampled_from([0.5, 1.0, 1.1]), max_size=4)
STEPS = st.one_of(
    st.tuples(st.just("add"), st.lists(st.tuples(NUMBERS, VECTORS), min_size=1, max_size=10)),
    st.tuples(st.just("delete"), st.lists(NUMBERS, max_size=5)),
    st.tuples(st.just("flush"), st.none()),
    st.tuples(st.just("commit"), st.none()),
    st.tuples(st.just("finish"), st.none()),
    st.tuples(st.just("merge"), st.none()),
    st.tuples(st.just("reopen"), st.none()),
)


def rows_of(vectors: list[dict[int, float]]) -> SparseActivations:
    rows = [(sorted(vector), [vector[unit] for unit in sorted(vector)]) for vector in vectors]
    return SparseActivations.from_rows(rows, NUM_UNITS)


def check(path: Path, documents: dict[str, dict[int, float]]) -> None:
    """The index holds exactly these documents, in this order, and ranks them as the oracle does."""
    queries: list[dict[int, float]] = [{0: 1.0, 3: 0.5, 7: 1.0}, dict.fromkeys(range(NUM_UNITS), 1.0)]
    with SparseIndex.open(path) as index:
        index.verify()
        assert index.num_documents == len(documents)
        hits = index.search(rows_of(queries), k=50)
        ids, vectors = list(documents), rows_of(list(documents.values()))
        for row, query in enumerate(queries):
            places, scores = top_k(
                scores_of(next(iter(rows_of([query]))), vectors), 50, np.ones(len(ids), bool)
            )
            assert hits.ids[row] == [ids[place] for place in places]
            assert hits.scores[row].tolist() == scores.tolist()
        for number in map(str, range(41)):
            stored = index.document(number)
            assert stored == ({"_id": number, "year": int(number)} if number in documents else None)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEPS, min_size=1, max_size=14), st.booleans())
def test_any_history_with_merges_going_on_equals_the_model(
    number_encoder: Any, steps: Any, small_windows: bool
) -> None:
    model: dict[str, dict[int, float]] = {}
    committed: dict[str, dict[int, float]] = {}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        if small_windows:
            patch.setattr(retrieval.index.merge, "WINDOW_POSTINGS", 5)
        path = Path(folder) / "index"
        writer = IndexWriter.create(path, encoder=number_encoder, fields={"year": "int"}, merge_policy=EAGER)
        writer.commit()
        for step, argument in steps:
            if step == "add":
                ids = [str(number) for number, _ in argument]
                for identifier, (_, vector) in zip(ids, argument, strict=True):
                    model.pop(identifier, None)
                    model[identifier] = vector
                vectors = rows_of([vector for _, vector in argument])
                writer.add_vectors(ids, vectors, [{"year": number} for number, _ in argument])
            elif step == "delete":
                ids = [str(number) for number in argument]
                assert writer.delete(ids) == len(set(ids) & set(model))
                model = {name: vector for name, vector in model.items() if name not in ids}
            elif step == "flush":
                writer._flush()
            elif step == "reopen":
                writer.close()
                writer = IndexWriter.open(path, merge_policy=EAGER)
                model = dict(committed)
            else:
                {"commit": writer.commit, "finish": writer.finish_merges, "merge": writer.merge}[step]()
                committed = dict(model)
                if step != "commit":
                    assert not writer.is_merging
                check(path, committed)
        writer.close()
        check(path, committed)


def test_documents_deleted_and_replaced_while_a_merge_goes_on_do_not_come_back(
    number_encoder: Any, tmp_path: Path
) -> None:
    path = tmp_path / "index"
    writer = IndexWriter.create(path, encoder=number_encoder, merge_policy=EAGER)
    for start in (0, 10):
        writer.add_vectors([str(number) for number in range(start, start + 10)], rows_of([{1: 1.0}] * 10))
        writer.commit()
    assert writer.is_merging  # it began with the commit, done or not, and enters with the next one
    writer.delete(["3", "13"])
    writer.add_vectors(["5"], rows_of([{1: 2.0}]))
    writer.finish_merges()
    writer.close()
    assert len(read_manifest(path).segments) == 1
    left = [str(number) for number in range(20) if number not in (3, 5, 13)]
    with SparseIndex.open(path) as index:
        assert index.search(rows_of([{1: 1.0}]), k=30).ids[0] == ["5", *left]


def test_twenty_commits_with_deletes_are_searchable_at_once_and_merge_to_few_segments(
    number_encoder: Any, tmp_path: Path
) -> None:
    generator = np.random.default_rng(5)
    path = tmp_path / "index"
    documents: dict[str, dict[int, float]] = {}
    unmerged = IndexWriter.create(path, encoder=number_encoder, fields={"year": "int"}, merge_policy=None)
    for commit in range(20):
        ids = [str(2 * commit), str(2 * commit + 1)]
        vectors = [
            {int(unit): 0.5 + commit % 3 for unit in generator.permutation(NUM_UNITS)[:5]} for _ in ids
        ]
        unmerged.add_vectors(ids, rows_of(vectors), [{"year": int(identifier)} for identifier in ids])
        documents.update(zip(ids, vectors, strict=True))
        if commit % 5 == 4:
            unmerged.delete([str(commit)])
            documents.pop(str(commit), None)
        unmerged.commit()
        check(path, documents)
    assert unmerged.num_segments == 20
    unmerged.close()
    deleted = [str(number) for number in range(0, 40, 3)]
    for identifier in deleted:
        documents.pop(identifier, None)
    with IndexWriter.open(path, merge_policy=MergePolicy(smallest=1 << 16)) as writer:
        writer.delete(deleted)
        writer.commit()
        check(path, documents)
    manifest = read_manifest(path)
    assert len(manifest.segments) == 1
    assert [segment.deletes for segment in manifest.segments] == [None]
    check(path, documents)


def test_a_failed_merge_loses_nothing_and_is_reported_once(
    number_encoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "index"
    writer = IndexWriter.create(path, encoder=number_encoder, fields={"year": "int"}, merge_policy=EAGER)

    def fails(*_: Any, **__: Any) -> None:
        raise LexpertError("no space left to write it")

    with monkeypatch.context() as patch:
        patch.setattr(retrieval.index.writer, "merge_segments", fails)
        documents: dict[str, dict[int, float]] = {}
        for number in range(4):
            documents[str(number)] = {number: 1.0}
            writer.add_vectors([str(number)], rows_of([documents[str(number)]]), [{"year": number}])
            writer.commit()
        check(path, documents)
        with pytest.raises(LexpertError, match="no space left"):
            writer.finish_merges()
    check(path, documents)
    writer.delete(["1"])
    del documents["1"]
    writer.finish_merges()
    writer.close()
    assert len(read_manifest(path).segments) == 1
    check(path, documents)


def test_a_reader_keeps_its_commit_while_segments_are_merged_away(
    number_encoder: Any, tmp_path: Path
) -> None:
    path = tmp_path / "index"
    with IndexWriter.create(path, encoder=number_encoder, merge_policy=EAGER) as writer:
        for number in range(6):
            writer.add_vectors([str(number)], rows_of([{1: 1.0}]))
            writer.commit()
            with SparseIndex.open(path) as index:
                writer.finish_merges()
                assert index.search(rows_of([{1: 1.0}])).ids[0] == [str(one) for one in range(number + 1)]


def test_vectors_may_be_changed_once_they_are_added(number_encoder: Any, tmp_path: Path) -> None:
    vectors = rows_of([{1: 1.0, 2: 2.0}])
    with IndexWriter.create(tmp_path / "index", encoder=number_encoder) as writer:
        writer.add_vectors(["a"], vectors)
        vectors.weights[:] = 7.0
        vectors.units[:] = 9
    with SparseIndex.open(tmp_path / "index") as index:
        assert index.search(rows_of([{1: 1.0, 2: 1.0}])).scores[0].tolist() == [3.0]
