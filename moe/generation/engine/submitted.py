"""What comes of a request, while it comes."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from threading import Condition
from typing import Literal

Finish = Literal["end", "stop", "length", "cancelled"]
"""The model's own end token, a stop string or token, `max_tokens` or the context, `Submitted.cancel`."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of probabilities at the place of a token.

    Attributes:
        chosen: of the token itself.
        top: id and logarithm of the most probable ones, most probable first.
    """

    chosen: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one choice.

    Attributes:
        prompt_tokens: of the prompt.
        cached_tokens: of these, whose keys and values were there already when the choice first had its turn.
        completion_tokens: generated, with what stopped it.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Event:
    """A token of one choice, or its end, or both.

    Attributes:
        choice: number of the text.
        token: id; None where the end came without one.
        text: what is final since the last event. It may be empty, for what could be the start of a stop string, or is
            a part of a character, is held back.
        logprobs: of the token, if they were asked for.
        experts: of each layer with experts, from the bottom, the ids of those that the pass went through after which
            the token was chosen, if they were asked for.
        finish: why nothing follows; None while more may.
        usage: with `finish`.
        at: `time.perf_counter` when the step ended.
    """

    choice: int
    token: int | None
    text: str
    logprobs: TokenLogprobs | None = None
    experts: list[list[int]] | None = None
    finish: Finish | None = None
    usage: Usage | None = None
    at: float = 0.0


@dataclass(slots=True)
class Timings:
    """`time.perf_counter` at the turns of a request; 0 before they come.

    Attributes:
        submitted: when it was handed in.
        started: when its first choice left the queue.
        first_token: when the first token was chosen.
        finished: when the last choice ended.
    """

    submitted: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    first_token: float = 0.0
    finished: float = 0.0


class Submitted:
    """The events of a request, for one reader: a thread (``for``) or a task (``async for``).

    The engine never waits for a reader; what is not read yet is kept, one event a token.

    Attributes:
        timings: see there.
    """

    def __init__(self, choices: int, cancel: Callable[[], None]) -> None:
        self.timings = Timings()
        self._cancel = cancel
        self._open = choices
        self._events: deque[Event] = deque()
        self._error: Exception | None = None
        self._changed = Condition()
        self._wake: Callable[[], object] | None = None

    def cancel(self) -> None:
        """End all choices before the next step; from any thread, also when they have ended."""
        self._cancel()

    @property
    def is_finished(self) -> bool:
        """Whether no event will be added."""
        return not self._open or self._error is not None

    def __iter__(self) -> Iterator[Event]:
        """Events until all choices have ended.

        Raises:
            LexpertError: the engine failed at it, or was closed.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._events or self.is_finished)
                taken = self._take()
            if not taken:
                return
            yield from taken

    async def __aiter__(self) -> AsyncIterator[Event]:
        """The same in a task."""
        async for events in self.batches():
            for event in events:
                yield event

    async def batches(self) -> AsyncIterator[list[Event]]:
        """The same, all that wait at a time."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        with self._changed:
            self._wake = lambda: loop.call_soon_threadsafe(changed.set)
            changed.set()
        try:
            while True:
                await changed.wait()
                changed.clear()
                with self._changed:
                    taken, finished = self._take(), self.is_finished
                if taken:
                    yield taken
                if finished and self._error is not None:
                    raise self._error
                if finished:
                    return
        finally:
            with self._changed:
                self._wake = None

    def add(self, event: Event) -> None:
        """For the engine."""
        with self._changed:
            self._events.append(event)
            if event.token is not None and not self.timings.first_token:
                self.timings.first_token = event.at
            if event.finish is not None:
                self._open -= 1
                self.timings.finished = event.at
            self._notify()

    def fail(self, error: Exception) -> None:
        """For the engine: nothing will follow."""
        with self._changed:
            if not self.is_finished:
                self._error = error
                self._notify()

    def _notify(self) -> None:
        self._changed.notify_all()
        if self._wake is not None:
            try:
                self._wake()
            except RuntimeError:  # the reader's loop was closed; nobody reads any more
                self._wake = None

    def _take(self) -> list[Event]:
        """All events that wait; where there are none, the error if there is one."""
        taken = list(self._events)
        self._events.clear()
        if not taken and self._error is not None:
            raise self._error
        return taken
