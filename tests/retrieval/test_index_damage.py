"""Damaged, foreign, truncated, locked and interrupted indexes: a clear error, and nothing lost."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from retrieval import IndexWriter, SparseIndex
from retrieval.corpus import JsonlCorpus
from retrieval.encoders.bm25 import Bm25Encoder
from retrieval.index.build import build_index
from runtime.errors import ConflictError, FormatError, InputError, LexpertError, NotFoundError, UsageError

DOCUMENTS = [
    {"_id": "a", "title": "Wind", "text": "solar wind near the earth", "year": 1999},
    {"_id": "b", "title": "", "text": "wind tunnels", "year": 2005},
    {"_id": "c", "title": "Empty", "text": ""},
]


@pytest.fixture
def index(tmp_path: Path) -> Path:
    with IndexWriter.create(tmp_path / "index", encoder=Bm25Encoder(), fields={"year": "int"}) as writer:
        writer.add(DOCUMENTS)
    with IndexWriter.open(tmp_path / "index") as writer:
        writer.delete(["c"])
    return tmp_path / "index"


def ids(path: Path, query: str = "wind") -> list[str]:
    with SparseIndex.open(path) as opened:
        return opened.search([query]).ids[0]


def test_verify_finds_any_flipped_byte(index: Path) -> None:
    files = [path for path in index.rglob("*") if path.is_file() and path.name != "write.lock"]
    assert len(files) > 15
    for path in files:
        original = path.read_bytes()
        # Every byte of the small files; of the larger ones both ends and some between.
        places = range(len(original)) if len(original) < 64 else range(0, len(original), len(original) // 61)
        for place in {*places, len(original) - 1} if original else ():
            damaged = bytearray(original)
            damaged[place] ^= 1 << place % 8
            path.write_bytes(damaged)
            with pytest.raises(FormatError, match=r"damage|version|not the manifest|not understood"):
                SparseIndex.open(index).verify()
        path.write_bytes(original)
    assert SparseIndex.open(index).verify() > 0


def test_truncated_and_missing_files_are_found_on_opening(index: Path) -> None:
    for path in [path for path in index.rglob("*") if path.is_file() and path.name != "write.lock"]:
        original = path.read_bytes()
        if original:
            path.write_bytes(original[:-1])
            with pytest.raises(FormatError):
                SparseIndex.open(index)
        path.unlink()
        with pytest.raises((FormatError, NotFoundError)):
            SparseIndex.open(index)
        path.write_bytes(original)
    assert ids(index) == ["a", "b"]


def test_an_unknown_version_is_refused(index: Path) -> None:
    manifest = orjson.loads((index / "manifest.json").read_bytes())
    (index / "manifest.json").write_bytes(orjson.dumps({**manifest, "version": 99}))
    for open_it in (SparseIndex.open, IndexWriter.open):
        with pytest.raises(FormatError, match="version 99, but this lexpert reads version 2"):
            open_it(index)


def test_a_foreign_encoder_is_refused(index: Path) -> None:
    for open_it in (SparseIndex.open, IndexWriter.open):
        with pytest.raises(ConflictError, match="another bm25 encoder"):
            open_it(index, encoder=Bm25Encoder(k1=1.2).fit(["wind"]))


def test_missing_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no index"):
        SparseIndex.open(tmp_path / "nowhere")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(ConflictError, match=r"holds thesis\.tex"):
        IndexWriter.create(tmp_path / "mine", encoder=Bm25Encoder())
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    with pytest.raises(NotFoundError, match="no committed index"):
        IndexWriter.open(tmp_path / "mine")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConflictError, match="is a file"):
        IndexWriter.create(tmp_path / "file", encoder=Bm25Encoder())


def test_an_index_is_not_overwritten_unasked(index: Path) -> None:
    with pytest.raises(ConflictError, match="holds an index already"):
        IndexWriter.create(index, encoder=Bm25Encoder())
    writer = IndexWriter.create(index, encoder=Bm25Encoder(), overwrite=True)
    assert ids(index) == ["a", "b"]  # readable until the new one is committed
    writer.add([{"_id": "z", "text": "wind"}])
    writer.commit()
    writer.close()
    assert ids(index) == ["z"]


def test_a_second_writer_is_refused_and_a_reader_keeps_its_snapshot(index: Path) -> None:
    reader = SparseIndex.open(index)
    with IndexWriter.open(index) as writer:
        with pytest.raises(ConflictError, match=f"written by another process .pid {os.getpid()}"):
            IndexWriter.open(index)
        command = f"from retrieval import IndexWriter; IndexWriter.open({str(index)!r})"
        other = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
        assert "ConflictError" in other.stderr
        writer.add([{"_id": "d", "text": "wind " * 9}])
        writer.delete(["a"])
        writer.merge()
    assert reader.search(["wind"]).ids[0] == ["a", "b"]  # its files are gone by name, not for it
    assert reader.document("a") == DOCUMENTS[0]
    assert set(ids(index)) == {"b", "d"}


def test_an_exception_gives_up_what_was_not_committed(index: Path) -> None:
    with pytest.raises(InputError, match="document 2"), IndexWriter.open(index) as writer:
        writer.add([{"_id": "d", "text": "wind"}, {"text": "no id"}])
    assert ids(index) == ["a", "b"]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"text": "x"}, 'no "_id"'),
        ({"_id": 7, "text": "x"}, '"_id" must be a non-empty string, got 7'),
        ({"_id": "x", "text": 7}, '"text" of document'),
        ({"_id": "x", "year": "1999"}, "field 'year' must be of kind int"),
        ({"_id": "x", "year": True}, "field 'year' must be of kind int"),
        ("x", "expected a JSON object"),
    ],
)
def test_bad_documents_are_refused(index: Path, document: Any, message: str) -> None:
    with pytest.raises(InputError, match=message), IndexWriter.open(index) as writer:
        writer.add([document])


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    for arguments in (
        {"memory": 1 << 20},
        {"workers": 0},
        {"store": ["body"]},
        {"fields": {"text": "int"}},
        {"fields": {"year": "date"}},
    ):
        with pytest.raises(UsageError):
            IndexWriter.create(tmp_path / "index", encoder=Bm25Encoder(), **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "index").exists()


def test_a_full_disk_is_one_sentence_and_loses_nothing(index: Path) -> None:
    """A limit on file sizes fails writes the way a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(LexpertError, match="no space left to write"), IndexWriter.open(index) as writer:
            writer.add({"_id": str(number), "text": f"wind {number} {'x' * 100}"} for number in range(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert ids(index) == ["a", "b"]
    with IndexWriter.open(index) as writer:
        writer.add([{"_id": "d", "text": "gale"}])
    SparseIndex.open(index).verify()
    assert ids(index, "gale") == ["d"]


def write_corpus(path: Path, lines: list[bytes]) -> JsonlCorpus:
    path.write_bytes(b"\n".join(lines) + b"\n")
    return JsonlCorpus(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"_id": "x", ', "line 2: not valid JSON"),
        (b'{"text": "x"}', 'line 2: the document has no "_id"'),
        (b'{"_id": "x", "text": "caf\xe9"}', "line 2: byte .* is not UTF-8"),
        (b"[1]", "line 2: expected a JSON object"),
    ],
)
def test_a_bad_corpus_line_is_named_and_leaves_no_index(tmp_path: Path, line: bytes, message: str) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", [b'{"_id": "a", "text": "wind"}', line])
    with pytest.raises(InputError, match=message):
        build_index(tmp_path / "index", Bm25Encoder(), corpus)
    with pytest.raises(NotFoundError, match="no committed index"):
        SparseIndex.open(tmp_path / "index")


def test_building_again_reuses_and_what_differs_is_refused(tmp_path: Path) -> None:
    lines = [b'{"_id": "a", "text": "wind"}', b'{"_id": "b"}', b"", b'{"_id": "a", "text": "gale"}']
    corpus = write_corpus(tmp_path / "corpus.jsonl", lines)
    report = build_index(tmp_path / "index", Bm25Encoder(), corpus)
    assert (report.action, report.documents, report.added, report.replaced, report.empty) == (
        "built",
        2,
        3,
        1,
        1,
    )
    assert ids(tmp_path / "index", "wind") == []
    assert ids(tmp_path / "index", "gale") == ["a"]
    assert build_index(tmp_path / "index", Bm25Encoder(), corpus).action == "reused"
    with pytest.raises(ConflictError, match="another encoder"):
        build_index(tmp_path / "index", Bm25Encoder(k1=2), corpus)
    with pytest.raises(ConflictError, match="other fields"):
        build_index(tmp_path / "index", Bm25Encoder(), corpus, fields={"year": "int"})
    corpus = write_corpus(tmp_path / "corpus.jsonl", lines[:1])
    with pytest.raises(ConflictError, match="another corpus"):
        build_index(tmp_path / "index", Bm25Encoder(), corpus)
    assert build_index(tmp_path / "index", Bm25Encoder(), corpus, overwrite=True).documents == 1
    assert build_index(tmp_path / "index", Bm25Encoder(), corpus, overwrite=True).action == "reused"
    with IndexWriter.open(tmp_path / "index") as writer:
        writer.delete(["a"])
    with pytest.raises(ConflictError, match="changed or filled by hand"):
        build_index(tmp_path / "index", Bm25Encoder(), corpus)


def test_a_build_cut_short_goes_on_after_its_last_commit(tmp_path: Path, number_encoder: Any) -> None:
    lines = [f'{{"_id": "{number}", "text": "{number % 16}:1"}}'.encode() for number in range(5000)]
    corpus = write_corpus(tmp_path / "corpus.jsonl", lines)

    class Interrupted:
        name, num_documents = corpus.name, None
        checksum = corpus.checksum

        def __iter__(self) -> Any:
            for number, document in enumerate(corpus):
                if number == 4500:
                    raise KeyboardInterrupt
                yield document

    with pytest.raises(KeyboardInterrupt):
        build_index(tmp_path / "index", number_encoder, Interrupted(), commit_interval_s=0)
    assert SparseIndex.open(tmp_path / "index").stats()["complete"] is False
    report = build_index(tmp_path / "index", number_encoder, corpus)
    assert (report.action, report.documents, report.added) == ("continued", 5000, 5000 - 4500 // 256 * 256)
    assert len(ids(tmp_path / "index", "3:1")) == 10
    assert SparseIndex.open(tmp_path / "index").stats()["complete"] is True


def test_a_refused_batch_leaves_the_writer_as_it_was(tmp_path: Path) -> None:
    documents: list[dict[str, Any]] = [
        {"_id": "a", "text": "apple", "year": 1},
        {"_id": "bad", "text": "banana", "year": "x"},
        {"_id": "worse", "text": "half \ud800"},
        {"_id": "c", "text": "cherry", "year": 3},
        {"_id": "d", "text": "date", "year": 4},
    ]
    with IndexWriter.create(tmp_path / "index", encoder=Bm25Encoder(), fields={"year": "int"}) as writer:
        refused = 0
        for document in documents:
            try:
                writer.add([document])
            except InputError:
                refused += 1
        assert refused == 2
        writer.delete(["d"])
    with SparseIndex.open(tmp_path / "index") as opened:
        assert opened.search(["apple", "banana", "cherry", "date"]).ids == [["a"], [], ["c"], []]
        assert opened.document("c") == {"_id": "c", "text": "cherry", "year": 3}


def test_a_closed_writer_says_so(index: Path) -> None:
    writer = IndexWriter.open(index)
    writer.close()
    for action in (lambda: writer.add(DOCUMENTS), lambda: writer.delete(["a"]), writer.commit, writer.merge):
        with pytest.raises(UsageError, match="is closed"):
            action()


def test_a_commit_that_changes_no_document_leaves_the_build_what_it_is(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", [b'{"_id": "a", "text": "wind"}'])
    build_index(tmp_path / "index", Bm25Encoder(), corpus)
    given = SparseIndex.open(tmp_path / "index").encoder
    with IndexWriter.open(tmp_path / "index", encoder=given) as writer:
        writer.add([])
        writer.merge()
    assert build_index(tmp_path / "index", Bm25Encoder(), corpus).action == "reused"


def test_verify_reads_the_newer_commit_when_a_writer_replaces_it(index: Path) -> None:
    reader = SparseIndex.open(index)
    with IndexWriter.open(index) as writer:
        writer.add([{"_id": "d", "text": "gale"}])
        writer.merge()
    assert reader.verify() == SparseIndex.open(index).verify()


def test_a_first_commit_without_any_term_is_refused(tmp_path: Path) -> None:
    writer = IndexWriter.create(tmp_path / "index", encoder=Bm25Encoder())
    writer.add([{"_id": "a"}, {"_id": "b", "text": "the of and"}])
    with pytest.raises(InputError, match="nothing to learn statistics from"):
        writer.commit()
    writer.close()
