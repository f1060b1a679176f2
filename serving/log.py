"""The server's log: written by the replica to a file, shown by the process that started it."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any, TextIO

import orjson

logger = logging.getLogger("serving")


MOST_BYTES = 16 << 20
"""Of a log file that is copied elsewhere: it is begun anew then."""

GATHERED_S = 0.1
"""How long a line waits to be written with others."""


class JsonFormatter(logging.Formatter):
    """An object on a line: ``time`` (UTC), ``level``, ``message``, what the record has as ``fields``, and ``trace``.

    The trace is formatted without `print`, which Ray replaces in its workers by one that mangles it.
    """

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["trace"] = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
        return orjson.dumps(line).decode()


def of_request(request_id: str | None) -> dict[str, Any]:
    """For ``extra`` of a record: the request that it is about."""
    return {"fields": {"request_id": request_id}}


def log_request(method: str, route: str, status: str, seconds: float, request_id: str | None) -> None:
    """Note an answered request. Neither its URL nor its headers or body: keys and questions are nobody's business.

    Args:
        route: its path with the names of parameters in place of their values.
        status: "gone" where the client went.
        seconds: from its header section to the end of its answer.
    """
    if logger.isEnabledFor(logging.INFO):
        fields = {
            "request_id": request_id,
            "method": method,
            "route": route,
            "status": int(status) if status.isdigit() else status,
            "ms": round(seconds * 1e3, 3),
        }
        logger.info("request", extra={"fields": fields})


class GatheringHandler(WatchedFileHandler):
    """Appends to a file what has come within a tenth of a second at once, and from warnings on immediately.

    To write each line by itself costs a request more than its route does: each time the event loop gives the
    interpreter to the threads that search, and waits to have it back. The file may be begun anew by `relayed`.
    """

    def __init__(self, log_file: Path) -> None:
        super().__init__(log_file, encoding="utf-8")
        self._lines: list[str] = []
        self._has_lines = threading.Event()
        threading.Thread(target=self._write_on, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.append(self.format(record) + self.terminator)
        except Exception:
            self.handleError(record)
            return
        if record.levelno >= logging.WARNING:
            self.flush()
        elif not self._has_lines.is_set():
            self._has_lines.set()

    def _write_on(self) -> None:
        while True:
            self._has_lines.wait()
            time.sleep(GATHERED_S)
            self._has_lines.clear()
            self.flush()

    def flush(self) -> None:
        with self.lock or nullcontext():
            lines, self._lines = self._lines, []
            if lines:
                self._reopened().write("".join(lines))
            super().flush()

    def _reopened(self) -> TextIO:
        if self.stream is None:  # closed by whoever configured logging anew
            self.stream = self._open()
        self.reopenIfNeeded()
        return self.stream


def log_to_file(log_file: Path) -> None:
    """Send the server's log of this process to a file."""
    _log_to(GatheringHandler(log_file))


def log_to_standard_error() -> None:
    """Send the server's log of this process to standard error."""
    _log_to(logging.StreamHandler())


def _log_to(handler: logging.Handler) -> None:
    handler.setFormatter(JsonFormatter())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


@contextmanager
def relayed(
    log_file: Path, to: TextIO, interval_s: float = 0.3, most_bytes: int = MOST_BYTES
) -> Iterator[None]:
    """Copy what is appended to `log_file` to a stream, until the context is left.

    A file that has grown beyond `most_bytes` is begun anew: the disk need not hold the log of months.
    """
    stop = threading.Event()

    def relay() -> None:
        with ExitStack() as opened:
            lines = opened.enter_context(open_log(log_file))
            before: TextIO | None = None  # what was the file, to which somebody may just be writing
            while True:
                is_last = stop.wait(interval_s)
                if before is not None:
                    to.writelines(before)
                    before.close()
                    before = None
                to.writelines(lines)
                to.flush()
                if is_last:
                    return
                if lines.tell() > most_bytes:
                    before = lines
                    log_file.unlink()
                    log_file.touch(0o600)
                    lines = opened.enter_context(open_log(log_file))

    thread = threading.Thread(target=relay, name="server-log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def open_log(log_file: Path) -> TextIO:
    return log_file.open(encoding="utf-8", errors="replace")


def last_error(log_file: Path) -> str | None:
    """The message of the last error in a log."""
    for line in reversed(log_file.read_text("utf-8").splitlines()):
        if '"level":"error"' in line:
            return str(orjson.loads(line)["message"])
    return None
