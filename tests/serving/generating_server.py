"""A server with a tiny model, over a real socket, in this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from serving.api import Api
from serving.configuration import Limits, ServerConfiguration
from serving.request_identity import RequestIdentity

TEMPLATE = "{% for message in messages %}{{ message['role'][0] }} {{ message['content'] }}. {% endfor %}a "


@contextmanager
def serve(folder: Path, limits: Limits | None = None) -> Iterator[tuple[Api, str]]:
    """The API with the model ``tiny``, and its URL."""
    configuration = ServerConfiguration(models={"tiny": folder}, port=0, limits=limits or Limits())
    api = Api(configuration)
    config = uvicorn.Config(RequestIdentity(api), port=0, log_level="error", lifespan="on")
    server = uvicorn.Server(config)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(server.serve()))
    thread.start()
    try:
        while not server.started and thread.is_alive():
            pass
        port = server.servers[0].sockets[0].getsockname()[1]
        yield api, f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
        loop.close()
