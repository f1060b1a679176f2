from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from runtime.errors import NotFoundError, UsageError
from serving.configuration import ServerConfiguration, Traces
from serving.generators import Generators
from serving.keys import Key
from serving.tracing import check_traces
from tests.serving.scripted_generator import ScriptedGenerator
from tests.serving.socket_server import serve

pytest.importorskip("opentelemetry.sdk")

SEARCH = "/v1/indexes/docs/search"
KEY = "a-key-that-nobody-may-see"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


def spans(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def named(found: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (span,) = (span for span in found if span["name"] == name)
    return span


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "traces.jsonl"


def configured(index_folder: Path, file: Path, **settings: Any) -> ServerConfiguration:
    return ServerConfiguration(
        indexes={"docs": index_folder}, port=0, threads=2, traces=Traces(file=file), **settings
    )


def test_a_search_is_a_span_with_its_stages_below_that_of_its_client(index_folder: Path, file: Path) -> None:
    with serve(configured(index_folder, file)) as client:
        headers = {"traceparent": TRACEPARENT, "tracestate": "shop=1", "x-request-id": "r-1"}
        answer = client.post(SEARCH, json={"query": "json file"}, headers=headers)
    found = spans(file)
    root = named(found, "POST /v1/indexes/{name}/search")
    assert root["context"]["trace_id"] == f"0x{TRACE}"
    assert root["parent_id"] == f"0x{PARENT}"
    assert root["kind"] == "SpanKind.SERVER"
    assert root["attributes"] == {
        "lexpert.request_id": "r-1",
        "http.request.method": "POST",
        "http.route": "/v1/indexes/{name}/search",
        "http.response.status_code": 200,
    }
    own = root["context"]["span_id"].removeprefix("0x")
    assert answer.headers["traceparent"] == f"00-{TRACE}-{own}-01"
    assert answer.headers["tracestate"] == "shop=1"
    stages = [span for span in found if span is not root]
    assert [span["name"] for span in stages] == ["queue", "encode", "search"]
    assert {span["parent_id"] for span in stages} == {root["context"]["span_id"]}
    for span in stages:
        assert root["start_time"] <= span["start_time"] <= span["end_time"] <= root["end_time"]
        assert span["attributes"] == {}


def test_a_span_says_nothing_of_questions_bodies_paths_or_keys(index_folder: Path, file: Path) -> None:
    key = Key(name="shop", key=KEY, scope="read")
    with serve(configured(index_folder, file, keys=(key,))) as client:
        client.headers["authorization"] = f"Bearer {KEY}"
        client.post(SEARCH, json={"query": "secretquestion"}).raise_for_status()
        client.post("/v1/encode", json={"model": "docs", "input": "secretdocument"}).raise_for_status()
        assert client.get("/secretpath").status_code == 404
        assert client.post("/v1/indexes/secretname/search", json={}).status_code == 404
        assert client.get("/v1/indexes", headers={"authorization": "Bearer secret"}).status_code == 401
    written = file.read_text("utf-8")
    assert "secret" not in written
    assert KEY not in written
    statuses = [span["attributes"].get("http.response.status_code") for span in spans(file)]
    assert [status for status in statuses if status] == [200, 200, 404, 404, 401]


def test_without_traces_there_is_neither_a_header_nor_a_need_of_the_package(index_folder: Path) -> None:
    with serve(ServerConfiguration(indexes={"docs": index_folder}, port=0)) as client:
        answer = client.post(SEARCH, json={"query": "json"}, headers={"traceparent": TRACEPARENT})
    assert "traceparent" not in answer.headers
    check = "import sys, serving.api; assert not [m for m in sys.modules if m.startswith('opentelemetry')]"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize(("share", "traced"), [(0.0, [TRACE]), (1.0, None)])
def test_a_client_decides_for_its_requests_and_the_share_for_others(
    index_folder: Path, file: Path, share: float, traced: list[str] | None
) -> None:
    configuration = ServerConfiguration(
        indexes={"docs": index_folder}, port=0, traces=Traces(file=file, share=share)
    )
    with serve(configuration) as client:
        client.get("/version", headers={"traceparent": TRACEPARENT})
        client.get("/version", headers={"traceparent": f"00-{'1' * 32}-{PARENT}-00"})
        own = client.get("/version", headers={"traceparent": "nonsense"}).headers["traceparent"]
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[0-3]", own)
    found = [span["context"]["trace_id"].removeprefix("0x") for span in spans(file)]
    assert found == (traced or [TRACE, own.split("-")[1]])


@pytest.mark.parametrize("stream", [False, True])
def test_generation_is_a_stage(index_folder: Path, file: Path, stream: bool) -> None:
    generators = Generators({"scripted": index_folder}, lambda *_: ScriptedGenerator(pieces=["a", "b"]))
    configuration = ServerConfiguration(models={"scripted": index_folder}, port=0, traces=Traces(file=file))
    with serve(configuration, generators) as client:
        body = {"model": "scripted", "prompt": "x", "stream": stream}
        client.post("/v1/completions", json=body).raise_for_status()
    found = spans(file)
    root = named(found, "POST /v1/completions")
    assert named(found, "generate")["parent_id"] == root["context"]["span_id"]


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """A server that takes what is posted to it."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", bodies
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_collector_gets_the_spans(index_folder: Path, collector: tuple[str, list[bytes]]) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    endpoint, bodies = collector
    traces = Traces(endpoint=endpoint)
    with serve(ServerConfiguration(indexes={"docs": index_folder}, port=0, traces=traces)) as client:
        client.post(SEARCH, json={"query": "json"}, headers={"traceparent": TRACEPARENT}).raise_for_status()
    names = []
    for body in bodies:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                names += [span.name for span in scope.spans]
                assert {span.trace_id.hex() for span in scope.spans} == {TRACE}
    assert "POST /v1/indexes/{name}/search" in names
    assert {"queue", "encode", "search"} <= set(names)


def test_a_collector_that_is_not_there_holds_up_nobody(index_folder: Path) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    traces = Traces(endpoint="http://127.0.0.1:9/v1/traces")
    configuration = ServerConfiguration(indexes={"docs": index_folder}, port=0, traces=traces)
    with serve(configuration) as client:
        assert isinstance(client, httpx.Client)
        assert client.post(SEARCH, json={"query": "json"}).status_code == 200


def test_a_missing_package_is_told_in_a_sentence(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    with pytest.raises(
        NotFoundError, match=r"^traces need the package .*; run: pip install 'lexpert\[tracing\]'$"
    ):
        check_traces(Traces(file=file))
    check_traces(None)


def test_a_file_that_cannot_be_written_is_told_before_the_start(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be written \(No such file or directory\)"):
        check_traces(Traces(file=tmp_path / "missing" / "traces.jsonl"))


@pytest.mark.parametrize(
    "given", [{}, {"endpoint": "http://a/b", "file": "c"}, {"endpoint": "a:1"}, {"file": "a", "share": 2}]
)
def test_traces_go_to_one_place(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Traces.model_validate(given)
