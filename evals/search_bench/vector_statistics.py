"""How sparse vectors are distributed: what says how close generated ones come to real ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.activations import SparseActivations

MASS_AT = (1, 2, 5, 10, 20, 30, 50, 80)
RANKS = (1, 10, 100, 1000, 10_000)
SAMPLE = 5000


@dataclass(frozen=True)
class VectorStatistics:
    """Statistics of a batch of sparse rows.

    Attributes:
        nnz_mean: mean number of non-zeros a row.
        nnz_std: its standard deviation.
        mass_at: for each number of `MASS_AT`, the share of a row's L1 mass that its so many largest weights hold,
            on average; of `SAMPLE` rows spread evenly.
        frequency_at: for each rank of `RANKS`, the share of rows that hold the term at this rank of frequency.
        terms: terms that occur.
    """

    nnz_mean: float
    nnz_std: float
    mass_at: dict[int, float]
    frequency_at: dict[int, float]
    terms: int


def vector_statistics(vectors: SparseActivations) -> VectorStatistics:
    """Measure a batch of at least one row, over NumPy arrays."""
    lengths = np.diff(vectors.indptr)
    frequency = term_frequencies(vectors)
    falling = np.sort(frequency)[::-1]
    chosen = np.unique(np.linspace(0, vectors.num_rows - 1, min(SAMPLE, vectors.num_rows)).astype(np.int64))
    shares = [_mass(np.asarray(weights, np.float64)) for _, weights in vectors[chosen] if len(weights)]
    mean = np.mean(shares, axis=0) if shares else np.zeros(len(MASS_AT))
    return VectorStatistics(
        nnz_mean=float(lengths.mean()),
        nnz_std=float(lengths.std()),
        mass_at=dict(zip(MASS_AT, mean.tolist(), strict=True)),
        frequency_at={rank: float(falling[rank - 1]) for rank in RANKS if rank <= len(falling)},
        terms=int(np.count_nonzero(frequency)),
    )


def term_frequencies(vectors: SparseActivations) -> NDArray[np.float64]:
    """The share of rows that hold each term, ``[num_units]``."""
    return np.bincount(vectors.units, minlength=vectors.num_units) / vectors.num_rows


def postings_touched(documents: SparseActivations, queries: SparseActivations) -> float:
    """Postings of a query's terms, for each document there is: the mean over queries.

    This is Σ_j p_j q_j over the shares of documents and of queries that hold term j, which papers on SPLADE call
    FLOPS: the work of exhaustive search.
    """
    return float(term_frequencies(documents) @ term_frequencies(queries))


def _mass(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    summed = np.cumsum(np.sort(weights)[::-1])
    return summed[np.minimum(MASS_AT, len(weights)) - 1] / summed[-1]
