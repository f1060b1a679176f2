"""How long the work of one request may go on: until its time is over, or until nobody waits for its answer.

And what its time went into.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serving.errors import ApiError


class WorkStoppedError(Exception):
    """The work was told to stop; its answer, if there is one, was given elsewhere."""


@dataclass(slots=True)
class Interval:
    """A stage of the work on a request, by `time.perf_counter`."""

    name: str
    began: float
    ended: float


class Deadline:
    """Made on the event loop when a request arrives, asked in the thread that works on it.

    A thread cannot be stopped from outside, so the work asks between two queries and between two hits.

    Args:
        timeout_s: from now.
        is_asked: whether the request itself asked for that; else it is what the server gives one.

    Attributes:
        stages: seconds of the work so far, by stage.
        intervals: the same stages in their order, one after the other of the same name as one.
        query_terms: how many terms each query lit up, with the name of the index that was searched.
    """

    def __init__(self, timeout_s: float, is_asked: bool = False) -> None:
        self.timeout_s = timeout_s
        self._is_asked = is_asked
        self._ends = time.monotonic() + timeout_s
        self._is_stopped = False
        self.stages: dict[str, float] = {}
        self.intervals: list[Interval] = []
        self.query_terms: list[tuple[str, int]] = []

    @property
    def remaining_s(self) -> float:
        """Seconds left, 0 or more."""
        return max(0.0, self._ends - time.monotonic())

    def stop(self) -> None:
        """Nobody waits for the answer any more: the next `check` ends the work."""
        self._is_stopped = True

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the seconds of what is done within to a stage of the work."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.passed(name, began, time.perf_counter())

    def passed(self, name: str, began: float, ended: float) -> None:
        """Add a time by `time.perf_counter` to a stage of the work."""
        self.note(name, ended - began)
        self.mark(name, began, ended)

    def note(self, name: str, seconds: float) -> None:
        """Add to the seconds of a stage."""
        self.stages[name] = self.stages.get(name, 0.0) + seconds

    def mark(self, name: str, began: float, ended: float) -> None:
        """Add to the intervals alone."""
        if self.intervals and self.intervals[-1].name == name:
            self.intervals[-1].ended = ended
        else:
            self.intervals.append(Interval(name, began, ended))

    def check(self) -> None:
        """Return if the work should go on.

        Raises:
            WorkStoppedError: `stop` was called.
            ApiError: 504, the time is over.
        """
        if self._is_stopped:
            raise WorkStoppedError
        if time.monotonic() >= self._ends:
            raise self.over()

    def over(self) -> ApiError:
        if self._is_asked:
            message = f"the request took more than its timeout_ms of {self.timeout_s * 1e3:g}"
            return ApiError(504, "timeout", message, "timeout_ms")
        return ApiError(
            504,
            "timeout",
            f"the request took more than the {self.timeout_s:g} s that this server gives one; ask for less at once",
        )
