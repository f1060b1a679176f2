"""Keys over real sockets: who gets in, how far, and how often."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.api import Api
from serving.configuration import ServerConfiguration
from serving.errors import ApiError
from serving.keys import SCOPES, Key, KeyRing, RouteScope
from serving.request_identity import RequestIdentity
from serving.routes import ROUTES

READ, WRITE, ADMIN = (f"{scope}-0123456789abcdef" for scope in ("read", "write", "admin"))
SLOW = "slow-0123456789abcdef"
SECRETS = (READ, WRITE, ADMIN, SLOW)
KEYS = (
    Key.model_validate({"name": "reader", "key": READ, "scope": "read"}),
    Key.model_validate(
        {"name": "writer", "sha256": hashlib.sha256(WRITE.encode()).hexdigest().upper(), "scope": "write"}
    ),
    Key.model_validate({"name": "root", "key": ADMIN, "scope": "admin"}),
    Key.model_validate({"name": "slow", "key": SLOW, "scope": "read", "rate": 0.5, "burst": 3}),
)
OPEN = {("GET", "/health"), ("GET", "/ready"), ("GET", "/"), ("GET", "/page/{file}")}
SEARCH = "/v1/indexes/docs/search"
VALUES = [READ, WRITE, ADMIN, f"Bearer {READ}", f"bearer {ADMIN}", f"Bearer {READ}x", ""]


@contextmanager
def serve(configuration: ServerConfiguration) -> Iterator[str]:
    """The URL of a server in this process."""
    config = uvicorn.Config(RequestIdentity(Api(configuration)), port=0, log_level="error", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def url(configuration: ServerConfiguration, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    changes = {"keys": KEYS, "data": tmp_path_factory.mktemp("data")}
    with serve(configuration.model_copy(update=changes)) as served:
        yield served


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=30) as made:
        yield made


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def refused(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error, after checking its shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"type", "message", "code", "param", "request_id"}
    assert error["code"] == code
    assert error["request_id"] == response.headers["x-request-id"]
    assert not any(secret in response.text + str(response.headers) for secret in SECRETS)
    return error


def path_of(path: str) -> str:
    """A path of a route, of things that are not there, but for files of the page."""
    for place in ("{name}", "{id*}", "{model}", "{id}"):
        path = path.replace(place, "nothing")
    return path.replace("{file}", "page.css")


def test_every_route_says_its_scope_and_only_health_and_the_page_are_open() -> None:
    assert {route.scope for route in ROUTES} == {"open", "read", "write", "admin"}
    assert {(route.method, route.path) for route in ROUTES if route.scope == "open"} == OPEN
    for route in ROUTES:
        changes = route.method in ("PUT", "DELETE", "PATCH")
        if "/documents" in route.path and (changes or route.path.endswith("/delete")):
            assert route.scope == "write", route
        elif changes or (route.path.endswith(("/snapshots", "/aliases")) and route.method == "POST"):
            assert route.scope == "admin", route
        elif (route.method, route.path) not in OPEN:
            assert route.scope == "read", route


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_asks_for_a_key_that_allows_it(client: httpx.Client, route: Any) -> None:
    def ask(headers: dict[str, str]) -> httpx.Response:
        return client.request(route.method, path_of(route.path), headers=headers)

    if route.scope == "open":
        assert ask({}).status_code == 200
        return
    error = refused(ask({}), 401, "missing_key")
    assert error["type"] == "authentication_error"
    refused(ask(bearer("wrong-0123456789abcdef")), 401, "invalid_key")
    scopes = {"read": READ, "write": WRITE, "admin": ADMIN}
    order = list(scopes)
    for scope, key in scopes.items():
        response = ask(bearer(key))
        if order.index(scope) < order.index(route.scope):
            assert refused(response, 403, "insufficient_scope")["type"] == "permission_error"
            assert f'scope="{route.scope}"' in response.headers["www-authenticate"]
        else:
            assert response.status_code not in (401, 403, 429), response.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/health", 405),
        ("OPTIONS", SEARCH, 405),
        ("HEAD", "/v1/indexes", 200),
    ],
)
def test_what_is_no_route_asks_for_a_key_too(
    client: httpx.Client, method: str, path: str, status: int
) -> None:
    assert client.request(method, path).status_code == 401
    assert client.request(method, path, headers=bearer(READ)).status_code == status


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {READ}"},
        {"authorization": f"bearer  {READ}"},
        {"x-api-key": READ},
        {"X-API-Key": READ, "Authorization": f"Bearer {READ}"},
        {"x-api-key": READ, "authorization": "Basic b3RoZXI6b3RoZXI="},
    ],
)
def test_a_key_comes_in_either_header(client: httpx.Client, headers: dict[str, str]) -> None:
    response = client.post(SEARCH, json={"query": "json"}, headers=headers)
    assert response.status_code == 200
    assert response.json()["results"][0]["hits"]


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ([], "missing_key"),
        ([("authorization", "")], "missing_key"),
        ([("authorization", "Bearer")], "missing_key"),
        ([("authorization", READ)], "missing_key"),
        ([("authorization", "Basic " + READ)], "missing_key"),
        ([("x-api-key", "")], "missing_key"),
        ([("x-api-key", READ[:-1])], "invalid_key"),
        ([("x-api-key", READ + "x")], "invalid_key"),
        ([("x-api-key", READ.upper())], "invalid_key"),
        ([("x-api-key", hashlib.sha256(READ.encode()).hexdigest())], "invalid_key"),
        ([("x-api-key", READ), ("x-api-key", ADMIN)], "invalid_key"),
        ([("authorization", f"Bearer {READ}"), ("x-api-key", ADMIN)], "invalid_key"),
        ([("authorization", f"Bearer {READ}, Bearer {ADMIN}")], "invalid_key"),
        ([(b"x-api-key", b"\xff\xfe\x80")], "invalid_key"),
        ([("x-api-key", "x" * 9000)], "invalid_key"),
    ],
)
def test_none_or_a_wrong_key_is_challenged(client: httpx.Client, headers: Any, code: str) -> None:
    response = client.post(SEARCH, json={"query": "json"}, headers=headers)
    refused(response, 401, code)
    assert response.headers["www-authenticate"].startswith('Bearer realm="lexpert"')
    assert ('error="invalid_token"' in response.headers["www-authenticate"]) == (code == "invalid_key")


def test_a_key_in_the_url_is_none(client: httpx.Client) -> None:
    refused(client.get(f"/v1/indexes?key={ADMIN}&api_key={ADMIN}"), 401, "missing_key")


def test_a_long_body_without_a_key_does_not_cost_its_answer(client: httpx.Client) -> None:
    refused(client.post(SEARCH, content=b" " * (8 << 20)), 401, "missing_key")


def test_ready_names_no_index_to_who_has_no_key(client: httpx.Client) -> None:
    assert client.get("/ready").json() == {"status": "ready"}


def test_the_scopes_work_together(client: httpx.Client) -> None:
    made = client.put("/v1/indexes/kept", json={"encoder": "bm25"}, headers=bearer(ADMIN))
    assert made.status_code == 201
    body = {"documents": [{"id": "a", "text": "keys and locks"}]}
    assert client.put("/v1/indexes/kept/documents", json=body, headers=bearer(WRITE)).status_code == 200
    found = client.post("/v1/indexes/kept/search", json={"query": "locks"}, headers=bearer(READ))
    assert [hit["id"] for hit in found.json()["results"][0]["hits"]] == ["a"]


def test_a_key_has_its_rate_and_others_do_not_share_it(client: httpx.Client) -> None:
    statuses = []
    for _ in range(8):
        response = client.get("/v1/indexes", headers=bearer(SLOW))
        statuses.append(response.status_code)
    assert statuses[:3] == [200] * 3
    assert statuses[-1] == 429
    error = refused(response, 429, "rate_limited")
    assert error["type"] == "rate_limit_error"
    assert response.headers["retry-after"] in ("1", "2")
    assert client.get("/v1/indexes", headers=bearer(READ)).status_code == 200
    assert client.get("/health", headers=bearer(SLOW)).status_code == 200


def test_no_secret_is_logged(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        for key in (*SECRETS, "wrong-0123456789abcdef"):
            for headers in (bearer(key), {"x-api-key": key}):
                client.post(SEARCH, json={"query": "json", "k": 0}, headers=headers)
                client.delete("/v1/indexes/none", headers=headers)
    logged = "".join(record.getMessage() for record in caplog.records if record.name != "httpx")
    assert not any(secret in logged for secret in (*SECRETS, "wrong-0123456789abcdef"))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.sampled_from(["authorization", "x-api-key", "cookie"]), st.sampled_from(VALUES)),
        max_size=3,
    ),
    st.sampled_from(SCOPES),
)
def test_a_request_passes_if_the_only_key_in_it_is_known_and_allows_the_scope(
    given_headers: list[tuple[str, str]], scope: RouteScope
) -> None:
    headers = [(name.encode(), value.encode()) for name, value in given_headers]
    named = {value.split()[1] for name, value in given_headers if name == "authorization" and " " in value}
    named |= {value for name, value in given_headers if name == "x-api-key" and value}
    allows = {
        READ: {"open", "read"},
        WRITE: {"open", "read", "write"},
        ADMIN: set(SCOPES),
    }
    scopes = allows.get(named.pop()) if len(named) == 1 else None
    expected = 200 if scope == "open" else 401 if scopes is None else 200 if scope in scopes else 403
    try:
        KeyRing(KEYS[:3]).admit(headers, scope)
        status = 200
    except ApiError as error:
        status = error.status
    assert status == expected


@pytest.mark.parametrize("key", [READ, ADMIN, "wrong-0123456789abcdef"])
def test_each_known_key_is_compared_wherever_the_right_one_stands(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return compare_digest(one, other)

    compare_digest = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", compare)
    with suppress(ApiError):
        KeyRing(KEYS).admit([(b"x-api-key", key.encode())], "read")
    assert compared == [bytes.fromhex(each.sha256) for each in KEYS]


def test_without_keys_every_header_is_taken(api: Any) -> None:
    assert api.get("/v1/indexes", headers=bearer("whatever")).status_code == 200


def test_openai_clients_send_their_key(url: str) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{url}/v1", api_key=READ, max_retries=0) as client:
        assert list(client.models.list()) == []
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_a_configuration_keeps_digests_only(index_folder: Path) -> None:
    given = {"indexes": {"docs": index_folder}, "keys": [{"name": "a", "key": READ, "scope": "read"}]}
    configuration = ServerConfiguration.model_validate(given)
    again = ServerConfiguration.model_validate_json(configuration.model_dump_json())
    assert again == configuration
    assert READ not in configuration.model_dump_json() + repr(configuration)
    assert configuration.keys[0].sha256 not in repr(configuration)
