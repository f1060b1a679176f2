"""Shards in processes of their own behind Ray Serve, one of which hangs, and is killed."""

from __future__ import annotations

import time
from collections.abc import Iterator
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
QUERY, K = "write an object to a file", 20
BODY: dict[str, Any] = {"query": QUERY, "k": K, "timeout_ms": 20_000}
WHOLE_S = 180.0
"""How long a shard is waited for; on a machine with nothing else to do it takes a few seconds."""

Pairs = list[tuple[str, float]]


@pytest.fixture(scope="module")
def folder(index: SparseIndex, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "docs"
    split_index(index, folder, 2)
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    configuration = ServerConfiguration.model_validate(
        {"indexes": {"docs": folder}, "shards": {"docs": {}}, "port": 0, "threads": 1}
    )
    with running(configuration) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def without(index: SparseIndex, folder: Path) -> dict[frozenset[int], Pairs]:
    """What is to be found when some shards are missing, by their numbers."""
    found = index.search([QUERY], index.num_documents)
    pairs = list(zip(found.ids[0], found.scores[0].tolist(), strict=True))
    with ShardedIndex.open(folder) as many:
        of = [{each for segment in shard.segments for each in segment.ids} for shard in many.shards]
    gone_of: dict[frozenset[int], set[str]] = {
        frozenset(): set(),
        frozenset({0}): of[0],
        frozenset({1}): of[1],
    }
    return {gone: [pair for pair in pairs if pair[0] not in ids][:K] for gone, ids in gone_of.items()}


def process_of(shard: int) -> psutil.Process:
    (found,) = [
        process
        for process in psutil.Process().children(recursive=True)
        if f"lexpert:shard-docs-{shard}" in " ".join(process.cmdline())
    ]
    return found


def missing(client: httpx.Client, without: dict[frozenset[int], Pairs], **how: Any) -> frozenset[int]:
    """The shards that an answer is without; it is exactly what the others have, or a refusal that says why."""
    answer = client.post(SEARCH, json={**BODY, **how})
    if answer.status_code != 200:
        assert answer.status_code in (503, 504), answer.text
        assert answer.json()["error"]["code"] in ("shard_unavailable", "shard_timeout")
        return frozenset({0, 1})
    (result,) = answer.json()["results"]
    gone = frozenset(each["shard"] for each in answer.json().get("missing_shards", []))
    assert result.get("partial", False) == bool(gone)
    assert [(hit["id"], hit["score"]) for hit in result["hits"]] == without[gone]
    return gone


def wait_until_missing(
    gone: set[int], client: httpx.Client, without: dict[frozenset[int], Pairs], **how: Any
) -> None:
    """On a busy machine the other shard may be late for a moment as well."""
    ends = time.monotonic() + WHOLE_S
    while (seen := missing(client, without, **how)) != gone:
        assert time.monotonic() < ends, seen
        time.sleep(0.1)


def test_a_shard_that_is_killed_is_missed_and_comes_back(
    client: httpx.Client, without: dict[frozenset[int], Pairs]
) -> None:
    wait_until_missing(set(), client, without)
    process_of(1).kill()
    wait_until_missing({1}, client, without, allow_partial=True)
    assert missing(client, without)  # a request that does not allow a part is refused
    wait_until_missing(set(), client, without, allow_partial=True)
    wait_until_missing(set(), client, without)


def test_a_shard_that_hangs_is_missed_and_comes_back(
    client: httpx.Client, without: dict[frozenset[int], Pairs]
) -> None:
    many_queries = {"queries": [QUERY] * 64, "k": 500}
    assert len(client.post(SEARCH, json=many_queries).json()["results"]) == 64
    process = process_of(1)
    process.suspend()
    wait_until_missing({1}, client, without, allow_partial=True)
    assert missing(client, without)
    process.resume()
    wait_until_missing(set(), client, without)
