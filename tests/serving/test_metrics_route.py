from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from runtime.activations import SparseActivations
from runtime.histogram import BOUNDS_S, Histogram
from runtime.meter import ActivityMeter
from serving.api import Api
from serving.configuration import Limits, ServerConfiguration
from serving.metrics import Metrics
from serving.metrics_text import encoding_families, expert_families
from serving.request_identity import RequestIdentity
from serving.text_batcher import TextBatcher
from tests.serving.socket_server import serve

pytest.importorskip("prometheus_client")

SEARCH = "/v1/indexes/{name}/search"


@pytest.fixture
def client(index_folder: Path) -> Iterator[httpx.Client]:
    with serve(ServerConfiguration(indexes={"docs": index_folder}, port=0, threads=2)) as client:
        yield client


def samples(client: httpx.Client) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """What the route says, as Prometheus' own reader understands it."""
    from prometheus_client.parser import text_string_to_metric_families

    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return read(text_string_to_metric_families(answer.text))


def read(families: Any) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in families:
        assert family.documentation
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def test_requests_are_counted_by_route_and_status(client: httpx.Client) -> None:
    for _ in range(3):
        assert client.post("/v1/indexes/docs/search", json={"query": "json"}).status_code == 200
    assert client.post("/v1/indexes/docs/search", json={"query": 5}).status_code == 422
    assert client.get("/nothing/here").status_code == 404
    assert client.request("PATCH", "/health").status_code == 405
    found = samples(client)
    count = "lexpert_request_seconds_count"
    assert found[key(count, method="POST", route=SEARCH, status="200")] == 3
    assert found[key(count, method="POST", route=SEARCH, status="422")] == 1
    assert found[key(count, method="other", route="other", status="404")] == 1
    assert found[key(count, method="other", route="other", status="405")] == 1
    assert found[key("lexpert_requests_in_flight")] == 1  # the one that asks
    total = found[key("lexpert_request_seconds_sum", method="POST", route=SEARCH, status="200")]
    assert 0 < total < 60
    assert samples(client)[key(count, method="GET", route="/metrics", status="200")] == 1


def test_stages_of_searches_and_encodings_add_up(client: httpx.Client) -> None:
    client.post("/v1/indexes/docs/search", json={"queries": ["json", "write file"]})
    searched = client.post("/v1/indexes/docs/search", json={"vector": {"json": 1.0}})
    encoded = client.post("/v1/encode", json={"model": "docs", "input": "write the file"})
    found = samples(client)
    for stage, count in {"queue": 2, "encode": 1, "search": 2}.items():
        assert found[key("lexpert_stage_seconds_count", route=SEARCH, stage=stage)] == count
    for stage in ("queue", "encode"):
        assert found[key("lexpert_stage_seconds_count", route="/v1/encode", stage=stage)] == 1
    assert key("lexpert_stage_seconds_count", route="/v1/encode", stage="search") not in found
    work_s = float(encoded.headers["x-inference-time"]) / 1e3
    assert 0 < found[key("lexpert_stage_seconds_sum", route="/v1/encode", stage="encode")] <= work_s + 1e-6
    assert searched.status_code == 200


def test_terms_of_queries_are_counted_by_index(client: httpx.Client) -> None:
    client.post("/v1/indexes/docs/search", json={"queries": ["json", "write file", ""]}).raise_for_status()
    client.post("/v1/indexes/docs/search", json={"vector": {"json": 1.0}}).raise_for_status()
    found = samples(client)
    assert found[key("lexpert_query_terms_count", index="docs")] == 4
    assert found[key("lexpert_query_terms_sum", index="docs")] == 4
    assert found[key("lexpert_query_terms_bucket", index="docs", le="1.0")] == 3


def test_batches_of_encoders_and_loads_of_experts_are_told() -> None:
    batcher: TextBatcher[Any] = TextBatcher(
        lambda texts, _: np.zeros((len(texts), 1)),
        lambda texts: [len(text.split()) for text in texts],
        np.concatenate,
    )
    batcher.submit(["two words", "and three more"], "query").result(30)
    meter = ActivityMeter(3)
    meter.update(SparseActivations.from_rows([([0, 1], [1.0, 1.0]), ([0, 1], [1.0, 1.0])], 3))
    families = [*encoding_families({"docs": batcher}), *expert_families({("tiny", "layer.0"): meter})]
    found = read(families)
    assert found[key("lexpert_encode_waiting", index="docs")] == 0
    assert found[key("lexpert_encode_batch_texts_sum", index="docs")] == 2
    assert found[key("lexpert_encode_batch_tokens_sum", index="docs")] == 5
    loads = [
        found[key("lexpert_expert_load", model="tiny", layer="layer.0", expert=f"{e}")] for e in range(3)
    ]
    assert loads == [0.5, 0.5, 0.0]
    entropy = found[key("lexpert_expert_entropy", model="tiny", layer="layer.0")]
    assert entropy == pytest.approx(math.log(2))


def test_sizes_of_indexes_follow_writes(tmp_path: Path) -> None:
    with serve(ServerConfiguration(data=tmp_path / "data", port=0, threads=2)) as client:
        client.put("/v1/indexes/news", json={"encoder": "bm25"}).raise_for_status()
        documents = {"documents": [{"id": f"d{place}", "text": f"word{place} common"} for place in range(5)]}
        client.put("/v1/indexes/news/documents", json=documents).raise_for_status()
        stats = client.get("/v1/indexes/news/stats").json()
        found = samples(client)
        for name in ("documents", "segments", "postings", "bytes", "version"):
            assert found[key(f"lexpert_index_{name}", index="news")] == stats[name]
        assert found[key("lexpert_index_documents", index="news")] == 5
        assert found[key("lexpert_index_pending_documents", index="news")] == 0
        assert found[key("lexpert_index_pending_bytes", index="news")] == 0


def test_refused_requests_are_counted_by_reason(index_folder: Path) -> None:
    limits = Limits(max_in_hand=1)
    configuration = ServerConfiguration(indexes={"docs": index_folder}, port=0, threads=1, limits=limits)

    async def overload() -> list[int]:
        api = Api(configuration)
        api.state.open()
        try:
            with api.state.admitted():
                transport = httpx.ASGITransport(RequestIdentity(api))
                async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                    answers = [
                        await client.post("/v1/indexes/docs/search", json={"query": "json"}) for _ in range(2)
                    ]
                    text = (await client.get("/metrics")).text
        finally:
            api.state.close()
        assert 'lexpert_requests_refused_total{code="overloaded",status="429"} 2.0' in text
        return [answer.status_code for answer in answers]

    assert asyncio.run(overload()) == [429, 429]


def test_a_server_that_is_not_ready_says_so(index_folder: Path, in_process: Any) -> None:
    api = in_process(Api(ServerConfiguration(indexes={"docs": index_folder}, port=0)))
    assert api.get("/ready").status_code == 503
    text = api.get("/metrics").text
    assert "lexpert_ready 0.0" in text
    assert 'lexpert_requests_refused_total{code="not_ready",status="503"} 1.0' in text
    assert "lexpert_index_documents{" not in text


def test_metrics_of_two_servers_are_apart(index_folder: Path, in_process: Any) -> None:
    first, second = (in_process(Api(ServerConfiguration(indexes={"docs": index_folder}))) for _ in range(2))
    first.get("/health")
    assert 'route="/health"' in first.get("/metrics").text
    assert 'route="/health"' not in second.get("/metrics").text


def test_a_histogram_counts_as_the_obvious_one_does() -> None:
    times = [0.0, *BOUNDS_S, *(bound * 1.01 for bound in BOUNDS_S), 1e9]
    histogram = Histogram()
    for seconds in times:
        histogram.observe(seconds)
    for bound, count in histogram.cumulative():
        assert count == sum(seconds <= float(bound) for seconds in times)
    assert histogram.sum == pytest.approx(sum(times))


def test_only_refusals_count_as_refused() -> None:
    metrics = Metrics()
    metrics.refuse(422, "invalid_value")
    metrics.refuse(503, "not_ready")
    assert metrics.refused == {("503", "not_ready"): 1}
