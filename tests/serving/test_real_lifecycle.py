"""The life of an index behind Ray Serve: one process writes, another searches."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx
import psutil
import pytest

from retrieval import SparseIndex
from serving.application import RunningServer, running
from serving.configuration import ServerConfiguration

# Not importorskip: Ray must be imported by the server, after its settings are made.
pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs the serving extra")

PATH = "/v1/indexes/docs/documents"


def writer_process() -> psutil.Process:
    (found,) = [
        process
        for process in psutil.Process().children(recursive=True)
        if "lexpert:writer" in " ".join(process.cmdline())
    ]
    return found


def test_what_was_answered_survives_the_process_that_writes(tmp_path: Path) -> None:
    def lines() -> Iterator[bytes]:
        for first in range(0, 20_000, 1000):
            yield b"".join(
                b'{"id":"d%d","text":"common word%d"}\n' % (n, n) for n in range(first, first + 1000)
            )

    def count(server: RunningServer) -> int:
        return int(httpx.get(f"{server.url}/v1/indexes/docs", timeout=30).json()["documents"])

    data = tmp_path / "data"
    with (
        running(ServerConfiguration(data=data, port=0)) as server,
        httpx.Client(base_url=server.url, timeout=120) as client,
    ):
        assert client.put("/v1/indexes/docs", json={"encoder": "bm25"}).status_code == 201
        assert client.put("/v1/indexes/docs", json={"encoder": "precomputed", "units": 3}).status_code == 409
        headers = {"content-type": "application/x-ndjson"}
        answer = client.put(PATH, content=lines(), headers=headers)
        assert answer.json()["upserted"] == 20_000
        assert (answer.status_code, count(server)) == (200, 20_000)
        # As long a body as is taken, on its way from process to process.
        long = {"documents": [{"id": f"long{n}", "text": "x" * 390_000} for n in range(10)]}
        assert client.put(PATH, json=long).json()["upserted"] == 10
        unwaited = client.put(f"{PATH}?wait=false", json={"documents": [{"id": "e", "text": "common"}]})
        assert unwaited.status_code == 202
        writer_process().kill()
        killed = time.monotonic()
        assert client.post("/v1/indexes/docs/search", json={"query": "common"}).status_code == 200
        while (written := client.put(PATH, json={"documents": [{"id": "f"}]})).status_code == 503:
            assert written.json()["error"]["code"] == "not_ready"
            time.sleep(0.1)
        print(f"writing again after {time.monotonic() - killed:.1f} s")
        assert (written.status_code, count(server)) == (200, 20_012)
    with SparseIndex.open(data / "indexes/docs") as index:
        assert index.num_documents == 20_012
