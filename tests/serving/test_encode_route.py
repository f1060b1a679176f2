from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest

from retrieval import SparseIndex


def encode(api: Any, **body: Any) -> httpx.Response:
    response: httpx.Response = api.post("/v1/encode", json={"model": "docs", "input": ["json file"], **body})
    return response


@pytest.mark.parametrize("model", ["docs", "bm25"])
@pytest.mark.parametrize("role", ["document", "query"])
def test_vectors_are_those_of_the_encoder(api: Any, index: SparseIndex, model: str, role: str) -> None:
    texts = ["write the file, write it", "", "zzzzunknown", "ёлка café"]
    answer = encode(api, model=model, input=texts, role=role).json()
    method = index.encoder.encode_queries if role == "query" else index.encoder.encode_documents
    assert answer["model"] == model
    assert answer["usage"] == {"prompt_tokens": 6}  # stop words are not read
    assert [vector["index"] for vector in answer["data"]] == [0, 1, 2, 3]
    for vector, (units, weights) in zip(answer["data"], method(texts), strict=True):
        assert dict(zip(vector["indices"], vector["values"], strict=True)) == dict(
            zip(units.tolist(), weights.tolist(), strict=True)
        )
        assert vector["values"] == sorted(vector["values"], reverse=True)


def test_top_k_keeps_the_strongest_and_breaks_ties_by_unit(api: Any, index: SparseIndex) -> None:
    text = "path file object json json"
    full = encode(api, input=text, role="query").json()["data"][0]
    cut = encode(api, input=text, role="query", top_k=3).json()["data"][0]
    assert cut["indices"] == full["indices"][:3]
    assert full["indices"][0] == index.encoder.vocabulary.find(["json"])[0]
    assert full["indices"][1:] == sorted(full["indices"][1:])


def test_tokens_are_the_terms_of_the_units(api: Any, index: SparseIndex) -> None:
    (vector,) = encode(api, return_tokens=True).json()["data"]
    assert vector["tokens"] == [index.encoder.vocabulary.term(unit) for unit in vector["indices"]]
    assert set(vector["tokens"]) == {"json", "file"}


def test_encoding_unknown_words_does_not_change_later_searches(api: Any, index: SparseIndex) -> None:
    encode(api, input=["brandnewword brandnewword"], role="document")
    answer = api.post("/v1/indexes/docs/search", json={"query": "brandnewword"}).json()
    assert answer["results"][0]["unknown_terms"] == ["brandnewword"]
    assert index.encoder.unknown_terms("brandnewword") == ["brandnewword"]


def test_a_vector_from_encode_searches(api: Any, index: SparseIndex) -> None:
    (vector,) = encode(api, input="read json", role="query").json()["data"]
    body = {"vector": {"indices": vector["indices"], "values": vector["values"]}, "k": 5}
    hits = api.post("/v1/indexes/docs/search", json=body).json()["results"][0]["hits"]
    found = index.search(["read json"], k=5)
    assert [hit["id"] for hit in hits] == found.ids[0]
    assert np.array_equal(np.array([hit["score"] for hit in hits], np.float32), found.scores[0])
