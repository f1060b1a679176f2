"""The API behind a real socket, in this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn

from serving.api import Api
from serving.configuration import ServerConfiguration
from serving.generators import Generators
from serving.request_identity import RequestIdentity
from serving.shards import OpenShards


@contextmanager
def serve(
    configuration: ServerConfiguration,
    generators: Generators | None = None,
    open_shards: OpenShards | None = None,
) -> Iterator[httpx.Client]:
    """A client of it."""
    with serve_api(Api(configuration, generators=generators, open_shards=open_shards)) as client:
        yield client


@contextmanager
def serve_api(api: Api) -> Iterator[httpx.Client]:
    """The same for an API that the test has made."""
    server = uvicorn.Server(uvicorn.Config(RequestIdentity(api), port=0, log_level="error", lifespan="on"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        while not server.started and thread.is_alive():
            thread.join(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
