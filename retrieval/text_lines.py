"""Files read line by line, plain or .gz: corpora, queries, judgements, run files, tab-separated passages."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from runtime.errors import InputError, NotFoundError

UTF_8_MARK = b"\xef\xbb\xbf"


def read_byte_lines(path: Path, wanted: str) -> Iterator[tuple[int, bytes]]:
    """Yield ``(line number, line)``; blank lines are skipped, and so is a UTF-8 mark at the start.

    Args:
        wanted: what the file was to be, for the message when it is missing: ``"a TREC run file"``.

    Raises:
        NotFoundError: no such file.
        InputError: a .gz that is cut short or none; names the file.
    """
    check_is_file(path, wanted)
    for number, line in enumerate(_intact_lines(path), start=1):
        content = line.removeprefix(UTF_8_MARK) if number == 1 else line
        if content.strip():
            yield number, content


def check_is_file(path: Path, wanted: str) -> None:
    """Raise NotFoundError unless `path` is a regular file, which can be read more than once."""
    if not path.is_file():
        problem = "is not a regular file" if path.exists() else "is missing"
        raise NotFoundError(f"{path} {problem}; give {wanted}")


def read_lines(path: Path, wanted: str) -> Iterator[tuple[int, str]]:
    """The same as text, without line ends.

    Raises:
        InputError: also for a line that is not UTF-8; names file and line.
    """
    for number, line in read_byte_lines(path, wanted):
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as damage:
            raise InputError(f"{path}, line {number}: {not_utf_8(damage)}") from None
        yield number, text


def not_utf_8(damage: UnicodeDecodeError) -> str:
    """What is wrong with a line that is not UTF-8, and what to do."""
    return f"byte {damage.start + 1} is not UTF-8; re-encode the file as UTF-8"


def _intact_lines(path: Path) -> Iterator[bytes]:
    if path.suffix != ".gz":
        with path.open("rb") as lines:
            yield from lines
        return
    try:
        with gzip.open(path, "rb") as lines:
            yield from lines
    except (gzip.BadGzipFile, EOFError, zlib.error) as damage:
        raise InputError(f"{path} is not a whole gzip file ({damage}); compress it again") from None
