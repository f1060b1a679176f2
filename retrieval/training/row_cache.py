"""What a model made of texts, kept on disk by content: the same text is never given to the same model twice.

A cache is a folder for one model in one role. Each of its files holds what one batch of texts became: the keys of
the texts (64 bits of a hash) and a row for each. Any set of texts finds the rows that are there, whatever set they
were made for; the rest is made and kept batch by batch, so that a killed process loses one batch.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from retrieval.index.arrays import disk_errors
from runtime.activations import SparseActivations
from runtime.progress import Advance

FORMAT = "rows-1"
"""Part of every cache's name: another layout of files is another cache."""

BATCH_ROWS = 2048

KEYS = "keys"

Rows = TypeVar("Rows")


@dataclass
class CacheUse:
    """What a model took from its caches and what it had to make, for the report.

    Attributes:
        found: texts or pairs whose row was there.
        made: texts or pairs that went through the model.
        damaged: files that could not be read; they were removed, and their rows made anew.
    """

    found: int = 0
    made: int = 0
    damaged: int = 0


def text_keys(*columns: Sequence[str]) -> NDArray[np.uint64]:
    """64 bits of BLAKE2b for each text, or for each pair of texts where two columns are given; uint64."""
    joined = bytearray()
    for texts in zip(*columns, strict=True):
        digest = hashlib.blake2b(digest_size=8)
        for text in texts:
            encoded = text.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        joined += digest.digest()
    return np.frombuffer(bytes(joined), "<u8").astype(np.uint64)


class RowCache(ABC, Generic[Rows]):
    """The rows of one model in one role."""

    def __init__(self, root: Path, use: CacheUse, *identity: str) -> None:
        """Open or make a cache.

        Args:
            root: folder of all caches.
            use: counts what is found and made, over all calls.
            identity: all that decides about the rows: the model's fingerprint, role, number format.
        """
        name = hashlib.sha256("\n".join((FORMAT, *identity)).encode()).hexdigest()[:32]
        self.folder = root / name
        self._use = use

    @abstractmethod
    def _pack(self, rows: Rows) -> dict[str, NDArray[Any]]: ...

    @abstractmethod
    def _unpack(self, arrays: dict[str, NDArray[Any]]) -> Rows:
        """Raise ValueError or KeyError if the arrays are no rows."""

    @abstractmethod
    def _take(self, rows: Rows, places: NDArray[np.int64]) -> Rows: ...

    @abstractmethod
    def _join(self, parts: list[Rows]) -> Rows: ...

    @abstractmethod
    def _count(self, rows: Rows) -> int: ...

    def rows(
        self,
        keys: NDArray[np.uint64],
        make: Callable[[NDArray[np.int64], Advance], Rows],
        advance: Advance = lambda _: None,
        batch_rows: int = BATCH_ROWS,
    ) -> Rows:
        """The row of every key, in their order.

        Args:
            keys: what the texts are known by; see `text_keys`. A key may come several times.
            make: the rows of the texts at some places of `keys`; it calls the function it is given with the
                number of texts done.
            advance: called with the number of keys done since the last call.
            batch_rows: rows that are made and kept at a time.

        Raises:
            LexpertError: no space is left.
        """
        distinct, first, numbers = np.unique(keys, return_index=True, return_inverse=True)
        # Where the row of each distinct key is in `parts` put one after the other; -1 for not yet.
        position = np.full(len(distinct), -1, np.int64)
        parts: list[Rows] = []
        count = 0
        for path in sorted(self.folder.glob("*.npz")):
            read = self._read(path, distinct, position < 0)
            if read is not None:
                which, rows = read
                position[which] = count + np.arange(len(which))
                count += len(which)
                parts.append(rows)
        there = int(np.count_nonzero(position[numbers] >= 0))
        self._use.found += there
        advance(there)
        # In the order in which they were asked for, not in that of their hashes.
        missing = np.flatnonzero(position < 0)
        missing = missing[np.argsort(first[missing], kind="stable")]
        repeated = len(keys) - there - len(missing)
        for start in range(0, len(missing), batch_rows):
            which = missing[start : start + batch_rows]
            rows = make(first[which], advance)
            if self._count(rows) != len(which):
                raise ValueError(f"{self._count(rows)} rows were made for {len(which)} texts")
            self._write(distinct[which], rows)
            position[which] = count + np.arange(len(which))
            count += len(which)
            parts.append(rows)
            self._use.made += len(which)
        self._use.found += repeated
        advance(repeated)
        if not parts:
            return make(np.zeros(0, np.int64), advance)
        return self._take(self._join(parts), position[numbers])

    def _read(
        self, path: Path, wanted: NDArray[np.uint64], open_places: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], Rows] | None:
        """Places in `wanted` that the file has rows for, and the rows; None for none."""
        try:
            with np.load(path, allow_pickle=False) as file:
                keys = file[KEYS]
                places = np.minimum(np.searchsorted(wanted, keys), max(len(wanted) - 1, 0))
                here = (
                    np.flatnonzero((wanted[places] == keys) & open_places[places])
                    if len(wanted)
                    else np.zeros(0, np.int64)
                )
                if not len(here):
                    return None
                rows = self._unpack({name: file[name] for name in file.files if name != KEYS})
                if self._count(rows) != len(keys):
                    raise ValueError("keys and rows differ in number")
        except PermissionError:
            raise
        except Exception:  # a damaged zip archive raises a dozen types; what is lost is time and nothing else
            path.unlink(missing_ok=True)
            self._use.damaged += 1
            return None
        return places[here], self._take(rows, here)

    def _write(self, keys: NDArray[np.uint64], rows: Rows) -> None:
        name = f"{hashlib.sha256(keys.tobytes()).hexdigest()[:24]}.npz"
        partial = self.folder / f".{uuid.uuid4().hex}.partial"
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                with partial.open("wb") as file:
                    np.savez(file, allow_pickle=False, **{KEYS: keys}, **self._pack(rows))
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(partial, self.folder / name)
            finally:
                partial.unlink(missing_ok=True)


class DenseRows(RowCache[NDArray[Any]]):
    """Rows of one array: vectors, or one number each."""

    def _pack(self, rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return {"rows": rows}

    def _unpack(self, arrays: dict[str, NDArray[Any]]) -> NDArray[Any]:
        return arrays["rows"]

    def _take(self, rows: NDArray[Any], places: NDArray[np.int64]) -> NDArray[Any]:
        return rows[places]

    def _join(self, parts: list[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate(parts)

    def _count(self, rows: NDArray[Any]) -> int:
        return len(rows)


class SparseRows(RowCache[SparseActivations]):
    """Sparse vectors over one vocabulary."""

    def _pack(self, rows: SparseActivations) -> dict[str, NDArray[Any]]:
        return {
            "indptr": rows.indptr,
            "units": rows.units,
            "weights": rows.weights,
            "num_units": np.array(rows.num_units),
        }

    def _unpack(self, arrays: dict[str, NDArray[Any]]) -> SparseActivations:
        return SparseActivations(
            arrays["indptr"], arrays["units"], arrays["weights"], int(arrays["num_units"])
        )

    def _take(self, rows: SparseActivations, places: NDArray[np.int64]) -> SparseActivations:
        return rows[places]

    def _join(self, parts: list[SparseActivations]) -> SparseActivations:
        return SparseActivations.concat(parts)

    def _count(self, rows: SparseActivations) -> int:
        return len(rows)
