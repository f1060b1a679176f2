"""A small real index, the API over it without Ray, and the same behind a real server."""

from __future__ import annotations

import asyncio
import inspect
import json
import pathlib
import random
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from retrieval import IndexWriter, SparseEncoder, SparseIndex
from serving.api import Api
from serving.configuration import Limits, ServerConfiguration
from serving.request_identity import RequestIdentity

LIMITS = Limits(max_body_bytes=100_000, max_k=1000, max_queries=64, max_inputs=64, body_timeout_s=3)


def documents() -> Iterator[dict[str, Any]]:
    """The docstrings of a few modules, and some documents that only Unicode can write."""
    for place, module in enumerate((json, random, textwrap, pathlib, asyncio)):
        for name, member in sorted(vars(module).items()):
            if not name.startswith("_") and (text := inspect.getdoc(member)):
                yield {
                    "_id": f"{module.__name__}.{name}",
                    "title": name,
                    "text": text,
                    "year": 2000 + place,
                    "module": module.__name__,
                }
    yield {
        "_id": "ключ/π?&#",
        "title": "Ёлка",
        "text": "зимняя ёлка 🎄 naïve café",
        "year": 2030,
        "module": "ü",
    }


@pytest.fixture(scope="session")
def index_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving") / "index"
    fields = {"year": "int", "module": "keyword"}
    with IndexWriter.create(folder, encoder=SparseEncoder.load("bm25"), fields=fields) as writer:
        writer.add(documents())
    return folder


@pytest.fixture(scope="session")
def index(index_folder: Path) -> Iterator[SparseIndex]:
    """The index as the library opens it: what the server's answers must equal."""
    with SparseIndex.open(index_folder) as opened:
        yield opened


@pytest.fixture(scope="session")
def configuration(index_folder: Path) -> ServerConfiguration:
    return ServerConfiguration(indexes={"docs": index_folder}, port=0, threads=2, limits=LIMITS)


class InProcess:
    """Sends requests to an ASGI application without a network."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self._app = RequestIdentity(api)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)


@pytest.fixture(scope="session")
def in_process() -> type[InProcess]:
    return InProcess


@pytest.fixture(scope="session")
def api(configuration: ServerConfiguration) -> Iterator[InProcess]:
    app = Api(configuration)
    app.state.open()
    yield InProcess(app)
    app.state.close()


@pytest.fixture(scope="session")
def search(api: InProcess) -> Callable[..., httpx.Response]:
    """Searches the index over HTTP; keywords are the body, `with_` stands for `with`."""

    def post(**body: Any) -> httpx.Response:
        return api.post(
            "/v1/indexes/docs/search", json={key.rstrip("_"): value for key, value in body.items()}
        )

    return post
