"""Vectors of a bi-encoder teacher for all texts of a training set: they score any query with any passage.

A cross-encoder scores the pairs that it was asked for; a bi-encoder's vectors, kept, score a whole batch of queries
with a whole batch of passages at no cost, so that every passage of a batch is a graded candidate for every query.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval.index.arrays import ArrayFile, ArrayFolderWriter, map_array
from runtime.activations import SparseActivations
from runtime.errors import FormatError, UsageError

Kind = Literal["dense", "sparse"]

SPARSE_ARRAYS: dict[str, Any] = {"indptr": np.int64, "units": np.int32, "weights": np.float32}


class TeacherVectors(Protocol):
    """Scores of any queries with any passages of the training set that the teacher belongs to."""

    @property
    def kind(self) -> Kind:
        """How it is stored."""
        ...

    @property
    def name(self) -> str:
        """For people: the folder's name."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides about the vectors; part of the training set's digest."""
        ...

    def scores(self, queries: NDArray[Any], passages: NDArray[Any]) -> NDArray[np.float32]:
        """float32 ``[q, p]``: scores of ``q`` queries with ``p`` passages, both given by number."""
        ...

    def pair_scores(self, queries: NDArray[Any], passages: NDArray[Any]) -> NDArray[np.float32]:
        """float32 ``[n]``: the score of each query with the passage at the same place."""
        ...

    def sizes(self) -> tuple[int, int]:
        """Number of queries and of passages that it has vectors for."""
        ...

    def width(self) -> int:
        """Size of a vector, or of the vocabulary."""
        ...

    def write(self, folder: ArrayFolderWriter, prefix: str) -> None:
        """Write its arrays under names that start with `prefix`."""
        ...


@dataclass(frozen=True, eq=False)
class DenseTeacher:
    """Dot products of dense vectors.

    Attributes:
        queries: float16 ``[queries, dim]``.
        passages: float16 ``[passages, dim]``.
    """

    name: str
    fingerprint: str
    queries: NDArray[np.float16]
    passages: NDArray[np.float16]
    kind: Kind = "dense"

    def __post_init__(self) -> None:
        if (
            self.queries.ndim != 2
            or self.passages.ndim != 2
            or self.queries.shape[1] != self.passages.shape[1]
        ):
            raise UsageError(
                f"the teacher {self.name} has query vectors {self.queries.shape} and passage vectors "
                f"{self.passages.shape}; both must be matrices of one width"
            )

    def scores(self, queries: NDArray[Any], passages: NDArray[Any]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = (
            self.queries[queries].astype(np.float32) @ self.passages[passages].astype(np.float32).T
        )
        return found

    def pair_scores(self, queries: NDArray[Any], passages: NDArray[Any]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = np.einsum(
            "nd,nd->n",
            self.queries[queries].astype(np.float32),
            self.passages[passages].astype(np.float32),
        )
        return found

    def sizes(self) -> tuple[int, int]:
        return len(self.queries), len(self.passages)

    def width(self) -> int:
        return int(self.queries.shape[1])

    def write(self, folder: ArrayFolderWriter, prefix: str) -> None:
        for side, vectors in (("queries", self.queries), ("passages", self.passages)):
            folder.array(f"{prefix}.{side}", np.float16).append(vectors.ravel())

    @classmethod
    def open(
        cls,
        folder: Path,
        prefix: str,
        files: Mapping[str, ArrayFile],
        name: str,
        fingerprint: str,
        width: int,
    ) -> DenseTeacher:
        """Map what `write` left; nothing is read before it is asked for."""
        sides = []
        for side in ("queries", "passages"):
            file = f"{prefix}.{side}"
            values = map_array(folder / file, np.float16, files[file])
            if width < 1 or len(values) % width:
                raise FormatError(f"{folder / file} is no matrix of width {width}: it is damaged")
            sides.append(values.reshape(-1, width))
        return cls(name, fingerprint, queries=sides[0], passages=sides[1])


@dataclass(frozen=True, eq=False)
class SparseTeacher:
    """Dot products of sparse vectors over one vocabulary.

    Attributes:
        queries: activations, one row a query; units distinct within a row.
        passages: activations, one row a passage, over the same vocabulary.
    """

    name: str
    fingerprint: str
    queries: SparseActivations
    passages: SparseActivations
    kind: Kind = "sparse"

    def __post_init__(self) -> None:
        if self.queries.num_units != self.passages.num_units:
            raise UsageError(
                f"the teacher {self.name} has queries over {self.queries.num_units} terms and passages over "
                f"{self.passages.num_units}; encode both with one encoder"
            )

    def scores(self, queries: NDArray[Any], passages: NDArray[Any]) -> NDArray[np.float32]:
        asked, candidates = self.queries[np.asarray(queries)], self.passages[np.asarray(passages)]
        # Only terms of the queries count: the matrices are as wide as there are such terms, not as the vocabulary.
        terms, columns = np.unique(asked.units, return_inverse=True)
        wide_queries = np.zeros((len(asked), max(len(terms), 1)), np.float32)
        wide_queries[_row_numbers(asked), columns] = asked.weights
        wide_passages = np.zeros((len(candidates), max(len(terms), 1)), np.float32)
        if len(terms):
            places = np.minimum(np.searchsorted(terms, candidates.units), len(terms) - 1)
            shared = terms[places] == candidates.units
            wide_passages[_row_numbers(candidates)[shared], places[shared]] = candidates.weights[shared]
        found: NDArray[np.float32] = wide_queries @ wide_passages.T
        return found

    def pair_scores(self, queries: NDArray[Any], passages: NDArray[Any]) -> NDArray[np.float32]:
        asked, candidates = self.queries[np.asarray(queries)], self.passages[np.asarray(passages)]
        width = np.int64(self.queries.num_units)
        # One key a (pair, term): the terms that both sides of a pair have are where the keys meet.
        of_queries = _row_numbers(asked) * width + asked.units
        of_passages = _row_numbers(candidates) * width + candidates.units
        keys, left, right = np.intersect1d(of_queries, of_passages, assume_unique=True, return_indices=True)
        products = asked.weights[left].astype(np.float64) * candidates.weights[right]
        found: NDArray[np.float32] = np.bincount(
            keys // width, weights=products, minlength=len(asked)
        ).astype(np.float32)
        return found

    def sizes(self) -> tuple[int, int]:
        return len(self.queries), len(self.passages)

    def width(self) -> int:
        return self.queries.num_units

    def write(self, folder: ArrayFolderWriter, prefix: str) -> None:
        for side, vectors in (("queries", self.queries), ("passages", self.passages)):
            for column, dtype in SPARSE_ARRAYS.items():
                folder.array(f"{prefix}.{side}.{column}", dtype).append(getattr(vectors, column))

    @classmethod
    def open(
        cls,
        folder: Path,
        prefix: str,
        files: Mapping[str, ArrayFile],
        name: str,
        fingerprint: str,
        width: int,
    ) -> SparseTeacher:
        """Map what `write` left."""
        sides = []
        for side in ("queries", "passages"):
            columns = {}
            for column, dtype in SPARSE_ARRAYS.items():
                file = f"{prefix}.{side}.{column}"
                columns[column] = map_array(folder / file, dtype, files[file])
            try:
                sides.append(SparseActivations(**columns, num_units=width))
            except ValueError as error:
                raise FormatError(f"{folder / prefix}.{side} is damaged ({error})") from error
        return cls(name, fingerprint, queries=sides[0], passages=sides[1])


KINDS: dict[Kind, Any] = {"dense": DenseTeacher, "sparse": SparseTeacher}


def _row_numbers(rows: SparseActivations) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.repeat(np.arange(len(rows), dtype=np.int64), np.diff(rows.indptr))
    return found
