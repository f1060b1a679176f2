"""Dense indexes as a server holds them: read-only, opened once, and searched with texts alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from serving.deadline import Deadline
from serving.encoding import BATCH, Encoded, EncodingTurn

if TYPE_CHECKING:
    from retrieval.index.dense_index import DenseIndex
    from retrieval.search.hits import Hits

VERSION = 1
"""A dense index never changes."""


def is_dense(folder: Path) -> bool:
    """Whether a folder holds a dense index."""
    from retrieval.index.dense_index import MANIFEST

    return (folder / MANIFEST).is_file()


@dataclass(frozen=True, eq=False)
class ServedDense:
    """An open dense index, and the turn to wait for at its encoder, which computes on all cores."""

    name: str
    index: DenseIndex
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    # A request that ran out of time gives its turn back while its thread still works on the last batch.
    alone: Lock = field(default_factory=Lock)

    @classmethod
    def open(cls, name: str, folder: Path) -> Self:
        """Open an index and load the encoder that filled it.

        Raises:
            NotFoundError, FormatError: the index or its encoder is missing or damaged.
            ConflictError: the encoder has changed since it filled the index.
        """
        from retrieval.index.dense_index import DenseIndex

        index = DenseIndex.open(folder)
        _ = index.encoder  # loaded when it is first asked for, and no request shall wait for that
        return cls(name, index)

    @property
    def version(self) -> int:
        return VERSION

    def warm_up(self) -> None:
        """Search once, so that no request waits for what is loaded on first use."""
        self.index.search(["warm up"], k=1)

    def encode(self, texts: Sequence[str], deadline: Deadline) -> NDArray[np.float32]:
        """Vectors ``[texts, width]`` of queries, batch by batch while there is time."""
        batches = []
        for first in range(0, len(texts), BATCH):
            deadline.check()
            with self.alone, deadline.stage("encode"):
                batches.append(self.index.encoder.encode_queries(texts[first : first + BATCH]))
        return np.concatenate(batches)

    def search(self, vectors: NDArray[np.float32], k: int) -> Hits:
        return self.index.search(vectors, k)

    def apart(
        self, encode: Callable[[], Encoded], finish: Callable[[Encoded], bytes | EncodingTurn[Any]]
    ) -> EncodingTurn[Encoded]:
        """``finish(encode())`` when it is the request's turn."""
        return EncodingTurn(self.turn, encode, finish)

    def describe(self) -> dict[str, Any]:
        """What `/v1/indexes` says of it."""
        return {
            "name": self.name,
            "documents": self.index.num_documents,
            "version": VERSION,
            "encoder": {"name": "dense", "fingerprint": self.index.manifest.encoder_fingerprint},
            "fields": {},
            "writable": False,
        }
