"""A server in a process of its own, over a real socket, that can be killed at any moment and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import httpx
import orjson

SERVER = Path(__file__).with_name("lifecycle_server.py")
ROOT = SERVER.parents[2]


class LifecycleServer:
    """Serves the folder `data`; further keywords are those of the configuration."""

    def __init__(self, data: Path, **configuration: Any) -> None:
        self.configuration = orjson.dumps({"data": str(data), "threads": 2, **configuration}).decode()
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Return when it is ready."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER), self.configuration],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=120)
        while True:
            try:
                assert self.client.get("/ready").status_code == 200
                return
            except httpx.TransportError:
                assert self.process.poll() is None, "the server ended"
                time.sleep(0.02)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """End it as a crash does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in order."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self.process is None:
            return
        self.process.send_signal(number)
        self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.client.close()
        self.process = None
