from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from retrieval import SparseIndex
from runtime.errors import ConflictError, FormatError, NotFoundError, UsageError
from serving.api import Api
from serving.application import running
from serving.catalogue import Catalogue, check_indexes
from serving.cli import configure
from serving.configuration import Limits, ServerConfiguration
from serving.haproxy import haproxy_settings, usable_haproxy
from serving.ports import choose_port
from serving.private_folder import LONGEST_BASE, private_folder
from serving.ray_environment import cluster_settings, environment, ray_settings
from serving.request_identity import RequestIdentity

SERVED = ServerConfiguration(indexes={"docs": Path("docs")})


def test_until_its_indexes_are_open_a_server_lives_but_is_not_ready(
    configuration: ServerConfiguration,
    in_process: Any,
) -> None:
    api = in_process(Api(configuration))
    assert api.get("/health").status_code == 200
    for method, path in (("GET", "/ready"), ("GET", "/v1/indexes"), ("POST", "/v1/indexes/docs/search")):
        response = api.request(method, path)
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert response.json()["error"]["code"] == "not_ready"
    api.api.state.open()
    assert api.get("/ready").json() == {"status": "ready", "indexes": {"docs": 1}}
    api.api.state.close()
    assert api.get("/ready").status_code == 503


def test_version_and_indexes_say_what_is_served(api: Any, index: SparseIndex) -> None:
    assert api.get("/version").json()["name"] == "lexpert"
    described = {
        "name": "docs",
        "documents": index.num_documents,
        "version": index.generation,
        "encoder": {"name": "bm25", "fingerprint": index.encoder.fingerprint},
        "fields": {"year": "int", "module": "keyword"},
        "shards": 1,
        "writable": False,
    }
    assert api.get("/v1/indexes").json() == {"indexes": [described]}
    assert api.get("/v1/indexes/docs").json() == described


def test_a_head_request_is_answered_without_a_body(api: Any) -> None:
    response = api.request("HEAD", "/health")
    assert (response.status_code, response.content) == (200, b"")


async def live(app: Api, *events: str) -> list[dict[str, Any]]:
    """Send lifespan events to an application and return what it said."""
    sent: list[Any] = []
    received = iter(events)

    async def receive() -> dict[str, Any]:
        return {"type": next(received)}

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "lifespan"}, receive, send)
    return sent


def test_the_lifespan_opens_and_closes_the_indexes(configuration: ServerConfiguration) -> None:
    said = asyncio.run(live(Api(configuration), "lifespan.startup", "lifespan.shutdown"))
    assert [message["type"] for message in said] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]


def test_a_lifespan_that_cannot_open_an_index_says_why(tmp_path: Path) -> None:
    missing = ServerConfiguration(indexes={"docs": tmp_path / "missing"})
    (said,) = asyncio.run(live(Api(missing), "lifespan.startup"))
    assert said["type"] == "lifespan.startup.failed"
    assert "missing" in said["message"]


def test_answers_that_are_not_ours_get_our_shape() -> None:
    async def overloaded(_scope: Any, _receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/plain"), (b"retry-after", b"7"), (b"x-request-id", b"other")]
        await send({"type": "http.response.start", "status": 429, "headers": headers})
        await send({"type": "http.response.body", "body": b"Request dropped due to ", "more_body": True})
        await send({"type": "http.response.body", "body": b"backpressure"})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "headers": [(b"x-request-id", b"mine")]}
    asyncio.run(RequestIdentity(overloaded)(scope, None, send))  # type: ignore[arg-type]
    start, body = sent
    assert start["status"] == 429
    assert dict(start["headers"])[b"retry-after"] == b"7"
    assert [value for name, value in start["headers"] if name == b"x-request-id"] == [b"mine"]
    assert b'"code":"overloaded"' in body["body"]
    assert b'"request_id":"mine"' in body["body"]


@pytest.mark.parametrize("status", [429, 503])
def test_an_answer_that_asks_to_come_back_says_when(status: int) -> None:
    async def refuse(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"no"})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(RequestIdentity(refuse)({"type": "http", "headers": []}, None, send))  # type: ignore[arg-type]
    assert dict(sent[0]["headers"])[b"retry-after"] == b"1"


@pytest.mark.parametrize("can_answer", [True, False])
def test_a_websocket_is_refused(can_answer: bool) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    extensions = {"websocket.http.response": {}} if can_answer else {}
    scope = {"type": "websocket", "headers": [(b"x-request-id", b"mine")], "extensions": extensions}
    asyncio.run(RequestIdentity(None)(scope, None, send))  # type: ignore[arg-type]
    if can_answer:
        assert (sent[0]["status"], dict(sent[0]["headers"])[b"x-request-id"]) == (404, b"mine")
        assert b'"request_id":"mine"' in sent[1]["body"]
    else:
        assert sent == [{"type": "websocket.close", "code": 1008}]


def test_no_header_changes_how_serve_treats_a_request() -> None:
    seen: list[Any] = []

    async def look(scope: Any, _receive: Any, _send: Any) -> None:
        seen.extend(name for name, _ in scope["headers"])

    headers = [(b"x-request-timeout-seconds", b"1"), (b"x-request-disconnect-disabled", b"1"), (b"a", b"b")]
    asyncio.run(RequestIdentity(look)({"type": "http", "headers": headers}, None, None))  # type: ignore[arg-type]
    assert seen == [b"a", b"x-request-id"]


def test_two_encoders_of_one_name_are_told_apart_by_index(index_folder: Path, tmp_path: Path) -> None:
    from retrieval import IndexWriter, SparseEncoder

    with IndexWriter.create(tmp_path / "other", encoder=SparseEncoder.load("bm25")) as writer:
        writer.add([{"_id": "1", "text": "another collection"}])
    catalogue = Catalogue.open({"docs": index_folder, "same": index_folder, "other": tmp_path / "other"})
    assert catalogue.encoder("docs").fingerprint != catalogue.encoder("other").fingerprint
    with pytest.raises(Exception, match="several encoders are named bm25; name an index: docs, other, same"):
        catalogue.encoder("bm25")
    catalogue.close()
    catalogue = Catalogue.open({"docs": index_folder, "same": index_folder})
    assert catalogue.encoder("bm25").fingerprint == catalogue.encoder("same").fingerprint
    catalogue.close()


# What is refused before Ray is started


def test_a_missing_or_damaged_index_is_refused_before_anything_starts(
    index_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(NotFoundError, match="no index"):
        check_indexes({"docs": index_folder, "gone": tmp_path / "gone"})
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "manifest.json").write_bytes((index_folder / "manifest.json").read_bytes()[:-10])
    with pytest.raises(FormatError, match="damaged"), running(ServerConfiguration(indexes={"docs": damaged})):
        pass


def test_a_taken_port_is_one_sentence(index_folder: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with (
            pytest.raises(ConflictError, match=f"port {port} .* is taken .* --port"),
            running(ServerConfiguration(indexes={"docs": index_folder}, port=port)),
        ):
            pass
    assert choose_port(0) > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["docs"], "NAME=DIR"),
        (["docs="], "NAME=DIR"),
        (["=dir"], "letters, digits"),
        (["a/b=dir"], "letters, digits"),
        (["../x=dir"], "letters, digits"),
        ([f"{'x' * 65}=dir"], "letters, digits"),
        (["docs=a", "docs=b"], "twice"),
        ([], "--data DIR"),
    ],
)
def test_a_wrong_index_option_says_what_is_right(options: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        configure(options, 0)


def test_index_options_become_absolute_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    configuration = configure(["a=one", "b=x=y"], 9000)
    assert configuration.indexes == {"a": tmp_path / "one", "b": tmp_path / "x=y"}
    assert configuration.port == 9000


def test_a_configuration_refuses_what_it_does_not_know() -> None:
    for wrong in ({"indexes": {}}, {"indexes": {"a": "x"}, "host": "0.0.0.0"}, {"indexes": {"a/b": "x"}}):
        with pytest.raises(ValidationError):
            ServerConfiguration.model_validate(wrong)


# What Ray is told


def test_the_private_folder_and_the_token_are_for_this_user_alone() -> None:
    with private_folder() as folder:
        ray_settings(folder, SERVED)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600
        assert len((folder / "token").read_text()) == 64
    assert not folder.exists()


def test_a_temporary_folder_with_a_long_name_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert len(str(tmp_path)) > LONGEST_BASE
    with private_folder() as folder:
        assert folder.parent == Path("/tmp")


def test_the_environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEXPERT_TEST_A", "before")
    monkeypatch.setenv("LEXPERT_TEST_B", "before")
    monkeypatch.delenv("LEXPERT_TEST_C", raising=False)
    with environment({"LEXPERT_TEST_A": "during", "LEXPERT_TEST_B": None, "LEXPERT_TEST_C": "during"}):
        assert os.environ["LEXPERT_TEST_A"] == os.environ["LEXPERT_TEST_C"] == "during"
        assert "LEXPERT_TEST_B" not in os.environ
    assert os.environ["LEXPERT_TEST_A"] == os.environ["LEXPERT_TEST_B"] == "before"
    assert "LEXPERT_TEST_C" not in os.environ


def test_without_a_usable_haproxy_the_python_proxy_is_taken_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "haproxy"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o700)
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", str(broken))
    assert usable_haproxy() == (None, f"{broken} cannot be used: it ends with 1")
    settings = ray_settings(tmp_path, SERVED)
    assert settings["RAY_SERVE_ENABLE_HA_PROXY"] == settings["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "0"
    assert len(caplog.records) == 1
    assert "Python proxy" in caplog.text
    assert str(broken) in caplog.text
    with pytest.raises(NotFoundError, match=r"proxy is haproxy, but .* set proxy to auto"):
        ray_settings(tmp_path, SERVED.model_copy(update={"proxy": "haproxy"}))


@pytest.mark.skipif(usable_haproxy()[0] is None, reason="needs HAProxy")
def test_fast_settings_are_the_default_and_the_proxy_can_be_chosen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fast = ray_settings(tmp_path, SERVED)
    assert fast["RAY_SERVE_ENABLE_HA_PROXY"] == fast["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
    assert cluster_settings().items() <= fast.items()
    slow = ray_settings(tmp_path, SERVED.model_copy(update={"proxy": "python"}))
    assert slow["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
    assert caplog.records == []


@pytest.mark.skipif(usable_haproxy()[0] is None, reason="needs HAProxy")
def test_a_haproxy_that_does_not_know_our_rules_is_not_usable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("serving.haproxy.METHODS", "GET } nonsense")
    binary, fault = usable_haproxy()
    assert binary is None
    assert "cannot be used: [ALERT]" in fault
    with pytest.raises(NotFoundError, match="ALERT"):
        ray_settings(tmp_path, SERVED.model_copy(update={"proxy": "haproxy"}))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "192.0.2.7"])
def test_the_launcher_completes_what_ray_writes(tmp_path: Path, host: str) -> None:
    settings = haproxy_settings(tmp_path, "/bin/echo", Limits(body_timeout_s=2.5), host)
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text(
        "global\n    log 127.0.0.1:514 local0 info\n    stats socket /x/a.sock mode 666 level admin\n"
        "defaults\n    mode http\n    timeout http-request 9s\n    errorfile 503 /x/500.http\n"
        "frontend prometheus\n    bind :9101\nfrontend http_frontend\n    bind 127.0.0.1:8000\n"
        "    http-request return status 200 if { path /-/healthz }\n"
        "    default_backend default_backend\n"
        "backend default_backend\n    http-request return status 404\n"
        "backend other\n    http-request return status 404\n"
        "listen stats\n  bind *:8404\n"
    )
    launcher = str(settings["RAY_SERVE_HAPROXY_BINARY_PATH"])
    for _ in range(2):  # the second time there is nothing left to do
        ran = subprocess.run(
            [launcher, "-db", "-f", str(configuration)], capture_output=True, text=True, check=True
        )
        assert ran.stdout == f"-db -f {configuration}\n"
    lines = [line.strip() for line in configuration.read_text().splitlines()]
    assert not [line for line in lines if line.startswith(("log ", "errorfile ")) or "666" in line]
    assert [line for line in lines if line.startswith("bind ")] == [
        "bind 127.0.0.1:9101",
        f"bind {host}:8000",
        "bind 127.0.0.1:8404",
    ]
    assert [line for line in lines if line.startswith("timeout")] == ["timeout http-request 2500ms"]
    assert len([line for line in lines if line.startswith("http-error status")]) == 7
    frontend = lines[lines.index("frontend http_frontend") : lines.index("backend default_backend")]
    refused = next(place for place, line in enumerate(frontend) if "path_beg -i /-/" in line)
    assert refused < frontend.index("http-request return status 200 if { path /-/healthz }")
    assert "http-request wait-for-body time 2500ms if METH_POST" in frontend
    assert lines[lines.index("backend default_backend") + 1].startswith("http-request return status 503 ")
    assert lines[lines.index("backend other") + 1] == "http-request return status 404"


# What must hold of Ray, or the server does not start


RAY_THAT_CHANGED = """
from ray._private import ray_constants
from ray.serve._private import replica
from runtime.errors import LexpertError
from serving.ray_environment import keep_replica_on_loopback, require_loopback_only

def said(check):
    try:
        check()
    except LexpertError as error:
        print(error)

ray_constants.ENABLE_RAY_CLUSTER = True
said(require_loopback_only)
del ray_constants.ENABLE_RAY_CLUSTER
said(require_loopback_only)
del replica.add_port_to_grpc_server
said(keep_replica_on_loopback)
"""


@pytest.mark.skipif(find_spec("ray") is None, reason="needs the serving extra")
def test_a_ray_that_may_listen_elsewhere_is_refused() -> None:
    """In a process of its own, since Ray must not be imported here before a server does it."""
    ran = subprocess.run([sys.executable, "-c", RAY_THAT_CHANGED], capture_output=True, text=True, check=True)
    imported, *renamed = ran.stdout.splitlines()
    assert "has imported Ray already" in imported
    assert len(renamed) == 2
    assert all("cannot keep the ports of Ray" in sentence for sentence in renamed)
