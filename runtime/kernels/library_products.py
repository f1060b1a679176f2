"""From how many entries on torch's own products are faster than our tiles: by trying, or by a rule.

The two round differently. A trial may come out one way in one process and the other way in the next, so nothing that is
trained may depend on it: wherever torch's gradients are enabled, the rule decides.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

NEVER = 2**62
SIDE = 1024
TRIED = (256, 64, 16)
"""Entries, most first: where the library is not ahead with many, it is not with few."""

AHEAD = 1.25
"""How much faster it must be: near a draw, its way to start and to round is not worth having."""


IN_TRAINING = 64
"""Entries of an expert from which wide instructions pay, by the rule."""


@cache
def entries_by_rule(dtype: torch.dtype) -> int:
    """The fewest entries of an expert for the library in training, the same in each process on a processor.

    Tiles have lanes of eight. The library goes beyond them in float32 with AVX-512, and in bfloat16 where its products
    are instructions (AVX-512 or AMX); elsewhere, `NEVER`.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return NEVER
    if dtype == torch.bfloat16 and not torch.cpu._is_avx512_bf16_supported():
        return NEVER
    return IN_TRAINING


@cache
def entries_for_library(dtype: torch.dtype, num_threads: int) -> int:  # noqa: ARG001 - what it is cached by
    """The fewest entries of an expert for which this machine's library is clearly faster, or `NEVER`.

    It is where the processor has instructions that our tiles do not use: AVX-512, products of bfloat16, AMX. Tried
    once for a dtype and number of threads, in some tens of milliseconds.
    """
    from runtime.kernels.expert_cpu import tile_products

    weights = torch.ones(1, SIDE, SIDE, dtype=dtype)
    fewest = NEVER
    for entries in TRIED:
        values, offsets = torch.ones(entries, SIDE), torch.tensor([0, entries])
        narrow = values.to(dtype)
        tiles = _least_seconds(lambda: tile_products(values, weights, None, offsets))  # noqa: B023 - called here
        library = _least_seconds(lambda: torch.mm(narrow, weights[0].T), enough=4 * tiles)  # noqa: B023
        if tiles < AHEAD * library:
            break
        fewest = entries
    return fewest


def _least_seconds(run: Callable[[], Tensor], enough: float = math.inf) -> float:
    """Of a few runs, or of the first two where these take more than `enough`."""
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < 5 and min(seconds) < enough):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
