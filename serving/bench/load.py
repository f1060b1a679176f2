"""Requests over many connections at once, by one thread that does as little as it can for each.

It shares the machine with the server, so what it takes of the cores is measured with the rest: requests are made
beforehand, and of an answer only the status and the length are looked at.
"""

from __future__ import annotations

import errno
import select
import socket
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

DROPPED, REFUSED, SILENT = 0, -1, -2
"""In place of a status: the connection ended before the answer did; there was none; no answer came in time."""

AGAIN_S = 0.02
"""Between two tries to connect."""

MOST_BYTES = 1 << 16

Request = bytes


def http_request(method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Request:
    """The bytes of a request on a connection that is kept."""
    given = {"host": "127.0.0.1", **({"content-type": "application/json"} if body else {}), **(headers or {})}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    if body:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


@dataclass(slots=True)
class Load:
    """What became of the requests, in the order of their ends.

    Attributes:
        began: when each was sent, by `time.perf_counter`.
        took: seconds until its answer was there, or was known not to come.
        status: of its answer, or `DROPPED`, `REFUSED` or `SILENT`.
        seconds: of all.
        cpu_s: that the client had of the cores.
    """

    began: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    seconds: float = 0.0
    cpu_s: float = 0.0

    @property
    def statuses(self) -> Counter[int]:
        return Counter(self.status)

    @property
    def answered(self) -> list[float]:
        """Seconds of those with status 200."""
        return [took for took, status in zip(self.took, self.status, strict=True) if status == 200]

    @property
    def rate(self) -> float:
        """Requests with status 200 a second."""
        return len(self.answered) / self.seconds

    def quantile(self, share: float) -> float:
        """Seconds that this share of the requests with status 200 did not exceed; NaN without any."""
        ordered = sorted(self.answered)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")

    @property
    def median(self) -> float:
        return statistics.median(self.answered or [float("nan")])

    def add(self, began: float, ended: float, status: int) -> None:
        self.began.append(began)
        self.took.append(ended - began)
        self.status.append(status)


class _Connection:
    """One connection, with one request on it at a time."""

    __slots__ = ("began", "number", "received", "socket", "whole")

    def __init__(self, number: int) -> None:
        self.number = number
        self.socket: socket.socket | None = None
        self.began = 0.0
        self.received = b""
        self.whole = -1

    def open(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, request: Request) -> None:
        assert self.socket is not None
        self.received, self.whole = b"", -1
        self.began = time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> int | None:
        """The status when the answer is whole, `DROPPED` if it never will be, None while it comes."""
        assert self.socket is not None
        try:
            piece = self.socket.recv(MOST_BYTES)
        except OSError:
            return DROPPED
        if not piece:
            return DROPPED
        self.received = self.received + piece if self.received else piece
        if self.whole < 0:
            end = self.received.find(b"\r\n\r\n")
            if end < 0:
                return None
            head = self.received[:end].lower()
            at = head.find(b"content-length:")
            if at < 0:
                return DROPPED  # a stream, which nobody here asks for
            self.whole = end + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0])
        return int(self.received[9:12]) if len(self.received) >= self.whole else None

    @property
    def ends(self) -> bool:
        """Whether the server said that it closes the connection after this answer."""
        return b"connection: close" in self.received[: self.received.find(b"\r\n\r\n")].lower()

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None


def run_load(
    port: int,
    requests: Sequence[Request],
    connections: int,
    *,
    seconds: float,
    most: int = 1_000_000,
    silent_s: float = 60.0,
    pause_s: float = 0.0,
) -> Load:
    """Send requests in turn, on so many connections one after the other on each, and wait for the last answers.

    Args:
        port: of 127.0.0.1.
        seconds: how long requests are sent.
        most: of them.
        silent_s: how long an answer is waited for.
        pause_s: between an answer that is none, or says that it is too much, and the next request on its connection.
    """
    load = Load()
    poll = select.epoll()
    open_now: dict[int, _Connection] = {}
    waiting: list[tuple[float, _Connection]] = []
    started, had, sent = time.perf_counter(), time.thread_time(), 0

    def ask(connection: _Connection) -> None:
        """The next request on a connection, which is opened where it is not."""
        nonlocal sent
        now = time.perf_counter()
        if now - started >= seconds or sent >= most:
            forget(connection)
            return
        if connection.socket is None:
            try:
                connection.open(port)
            except OSError as error:
                connection.close()
                took_port = error.errno == errno.ECONNREFUSED or isinstance(error, TimeoutError)
                load.add(now, time.perf_counter(), REFUSED if took_port else DROPPED)
                waiting.append((now + AGAIN_S, connection))
                return
            assert connection.socket is not None
            open_now[connection.socket.fileno()] = connection
            poll.register(connection.socket.fileno(), select.EPOLLIN)
        request = requests[sent % len(requests)]
        sent += 1
        try:
            connection.send(request)
        except OSError:
            finish(connection, DROPPED)

    def forget(connection: _Connection) -> None:
        if connection.socket is not None:
            open_now.pop(connection.socket.fileno(), None)
            poll.unregister(connection.socket.fileno())
            connection.close()

    def finish(connection: _Connection, status: int) -> None:
        now = time.perf_counter()
        load.add(connection.began, now, status)
        if status <= 0 or connection.ends:
            forget(connection)
        if status != 200 and pause_s:
            waiting.append((now + pause_s, connection))
        else:
            ask(connection)

    for number in range(connections):
        ask(_Connection(number))
    looked = started
    while open_now or waiting:
        for descriptor, _ in poll.poll(0.01 if waiting else 0.5):
            connection = open_now.get(descriptor)
            if connection is not None and (status := connection.receive()) is not None:
                finish(connection, status)
        now = time.perf_counter()
        if waiting:
            due = [each for at, each in waiting if at <= now]
            waiting[:] = [(at, each) for at, each in waiting if at > now]
            for connection in due:
                ask(connection)
        if now - looked > 0.5:
            looked = now
            for connection in [each for each in open_now.values() if now - each.began > silent_s]:
                finish(connection, SILENT)
    poll.close()
    load.seconds, load.cpu_s = time.perf_counter() - started, time.thread_time() - had
    return load
