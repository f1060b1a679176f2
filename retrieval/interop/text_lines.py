"""Text files read line by line, plain or .gz: judgements, run files, tab-separated passages."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from runtime.errors import InputError, NotFoundError

UTF_8_MARK = b"\xef\xbb\xbf"


def read_lines(path: Path, wanted: str) -> Iterator[tuple[int, str]]:
    """Yield ``(line number, line)`` without line ends; blank lines are skipped, and so is a UTF-8 mark.

    Args:
        wanted: what the file was to be, for the message when it is missing: ``"a TREC run file"``.

    Raises:
        NotFoundError: no such file.
        InputError: a line that is not UTF-8, or a .gz that is cut short or none; names file and line.
    """
    if not path.is_file():
        raise NotFoundError(f"{path} is missing; give {wanted}")
    for number, raw in enumerate(_raw_lines(path), start=1):
        try:
            line = (raw.removeprefix(UTF_8_MARK) if number == 1 else raw).decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as damage:
            raise InputError(f"{path}, line {number}: byte {damage.start + 1} is not UTF-8") from None
        if line.strip():
            yield number, line


def _raw_lines(path: Path) -> Iterator[bytes]:
    if path.suffix != ".gz":
        with path.open("rb") as lines:
            yield from lines
        return
    try:
        with gzip.open(path, "rb") as lines:
            yield from lines
    except (gzip.BadGzipFile, EOFError, zlib.error) as damage:
        raise InputError(f"{path} is not a whole gzip file ({damage}); compress it again") from None
