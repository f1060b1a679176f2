"""A corpus cut into parts is the corpus, whatever the cuts."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

import retrieval.corpus_parts
from retrieval.corpus_parts import cut_corpus
from retrieval.documents import document_batches, read_documents
from runtime.errors import InputError, NotFoundError, UsageError

LINES = st.lists(st.one_of(st.sampled_from([b"", b"  ", b"\r"]), st.integers(0, 30)), max_size=30)


@given(LINES, st.booleans(), st.booleans(), st.integers(1, 200), st.one_of(st.none(), st.integers(1, 5)))
def test_parts_are_the_corpus_cut_where_batches_end(
    lines: list[bytes | int], has_mark: bool, ends: bool, part_bytes: int, batch: int | None
) -> None:
    content = b"\n".join(
        line
        if isinstance(line, bytes)
        else orjson.dumps({"_id": f"d{number}", "title": "é", "text": "x" * line})
        for number, line in enumerate(lines)
    )
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval.corpus_parts, "BATCH_CHARACTERS", 50)
        patch.setattr(retrieval.documents, "BATCH_CHARACTERS", 50)
        path = Path(folder) / "corpus.jsonl"
        path.write_bytes(b"\xef\xbb\xbf" * has_mark + content + b"\n" * ends)
        parts = list(cut_corpus(path, part_bytes, batch))
        documents = list(read_documents(path))
        assert [document for part in parts for document in part] == documents
        assert [part.number for part in parts] == list(range(len(parts)))
        assert all(list(part) for part in parts)
        assert all(one.end == other.start for one, other in pairwise(parts))
        assert all(part.end - part.start >= part_bytes for part in parts[:-1])
        if batch is not None:
            whole = list(document_batches(documents, batch))
            assert [each for part in parts for each in document_batches(part, batch)] == whole


def test_what_is_wrong_is_named_by_the_line_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b'{"_id": "a"}\n\n{"_id": "b"}\n{"text": "x"}\n')
    *_, last = cut_corpus(path, 1)
    with pytest.raises(InputError, match=r'corpus\.jsonl, line 4: the document has no "_id"'):
        list(last)
    with pytest.raises(InputError, match=r"line 4"):
        list(cut_corpus(path, 1, batch_documents=2))
    with pytest.raises(NotFoundError):
        list(cut_corpus(tmp_path / "none.jsonl", 1))
    (tmp_path / "corpus.jsonl.gz").write_bytes(b"")
    with pytest.raises(UsageError, match="unpack it first"):
        list(cut_corpus(tmp_path / "corpus.jsonl.gz", 1))
