"""BM25 impacts against the formula, term by term."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import SparseEncoder
from retrieval.encoders.bm25 import Bm25Encoder
from retrieval.encoders.counting_workers import START_AFTER_BATCHES, count_batches
from retrieval.encoders.english import EnglishAnalyzer
from runtime.errors import FormatError, UsageError

TEXTS = [
    "solar wind measurements near the earth",
    "wind tunnels and wind loads on solar panels",
    "",
    "earth observation satellites observe the earth from orbit",
]


def formula(texts: list[str], k1: float, b: float) -> list[dict[str, float]]:
    """Robertson & Zaragoza's BM25 in Lucene's variant, written out."""
    rows = [EnglishAnalyzer().terms(text) for text in texts]
    average = sum(map(len, rows)) / len(rows)
    frequency = Counter(term for row in rows for term in set(row))
    return [
        {
            term: math.log(1 + (len(rows) - frequency[term] + 0.5) / (frequency[term] + 0.5))
            * count
            / (count + k1 * (1 - b + b * len(row) / average))
            for term, count in Counter(row).items()
        }
        for row in rows
    ]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(["solar", "wind", "earth", "moon", "star"]), max_size=9),
        min_size=1,
        max_size=6,
    ),
    st.floats(0, 3),
    st.floats(0, 1),
)
def test_impacts_equal_the_formula(rows: list[list[str]], k1: float, b: float) -> None:
    texts = [" ".join(row) for row in rows]
    if not any(rows):
        return
    encoder = Bm25Encoder(k1, b).fit(texts)
    encoded = encoder.encode_documents(texts)
    for expected, (units, weights) in zip(formula(texts, k1, b), encoded, strict=True):
        found = {encoder.vocabulary.term(unit): weight for unit, weight in zip(units, weights, strict=True)}
        assert found == pytest.approx(expected, rel=1e-6)


def test_queries_are_term_counts_and_unseen_terms_are_named() -> None:
    encoder = Bm25Encoder().fit(TEXTS)
    queries = encoder.encode_queries(["wind, wind and quarks", "quarks", ""])
    assert [weights.tolist() for _, weights in queries] == [[2.0], [], []]
    assert encoder.unknown_terms("quarks of winds, quarks") == ["quark"]
    assert encoder.count_tokens(["quarks of winds, quarks", "the wind"]) == 4


def test_documents_added_after_the_fit_bring_terms_that_can_be_found() -> None:
    encoder = Bm25Encoder().fit(TEXTS)
    before, width = encoder.fingerprint, len(encoder.vocabulary)
    assert encoder.encode_documents(["quark wind"]).nnz == 1  # encoding alone teaches no terms
    ((counts, lengths),) = encoder.count_batches([["quark wind"]])
    assert len(encoder.vocabulary) == width + 1
    assert encoder.unknown_terms("quark") == []
    impacts = encoder.weigh(counts.units, counts.weights, np.repeat(lengths, 2))
    assert impacts[0] > impacts[1] > 0  # a term that no fitted document had is the rarest
    assert encoder.fingerprint == before  # earlier vectors are what they were


def test_saved_encoder_gives_the_same_vectors(tmp_path: Path) -> None:
    encoder = Bm25Encoder(1.2, 0.75).fit(TEXTS)
    encoder.save(tmp_path / "encoder")
    loaded = SparseEncoder.load(tmp_path / "encoder")
    assert loaded.fingerprint == encoder.fingerprint
    for method in ("encode_documents", "encode_queries"):
        first, second = getattr(encoder, method)(TEXTS), getattr(loaded, method)(TEXTS)
        assert np.array_equal(first.units, second.units)
        assert np.array_equal(first.weights, second.weights)


def test_fingerprint_tells_settings_and_statistics_apart() -> None:
    prints = {
        Bm25Encoder().fingerprint,
        Bm25Encoder(k1=1.2).fingerprint,
        Bm25Encoder().fit(TEXTS).fingerprint,
        Bm25Encoder().fit(TEXTS[:2]).fingerprint,
    }
    assert len(prints) == 4
    assert Bm25Encoder().fit(TEXTS).fingerprint in prints


@pytest.mark.parametrize(
    ("k1", "b"), [(-1, 0.4), (math.inf, 0.4), (math.nan, 0.4), (0.9, 1.1), (0.9, math.nan)]
)
def test_settings_outside_their_range_are_refused(k1: float, b: float) -> None:
    with pytest.raises(UsageError, match="must"):
        Bm25Encoder(k1, b)


def test_an_unfitted_encoder_says_what_to_do() -> None:
    with pytest.raises(UsageError, match="fit"):
        Bm25Encoder().encode_documents(["wind"])


@pytest.mark.parametrize("damage", ["{", "[]", '{"family": "bm25"}', '{"family": "bm25", "version": 99}'])
def test_a_damaged_folder_is_refused(tmp_path: Path, damage: str) -> None:
    Bm25Encoder().fit(TEXTS).save(tmp_path / "encoder")
    (tmp_path / "encoder" / "lexpert_encoder.json").write_text(damage)
    with pytest.raises(FormatError):
        SparseEncoder.load(tmp_path / "encoder")


def test_a_truncated_array_is_refused(tmp_path: Path) -> None:
    Bm25Encoder().fit(TEXTS).save(tmp_path / "encoder")
    (tmp_path / "encoder" / "terms.data").write_bytes(b"so")
    with pytest.raises(FormatError, match=r"terms\.data"):
        SparseEncoder.load(tmp_path / "encoder")


def test_worker_processes_count_like_one() -> None:
    batches = [[f"word{number % 7} common text {number}", "", TEXTS[number % 4]] for number in range(20)]
    assert len(batches) > START_AFTER_BATCHES
    single, several = list(count_batches(batches, 1)), list(count_batches(batches, 2))
    for one, other in zip(single, several, strict=True):
        assert one.terms == other.terms
        for column in ("indptr", "units", "counts", "lengths"):
            assert np.array_equal(getattr(one, column), getattr(other, column))
