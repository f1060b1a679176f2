"""Merging: windows and pieces stay within their bounds, and nothing but the layout changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import retrieval.index.merge
from retrieval import IndexWriter, SparseIndex
from retrieval.index.manifest import read_manifest
from retrieval.index.segment import Segment
from retrieval.index.window_postings import WindowPostings


@pytest.mark.parametrize(
    ("postings", "piece_bytes", "documents"), [(7, 40, 3), (1, 1, 1), (1 << 20, 1 << 20, 5)]
)
def test_small_bounds_give_small_windows_and_the_same_index(
    number_encoder: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    postings: int,
    piece_bytes: int,
    documents: int,
) -> None:
    generator = np.random.default_rng(3)
    contents = {
        str(number): " ".join(f"{unit}:1" for unit in generator.permutation(16)[: generator.integers(0, 5)])
        for number in range(60)
    }
    path = tmp_path / "index"
    with IndexWriter.create(path, encoder=number_encoder, fields={"number": "int"}) as writer:
        for number, text in contents.items():
            writer.add([{"_id": number, "text": text, "number": int(number)}])
            if int(number) % 17 == 0:
                writer.commit()
        writer.delete(["3", "17", "18", "59"])
    queries = [f"{unit}:1 {(unit + 5) % 16}:2" for unit in range(16)]
    with SparseIndex.open(path) as index:
        before = index.search(queries, k=100)
    monkeypatch.setattr(retrieval.index.merge, "WINDOW_POSTINGS", postings)
    monkeypatch.setattr(retrieval.index.merge, "PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(retrieval.index.merge, "PIECE_DOCUMENTS", documents)
    done: list[int] = []
    with IndexWriter.open(path) as writer:
        writer.merge(done.append)
    assert sum(done) == 56
    with SparseIndex.open(path) as index:
        index.verify()
        after = index.search(queries, k=100)
        assert after.ids == before.ids
        assert all(np.array_equal(*pair) for pair in zip(after.scores, before.scores, strict=True))
        for number, text in contents.items():
            deleted = number in ("3", "17", "18", "59")
            stored = {"_id": number, "number": int(number)} | ({"text": text} if text else {})
            assert index.document(number) == (None if deleted else stored)
    manifest = read_manifest(path)
    (entry,) = manifest.segments
    segment = Segment(path, entry, manifest.fields, stored=True)
    assert isinstance(segment.postings, WindowPostings)
    windows = zip(np.diff(segment.postings.window_postings), np.diff(segment.window_documents), strict=True)
    # Windows are joined within the bound, and never split: the largest that went in had 17 documents.
    assert all(size <= postings or rows <= 17 for size, rows in windows)
