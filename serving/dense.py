"""Dense indexes as a server holds them: read-only, opened once, and searched with texts alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from serving.text_batcher import TextBatcher

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
    """An open dense index, and the queue of its encoder, which computes on all cores."""

    name: str
    index: DenseIndex
    batcher: TextBatcher[NDArray[np.float32]]

    @classmethod
    def open(cls, name: str, folder: Path) -> Self:
        """Open an index and load the encoder that filled it.

        Raises:
            NotFoundError, FormatError: the index or its encoder is missing or damaged.
            ConflictError: the encoder has changed since it filled the index.
        """
        from retrieval.index.dense_index import DenseIndex

        index = DenseIndex.open(folder)
        encoder = index.encoder  # loaded when it is first asked for, and no request shall wait for that

        def encode(texts: Sequence[str], _: str) -> NDArray[np.float32]:
            return encoder.encode_queries(texts)

        return cls(name, index, TextBatcher(encode, encoder.token_lengths, np.concatenate))

    @property
    def version(self) -> int:
        return VERSION

    def warm_up(self) -> None:
        """Search once, so that no request waits for what is loaded on first use."""
        self.index.search(["warm up"], k=1)

    def search(self, vectors: NDArray[np.float32], k: int) -> Hits:
        return self.index.search(vectors, k)

    def describe(self) -> dict[str, Any]:
        """What `/v1/indexes` says of it."""
        return {
            "name": self.name,
            "documents": self.index.num_documents,
            "version": VERSION,
            "encoder": {"name": "dense", "fingerprint": self.index.manifest.encoder_fingerprint},
            "fields": {},
            "shards": 1,
            "writable": False,
        }
