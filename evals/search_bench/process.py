"""The controller's side of an engine process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from runtime.errors import LexpertError

THREAD_VARIABLES = (
    "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS",
)  # fmt: skip
"""What engines and their libraries take their number of threads from, before anything is imported."""


class EngineError(LexpertError):
    """An engine could not do what it was asked."""


class EngineProcess:
    """A process of its own for one engine, on given cores; a context manager."""

    def __init__(self, engine: str, cores: Sequence[int], log: Path) -> None:
        """Start it.

        Args:
            engine: its name.
            cores: those that it may run on; it takes as many threads.
            log: takes what the engine prints.
        """
        self.engine = engine
        self._log = log
        self._output = log.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "evals.search_bench.worker", engine, json.dumps(list(cores))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._output,
            env={**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(len(cores)))},
            text=True,
        )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Send a request and wait for the answer; EngineError where there is none."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise EngineError(f"{self.engine}: its process ended; what it printed is in {self._log}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EngineError(f"{self.engine}: {answer['error']}")
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self._process.communicate()
        self._output.close()
