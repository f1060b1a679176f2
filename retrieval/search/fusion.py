"""Fusing rankings of several systems into one: by ranks alone, or by normalised scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from runtime.errors import UsageError

FusionMethod = Literal["rrf", "min_max"]
METHODS: tuple[FusionMethod, ...] = get_args(FusionMethod)

RANK_CONSTANT = 60
"""The constant of Cormack et al. (2009): a first place is worth 1/61, a second 1/62."""

Ranking = Sequence[tuple[str, float]]
"""``(document id, score)``, best first."""


def fuse(
    rankings: Sequence[Ranking],
    k: int,
    method: FusionMethod = "rrf",
    weights: Sequence[float] | None = None,
) -> list[tuple[str, float]]:
    """The `k` best documents of several rankings of the same query.

    ``rrf``, reciprocal rank fusion (Cormack et al. 2009): the sum of ``weight / (60 + rank)``, ranks from 1. It needs
    nothing of the scores but their order.

    ``min_max``: the weighted mean of scores that are brought to [0, 1] for each ranking, its last to 0 and its first to
    1. A document that a ranking does not hold has 0 there, as its last one has; all of one score count as 1.

    Of equal scores the document comes first that the first of the rankings has, and there the better one.

    Args:
        rankings: of the same query, one for each system; documents are known by their ids.
        weights: one for each ranking, 0 or more; None weighs all the same.

    Raises:
        UsageError: no such method, `k` below 1, or weights that do not fit.
    """
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}")
    shares = _shares(rankings, weights)
    if method not in METHODS:
        raise UsageError(f"there is no fusion {method!r}; choose from {', '.join(METHODS)}")
    totals: dict[str, float] = {}
    for ranking, share in zip(rankings, shares, strict=True):
        worth = _reciprocal_ranks(ranking) if method == "rrf" else _min_max(ranking)
        for (document, _), value in zip(ranking, worth, strict=True):
            totals[document] = totals.get(document, 0.0) + share * value
    return sorted(totals.items(), key=lambda item: -item[1])[:k]  # stable: ties as they came


def _shares(rankings: Sequence[Ranking], weights: Sequence[float] | None) -> list[float]:
    given = np.ones(len(rankings)) if weights is None else np.asarray(weights, np.float64)
    if given.shape != (len(rankings),):
        raise UsageError(f"{len(rankings)} rankings are fused with {len(given)} weights; give one for each")
    if not len(rankings):
        return []
    if not (np.isfinite(given).all() and (given >= 0).all() and (given > 0).any()):
        raise UsageError("weights of rankings must be finite, 0 or more, and not all 0")
    return list((given / given.sum()).tolist())


def _reciprocal_ranks(ranking: Ranking) -> list[float]:
    return [1 / (RANK_CONSTANT + rank) for rank in range(1, len(ranking) + 1)]


def _min_max(ranking: Ranking) -> list[float]:
    if not ranking:
        return []
    scores = np.array([score for _, score in ranking], np.float64)
    low, span = scores.min(), np.ptp(scores)
    return list(((scores - low) / span).tolist()) if span else [1.0] * len(scores)
