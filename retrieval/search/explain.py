"""Why a document has its score: the terms that met, their weights, and what each added."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.encoders.encoder import Vocabulary


@dataclass(frozen=True, slots=True)
class TermShare:
    """One term that query and document have in common.

    Attributes:
        term: as the vocabulary spells it.
        query_weight: its weight in the query.
        document_weight: its impact in the document.
        share: what it added to the score.
    """

    term: str
    query_weight: float
    document_weight: float
    share: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """The score of one document for one query, taken apart.

    Attributes:
        document_id: the document.
        score: exactly what a search gives it; 0 when no term is shared.
        shares: shared terms, largest share first; their shares sum exactly to `score`.
        query_terms: all terms of the query and their weights, heaviest first.
        document_terms: all terms of the document and their impacts, heaviest first.
        unknown_terms: terms of the query that the vocabulary does not have.
    """

    document_id: str
    score: float
    shares: list[TermShare]
    query_terms: list[tuple[str, float]]
    document_terms: list[tuple[str, float]]
    unknown_terms: list[str]


def explain_score(
    document_id: str,
    query: tuple[NDArray[np.int32], NDArray[np.float32]],
    document: tuple[NDArray[np.int32], NDArray[np.float32]],
    vocabulary: Vocabulary,
    unknown_terms: list[str],
) -> Explanation:
    """Explain from the units (ascending) and weights of both sides.

    A share is the difference that its term made to the running float32 sum, rather than its own product: then
    the shares, added up in double precision, give the score exactly.
    """
    shared, in_query, in_document = np.intersect1d(query[0], document[0], return_indices=True)
    score = np.float32(0)
    shares = []
    for unit, query_place, document_place in zip(shared, in_query, in_document, strict=True):
        before = score
        score = np.float32(score + query[1][query_place] * document[1][document_place])
        shares.append(
            TermShare(
                term=vocabulary.term(int(unit)),
                query_weight=float(query[1][query_place]),
                document_weight=float(document[1][document_place]),
                share=float(score) - float(before),
            )
        )
    shares.sort(key=lambda share: -share.share)
    return Explanation(
        document_id,
        float(score),
        shares,
        _heaviest_first(query, vocabulary),
        _heaviest_first(document, vocabulary),
        unknown_terms,
    )


def _heaviest_first(
    row: tuple[NDArray[np.int32], NDArray[np.float32]], vocabulary: Vocabulary
) -> list[tuple[str, float]]:
    units, weights = row
    return [
        (vocabulary.term(int(units[place])), float(weights[place]))
        for place in np.argsort(-weights, kind="stable")
    ]
