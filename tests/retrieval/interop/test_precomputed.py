"""Indexes of vectors that were made elsewhere."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.encoders.encoder import SparseEncoder
from retrieval.encoders.precomputed import PrecomputedEncoder
from retrieval.index.sparse_index import SparseIndex
from retrieval.index.writer import IndexWriter
from runtime.activations import SparseActivations
from runtime.errors import FormatError, InputError, UsageError

ROWS = SparseActivations.from_rows([([0, 2], [1.0, 2.0]), ([1], [3.0]), ([], []), ([2, 3], [1.5, 4.0])], 4)


@given(st.one_of(st.lists(st.text(), unique=True, max_size=20), st.integers(0, 2000)))
def test_a_saved_encoder_is_the_same_encoder(given_: list[str] | int) -> None:
    encoder = PrecomputedEncoder(num_units=given_) if isinstance(given_, int) else PrecomputedEncoder(given_)
    terms = given_ if isinstance(given_, list) else [str(unit) for unit in range(given_)]
    with tempfile.TemporaryDirectory() as scratch:
        encoder.save(Path(scratch) / "encoder")
        loaded = SparseEncoder.load(Path(scratch) / "encoder")
        assert loaded.fingerprint == encoder.fingerprint
        for vocabulary in (encoder.vocabulary, loaded.vocabulary):
            assert [vocabulary.term(unit) for unit in range(len(vocabulary))] == terms
            assert vocabulary.find(terms) == list(range(len(terms)))
    others = [PrecomputedEncoder([*terms, "another term"]), PrecomputedEncoder(num_units=len(terms) + 1)]
    assert encoder.fingerprint not in {other.fingerprint for other in others}


def test_numbers_are_found_as_they_are_written_only() -> None:
    vocabulary = PrecomputedEncoder(num_units=11).vocabulary
    assert (
        vocabulary.find(["0", "10", "11", "07", "-1", "", "x", "７", "²", "9" * 5000]) == [0, 10] + [-1] * 8
    )
    with pytest.raises(IndexError):
        vocabulary.term(11)


@pytest.mark.parametrize(
    "encoder", [PrecomputedEncoder(["a", "b", "c", "é"]), PrecomputedEncoder(num_units=4)]
)
def test_an_index_of_vectors_is_searched_with_vectors(tmp_path: Path, encoder: PrecomputedEncoder) -> None:
    with IndexWriter.create(tmp_path / "idx", encoder=encoder) as writer:
        writer.add_vectors(["p", "q", "r", "s"], ROWS)
    with SparseIndex.open(tmp_path / "idx") as index:
        hits = index.search(SparseActivations.from_rows([([2], [2.0]), ([1, 3], [1.0, 1.0])], 4), k=3)
        assert hits.ids == [["p", "s"], ["s", "q"]]
        assert [scores.tolist() for scores in hits.scores] == [[4.0, 3.0], [4.0, 3.0]]
        assert index.stats()["encoder"] == "precomputed"
        assert index.verify() > 0
        explained = index.explain(SparseActivations.from_rows([([3], [1.0])], 4), "s")
        assert explained.shares[0].term == encoder.vocabulary.term(3)
        for refused in (lambda: index.search(["text"]), lambda: index.explain("text", "p")):
            with pytest.raises(InputError, match="made elsewhere and cannot encode queries; give vectors"):
                refused()
    with IndexWriter.open(tmp_path / "idx") as writer:
        writer.add_vectors(["p"], ROWS[3])
        assert writer.delete(["q"]) == 1
        with pytest.raises(InputError, match="cannot encode documents"):
            writer.add([{"_id": "t", "text": "text"}])
        writer.merge()
    with SparseIndex.open(tmp_path / "idx", encoder=encoder) as index:
        assert index.search(SparseActivations.from_rows([([3], [1.0])], 4)).ids == [["s", "p"]]


def test_terms_join_the_vocabulary_until_the_commit(tmp_path: Path) -> None:
    encoder = PrecomputedEncoder([])
    with IndexWriter.create(tmp_path / "idx", encoder=encoder) as writer:
        for number in range(3):
            units = encoder.vocabulary.learn(["shared", f"new {number}"])  # type: ignore[union-attr]
            weights = np.array([1.0, 2.0], np.float32)
            row = SparseActivations(np.array([0, 2]), units, weights, len(encoder.vocabulary))
            writer.add_vectors([f"d{number}"], row)
    with SparseIndex.open(tmp_path / "idx") as index:
        vocabulary = index.encoder.vocabulary
        assert len(vocabulary) == 4
        query = SparseActivations.from_rows([(vocabulary.find(["new 2"]), [1.0])], 4)
        assert index.search(query).ids == [["d2"]]


def test_what_cannot_be_an_encoder_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give the vocabulary, or num_units"):
        PrecomputedEncoder()
    with pytest.raises(UsageError, match="holds 'b' twice"):
        PrecomputedEncoder(["a", "b", "b"])
    with pytest.raises(UsageError, match="num_units is 3, but the vocabulary has 1"):
        PrecomputedEncoder(["a"], num_units=3)
    folder = tmp_path / "encoder"
    PrecomputedEncoder(["a", "b"]).save(folder)
    with pytest.raises(UsageError, match="takes no options"):
        SparseEncoder.load(folder, k1=1)
    path = folder / "lexpert_encoder.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps({**described, "version": 2}))
    with pytest.raises(FormatError, match="has version 2"):
        SparseEncoder.load(folder)
    path.write_text(json.dumps({**described, "num_units": "many"}))
    with pytest.raises(FormatError, match="is damaged"):
        SparseEncoder.load(folder)
    path.write_text(json.dumps(described))
    (folder / "terms.data").write_bytes(b"a")
    with pytest.raises(FormatError, match=r"terms\.data has 1 bytes"):
        SparseEncoder.load(folder)
