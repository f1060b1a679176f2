"""Lucene impact indexes: what Lucene finds is what we find."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from retrieval.corpus import JsonlCorpus
from retrieval.encoders.bm25 import Bm25Encoder
from retrieval.encoders.precomputed import PrecomputedEncoder
from retrieval.index.build import build_index
from retrieval.index.sparse_index import SparseIndex
from retrieval.index.writer import IndexWriter
from retrieval.interop import java
from retrieval.interop.live_rows import live_rows
from retrieval.interop.lucene import LuceneSearcher, LuceneTokens, export_lucene, search_lucene
from retrieval.interop.whole_numbers import whole_rows
from retrieval.search.hits import Hits
from runtime.activations import SparseActivations
from runtime.errors import ConflictError, FormatError, InputError, LexpertError, NotFoundError

TOKENS = ["the", "##s", "Ġé", "<b>", "&amp;", '"q"', "日本", "a|5", "-", "UPPER"]
EIGHT_BITS = 30.0
"""Brings BM25 impacts of SciFact below 256."""


@pytest.fixture(scope="module")
def java_there() -> None:
    pytest.importorskip("pyserini", reason="Lucene comes with the lucene extra", exc_type=ImportError)


def same(ours: Hits, theirs: Hits) -> None:
    """The same scores in the same order; under each score the same documents, but for where k cuts a tie."""
    for ids, scores, other_ids, other_scores in zip(
        ours.ids, ours.scores, theirs.ids, theirs.scores, strict=True
    ):
        assert scores.tolist() == other_scores.tolist()
        whole = scores > scores[-1] if len(scores) else scores > 0
        pairs, other_pairs = (
            {
                (document, score)
                for document, score, kept in zip(found, scores.tolist(), whole, strict=True)
                if kept
            }
            for found in (ids, other_ids)
        )
        assert pairs == other_pairs


def whole_index(path: Path, source: SparseIndex, scale: float) -> SparseIndex:
    """The same documents with whole-numbered impacts."""
    encoder = PrecomputedEncoder(num_units=source.manifest.num_units)
    with IndexWriter.create(path, encoder=encoder, store=[]) as writer:
        for batch in live_rows(source):
            writer.add_vectors(batch.ids, whole_rows(batch.vectors, scale))
    return SparseIndex.open(path)


@pytest.mark.usefixtures("java_there")
def test_lucene_finds_the_same_documents_with_the_same_scores_on_scifact(
    shared: Path, tmp_path: Path
) -> None:
    data = shared / "data" / "scifact"
    wanted = {line.split("\t")[0] for line in (data / "qrels" / "test.tsv").read_text().splitlines()[1:]}
    queries = [json.loads(line) for line in (data / "queries.jsonl").read_text("utf-8").splitlines()]
    texts = [query["text"] for query in queries if query["_id"] in wanted]
    assert len(texts) == 300
    build_index(tmp_path / "bm25", Bm25Encoder(), JsonlCorpus(data / "corpus.jsonl"), store=[])
    with SparseIndex.open(tmp_path / "bm25") as index:
        exported = export_lucene(index, tmp_path / "lucene", scale=EIGHT_BITS)
        vectors, vocabulary = index.encoder.encode_queries(texts), index.encoder.vocabulary
        ours = whole_index(tmp_path / "whole", index, EIGHT_BITS).search(vectors, k=100)
    assert exported.documents == 5183
    same(ours, search_lucene(tmp_path / "lucene", vectors, vocabulary, 100))


@pytest.mark.usefixtures("java_there")
def test_segments_deletes_empty_documents_and_any_term_or_id_survive(tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    encoder = PrecomputedEncoder(TOKENS)
    ids = ["a b", 'c"d', "é\n日", "<x>"] + [f"doc {number}" for number in range(60)]
    for part in range(3):
        dense = random.integers(0, 300, (64, len(TOKENS))) * (random.random((64, len(TOKENS))) < 0.4)
        dense[5] = 0
        with (
            IndexWriter.create(tmp_path / "idx", encoder=encoder)
            if not part
            else IndexWriter.open(tmp_path / "idx")
        ) as writer:
            names = [f"{identifier}{part}" for identifier in ids]
            writer.add_vectors(names, SparseActivations.from_dense(dense.astype(np.float32)))
            writer.delete(names[10:30])
    queries = SparseActivations.from_dense(
        np.array([[1, 0, 2, 3, 1, 1, 1, 9, 9, 9], [0] * 9 + [1], [0] * 10])
    )
    with SparseIndex.open(tmp_path / "idx") as index:
        done: list[int] = []
        exported = export_lucene(index, tmp_path / "lucene", threads=1, advance=done.append)
        assert (exported.documents, exported.scale) == (132, 1.0)
        assert exported.empty >= 3
        assert sum(done) == 132
        same(
            index.search(queries, k=1000),
            search_lucene(tmp_path / "lucene", queries, encoder.vocabulary, 1000),
        )
        with pytest.raises(ConflictError, match="exists"):
            export_lucene(index, tmp_path / "lucene")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["idx", "lucene"]
    many = PrecomputedEncoder([f"t{number}" for number in range(3000)]).vocabulary
    long_query = SparseActivations.from_dense(np.ones((1, 3000), np.int64))
    assert search_lucene(tmp_path / "lucene", long_query, many, 10).ids == [[]]


@pytest.mark.usefixtures("java_there")
def test_what_java_says_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(LexpertError, match=r"no.such.Class failed \(1\): Error: Could not find"):
        java.run_java("no.such.Class", [], 64 << 20)
    (tmp_path / "segments_1").write_bytes(b"not Lucene's")
    vectors = SparseActivations.from_dense(np.ones((1, 1)))
    with pytest.raises(LexpertError, match="Lucene cannot read"):
        search_lucene(tmp_path, vectors, PrecomputedEncoder(["a"]).vocabulary, 10)


@pytest.mark.parametrize("term", ["", " a", "a b", "a\tb", "\u3000", "x" * 256, "\U0001f600" * 128])
def test_terms_that_lucene_would_cut_are_refused(term: str) -> None:
    with pytest.raises(InputError, match="Lucene cannot hold the term"):
        LuceneTokens(PrecomputedEncoder([term]).vocabulary).term(0)


def test_queries_must_be_whole_numbers_and_the_index_there(tmp_path: Path) -> None:
    vocabulary = PrecomputedEncoder(["a"]).vocabulary
    for weight in (0.5, -1.0, 2.0**31):
        with pytest.raises(InputError, match="whole-numbered query weights"):
            search_lucene(tmp_path, SparseActivations.from_rows([([0], [weight])], 1), vocabulary, 10)
    with pytest.raises(NotFoundError, match="is not the folder of a Lucene index"):
        search_lucene(tmp_path, SparseActivations.from_rows([([0], [1.0])], 1), vocabulary, 10)
    with pytest.raises((NotFoundError, FormatError)):
        LuceneSearcher(tmp_path)


def test_without_the_extra_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "find_spec", lambda _: None)
    for wanted in (java.java_home, java.anserini_jar, java.start_java):
        with pytest.raises(NotFoundError, match=r"lexpert\[lucene\]"):
            wanted()
