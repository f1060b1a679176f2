"""How far the vectors of two encoders over the same terms are apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.encoders.encoder import SparseEncoder
from runtime.activations import SparseActivations
from runtime.errors import UsageError
from runtime.progress import progress

BATCH = 64
"""Texts encoded at once: each costs two dense rows."""


@dataclass(frozen=True)
class VectorDifference:
    """Of documents, one encoder beside the other.

    Attributes:
        documents: compared; those that light up nothing in either encoder count as equal.
        mean_cosine, lowest_cosine: of a document's two vectors.
        terms_before, terms_after: of a document, mean.
        most_terms_after: of any document.
    """

    documents: int
    mean_cosine: float
    lowest_cosine: float
    terms_before: float
    terms_after: float
    most_terms_after: int


def vector_difference(before: SparseEncoder, after: SparseEncoder, texts: Sequence[str]) -> VectorDifference:
    """Encode `texts` as documents with both encoders and compare.

    Raises:
        UsageError: no texts, or the encoders have different numbers of terms.
    """
    if not texts:
        raise UsageError("there are no texts to compare vectors of")
    cosines: list[float] = []
    counts: tuple[list[int], list[int]] = ([], [])
    with progress("comparing", total=len(texts)) as advance:
        for start in range(0, len(texts), BATCH):
            batch = texts[start : start + BATCH]
            rows = [encoder.encode_documents(batch) for encoder in (before, after)]
            if rows[0].num_units != rows[1].num_units:
                raise UsageError(
                    f"one encoder has {rows[0].num_units} terms and the other {rows[1].num_units}; "
                    "only vectors over the same terms can be compared"
                )
            cosines += _cosines(*rows)
            for found, vectors in zip(counts, rows, strict=True):
                found += np.diff(vectors.indptr).tolist()
            advance(len(batch))
    return VectorDifference(
        documents=len(texts),
        mean_cosine=float(np.mean(cosines)),
        lowest_cosine=min(cosines),
        terms_before=float(np.mean(counts[0])),
        terms_after=float(np.mean(counts[1])),
        most_terms_after=max(counts[1]),
    )


def _cosines(a: SparseActivations, b: SparseActivations) -> list[float]:
    dense = [np.asarray(vectors.to_dense(), np.float64) for vectors in (a, b)]
    norms = [np.linalg.norm(rows, axis=1) for rows in dense]
    product = norms[0] * norms[1]
    both_empty = (norms[0] == 0) & (norms[1] == 0)
    cosines = (dense[0] * dense[1]).sum(1) / np.where(product > 0, product, 1.0)
    found: list[float] = np.where(both_empty, 1.0, cosines).tolist()
    return found
