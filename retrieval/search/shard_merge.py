"""Merging what the shards of an index found, as if it had been found in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.search.batch import Found


class Merged(NamedTuple):
    """The best documents of all shards for one query, best first.

    Attributes:
        scores: float32.
        shards: int64, the shard of each.
        rows: int64, its row there.
    """

    scores: NDArray[np.float32]
    shards: NDArray[np.int64]
    rows: NDArray[np.int64]


def merge_found(found: Sequence[Found | None], places: Sequence[NDArray[np.int64]], k: int) -> Merged:
    """The best `k` of what each shard found for a query: highest score first, equal scores by place.

    Args:
        found: of each shard; None for one that is left out.
        places: of each shard, int64, the places of its rows among the documents of all.
    """
    asked = [(shard, *of_shard) for shard, of_shard in enumerate(found) if of_shard is not None]
    if not asked:
        return Merged(np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64))
    scores = np.concatenate([scores for _, scores, _ in asked])
    rows = np.concatenate([rows for _, _, rows in asked])
    shards = np.concatenate([np.full(len(rows), shard, np.int64) for shard, _, rows in asked])
    order = np.lexsort((np.concatenate([places[shard][rows] for shard, _, rows in asked]), -scores))[:k]
    return Merged(scores[order], shards[order], rows[order])
