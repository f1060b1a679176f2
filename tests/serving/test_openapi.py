from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.configuration import ServerConfiguration
from serving.errors import TYPES
from serving.routes import ROUTES
from tests.serving.socket_server import serve

jsonschema = pytest.importorskip("jsonschema")

METHODS = {"get", "put", "post", "delete"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder: Path = tmp_path_factory.mktemp("openapi")
    with serve(ServerConfiguration(data=folder / "data", port=0, threads=2)) as client:
        yield client


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    answer = client.get("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    found: dict[str, Any] = answer.json()
    return found


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a document."""
    if isinstance(value, dict):
        yield value
        for each in value.values():
            yield from nodes(each)
    elif isinstance(value, list):
        for each in value:
            yield from nodes(each)


def resolve(document: dict[str, Any], reference: str) -> Any:
    assert reference.startswith("#/")
    found: Any = document
    for part in reference[2:].split("/"):
        found = found[part]
    return found


def validator(document: dict[str, Any], schema: dict[str, Any]) -> Any:
    return jsonschema.Draft202012Validator({**schema, "components": document["components"]})


def test_every_route_is_described(document: dict[str, Any]) -> None:
    expected = {(route.path.replace("*}", "}"), route.method.lower()) for route in ROUTES}
    found = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert found == expected


def test_the_document_is_openapi(document: dict[str, Any]) -> None:
    assert re.fullmatch(r"3\.1\.\d+", document["openapi"])
    assert document["info"]["title"]
    assert document["info"]["version"]
    identifiers = []
    for path, methods in document["paths"].items():
        assert path.startswith("/")
        assert set(methods) <= METHODS
        for method, operation in methods.items():
            identifiers.append(operation["operationId"])
            assert operation["summary"]
            placed = [(each["in"], each["name"]) for each in operation["parameters"]]
            assert len(set(placed)) == len(placed)
            named = {each["name"] for each in operation["parameters"] if each["in"] == "path"}
            assert named == set(re.findall(r"{(\w+)}", path))
            for each in operation["parameters"]:
                assert each["in"] in ("path", "query", "header")
                assert each["description"]
                assert each.get("required", False) == (each["in"] == "path")
                jsonschema.Draft202012Validator.check_schema(each["schema"])
            if "requestBody" in operation:
                assert method in ("put", "post")
                assert operation["requestBody"]["content"]
            assert any(status.startswith("2") for status in operation["responses"])
            for status, answer in operation["responses"].items():
                assert re.fullmatch(r"[2-5]\d\d", status)
                assert answer["description"]
                assert answer["content"]
            for requirement in operation["security"]:
                assert requirement.keys() <= document["components"]["securitySchemes"].keys()
    assert len(set(identifiers)) == len(identifiers)


def test_every_reference_resolves(document: dict[str, Any]) -> None:
    references = [node["$ref"] for node in nodes(document) if "$ref" in node]
    assert references
    for reference in references:
        jsonschema.Draft202012Validator.check_schema(resolve(document, reference))


def test_errors_have_one_body_and_known_statuses(document: dict[str, Any]) -> None:
    for methods in document["paths"].values():
        for operation in methods.values():
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    assert int(status) in TYPES
                    schema = answer["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/ErrorBody"}


def test_answers_are_as_described(client: httpx.Client, document: dict[str, Any]) -> None:
    """Each request, its body too, and its answer against the document."""
    documents = [{"id": f"d{place}/x", "text": f"word{place} common", "year": 2000} for place in range(3)]
    requests: list[tuple[str, str, str, Any]] = [
        ("get", "/health", "/health", None),
        ("get", "/ready", "/ready", None),
        ("get", "/version", "/version", None),
        ("put", "/v1/indexes/{name}", "/v1/indexes/n", {"encoder": "bm25", "fields": {"year": "int"}}),
        ("put", "/v1/indexes/{name}", "/v1/indexes/n", {"encoder": "bm25", "fields": {"year": "int"}}),
        ("put", "/v1/indexes/{name}", "/v1/indexes/n", {"encoder": "bm25"}),
        ("put", "/v1/indexes/{name}/documents", "/v1/indexes/n/documents", {"documents": documents}),
        (
            "put",
            "/v1/indexes/{name}/documents",
            "/v1/indexes/n/documents?wait=false",
            {"documents": [{"id": "e", "text": "e"}, {"id": "e", "wrong": 1}]},
        ),
        ("get", "/v1/indexes/{name}/documents/{id}", "/v1/indexes/n/documents/d1/x", None),
        ("get", "/v1/indexes/{name}/documents/{id}", "/v1/indexes/n/documents/none", None),
        ("get", "/v1/indexes", "/v1/indexes", None),
        ("get", "/v1/indexes/{name}", "/v1/indexes/n", None),
        ("get", "/v1/indexes/{name}/stats", "/v1/indexes/n/stats", None),
        (
            "post",
            "/v1/indexes/{name}/search",
            "/v1/indexes/n/search",
            {"query": "common other", "k": 2, "with": ["text", "explain"]},
        ),
        ("post", "/v1/indexes/{name}/search", "/v1/indexes/n/search", {"vector": {"common": 1.0}}),
        ("post", "/v1/indexes/{name}/search", "/v1/indexes/none/search", {"query": "common"}),
        ("post", "/v1/encode", "/v1/encode", {"model": "n", "input": "common", "return_tokens": True}),
        ("post", "/v1/encode", "/v1/encode", {"model": "n", "input": ["common", ""]}),
        ("post", "/embed_sparse", "/embed_sparse", {"inputs": ["common", ""], "truncate": True}),
        ("post", "/rerank", "/rerank", {"query": "common", "texts": ["a", "common"], "return_text": True}),
        ("get", "/info", "/info", None),
        ("post", "/v1/aliases", "/v1/aliases", {"aliases": {"m": "n", "o": None}}),
        ("get", "/v1/aliases", "/v1/aliases", None),
        ("delete", "/v1/indexes/{name}", "/v1/indexes/n", None),
        ("post", "/v1/aliases", "/v1/aliases", {"aliases": {"m": None}}),
        ("post", "/v1/indexes/{name}/snapshots", "/v1/indexes/n/snapshots", None),
        ("post", "/v1/indexes/{name}/documents/delete", "/v1/indexes/n/documents/delete", {"ids": ["d0/x"]}),
        (
            "delete",
            "/v1/indexes/{name}/documents/{id}",
            "/v1/indexes/n/documents/d1/x?wait=false",
            None,
        ),
        ("get", "/v1/models", "/v1/models", None),
        ("get", "/v1/models/{model}", "/v1/models/none", None),
        ("get", "/v1/models/{model}/routing", "/v1/models/none/routing?window_s=5", None),
        (
            "post",
            "/v1/chat/completions",
            "/v1/chat/completions",
            {"model": "none", "messages": [{"role": "user", "content": "a"}], "stop": "x"},
        ),
        ("post", "/v1/completions", "/v1/completions", {"model": "none", "prompt": [[1, 2], "a"]}),
        ("delete", "/v1/indexes/{name}", "/v1/indexes/n", None),
        (
            "post",
            "/v1/answers",
            "/v1/answers",
            {"index": "n", "model": "none", "query": "a", "fuse": {"with": "m"}, "stop": "x"},
        ),
    ]
    for method, path, url, body in requests:
        operation = document["paths"][path][method]
        if body is not None:
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            validator(document, schema).validate(body)
        answer = client.request(method, url, json=body)
        described = operation["responses"].get(str(answer.status_code))
        assert described is not None, (method, url, answer.text)
        validator(document, described["content"]["application/json"]["schema"]).validate(answer.json())


def test_a_wrong_body_is_not_as_described(document: dict[str, Any]) -> None:
    for path, body in (
        ("/v1/encode", {"model": "n", "input": [1]}),
        ("/v1/completions", {"model": "n", "prompt": {"a": 1}}),
        ("/v1/indexes/{name}/search", {"query": "a", "unknown": 1}),
    ):
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert not validator(document, schema).is_valid(body)


class Page(HTMLParser):
    """Notes what a page holds, and that its elements end in the order in which they began."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_has_all_routes_and_asks_for_nothing_else(client: httpx.Client) -> None:
    answer = client.get("/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    page = Page()
    page.feed(answer.text)
    assert page.open == []
    for route in ROUTES:
        assert f"{route.method} {route.path.replace('*}', '}')}" in page.text
    tags = {tag for tag, _ in page.seen}
    assert not tags & {"script", "link", "img", "iframe", "object"}
    targets = {attributes["href"] for tag, attributes in page.seen if tag == "a"}
    ids = {f"#{attributes['id']}" for _, attributes in page.seen if "id" in attributes}
    assert targets <= ids | {"openapi.json"}
    assert "url(" not in answer.text
    assert "@import" not in answer.text
    assert "prefers-color-scheme" in answer.text
