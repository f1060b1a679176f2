"""An index of dense vectors: one float32 vector a document, searched exactly by inner product.

For collections that a matrix product can go through: teachers in evaluations, and dense results to fuse with sparse
ones. The limit is the bytes of the vectors, read once for each batch of queries.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from retrieval.corpus import Corpus
from retrieval.documents import document_batches, document_text
from retrieval.encoders.dense import DenseEncoder
from retrieval.index.arrays import ArrayFile, ArrayFolderWriter, map_array, verify_file
from retrieval.index.string_table import StringTable
from retrieval.search.hits import Hits
from runtime.errors import ConflictError, FormatError, InputError, NotFoundError, UsageError
from runtime.output_folder import new_folder
from runtime.progress import progress

MANIFEST = "dense.json"
ARRAYS = "arrays"
VERSION = 1

BLOCK_ROWS = 1 << 16
"""Documents scored at a time."""


class Manifest(BaseModel):
    """What the folder says about itself.

    Attributes:
        documents: vectors in it; `replaced` more were read, and gave way to a later one of the same id.
        corpus: checksum of what it was built from.
        encoder: where the encoder lay, and its fingerprint.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int
    documents: int
    replaced: int
    width: int
    corpus: str
    encoder: str
    encoder_fingerprint: str
    files: dict[str, ArrayFile]


@dataclass(frozen=True)
class DenseBuildReport:
    """What `build_dense_index` did: "built" the index, or "reused" one of the same corpus and encoder."""

    action: Literal["built", "reused"]
    documents: int
    replaced: int
    width: int
    seconds: float


def build_dense_index(out: Path, encoder: DenseEncoder, corpus: Corpus) -> DenseBuildReport:
    """Encode a corpus into the folder `out`, which appears whole or not at all.

    Raises:
        ConflictError: `out` holds anything but the index of this corpus and encoder.
        InputError: a malformed document.
        FormatError: there is a damaged index.
    """
    started = time.monotonic()
    if out.exists():
        there = read_manifest(out)
        if (there.corpus, there.encoder_fingerprint) != (corpus.checksum(), encoder.fingerprint):
            raise ConflictError(
                f"{out} is an index of another corpus or encoder; give another folder, or remove it first"
            )
        return DenseBuildReport("reused", there.documents, there.replaced, there.width, 0.0)
    last = {str(document["_id"]): number for number, document in enumerate(corpus)}
    read = max(last.values(), default=-1) + 1
    kept = (document for number, document in enumerate(corpus) if last[str(document["_id"])] == number)
    ids: list[str] = []
    with new_folder(out) as folder, progress("encoding", len(last)) as advance:
        with ArrayFolderWriter(folder / ARRAYS) as arrays:
            vectors = arrays.array("vectors", np.float32)
            vectors.append(np.zeros(0, np.float32))
            for batch in document_batches(kept):
                made = encoder.encode_documents([document_text(document) for document in batch], advance)
                vectors.append(made)
                ids += [str(document["_id"]) for document in batch]
            StringTable.from_strings(ids).write(arrays, "ids")
            files = arrays.close()
        manifest = Manifest(
            version=VERSION,
            documents=len(ids),
            replaced=read - len(ids),
            width=encoder.width,
            corpus=corpus.checksum(),
            encoder=encoder.source,
            encoder_fingerprint=encoder.fingerprint,
            files=files,
        )
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", "utf-8")
    return DenseBuildReport("built", len(ids), read - len(ids), encoder.width, time.monotonic() - started)


class DenseIndex:
    """A folder of `build_dense_index`, open for search. May be shared by threads."""

    def __init__(self, path: Path, encoder: DenseEncoder | None = None) -> None:
        """Open it, in time that does not depend on its size.

        Args:
            encoder: for queries, instead of loading the one that the index names when the first text comes; must
                have its fingerprint.

        Raises:
            NotFoundError: no such index.
            FormatError: another version, or a file is missing, truncated or of other documents.
            ConflictError: `encoder` is another than the one that filled the index.
        """
        self.path = path
        self.manifest = read_manifest(path)
        if encoder is not None:
            self._check_encoder(encoder)
        self._encoder = encoder
        files = self.manifest.files
        try:
            vectors = map_array(path / ARRAYS / "vectors", np.float32, files["vectors"])
            self._ids = StringTable.open(path / ARRAYS, "ids", files)
        except (KeyError, OSError) as error:
            raise FormatError(f"{path} is damaged ({error}); build it again") from error
        if len(vectors) != self.num_documents * self.manifest.width or len(self._ids) != self.num_documents:
            raise FormatError(f"{path} is damaged: its files are not of the same documents; build it again")
        self._vectors = vectors.reshape(-1, self.manifest.width)

    @classmethod
    def open(cls, path: str | Path, *, encoder: DenseEncoder | None = None) -> Self:
        """Open an index; see `DenseIndex`."""
        return cls(Path(path), encoder)

    @property
    def num_documents(self) -> int:
        return self.manifest.documents

    @property
    def encoder(self) -> DenseEncoder:
        """The encoder that filled the index; loaded when it is first needed.

        Raises:
            NotFoundError: it is not there any more.
            ConflictError: it has changed since.
        """
        if self._encoder is None:
            loaded = DenseEncoder.load(self.manifest.encoder)
            self._check_encoder(loaded)
            self._encoder = loaded
        return self._encoder

    def verify(self) -> None:
        """Compare every byte with its checksum.

        Raises:
            FormatError: one differs.
        """
        for name, expected in self.manifest.files.items():
            verify_file(self.path / ARRAYS / name, expected)

    def search(self, queries: Sequence[str] | NDArray[np.float32], k: int = 10) -> Hits:
        """The `k` documents of the highest inner product with each query, equal ones in the order of the corpus.

        Args:
            queries: texts, or float32 vectors ``[queries, width]``.

        Raises:
            UsageError: k below 1.
            InputError: vectors of another width, or with a value that is not finite.
        """
        if k < 1:
            raise UsageError(f"k must be at least 1, got {k}")
        vectors = queries if isinstance(queries, np.ndarray) else self.encoder.encode_queries(queries)
        if vectors.ndim != 2 or vectors.shape[1] != self.manifest.width:
            raise InputError(f"{self.path} takes vectors of width {self.manifest.width}, got {vectors.shape}")
        if not np.isfinite(vectors).all():
            raise InputError("a query vector has a value that is not finite")
        rows, scores = best_rows(self._vectors, np.asarray(vectors, np.float32), k)
        return Hits([self._ids.take(row) for row in rows], list(scores), [[] for _ in rows])

    def _check_encoder(self, encoder: DenseEncoder) -> None:
        if encoder.fingerprint != self.manifest.encoder_fingerprint:
            raise ConflictError(
                f"{self.path} was filled by another dense encoder than {encoder.source}; use that one, or build the "
                "index again"
            )


def best_rows(
    vectors: NDArray[np.float32], queries: NDArray[np.float32], k: int, block_rows: int = BLOCK_ROWS
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The rows of the `k` highest inner products with each query, best first, equal ones by row.

    Args:
        vectors: ``[rows, width]``, read block by block.
        queries: ``[queries, width]``.

    Returns:
        int64 and float32 ``[queries, min(k, rows)]``.
    """
    rows = np.zeros((len(queries), 0), np.int64)
    scores = np.zeros((len(queries), 0), np.float32)
    for start in range(0, len(vectors), block_rows):
        block = queries @ vectors[start : start + block_rows].T
        here = np.broadcast_to(np.arange(start, start + block.shape[1]), block.shape)
        rows, scores = _best(np.hstack([rows, here]), np.hstack([scores, block]), k)
    return rows, scores


def _best(
    rows: NDArray[np.int64], scores: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `k` best columns of each row; `rows` ascend among equal scores already."""
    count = min(k, scores.shape[1])
    best = np.empty((len(rows), count), np.int64)
    for query, values in enumerate(scores):
        kth = np.partition(values, len(values) - count)[len(values) - count]
        among = np.flatnonzero(values >= kth)  # more than `count` where the last place is shared
        best[query] = among[np.argsort(-values[among], kind="stable")[:count]]
    return np.take_along_axis(rows, best, 1), np.take_along_axis(scores, best, 1)


def read_manifest(path: Path) -> Manifest:
    """What a folder says about itself.

    Raises:
        NotFoundError: it is no dense index.
        FormatError: the manifest is damaged or of another version.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise NotFoundError(f"{path} holds no dense index ({MANIFEST}); make one with: lexpert index dense")
    content = file.read_bytes()
    try:
        described = _Versioned.model_validate_json(content)
        if described.version != VERSION:
            raise FormatError(
                f"{file} has version {described.version}, but this lexpert reads version {VERSION}; build it again"
            )
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        raise FormatError(f"{file} is damaged ({error.errors()[0]['msg']}); build it again") from None


class _Versioned(BaseModel):
    model_config = ConfigDict(extra="allow")
    version: int
