"""A sharded index, open for searching: its results are those of one index with the same documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.encoders.encoder import SparseEncoder
from retrieval.index.arrays import map_array, verify_file
from retrieval.index.manifest import MANIFEST_FILE
from retrieval.index.scorable import scorable
from retrieval.index.shards_manifest import (
    ShardEntry,
    ShardsManifest,
    is_sharded,
    read_shards_manifest,
    shard_name,
    shard_of,
)
from retrieval.index.sparse_index import SparseIndex
from retrieval.search.batch import Found
from retrieval.search.explain import Explanation
from retrieval.search.filters import Filter, check_filter
from retrieval.search.hits import Hits
from retrieval.search.shard_merge import Merged, merge_found
from retrieval.search.traversal import Traversal
from runtime.activations import SparseActivations
from runtime.cores import available_cores
from runtime.errors import FormatError, NotFoundError, UsageError

GENERATION = 1
"""A sharded index never changes."""

SUMS = ("documents", "deleted", "segments", "postings", "bytes")
"""Parts of `SparseIndex.stats` that add up."""


class ShardedIndex:
    """Searches all shards and merges what they find. May be shared by threads.

    Whoever has the shards searched elsewhere asks it for `traversals`, and lets it merge (`merged`) and name (`hits`)
    what they found; ids, stored documents and explanations are read from the files of the shard that has them.
    """

    def __init__(
        self,
        path: Path,
        manifest: ShardsManifest,
        shards: list[SparseIndex],
        places: list[NDArray[np.int64]],
    ) -> None:
        """Not for callers: use `open`."""
        self.path = path
        self.manifest = manifest
        self.shards: Sequence[SparseIndex] = shards
        self._places = places
        self._threads = ThreadPoolExecutor(len(shards), thread_name_prefix="shard")

    @classmethod
    def open(cls, path: str | Path, *, encoder: SparseEncoder | None = None) -> Self:
        """Open all shards.

        Args:
            encoder: for queries, instead of loading the one that the index names when the first text comes.

        Raises:
            NotFoundError: no sharded index there.
            FormatError: it, or a shard, is damaged or of an unknown version, or a shard was changed by itself.
            ConflictError: `encoder` is another than the one that filled the index.
        """
        path = Path(path)
        manifest = read_shards_manifest(path)
        with ExitStack() as opened:
            shards, places = [], []
            for shard, entry in enumerate(manifest.shards):
                places.append(check_shard(path, shard, entry))
                shards.append(SparseIndex.open(path / shard_name(shard), encoder=encoder))
                opened.callback(shards[-1].close)
                shards[-1].share_encoder(shards[0])
            opened.pop_all()
        return cls(path, manifest, shards, places)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the search threads; the maps go with the last reference to them."""
        self._threads.shutdown()
        for shard in self.shards:
            shard.close()

    @property
    def encoder(self) -> SparseEncoder:
        """The encoder that filled the index; see `SparseIndex.encoder`."""
        return self.shards[0].encoder

    @property
    def num_documents(self) -> int:
        return self.manifest.num_documents

    @property
    def generation(self) -> int:
        """Number of the commit."""
        return GENERATION

    @property
    def fields(self) -> dict[str, str]:
        """Kinds of the fields that filters can use."""
        return dict(self.manifest.fields)

    # Searching

    def search(
        self,
        queries: Sequence[str] | SparseActivations,
        k: int = 10,
        *,
        filter: Filter | None = None,
        mode: str | None = None,
        effort: float | None = None,
        target_recall: float | None = None,
    ) -> Hits:
        """The `k` best documents of every query; arguments and errors are those of `SparseIndex.search`.

        An approximate search has the effort in each shard, or aims at the recall in each of them.
        """
        if isinstance(queries, str):
            raise UsageError("queries must be a sequence of strings; for one query give a list of one")
        if not isinstance(k, int) or k < 1:
            raise UsageError(f"k is {k}, but must be a whole number of at least 1")
        if isinstance(queries, SparseActivations):
            vectors, unknown = self.scorable(queries), [list[str]() for _ in range(len(queries))]
        else:
            vectors = self.encoder.encode_queries(queries)
            unknown = [self.encoder.unknown_terms(query) for query in queries]
        if filter is not None:
            check_filter(filter, self.manifest.fields)
        threads = max(1, available_cores() // len(self.shards))

        def of_shard(shard: SparseIndex, traversal: Traversal) -> list[Found]:
            return shard.search_filtered(vectors, k, traversal, filter, threads)

        traversals = self.traversals(k, mode, effort, target_recall)
        found = list(self._threads.map(of_shard, self.shards, traversals))
        return self.hits(self.merged(found, k), unknown)

    def scorable(self, vectors: SparseActivations) -> SparseActivations:
        """Vectors as shards take them; raises InputError for weights or units that cannot be."""
        return scorable(vectors.numpy(), max(self.manifest.num_units, 1))

    def traversals(
        self, k: int, mode: str | None = None, effort: float | None = None, target_recall: float | None = None
    ) -> list[Traversal]:
        """For each shard, the way to search for what a caller asks; raises as `SparseIndex.search` does."""
        return [shard.traversal(k, mode, effort, target_recall) for shard in self.shards]

    def merged(self, found: Sequence[Sequence[Found] | None], k: int) -> list[Merged]:
        """The best `k` of every query, of what each shard found for all of them; None for shards to leave out."""
        num_queries = max((len(of_shard) for of_shard in found if of_shard is not None), default=0)
        return [
            merge_found(
                [of_shard[query] if of_shard is not None else None for of_shard in found], self._places, k
            )
            for query in range(num_queries)
        ]

    def hits(self, merged: Sequence[Merged], unknown_terms: list[list[str]]) -> Hits:
        """Merged results with the ids of their documents."""
        return Hits(
            ids=[self._ids(result) for result in merged],
            scores=[result.scores for result in merged],
            unknown_terms=unknown_terms,
        )

    def _ids(self, result: Merged) -> list[str]:
        ids = [""] * len(result.rows)
        for shard in np.unique(result.shards).tolist():
            (here,) = np.nonzero(result.shards == shard)
            found = self.shards[shard].ids(result.rows[here])
            for position, identifier in zip(here.tolist(), found, strict=True):
                ids[position] = identifier
        return ids

    # Documents

    def _shard_of(self, document_id: str) -> SparseIndex:
        return self.shards[shard_of(document_id, len(self.shards))]

    def document(self, document_id: str) -> dict[str, Any] | None:
        """What is stored of a document; None if unknown."""
        return self._shard_of(document_id).document(document_id)

    def explain(self, query: str | SparseActivations, document_id: str) -> Explanation:
        """Take apart the score of a document; see `SparseIndex.explain`."""
        return self._shard_of(document_id).explain(query, document_id)

    # Looking after

    def stats(self) -> dict[str, Any]:
        """What `SparseIndex.stats` says, of all shards together, and the documents of each."""
        of_shards = [shard.stats() for shard in self.shards]
        stats: dict[str, Any] = {**of_shards[0], "path": str(self.path), "generation": self.generation}
        stats |= {name: sum(of_shard[name] for of_shard in of_shards) for name in SUMS}
        stats["layouts"] = dict(
            sorted(sum((Counter(one["layouts"]) for one in of_shards), Counter()).items())
        )
        stats["units_per_document"] = stats["postings"] / stats["documents"] if stats["documents"] else 0.0
        stats["bytes_per_posting"] = stats["bytes"] / stats["postings"] if stats["postings"] else 0.0
        del stats["calibration"]  # each shard has its own
        return {
            **stats,
            "shards": len(of_shards),
            "documents_of_shards": [one["documents"] for one in of_shards],
        }

    def verify(self) -> int:
        """Read every file and compare it with its checksum; returns the bytes read.

        Raises:
            FormatError: the first file that is missing or differs in any byte.
        """
        checked = 0
        for shard, entry in enumerate(self.manifest.shards):
            verify_file(rows_file(self.path, shard), entry.rows)
            checked += entry.rows.bytes + self.shards[shard].verify()
        return checked


def open_index(path: str | Path, *, encoder: SparseEncoder | None = None) -> SparseIndex | ShardedIndex:
    """Open an index, sharded or not; raises what their `open` does."""
    opened = ShardedIndex if is_sharded(Path(path)) else SparseIndex
    return opened.open(path, encoder=encoder)


def rows_file(path: Path, shard: int) -> Path:
    return path / f"{shard_name(shard)}.rows"


def check_shard(path: Path, shard: int, entry: ShardEntry) -> NDArray[np.int64]:
    """The places of a shard's documents, of a shard that is there and is what it was.

    Raises:
        FormatError: it is not.
    """
    folder = path / shard_name(shard)
    try:
        verify_file(folder / MANIFEST_FILE, entry.manifest)
    except FormatError as error:
        if not (folder / MANIFEST_FILE).is_file():
            raise FormatError(
                f"{folder} is missing; restore it from a copy or split the index again"
            ) from error
        raise FormatError(
            f"{folder} is damaged, or was changed by itself; restore it from a copy or split the index again"
        ) from error
    try:
        return map_array(rows_file(path, shard), np.int64, entry.rows)
    except FileNotFoundError as error:
        raise FormatError(
            f"{error.filename} is missing; restore it from a copy or split the index again"
        ) from error


def open_shard(path: Path, shard: int, *, warm: bool = False) -> SparseIndex:
    """Open one shard of a sharded index, for searching with vectors; `warm` as `SparseIndex.open` has it.

    Raises:
        NotFoundError, FormatError: as `ShardedIndex.open` does, or there is no such shard.
    """
    manifest = read_shards_manifest(path)
    if not 0 <= shard < len(manifest.shards):
        raise NotFoundError(
            f"{path} has no shard {shard}; they are numbered from 0 to {len(manifest.shards) - 1}"
        )
    check_shard(path, shard, manifest.shards[shard])
    return SparseIndex.open(path / shard_name(shard), warm=warm)
