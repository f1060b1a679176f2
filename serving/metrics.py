"""What one API counts of its requests, for operators; `serving.metrics_text` writes it down.

Everything is noted on the event loop, so nothing is locked.
"""

from __future__ import annotations

import time
from collections import defaultdict
from functools import partial

from runtime.histogram import SIZES, Histogram
from serving.deadline import Deadline

OTHER = "other"
"""Stands for all paths that no route has: labels must not grow with what clients send."""

GONE = "gone"
"""In place of the status of an answer that nobody waited for."""

REFUSALS = frozenset({429, 503})


class Metrics:
    """Counts since it was made.

    Attributes:
        requests: seconds from a request's header section to the end of its answer, by method, route and status.
        stages: seconds that requests spent in a stage of their work, by route and stage.
        query_terms: how many terms queries lit up, by index.
        refused: requests that the server did not take, by status and code.
        in_flight: requests that are not answered to the end.
    """

    def __init__(self) -> None:
        self.requests: defaultdict[tuple[str, str, str], Histogram] = defaultdict(Histogram)
        self.stages: defaultdict[tuple[str, str], Histogram] = defaultdict(Histogram)
        self.query_terms: defaultdict[tuple[str], Histogram] = defaultdict(partial(Histogram, SIZES))
        self.refused: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.in_flight = 0
        self._started = time.monotonic()

    @property
    def uptime_s(self) -> float:
        return time.monotonic() - self._started

    def answered(self, method: str, route: str, status: str, seconds: float) -> None:
        """Note the end of a request."""
        self.requests[method, route, status].observe(seconds)

    def spent(self, route: str, deadline: Deadline) -> None:
        """Note the seconds of each stage of the work on a request, and the terms of its queries."""
        for stage, seconds in deadline.stages.items():
            self.stages[route, stage].observe(seconds)
        for index, terms in deadline.query_terms:
            self.query_terms[index,].observe(terms)

    def refuse(self, status: int, code: str) -> None:
        """Note an error answer if it says that the server takes no more."""
        if status in REFUSALS:
            self.refused[str(status), code] += 1
