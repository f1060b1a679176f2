"""What the operating system refuses to write, as one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import LexpertError, remedy


@contextmanager
def naming_what_cannot_be_written(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses in the block into one sentence.

    Args:
        path: what the block writes to; where an error names another file, that one is said as well.

    Raises:
        LexpertError: says the path, the reason and what to do.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        if error.filename is not None and str(error.filename) != str(path):
            reason = f"{reason} ({error.filename})"
        raise LexpertError(f"{path} could not be written: {reason}; {remedy(error)}") from error
