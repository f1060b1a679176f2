"""The dense index: every search equals sorting all inner products, and damage is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.documents import Document
from retrieval.encoders.dense import DenseEncoder
from retrieval.index.dense_index import DenseIndex, best_rows, build_dense_index
from runtime.errors import ConflictError, FormatError, InputError, NotFoundError, UsageError

MakeModel = Callable[..., Path]


class Texts:
    """A corpus of texts; ids are given, or their places."""

    name = "texts"
    num_documents = None

    def __init__(self, texts: list[str], ids: list[str] | None = None) -> None:
        self._documents = [
            {"_id": name, "text": text}
            for name, text in zip(ids or [f"d{i}" for i in range(len(texts))], texts, strict=True)
        ]

    def checksum(self) -> str:
        return json.dumps(self._documents)

    def __iter__(self) -> Iterator[Document]:
        return iter(self._documents)


@given(st.integers(0, 40), st.integers(1, 3), st.integers(1, 50), st.integers(1, 16), st.integers(0, 10**6))
def test_the_best_rows_are_those_of_sorting_everything(
    rows: int, queries: int, k: int, block: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    vectors = draw.integers(-2, 3, (rows, 3)).astype(np.float32)  # many ties
    asked = draw.integers(-2, 3, (queries, 3)).astype(np.float32)
    found, scores = best_rows(vectors, asked, k, block)
    for row, query in enumerate(asked):
        products = vectors @ query
        expected = sorted(range(rows), key=lambda i: (-products[i], i))[:k]
        assert found[row].tolist() == expected
        assert scores[row].tolist() == products[expected].tolist()


@pytest.fixture(scope="module")
def encoder(make_language_model: MakeModel) -> DenseEncoder:
    return DenseEncoder.load(make_language_model())


def test_texts_are_found_by_their_vectors(encoder: DenseEncoder, texts: list[str], tmp_path: Path) -> None:
    texts = [text for text in texts if text]
    report = build_dense_index(tmp_path / "index", encoder, Texts(texts))
    assert (report.action, report.documents, report.width) == ("built", len(texts), encoder.width)
    index = DenseIndex.open(tmp_path / "index")
    hits = index.search(texts[:3], k=len(texts) + 5)
    expected = encoder.encode_queries(texts[:3]) @ encoder.encode_documents(texts).T
    for row in range(3):
        assert len(hits.ids[row]) == len(texts)
        order = [int(name[1:]) for name in hits.ids[row]]
        np.testing.assert_allclose(hits.scores[row], expected[row][order], rtol=1e-5)
        assert (np.diff(hits.scores[row]) <= 0).all()
    index.verify()
    again = build_dense_index(tmp_path / "index", encoder, Texts(texts))
    assert again.action == "reused"


def test_a_later_document_of_the_same_id_wins(
    encoder: DenseEncoder, texts: list[str], tmp_path: Path
) -> None:
    one, two, three = [text for text in texts if text][:3]
    report = build_dense_index(tmp_path / "index", encoder, Texts([one, two, three], ["a", "b", "a"]))
    assert (report.documents, report.replaced) == (2, 1)
    index = DenseIndex.open(tmp_path / "index", encoder=encoder)
    hits = index.search(encoder.encode_documents([three]), k=2)
    scores = dict(zip(hits.ids[0], hits.scores[0].tolist(), strict=True))
    [[to_itself]] = encoder.encode_documents([three]) @ encoder.encode_documents([three]).T
    assert scores["a"] == pytest.approx(float(to_itself), rel=1e-5)


def test_an_empty_corpus_answers_with_nothing(encoder: DenseEncoder, tmp_path: Path) -> None:
    build_dense_index(tmp_path / "index", encoder, Texts([]))
    hits = DenseIndex.open(tmp_path / "index", encoder=encoder).search(["anything"], k=3)
    assert hits.ids == [[]]


def test_another_corpus_or_encoder_is_refused(
    encoder: DenseEncoder, make_language_model: MakeModel, texts: list[str], tmp_path: Path
) -> None:
    texts = [text for text in texts if text]
    build_dense_index(tmp_path / "index", encoder, Texts(texts))
    with pytest.raises(ConflictError, match="another corpus or encoder"):
        build_dense_index(tmp_path / "index", encoder, Texts(texts[:2]))
    other = DenseEncoder.load(make_language_model(seed=5))
    with pytest.raises(ConflictError, match="filled by another dense encoder"):
        DenseIndex.open(tmp_path / "index", encoder=other)
    with pytest.raises(NotFoundError, match="lexpert index dense"):
        build_dense_index(tmp_path, encoder, Texts(texts))


def test_damage_and_other_versions_are_told(encoder: DenseEncoder, texts: list[str], tmp_path: Path) -> None:
    build_dense_index(tmp_path / "index", encoder, Texts([text for text in texts if text]))
    vectors = tmp_path / "index" / "arrays" / "vectors"
    whole = vectors.read_bytes()
    vectors.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(FormatError, match="checksum"):
        DenseIndex.open(tmp_path / "index").verify()
    vectors.write_bytes(whole[:-4])
    with pytest.raises(FormatError, match="damaged"):
        DenseIndex.open(tmp_path / "index")
    vectors.unlink()
    with pytest.raises(FormatError, match="damaged"):
        DenseIndex.open(tmp_path / "index")
    vectors.write_bytes(whole)
    manifest = tmp_path / "index" / "dense.json"
    described = manifest.read_text()
    manifest.write_text(described.replace('"version": 1', '"version": 7'))
    with pytest.raises(FormatError, match="version 7"):
        DenseIndex.open(tmp_path / "index")
    manifest.write_text(described[:-20])
    with pytest.raises(FormatError, match="damaged"):
        DenseIndex.open(tmp_path / "index")


def test_queries_that_make_no_sense_are_refused(
    encoder: DenseEncoder, texts: list[str], tmp_path: Path
) -> None:
    build_dense_index(tmp_path / "index", encoder, Texts([text for text in texts if text]))
    index = DenseIndex.open(tmp_path / "index", encoder=encoder)
    with pytest.raises(UsageError, match="k must be at least 1"):
        index.search(["one"], k=0)
    with pytest.raises(InputError, match="width"):
        index.search(np.zeros((1, 3), np.float32))
    with pytest.raises(InputError, match="not finite"):
        index.search(np.full((1, encoder.width), np.nan, np.float32))
