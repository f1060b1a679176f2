"""Processes that begin with torch and the Trainer imported: forks of one process, which imports them once.

Run as a program it reads requests, one JSON object in a line: ``{"source": ..., "arguments": [...], "environment":
{...}, "errors": PATH}``. It answers each with the number of a new process that runs the source, and once that one has
ended, with its number and status.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]


class Forks:
    """Starts processes, and waits for them.

    Args:
        folder: of what they write to their standard error.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._server = subprocess.Popen(
            [sys.executable, __file__], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._status: dict[int, int] = {}
        self._errors: dict[int, Path] = {}

    def start(self, source: str, *arguments: object, **environment: str) -> int:
        """Run Python source with `sys.argv` in a process of its own; its number."""
        self._count += 1
        errors = self._folder / f"errors-{self._count}"
        request = {
            "source": source, "arguments": list(map(str, arguments)), "environment": environment,
            "errors": str(errors),
        }  # fmt: skip
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        while "started" not in (said := self._heard()):
            pass
        self._errors[said["started"]] = errors
        return int(said["started"])

    def wait(self, process: int) -> tuple[int, str]:
        """The status that a process ended with, -SIGNAL where one ended it, and what it wrote to standard error."""
        while process not in self._status:
            self._heard()
        return self._status[process], self._errors[process].read_text()

    def run_two(self, source: str, *arguments: object) -> None:
        """Run Python source in two processes, with the variables that torchrun sets."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        together = {
            "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
        both = [self.start(source, *arguments, RANK=rank, LOCAL_RANK=rank, **together) for rank in ("0", "1")]
        for status, errors in map(self.wait, both):
            assert status == 0, errors

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(60)

    def _heard(self) -> dict[str, Any]:
        assert self._server.stdout is not None
        said: dict[str, Any] = json.loads(self._server.stdout.readline())
        if "ended" in said:
            self._status[said["ended"]] = said["status"]
        return said


def _run(request: dict[str, Any]) -> None:
    errors = os.open(request["errors"], os.O_WRONLY | os.O_CREAT, 0o644)
    os.dup2(errors, 2)
    os.dup2(2, 1)
    os.environ |= request["environment"]
    sys.argv = ["fork", *request["arguments"]]
    exec(compile(request["source"], "fork", "exec"), {"__name__": "__main__"})


def _tell(**said: int) -> None:
    print(json.dumps(said), flush=True)


def _serve() -> None:
    import selectors
    import signal
    import traceback

    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(write)
    ready = selectors.DefaultSelector()
    ready.register(0, selectors.EVENT_READ)
    ready.register(read, selectors.EVENT_READ)
    while True:
        places = {key.fd for key, _ in ready.select()}
        if read in places:
            os.read(read, 512)
            while True:
                try:
                    ended, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    break
                if not ended:
                    break
                _tell(ended=ended, status=os.waitstatus_to_exitcode(status))
        if 0 in places:
            line = sys.stdin.buffer.raw.readline()
            if not line:
                return
            if child := os.fork():
                _tell(started=child)
                continue
            status = 1
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _run(json.loads(line))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    import torch

    import retrieval.training.trainer
    import retrieval.training.training  # noqa: F401

    torch.set_num_threads(1)
    _serve()
