"""Searching an index whose shards are asked at the same time: whole, slow and dead ones, over real sockets."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import SparseIndex
from retrieval.index.sharded_index import ShardedIndex
from retrieval.index.split import split_index
from runtime.activations import SparseActivations
from runtime.errors import ConflictError, NotFoundError
from serving.api import Api
from serving.configuration import Limits, ServerConfiguration
from serving.shard_deployment import check_shards
from serving.shards import (
    MESSAGE_BYTES,
    PIECE_POSTINGS,
    PIECE_RESULTS,
    LocalShards,
    ShardHits,
    ShardQueries,
    ShardUnavailableError,
    cut,
)
from tests.serving.socket_server import serve

NUM_SHARDS = 3
SEARCH = "/v1/indexes/many/search"


@pytest.fixture(scope="module")
def sharded_folder(index: SparseIndex, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded") / "index"
    split_index(index, folder, NUM_SHARDS)
    return folder


class Watched:
    """Shards in this process, of which some can be made slow or dead."""

    def __init__(self) -> None:
        self.slow: set[int] = set()
        self.dead: set[int] = set()
        self.broken: set[int] = set()
        self.given_up: set[int] = set()
        self.asked = 0

    def open(self, _: str, index: ShardedIndex) -> Watched:
        self._shards = LocalShards(index, threads=2)
        return self

    async def search(self, shard: int, asked: ShardQueries) -> ShardHits:
        self.asked += 1
        assert asked.num_bytes <= MESSAGE_BYTES
        if shard in self.dead:
            raise ShardUnavailableError
        if shard in self.broken:
            raise ValueError("a fault")
        if shard in self.slow:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.given_up.add(shard)
                raise
        return await self._shards.search(shard, asked)

    def close(self) -> None:
        self._shards.close()

    def heal(self) -> None:
        for kind in (self.slow, self.dead, self.broken, self.given_up):
            kind.clear()


@pytest.fixture(scope="module")
def opened() -> Watched:
    return Watched()


@pytest.fixture
def watched(opened: Watched) -> Iterator[Watched]:
    yield opened
    opened.heal()


@pytest.fixture(scope="module")
def client(sharded_folder: Path, index_folder: Path, opened: Watched) -> Iterator[httpx.Client]:
    """It waits for shards for longer than a busy machine keeps one from answering."""
    configuration = ServerConfiguration(
        indexes={"many": sharded_folder, "one": index_folder}, threads=2, limits=Limits(shard_timeout_s=25)
    )
    with serve(configuration, open_shards=opened.open) as served:
        yield served


@pytest.fixture(scope="module")
def soon_given_up(
    client: httpx.Client, sharded_folder: Path, index_folder: Path
) -> Iterator[tuple[httpx.Client, Watched]]:
    """A server that waits less, and its shards."""
    assert client.post(SEARCH, json={"query": "file", "with": ["explain"]}).status_code == 200  # is compiled
    configuration = ServerConfiguration(
        indexes={"many": sharded_folder, "one": index_folder}, threads=2, limits=Limits(shard_timeout_s=1)
    )
    shards = Watched()
    with serve(configuration, open_shards=shards.open) as served:
        yield served, shards


@pytest.fixture
def hasty(soon_given_up: tuple[httpx.Client, Watched]) -> Iterator[tuple[httpx.Client, Watched]]:
    yield soon_given_up
    soon_given_up[1].heal()


def results(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()["results"]


WORDS = [
    "write",
    "an",
    "object",
    "file",
    "path",
    "random",
    "number",
    "wait",
    "json",
    "unseen",
    "return",
    "text",
]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    queries=st.lists(st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join), min_size=1, max_size=40),
    k=st.sampled_from([1, 5, 20]),
    is_filtered=st.booleans(),
    parts=st.sampled_from([[], ["text"], ["text", "explain"]]),
    options=st.sampled_from([{}, {"mode": "approximate"}, {"effort": 1.0}, {"target_recall": 0.9}]),
)
def test_shards_answer_as_the_index_does(
    client: httpx.Client,
    queries: list[str],
    k: int,
    is_filtered: bool,
    parts: list[str],
    options: dict[str, Any],
) -> None:
    """Without tiers every search is exact, so approximate ones are too."""
    body: dict[str, Any] = {"queries": queries, "k": k, "with": parts, **options}
    if is_filtered:
        body["filter"] = {"field": "year", "gte": 2002}
    found, wanted = (client.post(f"/v1/indexes/{name}/search", json=body) for name in ("many", "one"))
    assert results(found) == results(wanted)


@pytest.mark.parametrize(
    "body",
    [
        {"vector": {"file": 1.5, "path": 0.5}, "k": 50, "with": ["text", "explain"]},
        {"vectors": [{"file": 1.5}, {}, {"indices": [5, 9], "values": [1, 2]}], "k": 1000},
        {"query": "zzzz", "with": ["explain"]},
        {"query": "write a file", "allow_partial": True},
    ],
)
def test_other_searches_are_the_same_too(client: httpx.Client, body: dict[str, Any]) -> None:
    found, wanted = (client.post(f"/v1/indexes/{name}/search", json=body) for name in ("many", "one"))
    assert results(found) == results(wanted)
    assert set(found.json()) == {"results", "version", "took_ms"}


def test_there_may_be_more_results_than_a_shard_has_documents(
    client: httpx.Client, index: SparseIndex, sharded_folder: Path
) -> None:
    body = {"vector": {index.encoder.vocabulary.term(unit): 1.0 for unit in range(400)}, "k": 1000}
    found, wanted = (client.post(f"/v1/indexes/{name}/search", json=body) for name in ("many", "one"))
    with ShardedIndex.open(sharded_folder) as many:
        assert len(results(found)[0]["hits"]) > max(shard.num_documents for shard in many.shards)
    assert results(found) == results(wanted)


def test_a_sharded_index_is_fused_like_another(client: httpx.Client) -> None:
    bodies = [
        {"query": "write a file", "fuse": {"with": other}, "with": ["text", "explain"]}
        for other in ("one", "many")
    ]
    found = client.post(SEARCH, json=bodies[0])
    wanted = client.post("/v1/indexes/one/search", json=bodies[1])
    assert [hit["id"] for hit in results(found)[0]["hits"]] == [
        hit["id"] for hit in results(wanted)[0]["hits"]
    ]
    assert [source["index"] for source in results(found)[0]["hits"][0]["sources"]] == ["many", "one"]


def test_what_else_is_asked_of_an_index_is_answered(client: httpx.Client, index: SparseIndex) -> None:
    told = client.get("/v1/indexes/many").json()
    assert (told["documents"], told["shards"], told["writable"]) == (index.num_documents, NUM_SHARDS, False)
    assert client.get("/v1/indexes/one").json()["shards"] == 1
    stats = client.get("/v1/indexes/many/stats").json()
    assert (stats["documents"], sum(stats["documents_of_shards"])) == (index.num_documents,) * 2
    document = client.get("/v1/indexes/many/documents/json.dump")
    assert document.json()["document"] == client.get("/v1/indexes/one/documents/json.dump").json()["document"]
    assert client.post("/v1/encode", json={"model": "many", "input": "file"}).status_code == 200
    assert f'lexpert_index_documents{{index="many"}} {index.num_documents}' in client.get("/metrics").text
    assert 'stage="merge"' in client.get("/metrics").text
    refused = client.put("/v1/indexes/many/documents", json={"documents": [{"id": "a", "text": "b"}]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "index_read_only")
    assert client.post(SEARCH, json={"query": "a", "min_version": 2}).status_code == 409


def test_wrong_searches_are_refused_before_shards_are_asked(client: httpx.Client, watched: Watched) -> None:
    before = watched.asked
    for body, param in (
        ({"query": "a", "filter": {"field": "none", "eq": 1}}, "filter"),
        ({"query": "a", "effort": 2}, "effort"),
        ({"query": "a", "allow_partial": "yes"}, "allow_partial"),
    ):
        refused = client.post(SEARCH, json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, param)
    assert watched.asked == before


def without(index: SparseIndex, sharded_folder: Path, shard: int, query: str) -> list[tuple[str, float]]:
    """What the other shards find."""
    with ShardedIndex.open(sharded_folder) as many:
        gone = {identifier for segment in many.shards[shard].segments for identifier in segment.ids}
    found = index.search([query], 1000)
    pairs = zip(found.ids[0], found.scores[0].tolist(), strict=True)
    return [(identifier, score) for identifier, score in pairs if identifier not in gone][:10]


@pytest.mark.parametrize("kind", ["slow", "dead", "broken"])
def test_without_a_shard_the_request_says_what_it_gets(
    hasty: tuple[httpx.Client, Watched], index: SparseIndex, sharded_folder: Path, kind: str
) -> None:
    client, watched = hasty
    getattr(watched, kind).add(1)
    reason = "timeout" if kind == "slow" else "unavailable"
    refused = client.post(SEARCH, json={"query": "write a file"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (
        504 if kind == "slow" else 503,
        f"shard_{reason}",
    )
    assert "shard 1 of the index many" in refused.json()["error"]["message"]
    assert ("retry-after" in refused.headers) == (kind != "slow")
    partial = client.post(SEARCH, json={"query": "write a file", "allow_partial": True, "with": ["explain"]})
    (result,) = results(partial)
    assert result["partial"] is True
    assert partial.json()["missing_shards"] == [{"index": "many", "shard": 1, "reason": reason}]
    found = [(hit["id"], hit["score"]) for hit in result["hits"]]
    assert found == without(index, sharded_folder, 1, "write a file")
    assert all(sum(part["share"] for part in hit["explanation"]) == hit["score"] for hit in result["hits"])
    assert watched.given_up == ({1} if kind == "slow" else set())


def test_a_dead_shard_is_told_at_once_though_another_is_slow(hasty: tuple[httpx.Client, Watched]) -> None:
    client, watched = hasty
    watched.slow.add(0)
    watched.dead.add(2)
    refused = client.post(SEARCH, json={"query": "file"}).json()["error"]
    assert (refused["code"], "shard 2" in refused["message"]) == ("shard_unavailable", True)
    partial = client.post(SEARCH, json={"query": "file", "allow_partial": True}).json()
    assert [(each["shard"], each["reason"]) for each in partial["missing_shards"]] == [
        (0, "timeout"),
        (2, "unavailable"),
    ]


def test_without_any_shard_there_is_no_part_to_give(client: httpx.Client, watched: Watched) -> None:
    watched.dead |= set(range(NUM_SHARDS))
    refused = client.post(SEARCH, json={"query": "file", "allow_partial": True})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shard_unavailable")


def test_shards_get_less_time_than_the_request_has(client: httpx.Client, watched: Watched) -> None:
    watched.slow.add(0)
    body = {"query": "file", "allow_partial": True, "timeout_ms": 2000}
    (result,) = results(client.post(SEARCH, json=body))
    assert result["partial"] is True


def test_a_slow_shard_holds_nobody_else_up(hasty: tuple[httpx.Client, Watched]) -> None:
    """More of them wait for it than there are threads."""
    client, watched = hasty
    watched.slow.add(0)
    before = watched.asked
    port = client.base_url.port
    answers: list[int] = []

    def ask() -> None:
        url = f"http://127.0.0.1:{port}{SEARCH}"
        answers.append(httpx.post(url, json={"query": "file"}, timeout=30).status_code)

    asking = [threading.Thread(target=ask) for _ in range(8)]
    for thread in asking:
        thread.start()
    give_up = time.monotonic() + 30
    while watched.asked < before + 8:
        assert time.monotonic() < give_up
        time.sleep(0.001)
    assert client.post("/v1/indexes/one/search", json={"query": "file"}).status_code == 200
    for thread in asking:
        thread.join()
    assert answers == [504] * 8


def test_a_client_that_goes_away_gives_its_questions_up(client: httpx.Client, watched: Watched) -> None:
    watched.slow.add(0)
    before, give_up = watched.asked, time.monotonic() + 15  # sooner than the server gives up
    body = b'{"query":"file"}'
    head = (
        f"POST {SEARCH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    )
    with socket.create_connection(("127.0.0.1", client.base_url.port), timeout=30) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        while watched.asked < before + NUM_SHARDS:
            assert time.monotonic() < give_up
            time.sleep(0.005)
    while not watched.given_up:
        assert time.monotonic() < give_up
        time.sleep(0.005)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.sampled_from([0, 1, PIECE_POSTINGS // 2, PIECE_POSTINGS - 1]), max_size=12),
    k=st.sampled_from([1, 1000, PIECE_RESULTS, 4 * PIECE_RESULTS]),
)
def test_pieces_are_all_of_the_queries_and_fit_into_messages(sizes: list[int], k: int) -> None:
    indptr = np.concatenate([[0], np.cumsum(np.array(sizes, np.int64))]).astype(np.int64)
    units = np.arange(indptr[-1], dtype=np.int32)
    vectors = SparseActivations(indptr, units, np.ones(len(units), np.float32), max(len(units), 1))
    pieces = list(cut(vectors, k))
    assert [row for piece in pieces for row in np.diff(piece.indptr).tolist()] == sizes
    assert np.array_equal(np.concatenate([units[:0], *(piece.units for piece in pieces)]), units)
    for piece in pieces:
        assert piece.nnz <= PIECE_POSTINGS
        assert len(piece) == 1 or len(piece) * k <= PIECE_RESULTS


def test_a_search_that_no_message_holds_is_refused(client: httpx.Client) -> None:
    long = {"field": "module", "in": ["x" * 60_000] * 64}
    refused = client.post(SEARCH, json={"query": "file", "filter": long})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_value")
    assert "3.5 MiB" in refused.json()["error"]["message"]


def test_an_index_made_over_http_has_one_shard(tmp_path: Path, in_process: Any) -> None:
    api = Api(ServerConfiguration(data=tmp_path / "data"))
    api.state.open()
    put = in_process(api).request
    refused = put("PUT", "/v1/indexes/a", json={"encoder": "bm25", "shards": 2})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "shards")
    assert "lexpert index shard" in refused.json()["error"]["message"]
    assert put("PUT", "/v1/indexes/a", json={"encoder": "bm25", "shards": 0}).status_code == 422
    assert put("PUT", "/v1/indexes/a", json={"encoder": "bm25", "shards": 1}).status_code == 201
    api.state.close()


@contextmanager
def state_of(configuration: ServerConfiguration) -> Iterator[None]:
    api = Api(configuration)
    try:
        api.state.open()
        yield
    finally:
        api.state.close()


def test_what_cannot_be_served_so_is_said_before(sharded_folder: Path, index_folder: Path) -> None:
    with (
        pytest.raises(ConflictError, match="take many out of writable"),
        state_of(ServerConfiguration(indexes={"many": sharded_folder}, writable=frozenset({"many"}))),
    ):
        pass
    with pytest.raises(NotFoundError, match=r"holds no sharded index .* lexpert index shard"):
        check_shards(
            ServerConfiguration.model_validate({"indexes": {"one": index_folder}, "shards": {"one": {}}})
        )
