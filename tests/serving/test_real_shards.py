"""Shards in processes of their own behind Ray Serve, one of which hangs, and is killed."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from retrieval import SparseIndex
from retrieval.index.sharded_index import ShardedIndex
from retrieval.index.split import split_index
from serving.application import running
from serving.configuration import ServerConfiguration

# Not importorskip: Ray must be imported by the server, after its settings are made.
pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs the serving extra")

SEARCH = "/v1/indexes/docs/search"
WHOLE_S = 60.0


def process_of(shard: int) -> psutil.Process:
    (found,) = [
        process
        for process in psutil.Process().children(recursive=True)
        if f"lexpert:shard-docs-{shard}" in " ".join(process.cmdline())
    ]
    return found


def test_a_shard_that_hangs_or_dies_is_missed_and_comes_back(index: SparseIndex, tmp_path: Path) -> None:
    split_index(index, tmp_path / "docs", 2)
    with ShardedIndex.open(tmp_path / "docs") as many:
        left = {identifier for segment in many.shards[0].segments for identifier in segment.ids}
    configuration = ServerConfiguration.model_validate(
        {"indexes": {"docs": tmp_path / "docs"}, "shards": {"docs": {}}, "port": 0, "threads": 1}
    )
    body: dict[str, Any] = {"query": "write an object to a file", "k": 20, "timeout_ms": 5000}
    found = index.search([body["query"]], 20)
    wanted = list(zip(found.ids[0], found.scores[0].tolist(), strict=True))

    def hits(answer: httpx.Response) -> list[tuple[str, float]]:
        assert answer.status_code == 200, answer.text
        return [(hit["id"], hit["score"]) for hit in answer.json()["results"][0]["hits"]]

    def missing(client: httpx.Client) -> list[dict[str, Any]]:
        """What the others find, and why it is not all."""
        partial = client.post(SEARCH, json={**body, "allow_partial": True})
        assert [hit for hit in hits(partial) if hit[0] in left] == hits(partial)
        assert set(hits(partial)) >= {hit for hit in wanted if hit[0] in left}
        return list(partial.json()["missing_shards"])

    def becomes_whole(client: httpx.Client) -> None:
        since = time.monotonic()
        while (answer := client.post(SEARCH, json=body)).status_code == 503:
            assert answer.json()["error"]["code"] == "shard_unavailable"
            assert time.monotonic() - since < WHOLE_S
            time.sleep(0.25)
        assert hits(answer) == wanted
        print(f"whole again after {time.monotonic() - since:.1f} s")

    gone = [{"index": "docs", "shard": 1, "reason": "unavailable"}]
    with running(configuration) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        assert hits(client.post(SEARCH, json=body)) == wanted
        many_queries = {"queries": [body["query"]] * 64, "k": 500}
        assert len(client.post(SEARCH, json=many_queries).json()["results"]) == 64
        process = process_of(1)
        process.suspend()
        assert missing(client) == gone
        process.resume()
        becomes_whole(client)
        process.kill()
        assert missing(client) == gone
        assert client.post(SEARCH, json=body).status_code == 503
        becomes_whole(client)
        again = client.post(SEARCH, json={**body, "allow_partial": True})
        assert (hits(again), again.json()["results"][0]["partial"]) == (wanted, False)
