"""Encoding for many requests at once: what waits when the encoder is free, up to a budget of tokens, without timers.

A text that comes alone is encoded at once. While it is, others come, and make the next batch together.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Generic, TypeVar

from runtime.histogram import SIZES, Histogram

TOKEN_BUDGET = 512
"""Tokens of a batch: what comes while it is computed waits for it, and larger ones are slower on a processor, whose
caches they outgrow (for a model of 6 layers and 384 units batches of 4 to 8 texts of 65 tokens were the fastest)."""

LONGEST_CHARACTERS = 2000
"""What a text counts at most where its work is estimated: what is longer is cut by most encoders."""

CHARACTERS_OF_A_TOKEN = 4

Rows = TypeVar("Rows")
"""Vectors of texts, one after the other: sparse rows, or an array with two dimensions."""


@dataclass(frozen=True, slots=True)
class Encoded(Generic[Rows]):
    """The vectors of a request's texts.

    Attributes:
        tokens: of the texts together.
        began: when the first batch began that had any of them, by `time.perf_counter`.
        ended: when the last one ended.
        seconds: that these batches took.
    """

    rows: Rows
    tokens: int
    began: float
    ended: float
    seconds: float


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Rows]):
    """A request in the queue; `parts` are the vectors of its first `done` texts."""

    texts: Sequence[str]
    role: str
    answer: Future[Encoded[Rows]]
    lengths: list[int] = field(default_factory=list)
    done: int = 0
    parts: list[Rows] = field(default_factory=list)
    began: float = 0.0
    seconds: float = 0.0

    @property
    def work(self) -> int:
        """What remains, in characters."""
        return work_of(self.texts[self.done :])


@dataclass(frozen=True, slots=True)
class _Share(Generic[Rows]):
    """The texts of a batch that are of one request."""

    of: _Waiting[Rows]
    texts: Sequence[str]


class TextBatcher(Generic[Rows]):
    """Encodes in a thread of its own; what it does may be asked for from any thread.

    Requests are served in the order in which they came, those of one role together in a batch. What a batch leaves of
    a request goes to the end of the queue, so that nobody waits for more than one batch of each request before. What
    cannot be encoded fails its own request alone. Vectors are those of encoding alone, but for the last digits, which
    depend on what else is in a batch.

    Args:
        encode: vectors of texts as a role, in their order.
        lengths: how many tokens each text has.
        join: vectors one after the other, of at least one part.
        token_budget: of a batch; a text that has more makes one of its own.

    Attributes:
        batch_texts: how many texts batches had.
        batch_tokens: how many tokens.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[str], str], Rows],
        lengths: Callable[[Sequence[str]], Sequence[int]],
        join: Callable[[Sequence[Rows]], Rows],
        token_budget: int = TOKEN_BUDGET,
    ) -> None:
        self._encode = encode
        self._lengths = lengths
        self._join = join
        self._budget = token_budget
        self._queue: deque[_Waiting[Rows]] = deque()
        self._lock = Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoding")  # it ends when this is collected
        self._is_working = False
        self._seconds_of_one = 0.0
        self.batch_texts = Histogram(SIZES)
        self.batch_tokens = Histogram(SIZES)

    @property
    def waiting(self) -> int:
        """Requests that wait for a batch."""
        return len(self._queue)

    def submit(self, texts: Sequence[str], role: str) -> Future[Encoded[Rows]]:
        """Put texts into the queue; cancelling what is returned takes them out again."""
        request: _Waiting[Rows] = _Waiting(texts, role, Future())
        request.answer.add_done_callback(lambda _: self._forget(request))
        with self._lock:
            self._queue.append(request)
            is_first = not self._is_working
            self._is_working = True
        if is_first:
            self._thread.submit(self._work)
        return request.answer

    def expected_s(self, texts: Sequence[str]) -> float:
        """Seconds until texts that come now would be encoded, by what the last full batches took; 0 if none wait."""
        own = work_of(texts)
        with self._lock:
            ahead = list(self._queue)
        if not ahead:
            return 0.0
        # Of a long request no more is served before than one batch for each of these texts' own.
        most = max(own, self._budget * CHARACTERS_OF_A_TOKEN)
        return (own + sum(min(each.work, most) for each in ahead)) * self._seconds_of_one

    def _forget(self, request: _Waiting[Rows]) -> None:
        with self._lock, suppress(ValueError):  # it is being encoded, or done
            self._queue.remove(request)

    def _work(self) -> None:
        """Encode until nothing waits."""
        while True:
            batch = self._next_batch()
            if batch:
                self._compute(batch)
                continue
            with self._lock:
                if not self._queue:
                    self._is_working = False
                    return

    def _next_batch(self) -> list[_Share[Rows]]:
        batch: list[_Share[Rows]] = []
        room = self._budget
        while room > 0 and (request := self._take(batch[0].of.role if batch else None)) is not None:
            if not self._is_counted(request):
                continue
            first = last = request.done
            for length in request.lengths[first:]:
                if length > room and (batch or last > first):
                    break
                room -= length
                last += 1
            if last == first and request.texts:
                self._give_back(request)
                break
            batch.append(_Share(request, request.texts[first:last]))
            if last < len(request.texts):
                break
        return batch

    def _take(self, role: str | None) -> _Waiting[Rows] | None:
        """The next request, if it is to be encoded as `role`, or None for any."""
        with self._lock:
            for place, request in enumerate(self._queue):
                if role is None or request.role == role:
                    del self._queue[place]
                    return request
        return None

    def _give_back(self, request: _Waiting[Rows]) -> None:
        with self._lock:
            if not request.answer.done():
                self._queue.appendleft(request)

    def _is_counted(self, request: _Waiting[Rows]) -> bool:
        """Count the tokens of a request's texts; False if they cannot be, and it has failed."""
        if not request.lengths:
            try:
                request.lengths = list(self._lengths(request.texts))
            except Exception as error:
                settle(request.answer, error)
                return False
        return True

    def _compute(self, batch: Sequence[_Share[Rows]]) -> None:
        """Encode a batch, and each share of it alone if that fails."""
        began = time.perf_counter()
        texts = [text for share in batch for text in share.texts]
        try:
            rows: Any = self._encode(texts, batch[0].of.role)
        except Exception as error:
            if len(batch) == 1:
                settle(batch[0].of.answer, error)
                return
            for share in batch:
                self._compute([share])
            return
        ended = time.perf_counter()
        self._note(batch, len(texts), ended - began)
        place = 0
        for share in batch:
            self._advance(share, rows[place : place + len(share.texts)], began, ended)
            place += len(share.texts)

    def _note(self, batch: Sequence[_Share[Rows]], texts: int, seconds: float) -> None:
        tokens = sum(sum(s.of.lengths[s.of.done : s.of.done + len(s.texts)]) for s in batch)
        self.batch_texts.observe(texts)
        self.batch_tokens.observe(tokens)
        if tokens * 2 >= self._budget:  # one that is nearly empty says little of what a full one takes
            of_one = seconds / max(sum(work_of(share.texts) for share in batch), 1)
            self._seconds_of_one += (of_one - self._seconds_of_one) * (0.2 if self._seconds_of_one else 1.0)

    def _advance(self, share: _Share[Rows], rows: Rows, began: float, ended: float) -> None:
        """Give a request what has been encoded of it: its answer, or the end of the queue for the rest."""
        request = share.of
        request.began = request.began or began
        request.seconds += ended - began
        request.parts.append(rows)
        request.done += len(share.texts)
        if request.done < len(request.texts):
            with self._lock:
                if not request.answer.done():
                    self._queue.append(request)
            return
        try:
            joined = request.parts[0] if len(request.parts) == 1 else self._join(request.parts)
        except Exception as error:
            settle(request.answer, error)
            return
        encoded = Encoded(joined, sum(request.lengths), request.began, ended, request.seconds)
        settle(request.answer, encoded)


def work_of(texts: Sequence[str]) -> int:
    """About how much there is to encode, in characters."""
    return sum(min(len(text), LONGEST_CHARACTERS) for text in texts)


def settle(answer: Future[Any], outcome: Any) -> None:
    """Give an answer or an error to who waits for it; nobody may."""
    with suppress(InvalidStateError):
        if isinstance(outcome, Exception):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)
