"""What a search returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Hits:
    """Results of a batch of queries, best first; equal scores come in the order of insertion.

    Only documents that share a unit with the query are results, so a query may have fewer than `k`.

    Attributes:
        ids: per query, up to `k` document ids.
        scores: per query, float32, as long as its ids.
        unknown_terms: per query, the terms that the vocabulary does not have (none for queries given as vectors).
    """

    ids: list[list[str]]
    scores: list[NDArray[np.float32]]
    unknown_terms: list[list[str]]

    def __len__(self) -> int:
        return len(self.ids)
