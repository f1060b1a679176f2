"""Why a document has its score: the terms that met, their weights, and what each added."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from retrieval.encoders.encoder import Vocabulary

Row = tuple[NDArray[np.int32], NDArray[np.float32]]
"""Units, ascending, and their weights."""


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
        score: what a search with this query vector gives it, bit by bit; 0 when no term is shared.
        shares: shared terms, largest share first; their shares sum exactly to `score`.
        unknown_terms: terms of the query that the vocabulary does not have.
    """

    document_id: str
    score: float
    shares: list[TermShare]
    unknown_terms: list[str]
    _vocabulary: Vocabulary = field(repr=False)
    _query: Row = field(repr=False)
    _read_document: Callable[[], Row] = field(repr=False)

    @property
    def query_terms(self) -> list[tuple[str, float]]:
        """All terms of the query and their weights, heaviest first."""
        return _heaviest_first(self._query, self._vocabulary)

    @property
    def document_terms(self) -> list[tuple[str, float]]:
        """All terms of the document and their impacts, heaviest first; read from the index when asked for."""
        return _heaviest_first(self._read_document(), self._vocabulary)


def explain_score(
    document_id: str,
    query: Row,
    impacts: NDArray[np.float32],
    read_document: Callable[[], Row],
    vocabulary: Vocabulary,
    unknown_terms: list[str],
) -> Explanation:
    """Explain from the query's units (ascending) and weights and the document's impacts of these, 0 for none.

    A share is the difference that its term made to the running float32 sum, rather than its own product: then
    the shares, added up in double precision, give the score exactly.
    """
    score = np.float32(0)
    shares = []
    for unit, weight, impact in zip(*query, impacts, strict=True):
        if impact == 0:
            continue
        before = score
        score = np.float32(score + weight * impact)
        shares.append(
            TermShare(
                term=vocabulary.term(int(unit)),
                query_weight=float(weight),
                document_weight=float(impact),
                share=float(score) - float(before),
            )
        )
    shares.sort(key=lambda share: -share.share)
    return Explanation(document_id, float(score), shares, unknown_terms, vocabulary, query, read_document)


def _heaviest_first(row: Row, vocabulary: Vocabulary) -> list[tuple[str, float]]:
    units, weights = row
    order = np.argsort(-weights, kind="stable")
    return [(vocabulary.term(int(units[place])), float(weights[place])) for place in order]
