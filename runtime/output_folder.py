"""A folder that appears whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import ConflictError, LexpertError
from runtime.write_errors import naming_what_cannot_be_written

_LOCK_FILE = "write.lock"

SLACK_BYTES = 64 << 20
"""Room asked for beyond the weights: tokenizer, headers, the file system's own."""


def require_new(out: Path) -> None:
    """Refuse a folder that is there.

    Raises:
        ConflictError: something of that name exists.
    """
    if out.exists() or out.is_symlink():
        raise ConflictError(f"{out} exists already; give the name of a new folder, or remove it first")


def require_room(out: Path, num_bytes: int) -> None:
    """Refuse to start what cannot be finished.

    Raises:
        LexpertError: the disk of `out` has less free space than `num_bytes` and some slack.
    """
    place = next(parent for parent in out.absolute().parents if parent.exists())
    free = shutil.disk_usage(place).free
    if free < num_bytes + SLACK_BYTES:
        raise LexpertError(
            f"{out} needs {num_bytes / 1e9:,.2f} GB and {place} has {free / 1e9:,.2f} GB free; "
            "free some space or write to another disk"
        )


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield ``OUT.partial`` to write to, and rename it to `out` when the block ends without an error.

    What an earlier, killed run left in ``OUT.partial`` is removed first, known by its lock file; after an error
    it is removed at once.

    Raises:
        ConflictError: `out` exists, another process is writing it, or what is in ``OUT.partial`` is not ours.
        LexpertError: something cannot be written, for example because the disk is full.
    """
    require_new(out)
    partial = out.with_name(out.name + ".partial")
    with naming_what_cannot_be_written(partial):
        partial.mkdir(parents=True, exist_ok=True)
        if any(partial.iterdir()) and not (partial / _LOCK_FILE).exists():
            raise ConflictError(
                f"{partial} is in the way and was not left by an interrupted run; remove it first"
            )
        lock = os.open(partial / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConflictError(
                    f"{out} is being written by another process; wait until it is done, or give another folder"
                ) from None
            try:
                _empty(partial)
                yield partial
                for path in (*partial.rglob("*"), partial):
                    _make_durable(path)
                require_new(out)
                partial.rename(out)
                # Not before: without it a killed run's folder would not be known as such.
                (out / _LOCK_FILE).unlink()
                _make_durable(out)
                _make_durable(out.absolute().parent)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        finally:
            os.close(lock)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _LOCK_FILE:
            path.unlink()


def _make_durable(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
