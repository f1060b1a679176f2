"""The routes of text-embeddings-inference, as its clients use them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval import IndexWriter, SparseEncoder, SparseIndex
from runtime.activations import SparseActivations
from serving.configuration import Limits, ServerConfiguration
from serving.routes.tei import products
from tests.serving.socket_server import serve

TEXTS = ["the json module reads a json file", "", "zzzzunknown", "ёлка café", "a path of a file"]


@pytest.fixture(scope="module")
def client(index_folder: Path) -> Iterator[httpx.Client]:
    limits = Limits(max_inputs=8)
    with serve(ServerConfiguration(indexes={"docs": index_folder}, port=0, limits=limits)) as client:
        yield client


@pytest.mark.parametrize("role", [None, "document", "query"])
def test_vectors_are_those_of_the_encoder(client: httpx.Client, index: SparseIndex, role: str | None) -> None:
    body: dict[str, Any] = {"inputs": TEXTS, "truncate": True}
    answer = client.post("/embed_sparse", json={**body, "prompt_name": role} if role else body)
    assert answer.status_code == 200
    encode = index.encoder.encode_queries if role == "query" else index.encoder.encode_documents
    for found, (units, weights) in zip(answer.json(), encode(TEXTS), strict=True):
        expected = zip(units.tolist(), weights.tolist(), strict=True)
        assert found == [{"index": unit, "value": weight} for unit, weight in expected]


def test_one_text_is_a_list_of_one(client: httpx.Client) -> None:
    one = client.post("/embed_sparse", json={"inputs": "json file"}).json()
    assert one == client.post("/embed_sparse", json={"inputs": ["json file"]}).json()
    assert len(one) == 1


def test_texts_are_ranked_as_the_index_would_rank_them(client: httpx.Client, index: SparseIndex) -> None:
    query = "json file"
    body = {"query": query, "texts": TEXTS, "raw_scores": True, "return_text": True, "truncate": False}
    ranks = client.post("/rerank", json=body).json()
    asked = index.encoder.encode_queries([query]).to_dense()[0].astype(np.float64)
    expected = index.encoder.encode_documents(TEXTS).to_dense().astype(np.float64) @ asked
    order = sorted(range(len(TEXTS)), key=lambda place: (-expected[place], place))
    assert [rank["index"] for rank in ranks] == order
    assert [rank["text"] for rank in ranks] == [TEXTS[place] for place in order]
    np.testing.assert_allclose([rank["score"] for rank in ranks], expected[order], rtol=1e-12)
    shares = client.post("/rerank", json={"query": query, "texts": TEXTS}).json()
    assert [rank["index"] for rank in shares] == order
    assert all(set(rank) == {"index", "score"} and 0 <= rank["score"] < 1 for rank in shares)
    np.testing.assert_allclose([rank["score"] for rank in shares], expected[order] / (1 + expected[order]))


ROWS = st.lists(st.dictionaries(st.integers(0, 5), st.floats(0.125, 4, width=32), max_size=6), max_size=5)


@given(query=st.dictionaries(st.integers(0, 5), st.floats(0.125, 4, width=32)), rows=ROWS)
def test_products_are_those_of_dense_vectors(query: dict[int, float], rows: list[dict[int, float]]) -> None:
    def sparse(vectors: list[dict[int, float]]) -> SparseActivations:
        return SparseActivations.from_rows(
            [(sorted(vector), [vector[unit] for unit in sorted(vector)]) for vector in vectors], 6
        )

    found = products(sparse([query]), sparse(rows))
    expected = [sum(weight * query.get(unit, 0.0) for unit, weight in row.items()) for row in rows]
    np.testing.assert_allclose(found, np.array(expected, np.float64).reshape(len(rows)))


def test_errors_name_the_field(client: httpx.Client) -> None:
    for path, body, param in (
        ("/embed_sparse", {"inputs": []}, "inputs"),
        ("/embed_sparse", {"inputs": ["a"] * 9}, "inputs"),
        ("/embed_sparse", {"inputs": "a", "prompt_name": "other"}, "prompt_name"),
        ("/embed_sparse", {"inputs": "a", "truncation_direction": "left"}, "truncation_direction"),
        ("/rerank", {"query": "a"}, "texts"),
        ("/rerank", {"query": "a", "texts": []}, "texts"),
        ("/rerank", {"query": "a", "texts": ["a"] * 9}, "texts"),
        ("/rerank", {"query": "a", "texts": ["a"], "more": 1}, "more"),
    ):
        answer = client.post(path, json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, param), body
    answer = client.post("/rerank", json={"query": "a", "texts": ["a"], "model": "none"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_several_encoders_are_told_apart_by_their_indexes(index_folder: Path, tmp_path: Path) -> None:
    with IndexWriter.create(tmp_path / "other", encoder=SparseEncoder.load("bm25")) as writer:
        writer.add([{"_id": "a", "text": "another json file"}])
    indexes = {"docs": index_folder, "other": tmp_path / "other"}
    with serve(ServerConfiguration(indexes=indexes, port=0)) as client:
        answer = client.post("/embed_sparse", json={"inputs": "json"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "ambiguous_model")
        found = [
            client.post("/embed_sparse", json={"inputs": "json", "model": name}).json() for name in indexes
        ]
        assert found[0] != found[1]
        assert client.get("/info").json()["model_id"] is None


def test_a_server_without_encoders_has_none(tmp_path: Path) -> None:
    with serve(ServerConfiguration(data=tmp_path / "data", port=0)) as client:
        answer = client.post("/embed_sparse", json={"inputs": "json"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_the_client_of_hugging_face_asks_for_health_and_information(
    client: httpx.Client, index: SparseIndex
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    about = hub.InferenceClient(model=str(client.base_url), provider="hf-inference")
    assert about.health_check()
    found = about.get_endpoint_info()
    assert (found["model_id"], found["model_sha"]) == ("bm25", index.encoder.fingerprint)


def test_the_examples_of_its_documentation_are_understood(client: httpx.Client) -> None:
    """Bytes as its documentation sends them, and the types that its clients expect."""
    headers = {"Content-Type": "application/json"}
    body = b'{"inputs":"I like you."}'
    (vector,) = client.post("/embed_sparse", content=body, headers=headers).json()
    assert all(type(each["index"]) is int and type(each["value"]) is float for each in vector)
    body = b'{"query": "What is Deep Learning?", "texts": ["Deep Learning is not...", "Deep learning is..."]}'
    ranks = client.post("/rerank", content=body, headers=headers).json()
    assert sorted(rank["index"] for rank in ranks) == [0, 1]
    assert ranks[0]["score"] >= ranks[1]["score"]
