from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.configuration import ServerConfiguration

SEARCH = "/v1/indexes/docs/search"
JSON = {"content-type": "application/json"}


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error body, after checking what all of them share."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"type", "message", "code", "param", "request_id"}
    assert error["message"]
    assert error["request_id"] == response.headers["x-request-id"]
    return error


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "query"),
        ([], None),
        ("text", None),
        ({"query": 5}, "query"),
        ({"query": None}, "query"),
        ({"queries": []}, "queries"),
        ({"queries": ["a", 3]}, "queries.1"),
        ({"queries": ["a"] * 65}, "queries"),
        ({"query": "a", "queries": ["b"]}, "queries"),
        ({"query": "a", "vector": {"file": 1}}, "vector"),
        ({"query": "a", "k": 0}, "k"),
        ({"query": "a", "k": -3}, "k"),
        ({"query": "a", "k": 1001}, "k"),
        ({"query": "a", "k": 10**30}, "k"),
        ({"query": "a", "k": "10"}, "k"),
        ({"query": "a", "k": 2.5}, "k"),
        ({"query": "a", "k": True}, "k"),
        ({"query": "a", "top_k": 5}, "top_k"),
        ({"query": "a", "mode": "fast"}, "mode"),
        ({"query": "a", "with": "text"}, "with"),
        ({"query": "a", "with": ["text", "blob"]}, "with.1"),
        ({"query": "a", "filter": []}, "filter"),
        ({"query": "a", "filter": {}}, "filter"),
        ({"query": "a", "filter": {"field": "nope", "eq": 1}}, "filter"),
        ({"query": "a", "filter": {"all": [{"field": "year", "gte": "x"}]}}, "filter"),
        ({"vector": []}, "vector"),
        ({"vector": {"file": "heavy"}}, "vector.file"),
        ({"vector": {"file": True}}, "vector.file"),
        ({"vector": {"file": -1}}, "vector.file"),
        ({"vector": {"file": 1e39}}, "vector.file"),
        ({"vector": {"indices": [1]}}, "vector.values"),
        ({"vector": {"indices": [1], "values": [1, 2]}}, "vector.values"),
        ({"vector": {"indices": [1.5], "values": [1]}}, "vector.indices.0"),
        ({"vector": {"indices": [-1], "values": [1]}}, "vector.indices.0"),
        ({"vector": {"indices": [0, 10**9], "values": [1, 1]}}, "vector.indices.1"),
        ({"vector": {"indices": [0, 10**30], "values": [1, 1]}}, "vector.indices.1"),
        ({"vector": {"indices": [0], "values": [-0.5]}}, "vector.values.0"),
        ({"vector": {"indices": [0], "values": [1], "x": 1}}, "vector.x"),
        ({"vectors": [{"file": 1}, {"file": -1}]}, "vectors.1.file"),
        ({"vectors": [{"file": 1}, 5]}, "vectors.1"),
    ],
)
def test_a_search_that_is_json_but_wrong_names_the_field(api: Any, body: Any, param: str | None) -> None:
    error = error_of(api.post(SEARCH, json=body), 422)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "a"}, "model"),
        ({"model": "docs"}, "input"),
        ({"model": "docs", "input": []}, "input"),
        ({"model": "docs", "input": ["a"] * 65}, "input"),
        ({"model": "docs", "input": "a", "role": "passage"}, "role"),
        ({"model": "docs", "input": "a", "top_k": 0}, "top_k"),
        ({"model": "docs", "input": "a", "return_tokens": "yes"}, "return_tokens"),
        ({"model": "docs", "input": "a", "truncate": True}, "truncate"),
    ],
)
def test_an_encoding_that_is_json_but_wrong_names_the_field(api: Any, body: Any, param: str) -> None:
    assert error_of(api.post("/v1/encode", json=body), 422)["param"] == param


@pytest.mark.parametrize(
    ("given", "param"),
    [(5, "input"), (None, "input"), ({}, "input"), ([1], "input.0"), (["a", None], "input.1")],
)
def test_an_input_that_is_no_text_is_refused_where_it_stands(api: Any, given: Any, param: str) -> None:
    error = error_of(api.post("/v1/encode", json={"model": "docs", "input": given}), 422)
    assert error["param"] == param
    assert "string" in error["message"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"query": "a"', b"\xff\xfe", b'{"query": "\xff"}', b'{"query": "\\ud800"}', b"{} {}"],
)
def test_a_body_that_is_not_json_is_malformed(api: Any, body: bytes) -> None:
    error = error_of(api.post(SEARCH, content=body, headers=JSON), 400)
    assert error["code"] == "malformed_json"


def test_weights_that_only_loose_json_can_write_are_refused(api: Any) -> None:
    for weight in (b"NaN", b"Infinity", b"1e999"):
        response = api.post(SEARCH, content=b'{"vector": {"file": ' + weight + b"}}", headers=JSON)
        assert error_of(response, 422)["param"] == "vector.file"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.binary(max_size=80)
    | st.text(max_size=40).map(lambda text: f'{{"query": {text}}}'.encode("utf-8", "replace"))
)
def test_no_body_whatever_makes_the_server_fail(api: Any, body: bytes) -> None:
    assert api.post(SEARCH, content=body, headers=JSON).status_code in (200, 400, 422)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = ("query", "queries", "vector", "vectors", "k", "filter", "with")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=3))
def test_no_json_whatever_makes_the_server_fail(api: Any, body: dict[str, Any]) -> None:
    response = api.post(SEARCH, json=body)
    if response.status_code != 200:
        error_of(response, 422)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
def test_a_body_that_is_not_said_to_be_plain_json_is_refused(api: Any, headers: dict[str, str]) -> None:
    response = api.post(SEARCH, content=b'{"query": "file"}', headers=headers)
    assert error_of(response, 415)["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    "content_type",
    [
        "Application/JSON; charset=UTF-8",
        'application/json;charset="utf-8"',
        "application/json; odata=verbose",
        "application/json; charset=utf-8; x=y",
    ],
)
def test_a_type_may_have_parameters(api: Any, content_type: str) -> None:
    headers = {"content-type": content_type}
    assert api.post(SEARCH, content=b'{"query": "file"}', headers=headers).status_code == 200


def test_a_missing_type_is_called_missing(api: Any) -> None:
    message = error_of(api.post(SEARCH, content=b"{}"), 415)["message"]
    assert message.startswith("the body came without a content-type")


def test_a_body_that_does_not_end_is_answered_408(
    api: Any, configuration: ServerConfiguration, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = configuration.limits.model_copy(update={"body_timeout_s": 0.05})
    monkeypatch.setattr(api.api.state, "configuration", configuration.model_copy(update={"limits": short}))

    async def unfinished() -> Any:
        yield b'{"query":'
        await asyncio.sleep(30)

    error = error_of(api.post(SEARCH, content=unfinished(), headers=JSON), 408)
    assert (error["code"], error["type"]) == ("timeout", "timeout_error")


def test_of_a_key_given_twice_the_last_counts(api: Any) -> None:
    response = api.post(SEARCH, content=b'{"query": "file", "k": 5, "k": 2}', headers=JSON)
    assert len(response.json()["results"][0]["hits"]) == 2


def test_a_body_over_the_limit_is_refused_with_and_without_a_declared_length(api: Any) -> None:
    body = b'{"query": "' + b"x" * 100_001 + b'"}'

    async def chunks() -> Any:
        for start in range(0, len(body), 10_000):
            yield body[start : start + 10_000]

    for content in (body, chunks()):
        error = error_of(api.post(SEARCH, content=content, headers=JSON), 413)
        assert error["code"] == "body_too_large"


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/nothing", "route_not_found"),
        ("GET", "/health/", "route_not_found"),
        ("GET", "/v1/indexes/", "route_not_found"),
        ("GET", "/v1/indexes/none", "index_not_found"),
        ("POST", "/v1/indexes/none/search", "index_not_found"),
        ("POST", "/v1/indexes/..%2Fdocs/search", "route_not_found"),
        ("POST", "/v1/indexes/%D1%91/search", "index_not_found"),
    ],
)
def test_what_does_not_exist_is_not_found(api: Any, method: str, path: str, code: str) -> None:
    error = error_of(api.request(method, path, json={"query": "a"}), 404)
    assert (error["type"], error["code"]) == ("not_found_error", code)


def test_a_model_that_does_not_exist_is_not_found_and_the_answer_names_those_that_do(api: Any) -> None:
    error = error_of(api.post("/v1/encode", json={"model": "gpt", "input": "a"}), 404)
    assert error["param"] == "model"
    assert "docs" in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", SEARCH, "POST"),
        ("DELETE", "/v1/indexes", "GET, HEAD"),
        ("POST", "/health", "GET, HEAD"),
        ("PUT", "/v1/encode", "POST"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(api: Any, method: str, path: str, allow: str) -> None:
    response = api.request(method, path)
    assert error_of(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == allow


@pytest.mark.parametrize("path", ["/health?verbose=1", "/v1/indexes?limit=3", "/ready?x"])
def test_a_parameter_in_the_url_is_never_ignored(api: Any, path: str) -> None:
    error = error_of(api.get(path), 400)
    assert (error["code"], error["param"]) == ("unknown_parameter", path.partition("?")[2].partition("=")[0])


def test_a_fault_of_ours_says_nothing_of_the_inside(
    api: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret: /home/someone")

    served = api.api.state.catalogue.indexes["docs"]
    monkeypatch.setattr(served.index, "search", fail)
    response = api.post(SEARCH, json={"query": "file"})
    error = error_of(response, 500)
    assert error["code"] == "internal_error"
    assert "secret" not in response.text
    assert error["request_id"] in caplog.text
    assert "secret: /home/someone" in caplog.text


def test_a_request_id_is_echoed(api: Any) -> None:
    response = api.get("/health", headers={"x-request-id": "order-66/b"})
    assert response.headers.get_list("x-request-id") == ["order-66/b"]


@pytest.mark.parametrize("unusable", [b"a" * 129, b"with space", "новый".encode(), b""])
def test_an_unusable_request_id_is_replaced(api: Any, unusable: bytes) -> None:
    response = api.get("/nothing", headers=[(b"x-request-id", unusable)])
    (made,) = response.headers.get_list("x-request-id")
    assert len(made) == 32
    assert error_of(response, 404)["request_id"] == made


def test_request_ids_that_are_made_differ(api: Any) -> None:
    get: Callable[[str], httpx.Response] = api.get
    assert len({get("/health").headers["x-request-id"] for _ in range(20)}) == 20
