"""Runs compiled work on the threads that torch computes with, as many as `torch.get_num_threads` says.

A second pool beside torch's would wait actively on the same cores while the first one works. torch's CPU builds for
Linux bring their OpenMP library along, and its entry `GOMP_parallel` is what every compiled parallel region calls, so
a region of ours is one of torch's. Where it is not found, plain threads do the same work.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any


def run_on_crew(work: Any, job: int, num_threads: int) -> None:
    """Call ``work(job)`` once on each of `num_threads` threads and wait for all of them.

    Args:
        work: a compiled ``numba.cfunc`` of signature ``void(voidptr)``; it shares the job out by itself, by an atomic
            counter within the job, must not raise, and does not need the interpreter.
        job: address of what it works on, which the caller keeps alive.
        num_threads: at least 1.
    """
    if num_threads == 1:
        work.ctypes(job)
        return
    parallel = _openmp_parallel()
    if parallel is not None:
        parallel(work.address, job, num_threads, 0)
        return
    others = [threading.Thread(target=work.ctypes, args=(job,)) for _ in range(num_threads - 1)]
    for thread in others:
        thread.start()
    work.ctypes(job)
    for thread in others:
        thread.join()


@cache
def _openmp_parallel() -> Callable[..., None] | None:
    import torch

    package = Path(torch.__file__).parent
    for library in sorted(
        [*package.glob("lib/libgomp*.so*"), *package.parent.glob("torch.libs/libgomp*.so*")]
    ):
        parallel = ctypes.CDLL(str(library)).GOMP_parallel
        parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
        return parallel
    return None
