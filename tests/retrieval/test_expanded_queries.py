"""Queries by a table and an expansion: the formula, its file, and encoders whose queries are expanded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from retrieval import IndexWriter, SparseIndex
from retrieval.encoders.catalogue import ENCODER_FILE
from retrieval.encoders.checked_tensors import save_checked
from retrieval.encoders.encoder import SparseEncoder
from retrieval.encoders.expanded_queries import ExpandedQueriesEncoder, sum_of
from retrieval.encoders.expansion import FORM, VERSION, QueryExpansion, TermExpansion
from retrieval.encoders.fingerprint import EXPANSION_FILE
from retrieval.encoders.inference_free import InferenceFreeEncoder
from retrieval.encoders.masked_language_model import TermWeighting
from retrieval.encoders.rounded_weights import Bits
from retrieval.encoders.sentence_transformers_folder import SpladeRoute, TableRoute
from retrieval.encoders.shrink import shrink
from retrieval.encoders.splade import SpladeOptions, SpladeSide
from runtime.activations import SparseActivations
from runtime.errors import ConflictError, FormatError, UsageError
from tests.retrieval.conftest import TOKENS

MakeModel = Callable[..., Path]

EXPANDING = QueryExpansion(torch.tensor([3, 5, 6, 7, 9, 30, 31, 32, 77]), 0.7, 4)


def plain_query_terms(expansion: TermExpansion, pooled: np.ndarray) -> np.ndarray:
    """The formula, row by row, in float64."""
    found = np.zeros((len(pooled), expansion.num_terms))
    queries = expansion.of_queries
    if queries is None:
        return found
    weight, bias = expansion.weight.double().numpy(), expansion.bias.double().numpy()
    for row, vector in enumerate(pooled.astype(np.float64)):
        weights = {term: float(weight[term] @ vector + bias[term]) for term in queries.terms.tolist()}
        for term in sorted(weights, key=lambda term: (-weights[term], term))[: queries.limit]:
            found[row, term] = queries.gain * max(0.0, weights[term])
    return found


@given(st.data())
def test_terms_of_queries_are_the_heaviest_of_some(data: st.DataObject) -> None:
    num_terms, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 3))
    small = np.random.default_rng(data.draw(st.integers(0, 99)))
    # Small whole numbers: float32 is exact, and many weights are equal.
    weight, bias, pooled = (
        small.integers(-2, 3, shape).astype(np.float32)
        for shape in ((num_terms, width), (num_terms,), (data.draw(st.integers(0, 4)), width))
    )
    terms = sorted(data.draw(st.sets(st.integers(0, num_terms - 1))))
    gain, limit = data.draw(st.sampled_from([0.4, 1.0, 2.5])), data.draw(st.integers(1, 10))
    queries = QueryExpansion(torch.tensor(terms, dtype=torch.int64), gain, limit)
    expansion = TermExpansion(torch.from_numpy(weight), torch.from_numpy(bias), queries)
    found = expansion.query_terms(torch.from_numpy(pooled))
    expected = plain_query_terms(expansion, pooled)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy() > 0, expected > 0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    assert ((found > 0).sum(1) <= limit).all()


def test_without_an_expansion_of_queries_they_have_no_terms() -> None:
    found = TermExpansion(torch.ones(4, 2), torch.ones(4)).query_terms(torch.ones(3, 2))
    assert found.tolist() == [[0.0] * 4] * 3


def expansion_of(
    num_terms: int, of_queries: QueryExpansion | None = EXPANDING, seed: int = 0
) -> TermExpansion:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(num_terms, 16, generator=draw)
    return TermExpansion(weight, torch.randn(num_terms, generator=draw), of_queries)


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_what_it_says_of_queries_comes_back_from_its_folder(tmp_path: Path, bits: Bits | None) -> None:
    expansion_of(80).save(tmp_path, bits)
    found = TermExpansion.load(tmp_path).of_queries
    assert found is not None
    assert torch.equal(found.terms, EXPANDING.terms)
    assert found.terms.dtype == torch.int64
    assert (found.gain, found.limit) == (pytest.approx(0.7, rel=1e-7 if bits is None else 1e-3), 4)
    content = (tmp_path / EXPANSION_FILE).read_bytes()
    if bits is None:
        TermExpansion.load(tmp_path).save(tmp_path)
        assert (tmp_path / EXPANSION_FILE).read_bytes() == content


WHOLE: dict[str, torch.Tensor] = {
    "weight": torch.ones(4, 2),
    "bias": torch.ones(4),
    "query_terms": torch.tensor([0, 3], dtype=torch.int32),
    "query_gain": torch.tensor([0.5]),
    "query_limit": torch.tensor([2]),
}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"query_terms": torch.tensor([[0, 3]], dtype=torch.int32)}, "another form"),
        ({"query_terms": torch.tensor([0, 3])}, "another form"),
        ({"query_terms": torch.tensor([0.0, 3.0])}, "another form"),
        ({"query_gain": torch.tensor(0.5)}, "another form"),
        ({"query_gain": torch.tensor([1])}, "another form"),
        ({"query_limit": torch.tensor([2, 2])}, "another form"),
        ({"query_limit": torch.tensor([torch.nan])}, "another form"),
        ({"query_terms": torch.tensor([3, 0], dtype=torch.int32)}, "in ascending order"),
        ({"query_terms": torch.tensor([3, 3], dtype=torch.int32)}, "in ascending order"),
        ({"query_terms": torch.tensor([0, 4], dtype=torch.int32)}, "in ascending order"),
        ({"query_terms": torch.tensor([-1, 3], dtype=torch.int32)}, "in ascending order"),
        ({"query_gain": torch.tensor([torch.nan])}, "a gain and a limit above 0"),
        ({"query_gain": torch.tensor([torch.inf])}, "a gain and a limit above 0"),
        ({"query_gain": torch.tensor([0.0])}, "a gain and a limit above 0"),
        ({"query_limit": torch.tensor([0])}, "a gain and a limit above 0"),
        ({"query_limit": None}, "all of query_terms, query_gain, query_limit or none"),
        ({"query_terms": None, "query_gain": None}, "all of query_terms, query_gain, query_limit or none"),
        ({"weight": None}, "must hold weight and bias"),
        ({"more": torch.ones(1)}, "must hold weight and bias"),
    ],
)
def test_odd_tensors_are_told_in_one_sentence(
    tmp_path: Path, changes: dict[str, torch.Tensor | None], told: str
) -> None:
    path = tmp_path / EXPANSION_FILE
    save_checked(WHOLE, path, FORM, VERSION)
    assert TermExpansion.load(tmp_path).of_queries is not None
    tensors = {name: tensor for name, tensor in {**WHOLE, **changes}.items() if tensor is not None}
    save_checked(tensors, path, FORM, VERSION)
    with pytest.raises(FormatError, match=told) as refused:
        TermExpansion.load(tmp_path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


@given(st.data())
def test_a_sum_is_that_of_dense_rows(data: st.DataObject) -> None:
    shape = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 6))
    draw = np.random.default_rng(data.draw(st.integers(0, 99)))
    rows = [draw.integers(0, 3, shape).astype(np.float32) for _ in range(2)]
    found = sum_of(*map(SparseActivations.from_dense, rows))
    assert (found.num_units, found.units.dtype, found.weights.dtype) == (shape[1], np.int32, np.float32)
    np.testing.assert_array_equal(found.to_dense(), rows[0] + rows[1])
    np.testing.assert_array_equal(found.indptr, SparseActivations.from_dense(rows[0] + rows[1]).indptr)
    for units, _ in found:
        assert (np.diff(units) > 0).all()


# Encoders that have one.


def write_encoder(model: Path, folder: Path, of_queries: QueryExpansion | None = EXPANDING) -> Path:
    """The folder of an inference-free encoder whose file of the expansion may say how queries are expanded."""
    terms = len(SparseEncoder.load(model).vocabulary)
    scratch = folder.with_name(folder.name + ".parts")
    expansion_of(terms, of_queries).save(scratch)
    save_file({"weight": torch.linspace(-0.5, 4, terms)}, scratch / "table.safetensors")
    route = SpladeRoute(model, "max", "log1p_relu", 24, expansion=scratch)
    side = SpladeSide(route, SpladeOptions(), 20)
    InferenceFreeEncoder(TableRoute(model, scratch / "table.safetensors"), side, 20).save(folder)
    return folder


@pytest.fixture
def whole(make_language_model: MakeModel, tmp_path: Path) -> Path:
    return write_encoder(make_language_model(), tmp_path / "whole")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    saved = tmp_path / "expanded"
    ExpandedQueriesEncoder(InferenceFreeEncoder.from_folder(whole)).save(saved)
    return saved


def dense(rows: SparseActivations) -> np.ndarray:
    return np.asarray(rows.to_dense())


def load(folder: Path, **options: Any) -> ExpandedQueriesEncoder:
    encoder = SparseEncoder.load(folder, dtype="float32", **options)
    assert isinstance(encoder, ExpandedQueriesEncoder)
    return encoder


def test_queries_are_the_sum_of_table_and_expansion(whole: Path, folder: Path, texts: list[str]) -> None:
    plain = SparseEncoder.load(whole, dtype="float32")
    assert isinstance(plain, InferenceFreeEncoder)
    given = [*texts, "", " \n", *texts[::-1]]
    model = plain.documents.model
    _, vectors = model.encode_with_pooled(given, TermWeighting(max_length=24))
    assert model.expansion is not None
    meanings = plain_query_terms(model.expansion, vectors)
    meanings[len(texts) : len(texts) + 2] = 0  # texts without a token of their own
    found = load(folder).encode_queries(given)
    np.testing.assert_allclose(
        dense(found), dense(plain.encode_queries(given, counted=True)) + meanings, rtol=1e-4, atol=1e-5
    )
    assert found.weights.dtype == np.float32
    assert (found.weights > 0).all()
    assert np.diff(found.indptr)[len(texts) : len(texts) + 2].tolist() == [0, 0]
    assert (meanings > 0).any(1).sum() == 2 * len(texts)
    for units, _ in found:
        assert (np.diff(units) > 0).all()
    assert load(folder).encode_queries([]).indptr.tolist() == [0]


def test_what_is_too_long_for_the_model_is_cut_for_the_expansion(folder: Path) -> None:
    encoder = load(folder)
    short, long, longer = "virus " * 22, "virus " * 23, "virus " * 22 + "cell " * 200
    lengths = encoder.token_lengths([short, long, longer, ""])
    assert lengths == [24, 24, 24, 2]
    of_short, of_longer = dense(encoder.encode_queries([short])), dense(encoder.encode_queries([longer]))
    [changed] = np.flatnonzero(~np.isclose(of_short[0], of_longer[0], atol=1e-5))
    assert changed == TOKENS.index("cell")  # of the table, which reads on


def test_documents_are_those_without_expanded_queries(whole: Path, folder: Path, texts: list[str]) -> None:
    plain, encoder = SparseEncoder.load(whole, dtype="float32"), load(folder)
    seen: list[int] = []
    found = encoder.encode_documents(texts, seen.append)
    assert sum(seen) == len(texts)
    np.testing.assert_array_equal(dense(found), dense(plain.encode_documents(texts)))
    assert encoder.fingerprint != plain.fingerprint
    assert len(encoder.vocabulary) == len(plain.vocabulary)


def test_a_saved_encoder_is_the_same(folder: Path, texts: list[str], tmp_path: Path) -> None:
    encoder = load(folder)
    assert json.loads((folder / ENCODER_FILE).read_text()) == {"family": "expanded_queries"}
    encoder.save(tmp_path / "again")
    encoder.save_for_search(tmp_path / "side")
    assert [path.name for path in (tmp_path / "side").iterdir()] == [ENCODER_FILE]  # a reference
    for again in (load(tmp_path / "again"), load(tmp_path / "side")):
        assert again.fingerprint == encoder.fingerprint
        np.testing.assert_array_equal(
            dense(again.encode_queries(texts)), dense(encoder.encode_queries(texts))
        )
    made = ExpandedQueriesEncoder(InferenceFreeEncoder.from_folder(folder))  # came from nowhere
    made.save_for_search(tmp_path / "copy")
    assert load(tmp_path / "copy").fingerprint == encoder.fingerprint
    with pytest.raises(UsageError, match="save it into another folder"):
        encoder.save(folder)
    cut = load(folder, max_active_dims=3, max_length=9)
    assert cut.fingerprint != encoder.fingerprint
    cut.save_for_search(tmp_path / "cut")
    assert load(tmp_path / "cut").fingerprint == cut.fingerprint
    assert np.diff(cut.encode_documents(texts).indptr).max() == 3
    assert np.diff(cut.encode_queries(texts).indptr).max() <= 3 + EXPANDING.limit


def test_an_index_is_searched_by_expanded_queries_and_refuses_others(
    whole: Path, folder: Path, texts: list[str], tmp_path: Path
) -> None:
    encoder, path = load(folder), tmp_path / "index"
    with IndexWriter.create(path, encoder=encoder) as writer:
        writer.add({"_id": str(number), "text": text} for number, text in enumerate(texts))
    expected = dense(encoder.encode_queries(texts)) @ dense(encoder.encode_documents(texts)).T
    with SparseIndex.open(path, encoder=encoder) as index:
        hits = index.search(texts, k=len(texts))
        for row, scores in enumerate(expected.tolist()):
            found = dict(zip(map(int, hits.ids[row]), hits.scores[row].tolist(), strict=True))
            assert found == pytest.approx(
                {at: score for at, score in enumerate(scores) if score > 0}, rel=1e-5
            )
    with SparseIndex.open(path) as index:  # by its reference
        assert list(index.search(texts[:1]).ids[0]) == list(hits.ids[0])
    with pytest.raises(ConflictError, match="another expanded_queries encoder"):
        SparseIndex.open(path, encoder=SparseEncoder.load(whole))
    with pytest.raises(ConflictError, match="another expanded_queries encoder"):
        SparseIndex.open(path, encoder=load(folder, max_length=9))


@pytest.mark.parametrize("word_bits", [8, 4])
def test_a_shrunk_encoder_still_expands_queries(
    folder: Path, texts: list[str], tmp_path: Path, word_bits: Bits
) -> None:
    done = shrink(folder, tmp_path / "small", word_bits=word_bits, max_active_dims=15)
    assert done.bytes_after < done.bytes_before
    small, encoder = load(tmp_path / "small"), load(folder, max_active_dims=15)
    assert small.family == "expanded_queries"
    [module] = (tmp_path / "small").glob("*_TermExpansion")
    queries = TermExpansion.load(module).of_queries
    assert queries is not None
    assert torch.equal(queries.terms, EXPANDING.terms)
    ours, theirs = (dense(one.encode_queries(texts)) for one in (small, encoder))
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosines.min() > 0.9
    small.save(tmp_path / "saved")
    assert load(tmp_path / "saved").encode_queries(texts).nnz == small.encode_queries(texts).nnz


def test_sentence_transformers_refuses_the_folder(folder: Path) -> None:
    with pytest.raises(Exception, match="TermExpansion"):
        sentence_transformers.SparseEncoder(str(folder), device="cpu")


def test_folders_that_expand_no_queries_are_refused(
    make_language_model: MakeModel, folder: Path, tmp_path: Path
) -> None:
    own = (folder / ENCODER_FILE).read_text()
    without = write_encoder(make_language_model(), tmp_path / "without", None)
    (without / ENCODER_FILE).write_text(own)
    with pytest.raises(FormatError, match="no term expansion of queries; it is an inference_free encoder"):
        SparseEncoder.load(without)
    plain = Path(shutil.copytree(make_language_model(), tmp_path / "plain"))
    (plain / ENCODER_FILE).write_text(own)
    with pytest.raises(FormatError, match="it is a splade encoder"):
        SparseEncoder.load(plain)
    [table] = folder.glob("query_0_*/model.safetensors")
    weight = load_file(table)["weight"]
    save_file({"weight": torch.cat([weight, weight[:1]])}, table)
    with pytest.raises(FormatError, match="both must share one vocabulary"):
        SparseEncoder.load(folder)


def test_the_gain_is_part_of_the_fingerprint(folder: Path) -> None:
    before = load(folder).fingerprint
    [module] = folder.glob("*_TermExpansion")
    expansion = TermExpansion.load(module)
    TermExpansion(expansion.weight, expansion.bias, replace(EXPANDING, gain=0.8)).save(module)
    assert load(folder).fingerprint != before


def test_a_server_queues_them_since_they_run_the_model(whole: Path, folder: Path) -> None:
    pytest.importorskip("fastapi")
    from serving.deadline import Deadline
    from serving.encoding import ServedEncoder, ToEncode

    plain, encoder = (ServedEncoder(SparseEncoder.load(one)) for one in (whole, folder))
    for role in ("query", "document"):
        assert isinstance(encoder.encode(["the virus"], role, Deadline(9), lambda *_: b"now"), ToEncode)
    assert plain.encode(["the virus"], "query", Deadline(9), lambda *_: b"now") == b"now"
