"""The life of an index over HTTP, on a real socket."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest

from retrieval import IndexWriter, SparseEncoder, SparseIndex
from retrieval.index.lock import WriterLock
from runtime.errors import ConflictError
from serving.api import Api
from serving.configuration import Limits, ServerConfiguration
from serving.errors import ApiError
from serving.indexes.writers import NewIndex, Writers
from tests.serving.lifecycle_process import LifecycleServer

LIMITS = {"max_body_bytes": 50_000, "max_document_bytes": 2048, "body_timeout_s": 2, "max_errors": 3}
NDJSON = {"content-type": "application/x-ndjson"}
FIELDS = {"year": "int", "lang": "keyword"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lifecycle") / "data"


@pytest.fixture(scope="module")
def server(data: Path, index_folder: Path) -> Iterator[LifecycleServer]:
    with LifecycleServer(data, indexes={"given": str(index_folder)}, limits=LIMITS) as started:
        yield started


@pytest.fixture(scope="module")
def client(server: LifecycleServer) -> httpx.Client:
    return server.client


@pytest.fixture
def name(client: httpx.Client) -> str:
    """A new index."""
    made = f"i{uuid4().hex[:12]}"
    assert client.put(f"/v1/indexes/{made}", json={"encoder": "bm25", "fields": FIELDS}).status_code == 201
    return made


def put(client: httpx.Client, name: str, *documents: dict[str, Any], **options: Any) -> httpx.Response:
    return client.put(f"/v1/indexes/{name}/documents", json={"documents": list(documents)}, **options)


def found(client: httpx.Client, name: str, query: str = "common", **body: Any) -> list[str]:
    response = client.post(f"/v1/indexes/{name}/search", json={"query": query, "k": 100, **body})
    assert response.status_code == 200, response.text
    return sorted(hit["id"] for hit in response.json()["results"][0]["hits"])


def refused(response: httpx.Response, status: int, code: str, param: str | None = None) -> str:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert error["request_id"] == response.headers["x-request-id"]
    return str(error["message"])


def test_an_index_is_made_filled_searched_and_deleted(client: httpx.Client) -> None:
    body = {"encoder": "bm25", "fields": FIELDS}
    made = client.put("/v1/indexes/whole.life", json=body)
    assert (made.status_code, made.json()["version"], made.json()["documents"]) == (201, 1, 0)
    assert client.put("/v1/indexes/whole.life", json=body).status_code == 200
    refused(client.put("/v1/indexes/whole.life", json={"encoder": "bm25"}), 409, "index_exists", "name")
    assert found(client, "whole.life") == []
    written = put(client, "whole.life", {"id": "a/b ü?", "text": "common file", "year": 2020}, {"id": "b"})
    assert written.json() == {"status": "completed", "version": 2, "upserted": 2, "errors": []}
    assert found(client, "whole.life", "files") == ["a/b ü?"]
    for path in ("a%2Fb%20%C3%BC%3F", "a/b%20%C3%BC%3F"):
        read = client.get(f"/v1/indexes/whole.life/documents/{path}")
        assert read.json() == {
            "id": "a/b ü?",
            "document": {"text": "common file", "year": 2020},
            "version": 2,
        }
    put(client, "whole.life", {"id": "a/b ü?", "text": "another thing"})
    assert found(client, "whole.life", "files") == []
    deleted = client.delete("/v1/indexes/whole.life/documents/a%2Fb%20%C3%BC%3F")
    assert (deleted.json()["status"], deleted.json()["deleted"]) == ("completed", 1)
    again = client.delete("/v1/indexes/whole.life/documents/a%2Fb%20%C3%BC%3F")
    assert (again.status_code, again.json()["deleted"]) == (200, 0)
    refused(client.get("/v1/indexes/whole.life/documents/a"), 404, "document_not_found", "id")
    assert "whole.life" in {index["name"] for index in client.get("/v1/indexes").json()["indexes"]}
    assert client.delete("/v1/indexes/whole.life").json() == {"status": "completed", "name": "whole.life"}
    refused(client.get("/v1/indexes/whole.life"), 404, "index_not_found", "name")
    refused(put(client, "whole.life", {"id": "a"}), 404, "index_not_found", "name")
    assert client.put("/v1/indexes/whole.life", json={"encoder": "bm25"}).status_code == 201
    assert found(client, "whole.life") == []


def test_a_document_called_delete_can_be_read(client: httpx.Client, name: str) -> None:
    put(client, name, {"id": "delete", "text": "common"})
    assert client.get(f"/v1/indexes/{name}/documents/delete").json()["id"] == "delete"
    assert client.delete(f"/v1/indexes/{name}/documents/delete").json()["deleted"] == 1


def test_documents_are_deleted_by_id_and_by_filter(client: httpx.Client, name: str) -> None:
    documents = [{"id": f"d{n}", "text": "common", "year": n, "lang": "en"} for n in range(10)]
    put(client, name, *documents)
    path = f"/v1/indexes/{name}/documents/delete"
    assert client.post(path, json={"ids": ["d0", "d0", "none"]}).json()["deleted"] == 1
    assert client.post(path, json={"filter": {"field": "year", "gte": 4}}).json()["deleted"] == 6
    assert found(client, name) == ["d1", "d2", "d3"]
    refused(client.post(path, json={}), 422, "missing_parameter", "ids")
    refused(client.post(path, json={"filter": {"field": "moon", "eq": 1}}), 422, "invalid_value", "filter")
    for operand in ("Infinity", "1e999", "1" + "0" * 30):  # what the log could not keep
        body = b'{"filter":{"field":"year","lt":%s}}' % operand.encode()
        headers = {"content-type": "application/json"}
        refused(client.post(path, content=body, headers=headers), 422, "invalid_value", "filter")
    unwaited = client.post(f"{path}?wait=false", json={"ids": ["d1"]})
    assert (unwaited.status_code, unwaited.json()) == (202, {"status": "acknowledged"})


@pytest.mark.parametrize("bad", ["..", ".hidden", "a b", "ü", "x" * 65, "a%2Fb", "%2e%2e"])
def test_names_that_could_leave_the_folder_are_refused(client: httpx.Client, data: Path, bad: str) -> None:
    before = sorted(data.rglob("*"))
    response = client.put(f"/v1/indexes/{bad}", json={"encoder": "bm25"})
    assert response.status_code in (404, 405, 422), response.text
    if response.status_code == 422:
        refused(response, 422, "invalid_value", "name")
    refused(
        client.post("/v1/aliases", json={"aliases": {"../x": None}}), 422, "invalid_value", "aliases.../x"
    )
    assert sorted(data.rglob("*")) == before


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_parameter", "encoder"),
        ({"encoder": "/etc"}, "unknown_encoder", "encoder"),
        ({"encoder": "precomputed"}, "invalid_value", "units"),
        ({"encoder": "bm25", "fields": {"text": "int"}}, "invalid_value", None),
        ({"encoder": "bm25", "fields": {"a": "date"}}, "invalid_value", None),
        ({"encoder": "bm25", "shards": 2}, "invalid_value", "shards"),
    ],
)
def test_an_index_that_cannot_be_made_says_why(
    client: httpx.Client, data: Path, body: Any, code: str, param: str | None
) -> None:
    refused(client.put("/v1/indexes/wrong", json=body), 422, code, param)
    assert not list((data / "making").iterdir())


def test_an_index_of_given_vectors_takes_those_and_nothing_else(client: httpx.Client) -> None:
    assert client.put("/v1/indexes/vectors", json={"encoder": "precomputed", "units": 9}).status_code == 201
    answer = put(
        client,
        "vectors",
        {"id": "a", "vector": {"indices": [3, 8], "values": [2, 1]}, "title": "A"},
        {"id": "b", "vector": {"8": 3.0}},
        {"id": "c", "text": "no vector"},
    ).json()
    assert (answer["upserted"], [error["id"] for error in answer["errors"]]) == (2, ["c"])
    search = {"vector": {"8": 1.0}, "with": ["text"]}
    (result,) = client.post("/v1/indexes/vectors/search", json=search).json()["results"]
    assert [(hit["id"], hit["score"]) for hit in result["hits"]] == [("b", 3.0), ("a", 1.0)]


def test_a_given_index_is_read_only(client: httpx.Client) -> None:
    assert client.get("/v1/indexes/given").json()["writable"] is False
    for response in (
        put(client, "given", {"id": "a"}),
        client.delete("/v1/indexes/given"),
        client.delete("/v1/indexes/given/documents/a"),
        client.post("/v1/indexes/given/snapshots"),
    ):
        refused(response, 409, "index_read_only", "name")
    refused(client.put("/v1/indexes/given", json={"encoder": "bm25"}), 409, "index_exists", "name")
    body = {"query": "file", "min_version": 99}
    refused(client.post("/v1/indexes/given/search", json=body), 409, "version_not_reached", "min_version")


def test_errors_of_documents_lose_no_others_and_are_limited(client: httpx.Client, name: str) -> None:
    lines = [b'{"id":"ok%d","text":"common"}' % number for number in range(4)]
    bad = [b"{", b'{"id":"x","year":"z"}', b'{"id":"long","text":"%s"}' % (b"y" * 4000), b"[]", b"7"]
    content = b"\n".join([lines[0], *bad, *lines[1:]])
    answer = client.put(f"/v1/indexes/{name}/documents", content=content, headers=NDJSON).json()
    assert (answer["status"], answer["upserted"], answer["errors_left_out"]) == ("completed", 4, 2)
    assert [(error["line"], error["id"], error["code"]) for error in answer["errors"]] == [
        (2, None, "malformed_json"),
        (3, "x", "invalid_value"),
        (4, None, "document_too_large"),
    ]
    assert found(client, name) == ["ok0", "ok1", "ok2", "ok3"]


@pytest.mark.parametrize(
    ("options", "status", "code", "param"),
    [
        ({"json": {"documents": []}}, 422, "invalid_value", "documents"),
        ({"json": {"documents": [], "x": 1}}, 422, "invalid_value", "documents"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "malformed_json", None),
        ({"content": b"{}", "headers": {"content-type": "text/plain"}}, 415, "unsupported_media_type", None),
        (
            {"content": b"{}", "headers": {**NDJSON, "content-encoding": "gzip"}},
            415,
            "unsupported_media_type",
            None,
        ),
        ({"json": {"documents": [{"id": "a" * 99}] * 1000}}, 413, "body_too_large", None),
        ({"params": {"wait": "maybe"}, "json": {}}, 400, "invalid_value", "wait"),
        ({"params": {"sync": "1"}, "json": {}}, 400, "unknown_parameter", "sync"),
        ({"headers": {"idempotency-key": "a b"}, "json": {}}, 400, "invalid_value", "Idempotency-Key"),
    ],
)
def test_a_write_that_is_none_says_why(
    client: httpx.Client, name: str, options: Any, status: int, code: str, param: str | None
) -> None:
    refused(client.put(f"/v1/indexes/{name}/documents", **options), status, code, param)


def test_a_hundred_megabytes_that_are_announced_are_refused_at_once(
    server: LifecycleServer, name: str
) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(
            f"PUT /v1/indexes/{name}/documents HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            "content-length: 100000000\r\n\r\n{".encode()
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")


def test_a_request_with_a_known_key_is_answered_and_not_worked_on_again(
    client: httpx.Client, name: str
) -> None:
    key = {"headers": {"idempotency-key": "one"}}
    first = put(client, name, {"id": "a", "text": "common"}, {"id": 1}, **key).json()
    put(client, name, {"id": "a", "text": "changed"})
    again = put(client, name, {"id": "a", "text": "common"}, {"id": 1}, **key)
    assert again.status_code == 200
    assert {**again.json(), "version": first["version"]} == first
    assert found(client, name) == []
    reused = put(client, name, {"id": "b"}, **key)
    refused(reused, 422, "idempotency_key_reused", "Idempotency-Key")
    deletion = {"json": {"ids": ["a"]}, "headers": {"idempotency-key": "two"}}
    for _ in range(2):
        assert client.post(f"/v1/indexes/{name}/documents/delete", **deletion).json()["deleted"] == 1
    stream = {"content": b'{"id":"s","text":"common"}\n{', "headers": {**NDJSON, "idempotency-key": "three"}}
    answers = [client.put(f"/v1/indexes/{name}/documents", **stream).json() for _ in range(2)]
    assert answers[0]["errors"] == answers[1]["errors"] != []
    other = {**stream, "content": b'{"id":"t"}'}
    refused(
        client.put(f"/v1/indexes/{name}/documents", **other), 422, "idempotency_key_reused", "Idempotency-Key"
    )


def test_a_search_waits_for_the_version_that_it_asks_for(client: httpx.Client, name: str) -> None:
    version = put(client, name, {"id": "a", "text": "common"}).json()["version"]
    answers: list[list[str]] = []
    waiting = threading.Thread(
        target=lambda: answers.append(found(client, name, min_version=version + 1)), daemon=True
    )
    waiting.start()
    assert found(client, name, min_version=version) == ["a"]
    written = put(client, name, {"id": "b", "text": "common"}, params={"wait": "false"})
    assert written.status_code == 202
    waiting.join(60)
    assert answers == [["a", "b"]]


def test_a_version_that_does_not_come_is_a_504(tmp_path: Path, in_process: Any) -> None:
    folder = tmp_path / "index"
    with IndexWriter.create(folder, encoder=SparseEncoder.load("bm25")) as writer:
        writer.add([{"_id": "a", "text": "common"}])
    configuration = ServerConfiguration(
        indexes={"docs": folder}, writable=frozenset({"docs"}), limits=Limits(timeout_s=0.3)
    )
    api = Api(configuration)
    api.state.open()
    body = {"vector": {"common": 1.0}, "min_version": 2}
    refused(
        in_process(api).post("/v1/indexes/docs/search", json=body), 504, "version_not_reached", "min_version"
    )
    document = {"documents": [{"id": "b", "text": "common"}]}
    path = "/v1/indexes/docs/documents?wait=false"
    assert in_process(api).request("PUT", path, json=document).status_code == 202
    refused(
        in_process(api).request("PUT", "/v1/indexes/new", json={"encoder": "bm25"}), 409, "no_data_folder"
    )
    api.state.close()
    with SparseIndex.open(folder) as index:
        assert index.search(["common"]).ids == [["a", "b"]]
    assert not list((folder / "log").glob("*.log"))


def test_aliases_are_exchanged_at_once(client: httpx.Client, name: str) -> None:
    put(client, name, {"id": "a", "text": "common"})
    other = f"{name}-2"
    client.put(f"/v1/indexes/{other}", json={"encoder": "bm25"})
    put(client, other, {"id": "b", "text": "common"})
    alias = f"{name}-now"

    def set_alias(changes: dict[str, str | None]) -> httpx.Response:
        return client.post("/v1/aliases", json={"aliases": changes})

    assert set_alias({alias: name}).json()["aliases"][alias] == name
    assert found(client, alias) == ["a"]
    put(client, alias, {"id": "a2", "text": "common"})
    assert found(client, name) == ["a", "a2"]
    set_alias({alias: other, f"{name}-old": name})
    assert (found(client, alias), found(client, f"{name}-old")) == (["b"], ["a", "a2"])
    refused(client.delete(f"/v1/indexes/{other}"), 409, "index_has_alias", "name")
    refused(client.delete(f"/v1/indexes/{alias}"), 409, "is_alias", "name")
    refused(client.put(f"/v1/indexes/{alias}", json={"encoder": "bm25"}), 409, "alias_exists", "name")
    refused(set_alias({name: other}), 409, "index_exists", f"aliases.{name}")
    refused(set_alias({alias: None, "x": "none"}), 404, "index_not_found", "aliases.x")
    assert alias in client.get("/v1/aliases").json()["aliases"]
    assert set_alias({alias: None, f"{name}-old": None}).status_code == 200
    refused(client.post(f"/v1/indexes/{alias}/search", json={"query": "a"}), 404, "index_not_found", "name")


def test_a_snapshot_is_an_index_with_all_that_was_answered(
    client: httpx.Client, data: Path, name: str
) -> None:
    put(client, name, {"id": "a", "text": "common"})
    put(client, name, {"id": "b", "text": "common"}, params={"wait": "false"})
    made = client.post(f"/v1/indexes/{name}/snapshots")
    assert (made.status_code, made.json()["documents"]) == (201, 2)
    client.delete(f"/v1/indexes/{name}")
    with SparseIndex.open(data / "snapshots" / name / made.json()["snapshot"]) as copy:
        copy.verify()
        assert copy.search(["common"]).ids == [["a", "b"]]


def test_statistics_say_what_is_there_and_no_path(client: httpx.Client, data: Path, name: str) -> None:
    put(client, name, {"id": "a", "text": "common words"}, {"id": "b", "text": "common"})
    client.delete(f"/v1/indexes/{name}/documents/b")
    response = client.get(f"/v1/indexes/{name}/stats")
    stats = response.json()
    assert (stats["name"], stats["documents"], stats["postings"]) == (name, 1, 3)
    assert stats["pending"] == {"documents": 0, "bytes": 0}
    assert str(data) not in response.text


def test_bm25_learns_again_when_the_collection_has_doubled(client: httpx.Client, name: str) -> None:
    """What is in every document weighs nearly nothing, although the first document was all that there was."""
    for number in range(8):
        put(client, name, {"id": f"d{number}", "text": f"common rare{number}"})
    body = {"query": "common rare3", "k": 1, "with": ["explain"]}
    (result,) = client.post(f"/v1/indexes/{name}/search", json=body).json()["results"]
    shares = {part["token"]: part["share"] for part in result["hits"][0]["explanation"]}
    assert shares["rare3"] > 10 * shares["common"]


def test_a_second_writer_is_refused_in_either_direction(client: httpx.Client, data: Path, name: str) -> None:
    folder = data / "indexes" / name
    held = WriterLock(folder)
    refused(put(client, name, {"id": "a"}), 409, "index_locked", "name")
    held.release()
    assert put(client, name, {"id": "a"}).status_code == 200
    with pytest.raises(ConflictError, match="being written by another process"):
        IndexWriter.open(folder)
    second = Writers(ServerConfiguration(data=data))
    second.open()  # logs it, and can go on reading
    with pytest.raises(ApiError, match="another server writes to the data folder") as raised:
        second.create("second", NewIndex(encoder="bm25"))
    assert (raised.value.status, raised.value.code) == (409, "data_locked")
    second.close()


def test_an_index_that_another_process_changed_is_seen(tmp_path: Path, in_process: Any) -> None:
    folder = tmp_path / "index"
    with IndexWriter.create(folder, encoder=SparseEncoder.load("bm25")) as writer:
        writer.add([{"_id": "a", "text": "common"}])
    api = Api(ServerConfiguration(indexes={"docs": folder}))
    api.state.open()
    with IndexWriter.open(folder, workers=1) as writer:
        writer.add([{"_id": "b", "text": "common newly learned"}])
    while in_process(api).get("/v1/indexes/docs").json()["version"] < 2:
        pass
    answer = in_process(api).post("/v1/indexes/docs/search", json={"query": "learned"}).json()
    assert [hit["id"] for hit in answer["results"][0]["hits"]] == ["b"]
    api.state.close()


def send_part(server: LifecycleServer, name: str, lines: int) -> socket.socket:
    """Begin a stream and do not end it."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    connection.sendall(
        f"PUT /v1/indexes/{name}/documents HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\n"
        "transfer-encoding: chunked\r\n\r\n".encode()
    )
    content = b"".join(b'{"id":"s%05d","text":"common %s"}\n' % (n, b"x" * 1000) for n in range(lines))
    connection.sendall(b"%x\r\n%s\r\n" % (len(content), content))
    return connection


def test_clients_that_stop_sending_hold_nobody_up_and_are_told(
    server: LifecycleServer, client: httpx.Client, name: str
) -> None:
    connections = [send_part(server, name, 2) for _ in range(5)]
    assert put(client, name, {"id": "a", "text": "common"}).status_code == 200
    for connection in connections:
        assert connection.recv(65536).startswith(b"HTTP/1.1 408")
        connection.close()
    assert found(client, name) == ["a"]


def test_of_a_stream_that_breaks_off_whole_lines_are_kept_and_no_others(
    server: LifecycleServer, client: httpx.Client, name: str
) -> None:
    send_part(server, name, 1500).close()
    while not (count := client.get(f"/v1/indexes/{name}").json()["documents"]):
        pass
    assert 500 <= count < 1500
    assert client.get(f"/v1/indexes/{name}/documents/s00000").status_code == 200
    assert put(client, name, {"id": "a"}).status_code == 200


def test_readers_that_were_exchanged_are_closed(
    server: LifecycleServer, client: httpx.Client, name: str
) -> None:
    process = psutil.Process(server.pid)

    def held() -> tuple[int, int]:
        maps = Path(f"/proc/{server.pid}/maps")
        removed = maps.read_text().count("(deleted)") if maps.exists() else 0
        return process.num_threads() + process.num_fds(), removed

    put(client, name, {"id": "a", "text": "common"})
    before = held()
    for number in range(25):
        put(client, name, {"id": "a", "text": f"common word{number}"})
        found(client, name)
    after = held()
    assert after[0] <= before[0] + 12
    assert after[1] <= before[1] + 60  # maps of the commits before this one, not of all twenty-five


def test_a_restart_in_order_leaves_an_empty_log(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with LifecycleServer(data, commits={"seconds": 3600}) as server:
        server.client.put("/v1/indexes/docs", json={"encoder": "bm25"})
        put(server.client, "docs", {"id": "a", "text": "common"}, params={"wait": "false"})
        assert len(list((data / "indexes/docs/log").glob("*.log"))) == 1
    assert not list((data / "indexes/docs/log").glob("*.log"))
    with SparseIndex.open(data / "indexes/docs") as index:
        assert index.num_documents == 1
    assert os.listdir(data / "making") == []
