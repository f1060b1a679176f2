"""What the machine can do at best, measured between the layers: bytes read a second, and float operations."""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import carray, cfunc, types

from runtime.kernels.thread_crew import run_on_crew
from runtime.kernels.vector_tiles import array_at, take_next

BUFFER_BYTES = 256 << 20
"""Several times any last-level cache, so that reading it leaves nothing of the weights there."""

BLOCK = 1 << 15
"""Numbers of 8 bytes that a thread takes at a time."""

SIDE = 1024


class Machine:
    """Streams a buffer and multiplies square matrices, timing both.

    Args:
        buffer_bytes: size of the buffer; small ones measure a cache.
    """

    def __init__(self, buffer_bytes: int = BUFFER_BYTES) -> None:
        self._buffer = torch.ones(buffer_bytes // 8, dtype=torch.int64)
        self._square = torch.randn(SIDE, SIDE)
        self._product = torch.empty(SIDE, SIDE)

    def read(self) -> float:
        """Bytes a second of one pass over the buffer, by the faster of a compiled sum and torch's."""
        return self._buffer.nbytes / min(_timed(self._read_compiled), _timed(self._buffer.sum))

    def multiply(self) -> float:
        """float32 operations a second of one matrix product."""
        return 2 * SIDE**3 / _timed(lambda: torch.mm(self._square, self._square, out=self._product))

    def _read_compiled(self) -> None:
        sums = np.zeros(1, np.int64)
        job = np.array([0, self._buffer.data_ptr(), len(self._buffer), sums.ctypes.data], np.int64)
        run_on_crew(_compiled_read(), job.ctypes.data, torch.get_num_threads())


def _timed(run: Any) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _read(address: Any) -> None:
    job = carray(address, 4, np.int64)
    numbers = carray(array_at(job[1]), job[2], np.int64)
    result = carray(array_at(job[3]), 1, np.int64)
    total = 0
    first: int = take_next(address) * BLOCK
    while first < len(numbers):
        for number in numbers[first : first + BLOCK]:
            total += number
        first = take_next(address) * BLOCK
    # Written, so that the loop is not left out; which thread writes last does not matter.
    result[0] = total


@cache
def _compiled_read() -> Any:
    return cfunc(types.void(types.voidptr))(_read)


class OtherWork:
    """Watches how much of the cores other processes take, from the moment it is made."""

    def __init__(self) -> None:
        self._busy = _busy_seconds()
        self._own = time.process_time()
        self._started = time.perf_counter()

    def share(self) -> float | None:
        """Share of all cores' time since then that other processes had; None where the system does not say."""
        now = _busy_seconds()
        if now is None or self._busy is None:
            return None
        others = now - self._busy - (time.process_time() - self._own)
        elapsed = (time.perf_counter() - self._started) * (os.cpu_count() or 1)
        return min(max(others / elapsed, 0.0), 1.0)


def _busy_seconds() -> float | None:
    """Seconds that the cores have been busy since the system started, added up."""
    try:
        first = Path("/proc/stat").read_text("ascii").splitlines()[0]
    except OSError:
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal
    ticks = [int(field) for field in first.split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
