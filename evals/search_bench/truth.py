"""The exact top k, by brute force, and recall against it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from runtime.activations import SparseActivations
from runtime.progress import progress


@dataclass(frozen=True)
class Truth:
    """What belongs to the exact top k of each query: every document that scores as its k-th or better.

    Attributes:
        k: how many were asked for.
        indptr: int64 ``[queries + 1]``.
        documents: int64, those of a query between two offsets, ascending; more than k of them where scores tie.
    """

    k: int
    indptr: NDArray[np.int64]
    documents: NDArray[np.int64]

    def recall(self, query: int, found: NDArray[np.int64]) -> float:
        """The share of the top k that was found; where scores tie at its end, any of the tied ones counts.

        Args:
            query: its row.
            found: distinct document numbers; only the first k count.
        """
        wanted = self.documents[self.indptr[query] : self.indptr[query + 1]]
        most = min(self.k, len(wanted))
        return len(np.intersect1d(found[: self.k], wanted)) / most if most else 1.0


def save_truth(path: Path, truth: Truth) -> None:
    """Write it under its name when it is complete."""
    partial = path.with_name(f".{path.name}.partial.npz")
    np.savez(partial, k=truth.k, indptr=truth.indptr, documents=truth.documents)
    partial.replace(path)


def load_truth(path: Path) -> Truth:
    """Read what `save_truth` wrote."""
    with np.load(path) as arrays:
        return Truth(int(arrays["k"]), arrays["indptr"], arrays["documents"])


def exact_truths(
    documents: SparseActivations, queries: SparseActivations, depths: list[int]
) -> dict[int, Truth]:
    """The exact top k for each of several k: float64 sums over postings, all documents of score above 0.

    Raises:
        MemoryError: the postings do not fit in memory a second time.
    """
    indptr, rows, weights = _invert(documents)
    scores = np.zeros(documents.num_rows)
    found: dict[int, list[NDArray[np.int64]]] = {k: [] for k in depths}
    with progress("exact answers", queries.num_rows, "queries") as advance:
        for units, amounts in queries:
            scores[:] = 0
            _add_postings(np.asarray(units), np.asarray(amounts), indptr, rows, weights, scores)
            for k in depths:
                found[k].append(_at_least_kth(scores, k))
            advance(1)
    return {k: _truth(k, per_query) for k, per_query in found.items()}


def _at_least_kth(scores: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    least = np.partition(scores, len(scores) - k)[len(scores) - k] if k < len(scores) else 0.0
    # Sums of other engines, and of other orders, differ in the last digits: such a tie is a tie.
    return np.flatnonzero((scores >= least * (1 - 1e-9)) & (scores > 0))


def _truth(k: int, per_query: list[NDArray[np.int64]]) -> Truth:
    indptr = np.concatenate(([0], np.cumsum([len(documents) for documents in per_query], dtype=np.int64)))
    return Truth(k, indptr, np.concatenate(per_query) if per_query else np.zeros(0, np.int64))


def _invert(documents: SparseActivations) -> tuple[Any, ...]:
    counts = np.bincount(documents.units, minlength=documents.num_units)
    indptr = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
    rows, weights = np.empty(documents.nnz, np.int32), np.empty(documents.nnz, np.float32)
    _fill(
        np.asarray(documents.indptr),
        np.asarray(documents.units),
        np.asarray(documents.weights),
        indptr[:-1].copy(),
        rows,
        weights,
    )
    return indptr, rows, weights


@njit(cache=True)
def _fill(indptr, units, weights, at, rows, posting_weights):  # type: ignore[no-untyped-def]
    for row in range(len(indptr) - 1):
        for i in range(indptr[row], indptr[row + 1]):
            place = at[units[i]]
            rows[place] = row
            posting_weights[place] = weights[i]
            at[units[i]] += 1


@njit(cache=True)
def _add_postings(units, amounts, indptr, rows, weights, scores):  # type: ignore[no-untyped-def]
    for i in range(len(units)):
        amount = np.float64(amounts[i])
        for place in range(indptr[units[i]], indptr[units[i] + 1]):
            scores[rows[place]] += amount * weights[place]
