"""How much work one request can cause, and when the work stops."""

from __future__ import annotations

import asyncio
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from retrieval import SparseIndex
from runtime.activations import SparseActivations
from serving.api import Api
from serving.asgi import Message
from serving.configuration import Limits, ServerConfiguration
from serving.deadline import Deadline, WorkStoppedError
from serving.encoding import ServedEncoder
from serving.errors import ApiError

SEARCH = "/v1/indexes/docs/search"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"queries": ["a"] * 2, "k": 501, "with": ["explain"]}, "1,002 results with explain.* 1,000 "),
        ({"queries": ["a"] * 2, "k": 501, "with": ["text", "text"]}, "1,002 results with text, .* 1,000 "),
        ({"vectors": [{"file": 1}] * 2, "k": 501, "with": ["text"]}, "1,002 .* 1,000 "),
        ({"queries": ["a"] * 51, "k": 1000}, "51,000 results, .* 50,000 "),
    ],
)
def test_queries_times_k_have_a_limit(index_folder: Path, in_process: Any, body: Any, said: str) -> None:
    limits = Limits(max_results=50_000)
    api = Api(ServerConfiguration(indexes={"docs": index_folder}, limits=limits))
    api.state.open()
    error = in_process(api).post(SEARCH, json=body).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "k")
    assert re.search(said, error["message"]), error["message"]
    assert in_process(api).post(SEARCH, json=body | {"k": 500}).status_code == 200
    api.state.close()


@pytest.fixture
def stopped_search(api: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The index of `api` with explanations that can be held up, and how many were begun."""

    class Held:
        def __init__(self) -> None:
            self.begun = 0
            self.first = threading.Event()
            self.go_on = threading.Event()

        def explain(self, query: Any, identifier: str) -> Any:
            self.begun += 1
            self.first.set()
            assert self.go_on.wait(30)
            return explain(query, identifier)

    index: SparseIndex = api.api.state.catalogue.indexes["docs"].index
    explain, held = index.explain, Held()
    monkeypatch.setattr(index, "explain", held.explain)
    yield held
    held.go_on.set()


def with_timeout(api: Any, monkeypatch: pytest.MonkeyPatch, **limits: Any) -> None:
    configuration = api.api.state.configuration
    changed = configuration.limits.model_copy(update=limits)
    monkeypatch.setattr(api.api.state, "configuration", configuration.model_copy(update={"limits": changed}))


def settled(api: Any) -> None:
    """Return when the threads have ended what they were working on."""
    threads = api.api.state.configuration.threads
    together = threading.Barrier(threads)

    async def all_of_them() -> None:
        await asyncio.gather(*(api.api.state._threads.run(lambda: together.wait(30)) for _ in range(threads)))

    asyncio.run(all_of_them())


def test_a_request_out_of_time_is_answered_504_and_its_thread_stops(
    api: Any, stopped_search: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_timeout(api, monkeypatch, timeout_s=0.2)
    response = api.post(SEARCH, json={"query": "file json", "k": 50, "with": ["explain"]})
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "timeout"
    assert "0.2 s" in response.json()["error"]["message"]
    assert response.headers["x-request-id"] == response.json()["error"]["request_id"]
    stopped_search.go_on.set()
    settled(api)
    assert stopped_search.begun == 1


def test_work_stops_when_its_client_is_gone(api: Any, stopped_search: Any) -> None:
    body = b'{"query": "file json", "k": 50, "with": ["explain"]}'
    scope = {
        "type": "http",
        "method": "POST",
        "path": SEARCH,
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    async def send(message: Message) -> None:
        sent.append(message)

    async def give_up() -> None:
        asked = asyncio.create_task(api.api(scope, receive, send))
        await asyncio.to_thread(stopped_search.first.wait, 30)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

    asyncio.run(give_up())
    stopped_search.go_on.set()
    settled(api)
    assert stopped_search.begun == 1
    assert sent == []


def test_more_requests_than_the_server_takes_are_refused_but_its_health_is_not(
    api: Any, stopped_search: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_timeout(api, monkeypatch, max_in_hand=1)
    waiting = threading.Thread(
        target=api.post, args=(SEARCH,), kwargs={"json": {"query": "file", "with": ["explain"]}}
    )
    waiting.start()
    assert stopped_search.first.wait(30)
    refused = api.post(SEARCH, json={"query": "file"})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.json()["error"]["code"] == "overloaded"
    assert api.get("/health").status_code == 200
    stopped_search.go_on.set()
    waiting.join(30)
    assert api.post(SEARCH, json={"query": "file"}).status_code == 200


def test_a_deadline_ends_work_that_nobody_waits_for() -> None:
    deadline = Deadline(60)
    deadline.check()
    deadline.stop()
    with pytest.raises(WorkStoppedError):
        deadline.check()
    with pytest.raises(ApiError, match="more than the 1e-09 s"):
        Deadline(1e-9).check()


def test_a_slow_encoder_takes_no_thread_from_other_indexes(
    api: Any, index: SparseIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request is encoded; as many as there are threads wait for that."""
    begun, go_on = threading.Event(), threading.Event()

    class SlowEncoder:
        family = "slow"
        fingerprint = "0"
        vocabulary = index.encoder.vocabulary
        unknown_terms = staticmethod(index.encoder.unknown_terms)
        token_lengths = staticmethod(index.encoder.token_lengths)

        def encode_queries(self, texts: list[str]) -> Any:
            begun.set()
            assert go_on.wait(30)
            return index.encoder.encode_queries(texts)

    catalogue = api.api.state.catalogue
    docs = catalogue.indexes["docs"]
    slow = type(docs)("slow", docs.index, ServedEncoder(SlowEncoder()))  # type: ignore[arg-type]
    monkeypatch.setattr(api.api.state._readers, "catalogue", type(catalogue)({"docs": docs, "slow": slow}))

    async def ask_all() -> None:
        import httpx

        transport = httpx.ASGITransport(api.api)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30) as client:

            def ask(name: str, **body: Any) -> asyncio.Task[httpx.Response]:
                return asyncio.create_task(client.post(f"/v1/indexes/{name}/search", json=body))

            slow_ones = [ask("slow", query="json file") for _ in range(4)]
            await asyncio.to_thread(begun.wait, 30)
            fast = await asyncio.wait_for(ask("docs", query="json file"), 20)
            by_vector = await asyncio.wait_for(ask("slow", vector={"json": 1.0}), 20)
            assert fast.status_code == by_vector.status_code == 200
            assert not any(task.done() for task in slow_ones)
            go_on.set()
            for answer in await asyncio.gather(*slow_ones):
                assert answer.json()["results"] == fast.json()["results"]

    try:
        asyncio.run(ask_all())
    finally:
        go_on.set()


def test_batches_of_an_encoding_are_one_batch(api: Any, index: SparseIndex) -> None:
    texts = [f"json file {place}" for place in range(50)]
    expected = [units.tolist() for units, _ in index.encoder.encode_queries(texts)]

    def finish(vectors: SparseActivations, tokens: int | None) -> bytes:
        assert [units.tolist() for units, _ in vectors] == expected
        assert tokens is None
        return b"now"

    assert ServedEncoder(index.encoder).encode(texts, "query", Deadline(60), finish) == b"now"
    found = api.post(SEARCH, json={"queries": texts, "k": 3}).json()["results"]
    assert [[hit["id"] for hit in result["hits"]] for result in found] == index.search(texts, k=3).ids
