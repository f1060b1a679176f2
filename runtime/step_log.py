"""Figures of each step, one JSON object in a line of a file, and in TensorBoard where that is installed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from runtime.errors import FormatError
from runtime.write_errors import naming_what_cannot_be_written

Record = dict[str, Any]
"""``step`` and figures; of a training step `layers` too, the figures of each layer with experts."""


class StepLog:
    """Appends records to a file, and their scalars to TensorBoard.

    Args:
        path: of the file; records of steps after `step` are removed from it, which a training that goes on from
            that step makes again.
        tensorboard: folder of TensorBoard's events; nothing is written there when it is not installed.
        step: the last that stays; None starts the file anew.
    """

    def __init__(self, path: Path, tensorboard: Path, step: int | None = None) -> None:
        kept = [] if step is None else [record for record in read_records(path) if record["step"] <= step]
        partial = path.with_name(path.name + ".partial")
        self._path, self._tensorboard = path, tensorboard
        with naming_what_cannot_be_written(path):
            partial.write_text("".join(f"{json.dumps(record)}\n" for record in kept), "utf-8")
            partial.rename(path)
            self._file = path.open("ab", buffering=0)  # so that closing it writes nothing, and cannot fail
        with naming_what_cannot_be_written(tensorboard):
            self._board = _writer(tensorboard, step)

    def add(self, record: Record) -> None:
        """Write a record; it is in the file when this returns.

        Raises:
            LexpertError: it cannot be written, for example because the disk is full.
        """
        with naming_what_cannot_be_written(self._path):
            left = memoryview(f"{json.dumps(record)}\n".encode())
            while left:
                left = left[self._file.write(left) :]
        if self._board is not None:
            with naming_what_cannot_be_written(self._tensorboard):
                for name, value in _scalars(record):
                    self._board.add_scalar(name, value, record["step"])

    def flush(self) -> None:
        """Make all that was added durable; raises as `add` does."""
        with naming_what_cannot_be_written(self._path):
            os.fsync(self._file.fileno())
        if self._board is not None:
            with naming_what_cannot_be_written(self._tensorboard):
                self._board.flush()

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            with naming_what_cannot_be_written(self._tensorboard):
                self._board.close()


def read_records(path: Path) -> list[Record]:
    """Records of a log; a last line that a killed process left unfinished is passed over.

    Raises:
        FormatError: a line before it is no record.
    """
    records: list[Record] = []
    if not path.exists():
        return records
    lines = path.read_text("utf-8").split("\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            record = json.loads(line)
            int(record["step"])
        except (ValueError, TypeError, KeyError):
            raise FormatError(f"{path}, line {number}, is no record of a step; remove that line") from None
        records.append(record)
    return records


def _scalars(record: Record) -> list[tuple[str, float]]:
    scalars = [
        (f"training/{name}", value)
        for name, value in record.items()
        if name not in ("step", "layers") and isinstance(value, int | float)
    ]
    for layer in record.get("layers", ()):
        names = ("load_balance", "z", "evenness", "dead", "dropped")
        scalars += [(f"{name}/{layer['layer']}", layer[name]) for name in names if name in layer]
    return scalars


def _writer(folder: Path, step: int | None) -> Any | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    # Events of later steps, of a process that was killed, are not shown.
    writer: Any = SummaryWriter(str(folder), purge_step=None if step is None else step + 1)
    return writer
