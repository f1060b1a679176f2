"""The server's log: written by the replica to a file, shown by the process that started it."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

logger = logging.getLogger("serving")


class LineFormatter(logging.Formatter):
    """Time, level, message and trace.

    The trace is formatted without `print`, which Ray replaces in its workers by one that mangles it.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name that logging calls
        return "".join(traceback.format_exception(*ei)).rstrip("\n")


def log_to_file(log_file: Path) -> None:
    """Send the server's log of this process to a file."""
    _log_to(logging.FileHandler(log_file, encoding="utf-8"))


def log_to_standard_error() -> None:
    """Send the server's log of this process to standard error."""
    _log_to(logging.StreamHandler())


def _log_to(handler: logging.Handler) -> None:
    handler.setFormatter(LineFormatter())
    logger.addHandler(handler)
    logger.propagate = False


@contextmanager
def relayed(log_file: Path, to: TextIO, interval_s: float = 0.3) -> Iterator[None]:
    """Copy what is appended to `log_file` to a stream, until the context is left."""
    stop = threading.Event()

    def relay() -> None:
        with log_file.open(encoding="utf-8", errors="replace") as lines:
            while True:
                is_last = stop.wait(interval_s)
                to.writelines(lines)
                to.flush()
                if is_last:
                    return

    thread = threading.Thread(target=relay, name="server-log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def last_error(log_file: Path) -> str | None:
    """The message of the last error in a log, without time and level."""
    lines = [line for line in log_file.read_text("utf-8").splitlines() if " ERROR " in line]
    return lines[-1].partition(" ERROR ")[2] if lines else None
