"""What a long-lived writer needs: deleting by filter, publishing merges without waiting, copies of a commit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import IndexWriter, SparseEncoder, SparseIndex
from retrieval.index.merge_policy import MergePolicy
from retrieval.index.snapshot import copy_commit
from runtime.errors import InputError, UsageError

FIELDS = {"year": "int", "lang": "keyword"}


def document(number: int, **values: Any) -> dict[str, Any]:
    return {"_id": f"d{number}", "text": f"word{number} common", **values}


def ids(folder: Path) -> set[str]:
    with SparseIndex.open(folder) as index:
        return {
            segment.ids[row]
            for segment in index.segments
            for row in range(segment.num_documents)
            if not segment.deleted[row]
        }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "index"


def create(folder: Path, **options: Any) -> IndexWriter:
    return IndexWriter.create(folder, encoder=SparseEncoder.load("bm25"), fields=FIELDS, workers=1, **options)


@settings(max_examples=15)
@given(
    years=st.lists(st.none() | st.integers(0, 5), min_size=1, max_size=12),
    commits=st.sets(st.integers(0, 11)),
    bound=st.integers(0, 5),
)
def test_delete_matching_deletes_what_the_filter_says_committed_or_not(
    tmp_path_factory: pytest.TempPathFactory, years: list[int | None], commits: set[int], bound: int
) -> None:
    folder = tmp_path_factory.mktemp("deletes") / "index"
    with create(folder, merge_policy=None) as writer:
        for number, year in enumerate(years):
            writer.add([document(number, year=year)])
            if number in commits:
                writer.commit()
        expected = {f"d{number}" for number, year in enumerate(years) if year is None or year < bound}
        assert writer.delete_matching({"field": "year", "gte": bound}) == len(years) - len(expected)
        assert writer.delete_matching({"field": "year", "gte": bound}) == 0
        if not expected:
            writer.add([document(99)])
            expected = {"d99"}
    assert ids(folder) == expected
    shutil.rmtree(folder)


def test_delete_matching_refuses_what_is_no_filter_of_the_index(folder: Path) -> None:
    with create(folder) as writer:
        writer.add([document(1)])
        with pytest.raises(UsageError, match="no field 'month'"):
            writer.delete_matching({"field": "month", "eq": 1})


def test_an_index_without_a_term_takes_documents_and_learns_from_those_that_come_later(folder: Path) -> None:
    with create(folder) as writer:
        writer.commit()
    with IndexWriter.open(folder, workers=1) as writer:
        writer.add([{"_id": "empty"}])
        writer.commit()
        writer.add([document(1)])
        writer.commit()
    with SparseIndex.open(folder) as index:
        assert index.search(["common"]).ids == [["d1"]]
        assert index.num_documents == 2


def test_a_build_of_documents_without_a_term_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="none of the documents has a term"), create(folder) as writer:
        writer.add([{"_id": "empty"}])


def test_finished_merges_are_published_without_waiting_and_never_with_changes(folder: Path) -> None:
    with create(folder, merge_policy=MergePolicy(segments_per_tier=2)) as writer:
        for number in range(3):
            writer.add([document(number)])
            writer.commit()
        writer.add([document(3)])
        assert not writer.publish_merges()
        writer.commit()
        while writer.is_merging:
            writer.publish_merges()
        assert not writer.publish_merges()
        assert writer.num_segments == 1
    assert ids(folder) == {"d0", "d1", "d2", "d3"}


def test_a_copy_of_a_commit_outlives_the_index(folder: Path, tmp_path: Path) -> None:
    with create(folder, merge_policy=None) as writer:
        writer.add(document(number) for number in range(5))
        writer.commit()
        writer.delete(["d2"])
        writer.commit()
        with SparseIndex.open(folder) as index:
            expected = index.search(["common"])
            size = copy_commit(folder, index.manifest, tmp_path / "copy")
            assert size == index.stats()["bytes"]
        writer.add([document(9)])
        writer.merge()
    shutil.rmtree(folder)
    with SparseIndex.open(tmp_path / "copy") as copy:
        copy.verify()
        found = copy.search(["common"])
        assert (found.ids, found.scores[0].tolist()) == (expected.ids, expected.scores[0].tolist())
    with IndexWriter.open(tmp_path / "copy", workers=1) as writer:
        writer.add([document(10)])
    assert "d10" in ids(tmp_path / "copy")
