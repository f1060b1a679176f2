"""Densified sparse vectors in a Faiss index, alone or joined with the vectors of a dense encoder.

Faiss knows plain inner products. That of the values of two densified vectors counts slices whose units differ as well,
so it is never below the score that is meant: Faiss gives candidates by this bound, they are scored, and more are taken
until the bound of the next one is below the k-th score. So results are exact; with a given number of candidates they
are not, and faster. A dense vector stands behind the values and adds its own inner product to both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from retrieval.encoders.dense import DenseEncoder
from retrieval.encoders.encoder import SparseEncoder
from retrieval.index.arrays import ArrayFile, ArrayFolderWriter, describe_file, map_array
from retrieval.index.sparse_index import SparseIndex
from retrieval.index.string_table import StringTable
from retrieval.interop.densify import SLICES, Densified, Slices, gated_scores
from retrieval.interop.live_rows import live_rows
from retrieval.search.hits import Hits
from runtime.activations import SparseActivations
from runtime.errors import ConflictError, FormatError, InputError, NotFoundError, UsageError
from runtime.output_folder import new_folder
from runtime.progress import Advance

MANIFEST = "densified.json"
VECTORS = "vectors.faiss"
ARRAYS = "arrays"
ENCODER = "encoder"
VERSION = 1

FIRST_CANDIDATES = 100
"""Documents that are scored at least, before the bound is looked at."""

ROUNDING = 1e-5
"""By so much of itself a bound that Faiss adds up in another order may be too low."""


class Manifest(BaseModel):
    """What the folder says about itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int
    documents: int
    slices: int
    dense: str | None
    dense_fingerprint: str | None
    dense_width: int
    dense_weight: float
    files: dict[str, ArrayFile]


@dataclass(frozen=True)
class DensifiedReport:
    """What was written.

    Attributes:
        units: kept of the vocabulary.
        depth: units of the longest slice.
        kept: share of the weights of all documents that their slices keep.
    """

    documents: int
    units: int
    slices: int
    depth: int
    dense_width: int
    kept: float


def densify_index(
    index: SparseIndex,
    out: Path,
    *,
    slices: int = SLICES,
    half: bool = False,
    dense: DenseEncoder | None = None,
    dense_weight: float = 1.0,
    advance: Advance | None = None,
) -> DensifiedReport:
    """Write the live documents of an index as a folder that `DensifiedIndex` opens.

    All vectors are held in memory, as they are in Faiss.

    Args:
        half: keep them as float16, in half the memory; scores are then those of the rounded vectors.
        dense: encodes the stored texts; its inner product, times `dense_weight`, is added to every score.

    Raises:
        UsageError: too few slices for the vocabulary; or texts for the dense encoder are not stored in the index.
        NotFoundError: Faiss is not installed.
        ConflictError: `out` exists.
    """
    faiss = load_faiss()
    if not np.isfinite(dense_weight) or dense_weight < 0:
        raise UsageError(f"the weight of the dense vector must be a number of 0 or more, not {dense_weight}")
    lit = np.zeros(max(index.manifest.num_units, 1), bool)
    for batch in live_rows(index):
        lit[batch.vectors.units] = True
    cut = Slices(np.flatnonzero(lit), slices)
    width = dense.width if dense is not None else 0
    vectors = _empty_index(faiss, slices + width, half)
    ids: list[str] = []
    total = left = 0.0
    with new_folder(out) as folder:
        with ArrayFolderWriter(folder / ARRAYS) as arrays:
            arrays.array("units", np.int64).append(cut.units)
            arrays.array("entries", np.uint8)
            for batch in live_rows(index, 2048):
                made = cut.densify(batch.vectors)
                both = made.values
                if dense is not None:
                    texts = batch.texts
                    if not any(texts) and len(texts):
                        raise UsageError(
                            f"{index.path} does not store its texts, which the dense encoder needs; build it with "
                            "--store title,text"
                        )
                    both = np.concatenate([both, dense.encode_documents(texts)], axis=1)
                vectors.add(np.ascontiguousarray(both))
                arrays.array("entries", np.uint8).append(made.units.ravel())
                ids += batch.ids
                total += float(batch.vectors.weights.sum(dtype=np.float64))
                left += float(made.values.sum(dtype=np.float64))
                if advance is not None:
                    advance(len(batch.rows))
            StringTable.from_strings(ids).write(arrays, "ids")
            files = arrays.close()
        faiss.write_index(vectors, str(folder / VECTORS))
        index.encoder.save_for_search(folder / ENCODER)
        manifest = Manifest(
            version=VERSION,
            documents=len(ids),
            slices=slices,
            dense=dense.source if dense is not None else None,
            dense_fingerprint=dense.fingerprint if dense is not None else None,
            dense_width=width,
            dense_weight=dense_weight,
            files={**files, VECTORS: describe_file(folder / VECTORS)},
        )
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", "utf-8")
    return DensifiedReport(len(ids), len(cut.units), slices, cut.depth, width, left / total if total else 1.0)


class DensifiedIndex:
    """A folder of `densify_index`, open for search."""

    def __init__(self, folder: Path) -> None:
        """Open it; encoders are loaded when a text is searched for.

        Raises:
            NotFoundError: no such folder, or Faiss is not installed.
            FormatError: another version, or a damaged file.
        """
        faiss = load_faiss()
        self.path = folder
        self.manifest = _read_manifest(folder)
        files = self.manifest.files
        try:
            slices = self.manifest.slices
            arrays = folder / ARRAYS
            self.slices = Slices(map_array(arrays / "units", np.int64, files["units"]), slices)
            self._units = map_array(arrays / "entries", np.uint8, files["entries"]).reshape(-1, slices)
            self._ids = StringTable.open(arrays, "ids", files)
            if (folder / VECTORS).stat().st_size != files[VECTORS].bytes:
                raise FormatError(f"{folder / VECTORS} is truncated; densify the index again")
            self._vectors: Any = faiss.read_index(str(folder / VECTORS))
        except (KeyError, ValueError, OSError, RuntimeError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"{folder} is damaged ({error}); densify the index again") from error
        shape = (self._vectors.ntotal, self._vectors.d)
        if shape != (len(self._ids), slices + self.manifest.dense_width) or len(self._units) != shape[0]:
            raise FormatError(
                f"{folder} is damaged: its files are not of the same documents; densify the index again"
            )
        self._encoder: SparseEncoder | None = None
        self._dense: DenseEncoder | None = None

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        return cls(Path(folder))

    def __len__(self) -> int:
        return len(self._ids)

    def search(self, texts: Sequence[str], k: int = 10, candidates: int | None = None) -> Hits:
        """The `k` best documents of each text; see `search_vectors`.

        Raises:
            ConflictError: the dense encoder has changed since.
        """
        if self._encoder is None:
            self._encoder = SparseEncoder.load(self.path / ENCODER)
        dense = None
        if self.manifest.dense is not None:
            if self._dense is None:
                self._dense = DenseEncoder.load(self.manifest.dense)
                if self._dense.fingerprint != self.manifest.dense_fingerprint:
                    raise ConflictError(
                        f"the dense encoder {self.manifest.dense} is not the one that {self.path} was made with: "
                        "it has changed since; densify the index again"
                    )
            dense = self._dense.encode_queries(texts)
        hits = self.search_vectors(self._encoder.encode_queries(texts), dense, k, candidates)
        hits.unknown_terms[:] = [self._encoder.unknown_terms(text) for text in texts]
        return hits

    def search_vectors(
        self,
        queries: SparseActivations,
        dense: NDArray[np.float32] | None = None,
        k: int = 10,
        candidates: int | None = None,
    ) -> Hits:
        """The `k` best documents by the score of `gated_scores` plus that of the dense vectors.

        Documents without any score above 0 are no results where there are no dense vectors. Of equal scores the
        document that came first is first.

        Args:
            dense: float32 ``[queries, width]``, where the folder has dense vectors.
            candidates: score only so many documents, the best by the bound; None scores as many as it takes to be
                exact.

        Raises:
            UsageError: k or candidates below 1.
            InputError: `dense` is missing, of another shape, or not wanted.
        """
        if k < 1 or (candidates is not None and candidates < 1):
            raise UsageError("k and candidates must be 1 or more")
        width = self.manifest.dense_width
        if (dense.shape if dense is not None else (len(queries), 0)) != (len(queries), width):
            raise InputError(
                f"{self.path} takes dense vectors [{len(queries)}, {width}] beside the sparse ones"
            )
        made = self.slices.densify(queries)
        both = made.values
        if dense is not None:
            both = np.concatenate([both, np.float32(self.manifest.dense_weight) * dense], axis=1)
        results = [
            self._best(
                Densified(made.values[row : row + 1], made.units[row : row + 1]), both[row], k, candidates
            )
            for row in range(len(queries))
        ]
        return Hits(
            [self._ids.take(rows) for rows, _ in results],
            [scores for _, scores in results],
            [[] for _ in results],
        )

    def _best(
        self, query: Densified, vector: NDArray[np.float32], k: int, candidates: int | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        wanted = min(candidates or max(FIRST_CANDIDATES, 2 * k), len(self))
        while wanted:
            bounds, found = self._vectors.search(vector[None], wanted)
            scores = self._scores(query, vector, found[0])
            order = np.lexsort((found[0], -scores))[:k]
            kth = scores[order[-1]] if len(order) == k else -np.inf
            lowest = float(bounds[0, -1])
            if candidates is not None or wanted == len(self) or lowest + ROUNDING * abs(lowest) < kth:
                rows, scores = found[0][order], scores[order]
                lit = slice(None) if self.manifest.dense_width else scores > 0
                return rows[lit], scores[lit]
            wanted = min(4 * wanted, len(self))
        return np.zeros(0, np.int64), np.zeros(0, np.float32)

    def _scores(
        self, query: Densified, vector: NDArray[np.float32], rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        vectors = self._vectors.reconstruct_batch(rows)
        slices = self.manifest.slices
        scores = gated_scores(query, Densified(vectors[:, :slices], self._units[rows]))
        return scores + vectors[:, slices:] @ vector[slices:]


def load_faiss() -> Any:
    """The module; NotFoundError where it is not installed."""
    try:
        import faiss
    except ImportError:
        raise NotFoundError("densified vectors need Faiss; run: pip install 'lexpert[dense]'") from None
    return faiss


def _empty_index(faiss: Any, width: int, half: bool) -> Any:
    if not half:
        return faiss.IndexFlatIP(width)
    return faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not path.is_file():
        raise NotFoundError(
            f"{folder} holds no densified index ({MANIFEST}); make one with lexpert index densify"
        )
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise FormatError(
            f"{path} is damaged ({error.errors()[0]['msg']}); densify the index again"
        ) from None
    if manifest.version != VERSION:
        raise FormatError(
            f"{path} has version {manifest.version}, but this lexpert reads version {VERSION}; densify the index again"
        )
    return manifest
