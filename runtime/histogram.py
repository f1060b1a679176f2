"""Counts of times or numbers by size."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

BOUNDS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""For times: upper bounds in seconds, inclusive; what is above all of them is counted beside."""

SIZES = tuple(2.0**power for power in range(14))
"""For numbers of things."""


class Histogram:
    """Written to by one thread: two additions for each, where counters that threads share cost several microseconds.

    Others may read it meanwhile, and see a little of what comes next.

    Attributes:
        bounds: upper bounds, inclusive and ascending.
        counts: how many were within each bound and above the one before; behind them, above all.
        sum: of all.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = BOUNDS_S) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, size: float) -> None:
        self.counts[bisect_left(self.bounds, size)] += 1
        self.sum += size

    def cumulative(self) -> list[tuple[str, float]]:
        """Each bound as Prometheus writes it, with how many were no larger; all of them at ``+Inf``."""
        names = [*map(str, self.bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(self.counts)), strict=True))
