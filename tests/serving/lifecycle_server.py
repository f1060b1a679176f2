"""A server in a process of its own, to be killed: ``python lifecycle_server.py CONFIGURATION_JSON``.

It takes a free port and says it on standard output.
"""

from __future__ import annotations

import socket
import sys

import uvicorn

from serving.api import Api
from serving.configuration import ServerConfiguration
from serving.request_identity import RequestIdentity


def main() -> None:
    configuration = ServerConfiguration.model_validate_json(sys.argv[1])
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(
            uvicorn.Config(RequestIdentity(Api(configuration)), log_level="warning", lifespan="on")
        )
        listening.listen(100)
        print(listening.getsockname()[1], flush=True)
        server.run(sockets=[listening])


if __name__ == "__main__":
    main()
