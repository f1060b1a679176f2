"""Whether one system is better than another: paired differences and a randomisation test."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import fsum

import numpy as np
from numpy.typing import NDArray

from evals.metrics import MEASURES, QueryMetrics
from runtime.errors import InputError

PERMUTATIONS = 20_000
"""Random sign assignments of the test; its resolution is 1 / (1 + PERMUTATIONS)."""

EXACT_UP_TO = 14
"""Up to this many queries that differ, all 2**n sign assignments are tried instead of random ones."""


@dataclass(frozen=True)
class MeasureComparison:
    """One measure of systems A and B over the same queries.

    Attributes:
        measure: name of the measure.
        mean_a, mean_b: means over the queries.
        wins, losses, ties: number of queries on which B is better, worse, equal.
        p_value: two-sided, see `randomisation_test`.
    """

    measure: str
    mean_a: float
    mean_b: float
    wins: int
    losses: int
    ties: int
    p_value: float

    @property
    def difference(self) -> float:
        return self.mean_b - self.mean_a


@dataclass(frozen=True)
class Comparison:
    """Systems A and B over the queries that both were measured on.

    Attributes:
        queries: ids of those queries, in A's order.
        measures: one entry per measure.
        differences: measure → float64 ``[queries]``, B minus A.
        left_out: number of queries that only one of the two has.
    """

    queries: list[str]
    measures: list[MeasureComparison]
    differences: dict[str, NDArray[np.float64]]
    left_out: int


def compare(a: QueryMetrics, b: QueryMetrics, measures: Iterable[str] = MEASURES) -> Comparison:
    """Compare system B with system A, measure by measure.

    Raises:
        InputError: the two have no query in common.
    """
    queries = [query for query in a if query in b]
    if not queries:
        raise InputError(
            "the two have no query in common; were they measured on the same collection and split?"
        )
    compared, differences = [], {}
    for name in measures:
        values_a = np.array([a[query][name] for query in queries])
        values_b = np.array([b[query][name] for query in queries])
        difference = values_b - values_a
        # Sums in another order may differ in the last place where the rankings do not differ at all.
        difference[np.abs(difference) < 1e-9] = 0.0
        differences[name] = difference
        compared.append(
            MeasureComparison(
                measure=name,
                mean_a=fsum(values_a) / len(queries),
                mean_b=fsum(values_b) / len(queries),
                wins=int((difference > 0).sum()),
                losses=int((difference < 0).sum()),
                ties=int((difference == 0).sum()),
                p_value=randomisation_test(difference),
            )
        )
    return Comparison(queries, compared, differences, len(a.keys() ^ b.keys()))


def randomisation_test(differences: NDArray[np.float64], seed: int = 0) -> float:
    """Two-sided p-value of Fisher's paired randomisation test, the choice of Smucker et al. (CIKM 2007).

    Under the null hypothesis each difference might as well have had the other sign. The p-value is the share
    of sign assignments whose sum is at least as far from 0 as the one observed: all of them for up to
    `EXACT_UP_TO` queries that differ, otherwise `PERMUTATIONS` random ones and the observed one (so never 0).

    Args:
        differences: float64 ``[queries]``.
        seed: of the random assignments; the same seed gives the same p-value.
    """
    differing = differences[differences != 0]
    if len(differing) == 0:
        return 1.0
    # The tolerance lets assignments tie that are equal in exact arithmetic, so that p errs upwards.
    observed = abs(differing.sum()) - 1e-9 * np.abs(differing).sum()
    if len(differing) <= EXACT_UP_TO:
        assignments = np.arange(2 ** len(differing))[:, None] >> np.arange(len(differing)) & 1
        return float((np.abs((2 * assignments - 1) @ differing) >= observed).mean())
    random = np.random.default_rng(seed)
    as_far = 0
    block = 500  # keeps the signs of 7,000 queries at 28 MB
    for start in range(0, PERMUTATIONS, block):
        size = min(block, PERMUTATIONS - start)
        signs = random.integers(0, 2, (size, len(differing)), dtype=np.int8).astype(np.float64) * 2 - 1
        as_far += int((np.abs(signs @ differing) >= observed).sum())
    return (1 + as_far) / (1 + PERMUTATIONS)
