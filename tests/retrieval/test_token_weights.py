"""uniCOIL and DeepImpact: which token speaks for which term, and that training and inference agree."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retrieval.encoders.encoder import SparseEncoder
from retrieval.encoders.term_places import TokenTerms, WholeTerms, frequent_words
from retrieval.encoders.token_weight_encoder import TokenWeightEncoder
from retrieval.encoders.token_weight_model import TokenWeightModel, TokenWeightSettings
from retrieval.index.sparse_index import SparseIndex
from retrieval.index.writer import IndexWriter
from runtime.errors import FormatError, UsageError
from tests.retrieval.conftest import TEXTS, TOKENS

MakeModel = Callable[..., Path]
WEIGHTS = st.sampled_from([0.0, 0.5, 1.0, 2.0])


class Pieces:
    """A tokenizer, as far as terms look at it."""

    all_special_ids = (0, 1, 2)
    tokens = ("[PAD]", "[CLS]", "[SEP]", "cat", "##s", "dog", "##ma", "!", "##!")

    def get_vocab(self) -> dict[str, int]:
        return {token: place for place, token in enumerate(self.tokens)}


WORDS = [(3, 4), (5, 6, 4)]
TEXT = st.lists(st.integers(0, len(Pieces.tokens) - 1), max_size=12)


def obvious_tokens(row: list[int], weights: list[float]) -> dict[int, float]:
    found: dict[int, float] = {}
    for token, weight in zip(row, weights, strict=True):
        if token > 2:
            found[token] = max(found.get(token, 0.0), weight)
    return {unit: weight for unit, weight in found.items() if weight > 0}


def obvious_words(row: list[int], weights: list[float]) -> dict[int, float]:
    words: list[tuple[list[int], float]] = []
    before_special = True
    for token, weight in zip(row, weights, strict=True):
        if token <= 2:
            before_special = True
        elif Pieces.tokens[token].startswith("##") and not before_special:
            words[-1][0].append(token)
        else:
            words.append(([token], weight))
            before_special = False
    found: dict[int, float] = {}
    for word, weight in words:
        if not any(c.isalnum() for token in word for c in Pieces.tokens[token]):
            continue
        if len(word) == 1:
            units = word
        elif tuple(word) in WORDS:
            units = [len(Pieces.tokens) + WORDS.index(tuple(word))]
        else:
            units = word
        for unit in units:
            found.setdefault(unit, weight)
    return {unit: weight for unit, weight in found.items() if weight > 0}


@given(st.lists(TEXT, max_size=4), st.data())
def test_terms_are_those_of_the_obvious_loops(ids: list[list[int]], data: st.DataObject) -> None:
    weights = [data.draw(st.lists(WEIGHTS, min_size=len(row), max_size=len(row))) for row in ids]
    table = np.zeros((len(ids), max(map(len, ids), default=0)), np.float32)
    for row, values in enumerate(weights):
        table[row, : len(values)] = values
    tokens, words = TokenTerms(Pieces(), 9), WholeTerms(Pieces(), 9, WORDS)
    by_token = tokens.places(ids)
    by_token = by_token.heaviest(table[by_token.rows, by_token.positions], 9)
    by_word = words.places(ids).first(11)
    for places, units, obvious in ((by_token, 9, obvious_tokens), (by_word, 11, obvious_words)):
        rows = places.activations(table[places.rows, places.positions], len(ids), units)
        found = [dict(zip(row.tolist(), values.tolist(), strict=True)) for row, values in rows]
        assert found == [dict(sorted(obvious(*pair).items())) for pair in zip(ids, weights, strict=True)]
        assert [list(row) for row in found] == [sorted(row) for row in found]


def test_words_have_names_and_the_most_frequent_get_units() -> None:
    bare = WholeTerms(Pieces(), 9)
    ids = [[1, 5, 6, 4, 3, 4, 2], [1, 3, 4, 7, 8, 3, 2], [4, 4]]
    assert list(bare.words_of(ids)) == [(5, 6, 4), (3, 4), (3, 4), (4, 4)]
    assert frequent_words(bare, ids, 2) == [(3, 4), (5, 6, 4)]
    vocabulary = WholeTerms(Pieces(), 9, WORDS).vocabulary
    assert [vocabulary.term(unit) for unit in (3, 9, 10)] == ["cat", "cats", "dogmas"]
    assert vocabulary.find(["dogmas", "##s", "cow"]) == [10, 4, -1]
    assert len(vocabulary) == 11
    for wrong in ([(3,)], [(3, 4), (3, 4)], [(3, 99)]):
        with pytest.raises(FormatError, match="distinct lists of two tokens"):
            WholeTerms(Pieces(), 9, wrong)


def started(folder: Path, family: Any, **settings: Any) -> TokenWeightModel:
    torch.manual_seed(3)
    model = TokenWeightModel.start(folder, TokenWeightSettings(family, **settings), TEXTS)
    with torch.no_grad():
        model.head[-1].weight.uniform_(0.0, 0.3)
    return model.eval()


@pytest.mark.parametrize("family", ["unicoil", "deepimpact"])
def test_training_inference_and_the_saved_encoder_agree(
    make_language_model: MakeModel, tmp_path: Path, family: str
) -> None:
    model = started(make_language_model(), family, max_length=20, document_prompt="the ", query_prompt="how ")
    model.save(tmp_path / "saved")
    encoder = SparseEncoder.load(tmp_path / "saved")
    assert isinstance(encoder, TokenWeightEncoder)
    assert encoder.family == family
    assert len(encoder.vocabulary) == model.num_terms
    texts = ["", *TEXTS, "  "]
    prompted = [("the " + text if text.strip() else "") for text in texts]
    queries = [("how " + text if text.strip() else "") for text in texts]
    done: list[int] = []
    for rows, dense in (
        (encoder.encode_documents(texts, done.append), model(model.tokenize(prompted))),
        (encoder.encode_queries(texts), model.forward_queries(model.tokenize(queries))),
    ):
        assert dense.shape == (len(texts), model.num_terms)
        np.testing.assert_allclose(rows.to_dense(), dense.detach().numpy(), rtol=0, atol=2e-5)
        assert rows.nnz > 20
        assert bool((rows.weights > 0).all())
        assert np.diff(rows.indptr)[[0, -1]].tolist() == [0, 0]
    assert sum(done) == len(texts)
    few = SparseEncoder.load(tmp_path / "saved", max_active_dims=3)
    assert np.diff(few.encode_documents(texts).indptr).max() == 3
    assert few.fingerprint != encoder.fingerprint
    encoder.save(tmp_path / "again")
    again = SparseEncoder.load(tmp_path / "again")
    assert again.fingerprint == encoder.fingerprint
    assert again.token_lengths(TEXTS) == [len(ids) for ids in model.tokenize(TEXTS)["input_ids"]]


@pytest.mark.parametrize("family", ["unicoil", "deepimpact"])
def test_queries_have_a_limit_of_their_own(
    make_language_model: MakeModel, tmp_path: Path, family: str
) -> None:
    text = "the how do vaccines work virus"
    for limit in (None, 4):
        model = started(make_language_model(), family, max_length=7, max_query_length=limit)
        model.save(tmp_path / str(limit))
    same, short = (SparseEncoder.load(tmp_path / str(limit)) for limit in (None, 4))
    assert np.diff(same.encode_queries([text]).indptr) == [5]
    assert np.diff(short.encode_queries([text]).indptr) == [2]
    assert np.diff(short.encode_documents([text]).indptr) == [5]
    assert short.fingerprint != same.fingerprint
    assert len(model.tokenize([text], queries=True)["input_ids"][0]) == 4
    given = SparseEncoder.load(tmp_path / "4", max_length=5)
    assert np.diff(given.encode_queries([text]).indptr) == [3]


def test_the_weight_of_a_word_is_that_of_its_first_token(make_language_model: MakeModel) -> None:
    model = started(make_language_model(), "deepimpact")
    tokens = model.tokenize(["the vaccines learns vaccines"])
    hidden = model.transformer(torch.tensor(tokens["input_ids"])).last_hidden_state
    weights = model.head(hidden)[0, :, 0].relu()
    names = [TOKENS[token] for token in tokens["input_ids"][0]]
    terms = model(tokens)[0]
    unit = model.terms.vocabulary.find(["vaccines"])[0]
    torch.testing.assert_close(terms[unit], weights[names.index("vaccines")])


@pytest.mark.parametrize("family", ["unicoil", "deepimpact"])
def test_gradients_reach_transformer_and_head(make_language_model: MakeModel, family: str) -> None:
    model = started(make_language_model(), family).train()
    loss = model(model.tokenize(TEXTS)).square().sum()
    loss.backward()
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    # A softmax does not see what is added to all of its keys alike.
    assert [name for name in without if "key.bias" not in name] == []


def test_an_index_of_words_is_searched_without_inference(
    make_language_model: MakeModel, tmp_path: Path
) -> None:
    started(make_language_model(), "deepimpact").save(tmp_path / "encoder")
    encoder = SparseEncoder.load(tmp_path / "encoder")
    with IndexWriter.create(tmp_path / "index", encoder=encoder) as writer:
        writer.add([{"_id": str(i), "text": text} for i, text in enumerate(TEXTS)])
        writer.commit()
    with SparseIndex.open(tmp_path / "index") as index:
        hits = index.search(["the immune zebra"], k=5)
        found = dict(zip(hits.ids[0], hits.scores[0].tolist(), strict=True))
    expected = (
        encoder.encode_documents(TEXTS).to_dense()
        @ encoder.encode_queries(["the immune zebra"]).to_dense()[0]
    )
    assert found == pytest.approx({str(i): score for i, score in enumerate(expected) if score > 0}, rel=2e-2)


def test_what_cannot_be_read_is_said(make_language_model: MakeModel, tmp_path: Path) -> None:
    started(make_language_model(), "unicoil").save(tmp_path)
    described = json.loads((tmp_path / "lexpert_encoder.json").read_text())
    with pytest.raises(UsageError, match="no option 'pooling'"):
        SparseEncoder.load(tmp_path, pooling="max")
    with pytest.raises(UsageError, match="save it into another folder"):
        SparseEncoder.load(tmp_path).save(tmp_path)
    (tmp_path / "words.json").write_text('[["a"]]')
    with pytest.raises(FormatError, match=r"words\.json is damaged"):
        SparseEncoder.load(tmp_path).encode_documents(["a"])
    (tmp_path / "words.json").write_text("[]")
    (tmp_path / "head.safetensors").write_bytes(b"none")
    with pytest.raises(FormatError, match=r"head\.safetensors cannot be read"):
        SparseEncoder.load(tmp_path).encode_documents(["a"])
    (tmp_path / "lexpert_encoder.json").write_text(json.dumps(described | {"version": 2}))
    with pytest.raises(FormatError, match="has version 2"):
        SparseEncoder.load(tmp_path)
