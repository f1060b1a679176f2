"""Searches in several indexes, approximate ones and ones with little time, over a real socket."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st

import retrieval.index.merge
from retrieval import IndexWriter, SparseEncoder
from retrieval.encoders.precomputed import PrecomputedEncoder
from retrieval.search.fusion import fuse
from runtime.activations import SparseActivations
from serving.api import Api
from serving.configuration import Limits, ServerConfiguration
from serving.request_identity import RequestIdentity

WORDS = ["ash", "beech", "cedar", "elm", "fir", "larch", "oak", "pine", "yew", "willow"]

TIMEOUT_S = 20.0

VECTOR = {"indices": [0], "values": [1]}


class Texts:
    """A corpus of texts by id."""

    name = "texts"
    num_documents = None

    def __init__(self, texts: dict[str, str]) -> None:
        self._documents = [{"_id": name, "text": text} for name, text in texts.items()]

    def checksum(self) -> str:
        return json.dumps(self._documents)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._documents)


def random_texts(seed: int, names: range) -> dict[str, str]:
    """Short texts of few words, so that many scores are the same."""
    draw = np.random.default_rng(seed)
    return {f"d{i}": " ".join(draw.choice(WORDS, draw.integers(1, 6))) for i in names}


def write_sparse(folder: Path, texts: dict[str, str], **fields: Any) -> Path:
    with IndexWriter.create(folder, encoder=SparseEncoder.load("bm25"), **fields) as writer:
        writer.add(
            {"_id": name, "text": text, **({"year": 2000 + int(name[1:])} if fields else {})}
            for name, text in texts.items()
        )
    return folder


def write_dense_model(folder: Path) -> Path:
    """A tiny BERT whose vocabulary is `WORDS`."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    torch.manual_seed(0)
    configuration = transformers.BertConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=40,
        initializer_range=0.4,
    )
    transformers.BertModel(configuration).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Collections that share some documents: two of terms, one of vectors, and one that takes vectors only."""
    from retrieval.encoders.dense import DenseEncoder
    from retrieval.index.dense_index import build_dense_index

    root = tmp_path_factory.mktemp("fused")
    encoder = DenseEncoder.load(write_dense_model(root / "model"))
    build_dense_index(root / "dense", encoder, Texts(random_texts(1, range(10, 50))))
    write_sparse(root / "docs", random_texts(1, range(40)), fields={"year": "int"})
    write_sparse(root / "more", random_texts(2, range(20, 60)))
    with pytest.MonkeyPatch.context() as patch:  # as large indexes are laid out
        patch.setattr(retrieval.index.merge, "TIERED_DOCUMENTS", 1)
        with IndexWriter.create(root / "raw", encoder=PrecomputedEncoder(num_units=4)) as writer:
            rows = [([i % 4, 3], [1.0, 0.5]) if i % 4 < 3 else ([3], [2.0]) for i in range(50)]
            writer.add_vectors([f"d{i}" for i in range(50)], SparseActivations.from_rows(rows, 4))
            writer.merge()
            assert writer.has_tiers
    return {name: root / name for name in ("docs", "more", "dense", "raw")}


@pytest.fixture(scope="module")
def api(folders: dict[str, Path]) -> Api:
    limits = Limits(max_k=120, max_queries=40, max_results=9000, timeout_s=TIMEOUT_S)
    return Api(ServerConfiguration(indexes=folders, port=0, threads=2, limits=limits))


@pytest.fixture(scope="module")
def client(api: Api) -> Iterator[httpx.Client]:
    server = uvicorn.Server(uvicorn.Config(RequestIdentity(api), port=0, log_level="error", lifespan="on"))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(server.serve()))
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as opened:
            yield opened
    finally:
        server.should_exit = True
        thread.join()
        loop.close()


def post(client: httpx.Client, name: str, **body: Any) -> httpx.Response:
    return client.post(
        f"/v1/indexes/{name}/search", json={key.rstrip("_"): value for key, value in body.items()}
    )


def rankings(client: httpx.Client, name: str, **body: Any) -> list[list[tuple[str, float]]]:
    response = post(client, name, **body)
    assert response.status_code == 200, response.text
    return [[(hit["id"], hit["score"]) for hit in result["hits"]] for result in response.json()["results"]]


def error_of(response: httpx.Response) -> tuple[int, str, str]:
    error = response.json()["error"]
    return response.status_code, error["code"], error["param"]


queries = st.lists(
    st.lists(st.sampled_from([*WORDS, "zzz"]), max_size=4).map(" ".join), min_size=1, max_size=36
)


@settings(max_examples=40, deadline=None)
@given(
    queries,
    st.permutations(["docs", "more", "dense"]),
    st.integers(2, 3),
    st.sampled_from(["rrf", "min_max"]),
    st.none() | st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=3, max_size=3),
    st.integers(1, 12),
    st.integers(0, 20),
)
def test_a_fused_answer_is_the_fusion_of_the_separate_ones(
    client: httpx.Client,
    texts: list[str],
    names: list[str],
    count: int,
    method: Any,
    weights: list[float] | None,
    k: int,
    deeper: int,
) -> None:
    names, weights = names[:count], weights and weights[:count]
    how: dict[str, Any] = {"with": names[1:], "method": method, "depth": k + deeper}
    if weights is not None:
        how["weights"] = weights
    fused = rankings(client, names[0], queries=texts, k=k, fuse=how)
    separate = [rankings(client, name, queries=texts, k=k + deeper) for name in names]
    assert fused == [fuse(each, k, method, weights) for each in zip(*separate, strict=True)]


def test_the_least_that_can_be_said_of_a_fusion(client: httpx.Client) -> None:
    short = rankings(client, "docs", query="oak elm", fuse={"with": "dense"})
    separate = [rankings(client, name, query="oak elm", k=100)[0] for name in ("docs", "dense")]
    assert short == [fuse(separate, 10, "rrf")]


def test_a_dense_index_gives_what_the_library_gives(client: httpx.Client, folders: dict[str, Path]) -> None:
    from retrieval.index.dense_index import DenseIndex

    texts = ["oak", "pine yew", ""] * 12  # more than one batch
    found = DenseIndex.open(folders["dense"]).search(texts, k=5)
    answered = rankings(client, "dense", queries=texts, k=5, mode="exact")
    for row, hits in enumerate(answered):
        assert [name for name, _ in hits] == found.ids[row]
        assert np.allclose([score for _, score in hits], found.scores[row], atol=1e-5)


def test_fused_hits_come_with_text_terms_and_sources(client: httpx.Client) -> None:
    fusion = {"with": ["more", "docs"]}
    response = post(client, "dense", query="oak elm", k=60, fuse=fusion, with_=["text", "explain"])
    assert response.status_code == 200, response.text
    ranked = {name: rankings(client, name, query="oak elm", k=100)[0] for name in ("dense", "more", "docs")}
    stored = {"more": random_texts(2, range(20, 60)), "docs": random_texts(1, range(40))}
    (result,) = response.json()["results"]
    assert len(result["hits"]) > 40
    for hit in result["hits"]:
        sources = [
            {"index": name, "rank": rank, "score": score}
            for name, ranking in ranked.items()
            for rank, (identifier, score) in enumerate(ranking, 1)
            if identifier == hit["id"]
        ]
        assert hit["sources"] == sources
        home = next(name for name in ("more", "docs") if hit["id"] in stored[name])
        assert hit["document"]["text"] == stored[home][hit["id"]]
        shares = sum(part["share"] for part in hit["explanation"])
        assert shares == dict(ranked[home]).get(hit["id"], 0)


def test_documents_that_no_index_of_terms_has_come_without(client: httpx.Client) -> None:
    response = post(client, "docs", query="oak", k=100, fuse={"with": "dense"}, with_=["text", "explain"])
    hits = {hit["id"]: hit for hit in response.json()["results"][0]["hits"]}
    assert hits["d45"]["document"] is None
    assert hits["d45"]["explanation"] == []
    assert [source["index"] for source in hits["d45"]["sources"]] == ["dense"]


def test_a_filter_holds_in_every_index_of_terms(client: httpx.Client) -> None:
    condition = {"field": "year", "lt": 2010}
    assert rankings(client, "docs", query="oak", filter=condition)[0]
    response = post(client, "docs", query="oak", filter=condition, fuse={"with": "more"})
    assert error_of(response) == (422, "invalid_value", "filter")
    assert "in the index more: " in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "options", [{"mode": "approximate"}, {"effort": 1}, {"mode": "approximate", "effort": 1.0}]
)
def test_approximate_searches_find_what_there_is_to_find(
    client: httpx.Client, options: dict[str, Any]
) -> None:
    exact = rankings(client, "docs", query="oak pine", k=5, mode="exact")
    (found,) = rankings(client, "docs", query="oak pine", k=5, **options)
    assert exact == rankings(client, "docs", query="oak pine", k=5)
    assert len(found) == 5
    if "effort" in options:
        assert [found] == exact
    assert rankings(client, "docs", query="oak", fuse={"with": "dense"}, **options)[0]


def test_a_recall_can_be_aimed_at_unless_the_index_needs_calibration_for_that(client: httpx.Client) -> None:
    for recall in (0.5, 1):
        aimed = rankings(client, "docs", query="oak pine", target_recall=recall)
        assert aimed == rankings(client, "docs", query="oak pine")
    assert rankings(client, "raw", vector=VECTOR, target_recall=1) == rankings(client, "raw", vector=VECTOR)
    response = post(client, "raw", vector=VECTOR, target_recall=0.9)
    assert error_of(response) == (422, "invalid_value", "target_recall")
    assert "not calibrated" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("name", "body", "status", "param"),
    [
        ("docs", {"query": "oak", "fuse": {"with": "none"}}, 404, "fuse.with"),
        ("none", {"query": "oak", "fuse": {"with": "docs"}}, 404, "name"),
        ("docs", {"query": "oak", "fuse": {"with": ["more", "docs"]}}, 422, "fuse.with"),
        ("docs", {"query": "oak", "fuse": {"with": ["more", "more"]}}, 422, "fuse.with"),
        ("docs", {"query": "oak", "fuse": {"with": []}}, 422, "fuse.with"),
        ("docs", {"query": "oak", "fuse": {"with": ["more"] * 8}}, 422, "fuse.with"),
        ("docs", {"query": "oak", "fuse": {"with": 1}}, 422, "fuse.with"),
        ("docs", {"query": "oak", "fuse": {"with": [1]}}, 422, "fuse.with.0"),
        ("docs", {"query": "oak", "fuse": {}}, 422, "fuse.with"),
        ("docs", {"query": "oak", "fuse": {"with": "more", "colour": 1}}, 422, "fuse.colour"),
        ("docs", {"query": "oak", "fuse": {"with": "more", "method": "best"}}, 422, "fuse.method"),
        ("docs", {"query": "oak", "fuse": {"with": "more", "weights": [1]}}, 422, "fuse.weights"),
        ("docs", {"query": "oak", "fuse": {"with": "more", "weights": [0, 0]}}, 422, "fuse.weights"),
        ("docs", {"query": "oak", "fuse": {"with": "more", "weights": [1e308, 1e308]}}, 422, "fuse.weights"),
        ("docs", {"query": "oak", "fuse": {"with": "more", "weights": [1, -1]}}, 422, "fuse.weights.1"),
        ("docs", {"query": "oak", "fuse": {"with": "more", "depth": 0}}, 422, "fuse.depth"),
        ("docs", {"query": "oak", "fuse": {"with": "more", "depth": 9}}, 422, "fuse.depth"),
        ("docs", {"query": "oak", "fuse": {"with": "more", "depth": 121}}, 422, "fuse.depth"),
        ("docs", {"queries": ["oak"] * 40, "fuse": {"with": "more", "depth": 120}}, 422, "fuse.depth"),
        ("docs", {"vector": VECTOR, "fuse": {"with": "more"}}, 422, "vector"),
        ("docs", {"vectors": [VECTOR], "fuse": {"with": "dense"}}, 422, "vectors"),
        ("docs", {"query": "oak", "fuse": {"with": "raw"}}, 422, "fuse"),
        (
            "docs",
            {"query": "oak", "filter": {"field": "year", "eq": 1}, "fuse": {"with": "dense"}},
            422,
            "filter",
        ),
        ("dense", {"vector": VECTOR}, 422, "vector"),
        ("dense", {"query": "oak", "filter": {"field": "year", "eq": 1}}, 422, "filter"),
        ("dense", {"query": "oak", "with": ["explain"]}, 422, "with"),
        ("dense", {"query": "oak", "with": ["text"]}, 422, "with"),
        ("dense", {"query": "oak", "mode": "approximate"}, 422, "mode"),
        ("dense", {"query": "oak", "target_recall": 0.9}, 422, "target_recall"),
        ("dense", {"query": "oak", "min_version": 2}, 409, "min_version"),
        ("docs", {"query": "oak", "mode": "exhaustive"}, 422, "mode"),
        ("docs", {"query": "oak", "mode": "exact", "effort": 0.5}, 422, "effort"),
        ("docs", {"query": "oak", "effort": 0.5, "target_recall": 0.5}, 422, "target_recall"),
        ("docs", {"query": "oak", "effort": 0}, 422, "effort"),
        ("docs", {"query": "oak", "target_recall": 1.1}, 422, "target_recall"),
        ("docs", {"query": "oak", "timeout_ms": 0}, 422, "timeout_ms"),
        ("docs", {"query": "oak", "timeout_ms": 0.5}, 422, "timeout_ms"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    client: httpx.Client, name: str, body: dict[str, Any], status: int, param: str
) -> None:
    response = client.post(f"/v1/indexes/{name}/search", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param), response.text


def test_dense_indexes_are_listed_with_the_others_and_only_searched(client: httpx.Client) -> None:
    listed = {index["name"]: index for index in client.get("/v1/indexes").json()["indexes"]}
    assert list(listed) == ["dense", "docs", "more", "raw"]
    assert listed["dense"] == client.get("/v1/indexes/dense").json()
    assert listed["dense"]["documents"] == 40
    assert listed["dense"]["encoder"]["name"] == "dense"
    assert client.get("/ready").json()["indexes"]["dense"] == 1
    assert error_of(client.get("/v1/indexes/dense/stats")) == (409, "index_is_dense", "name")
    assert error_of(client.get("/v1/indexes/dense/documents/d1")) == (409, "index_is_dense", "name")


def test_a_request_waits_for_its_turn_at_the_dense_encoder_and_no_longer_than_it_likes(
    client: httpx.Client, api: Api
) -> None:
    dense = api.state.catalogue.dense["dense"]
    fusion = {"with": ["more", "dense"]}
    go_on = threading.Event()
    dense.batcher._thread.submit(go_on.wait, 60)  # as if another request's batch were being encoded
    began = time.monotonic()
    response = post(client, "docs", query="oak", fuse=fusion, timeout_ms=200)
    assert time.monotonic() - began < TIMEOUT_S / 2
    assert dense.batcher.waiting == 0
    go_on.set()
    assert error_of(response) == (504, "timeout", "timeout_ms")
    assert "timeout_ms of 200" in response.json()["error"]["message"]
    fused = rankings(client, "docs", query="oak", fuse=fusion, timeout_ms=10_000_000)
    assert fused == rankings(client, "docs", query="oak", fuse=fusion)


def test_a_long_body_may_ask_for_less_time_too(client: httpx.Client) -> None:
    assert rankings(client, "docs", query="oak " * 20_000, k=1, timeout_ms=19_000)
