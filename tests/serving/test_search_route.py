from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from retrieval import SparseIndex
from runtime.activations import SparseActivations

Search = Callable[..., httpx.Response]


def hits_of(response: httpx.Response, row: int = 0) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    return list(response.json()["results"][row]["hits"])


def ranking(hits: list[dict[str, Any]]) -> list[tuple[str, float]]:
    return [(hit["id"], hit["score"]) for hit in hits]


def expected(index: SparseIndex, query: str, k: int, **options: Any) -> list[tuple[str, float]]:
    found = index.search([query], k=k, **options)
    return list(zip(found.ids[0], found.scores[0].tolist(), strict=True))


@pytest.mark.parametrize("k", [1, 3, 1000])
def test_search_gives_what_the_library_gives(search: Search, index: SparseIndex, k: int) -> None:
    query = "write an object to a file"
    assert ranking(hits_of(search(query=query, k=k))) == expected(index, query, k)


def test_the_answer_has_the_documented_shape(search: Search, index: SparseIndex) -> None:
    response = search(query="json zzzzunknown", k=1, with_=["text", "explain"])
    answer = response.json()
    assert set(answer) == {"results", "version", "took_ms"}
    assert answer["version"] == index.generation
    assert answer["took_ms"] >= 0
    (result,) = answer["results"]
    assert set(result) == {"hits", "unknown_terms", "partial"}
    assert result["partial"] is False
    assert result["unknown_terms"] == ["zzzzunknown"]
    (hit,) = result["hits"]
    assert set(hit) == {"id", "score", "document", "explanation"}
    stored = index.document(hit["id"])
    assert stored is not None
    assert {"_id": hit["id"], **hit["document"]} == stored
    assert set(hit["explanation"][0]) == {"token", "query", "document", "share"}
    for header in ("x-request-id", "x-total-time", "x-queue-time", "x-inference-time"):
        assert response.headers[header]


def test_without_with_a_hit_is_id_and_score(search: Search) -> None:
    assert all(set(hit) == {"id", "score"} for hit in hits_of(search(query="file")))


def test_shares_of_an_explanation_add_up_to_the_score(search: Search) -> None:
    hits = hits_of(search(query="write an object to a file path", k=20, with_=["explain"]))
    assert hits
    for hit in hits:
        shares = [part["share"] for part in hit["explanation"]]
        assert sum(shares) == hit["score"]
        assert shares == sorted(shares, reverse=True)


def test_queries_are_answered_in_their_order(search: Search, index: SparseIndex) -> None:
    queries = ["random numbers", "", "no such wordzz", "write a file"]
    response = search(queries=queries, k=5)
    for row, query in enumerate(queries):
        assert ranking(hits_of(response, row)) == expected(index, query, 5)


def test_a_query_without_a_known_term_finds_nothing_and_says_so(search: Search) -> None:
    (result,) = search(query="qqqq wwww").json()["results"]
    assert result == {"hits": [], "unknown_terms": ["qqqq", "wwww"], "partial": False}


def test_vectors_by_number_and_by_term_find_what_the_text_finds(search: Search, index: SparseIndex) -> None:
    query = "write object file"
    ((units, weights),) = list(index.encoder.encode_queries([query]))
    numbered = {"indices": units.tolist(), "values": weights.tolist()}
    by_term = {
        index.encoder.vocabulary.term(unit): weight
        for unit, weight in zip(units.tolist(), weights.tolist(), strict=True)
    }
    wanted = expected(index, query, 10)
    assert ranking(hits_of(search(vector=numbered))) == wanted
    assert ranking(hits_of(search(vector=by_term))) == wanted
    both = search(vectors=[by_term, numbered])
    assert ranking(hits_of(both, 0)) == ranking(hits_of(both, 1)) == wanted


def test_vectors_are_explained_too(search: Search) -> None:
    hits = hits_of(search(vector={"file": 2.0, "json": 1.5}, with_=["explain"]))
    assert all(sum(part["share"] for part in hit["explanation"]) == hit["score"] for hit in hits)


def test_weights_of_a_repeated_unit_add_up_and_zeros_count_for_nothing(
    search: Search, index: SparseIndex
) -> None:
    file, json = index.encoder.vocabulary.find(["file", "json"])
    once = search(vector={"indices": [file], "values": [2.0]})
    split = search(vector={"indices": [file, json, file], "values": [0.5, 0, 1.5]})
    assert ranking(hits_of(once)) == ranking(hits_of(split))


def test_terms_of_a_vector_that_the_vocabulary_lacks_are_reported(search: Search) -> None:
    (result,) = search(vector={"file": 1, "zzzz": 2}).json()["results"]
    assert result["hits"]
    assert result["unknown_terms"] == ["zzzz"]


def test_indices_and_values_may_be_terms(search: Search) -> None:
    (result,) = search(vector={"indices": 1, "values": 1}).json()["results"]
    assert set(result) == {"hits", "unknown_terms", "partial"}


def test_an_empty_vector_finds_nothing(search: Search) -> None:
    for vector in ({}, {"indices": [], "values": []}, {"file": 0}):
        assert hits_of(search(vector=vector)) == []


def test_a_filter_excludes_documents(search: Search, index: SparseIndex) -> None:
    condition = {"all": [{"field": "year", "gte": 2001}, {"field": "module", "in": ["pathlib", "random"]}]}
    hits = hits_of(search(query="return a path or number", k=50, filter=condition, with_=["text"]))
    assert ranking(hits) == expected(index, "return a path or number", 50, filter=condition)
    assert {hit["document"]["module"] for hit in hits} <= {"pathlib", "random"}
    assert hits


def test_unicode_survives_the_way_there_and_back(search: Search) -> None:
    (hit,) = hits_of(search(query="ёлка café 🎄", k=1, with_=["text"]))
    assert hit["id"] == "ключ/π?&#"
    assert hit["document"]["text"] == "зимняя ёлка 🎄 naïve café"


def test_scores_are_the_float32_values(search: Search, index: SparseIndex) -> None:
    vector = SparseActivations.from_rows(
        [(index.encoder.vocabulary.find(["file"]), [0.1])], len(index.encoder.vocabulary)
    )
    scores = [hit["score"] for hit in hits_of(search(vector={"file": 0.1}))]
    assert np.array_equal(np.array(scores, np.float32), index.search(vector).scores[0])
