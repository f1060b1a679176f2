"""What becomes of an index when its log is damaged, or writes cannot be applied."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from retrieval import IndexWriter, SparseIndex
from runtime.errors import LexpertError
from serving.configuration import CommitPolicy, ServerConfiguration
from serving.errors import ApiError
from serving.indexes.known_answers import KnownAnswer
from serving.indexes.writers import NewIndex, Writers

RARELY = CommitPolicy(seconds=3600)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def writers(data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Writers]:
    monkeypatch.setattr("serving.indexes.writers.TRY_AGAIN_S", 0.0)
    opened = Writers(ServerConfiguration(data=data, commits=RARELY))
    opened.open()
    opened.create("docs", NewIndex(encoder="bm25"))
    yield opened
    opened.close()


def write(writers: Writers, identifier: str, wants_commit: bool = True) -> int:
    live = writers.live("docs", None)
    document = {"_id": identifier, "text": "common"}
    known = KnownAnswer(identifier, "digest", {"upserted": 1})
    written, _ = live.write({"put": [document]}, known, wants_commit)
    assert written.durable.result(60) > 0
    return written.committed.result(60) if wants_commit else 0


def ids(data: Path) -> list[str]:
    with SparseIndex.open(data / "indexes/docs") as index:
        (found,) = index.search(["common"]).ids
        return found


def test_a_commit_that_fails_is_said_and_loses_nothing(
    writers: Writers, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(writers, "a")
    write(writers, "b", wants_commit=False)

    def refuse(_: IndexWriter) -> None:
        raise LexpertError("no space left")

    with monkeypatch.context() as context:
        context.setattr(IndexWriter, "commit", refuse)
        with pytest.raises(ApiError) as raised:
            write(writers, "c")
        assert (raised.value.status, raised.value.code) == (503, "index_not_writable")
        with pytest.raises(ApiError, match="cannot be written to"):
            write(writers, "d")  # opened again, and it fails again
    assert ids(data) == ["a"]
    write(writers, "e")
    assert ids(data) == ["a", "b", "c", "e"]
    assert writers.live("docs", None).knows("c")


def test_documents_without_a_term_leave_nothing_to_learn_and_stop_nothing(
    writers: Writers, data: Path
) -> None:
    write(writers, "a")
    live = writers.live("docs", None)
    for operation in ({"delete": ["a"]}, {"put": [{"_id": f"empty{n}"} for n in range(4)]}):
        written, _ = live.write(operation, None, wants_commit=True)
        assert written.committed.result(60)
    write(writers, "b")
    assert ids(data) == ["b"]


def test_an_index_that_is_deleted_while_writes_wait_says_so_to_them(writers: Writers, data: Path) -> None:
    live = writers.live("docs", None)
    waiting, _ = live.write({"put": [{"_id": "a", "text": "common"}]}, None, wants_commit=False)
    assert waiting.durable.result(60) == 1
    writers.delete("docs")
    assert isinstance(waiting.committed.exception(60), ApiError)
    assert not (data / "indexes/docs").exists()
    with pytest.raises(ApiError, match="there is no index 'docs'"):
        writers.live("docs", None)


def test_a_log_that_is_damaged_is_not_passed_over(data: Path) -> None:
    first = Writers(ServerConfiguration(data=data, commits=RARELY))
    first.open()
    first.create("docs", NewIndex(encoder="bm25"))
    write(first, "a")
    for identifier in ("b", "c"):
        write(first, identifier, wants_commit=False)
    (log,) = (data / "indexes/docs/log").glob("*.log")
    content = log.read_bytes()
    first.live("docs", None).abandon()  # as if it had been killed
    first.close()
    log.write_bytes(content.replace(b'"b"', b'"x"', 1))
    second = Writers(ServerConfiguration(data=data))
    second.open()
    with pytest.raises(ApiError) as raised:
        write(second, "d")
    assert raised.value.code == "index_not_writable"
    second.close()
    assert ids(data) == ["a"]
    log.write_bytes(content)
    third = Writers(ServerConfiguration(data=data))
    third.open()  # which applies the log
    third.close()
    assert ids(data) == ["a", "b", "c"]
