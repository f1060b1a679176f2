"""Effectiveness measures, computed by ir_measures on the order in which a run ranks its documents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evals.collections.collection import Qrels
from evals.qrels import LARGEST_GRADE
from runtime.errors import InputError, NotFoundError, UsageError

MEASURES = ("nDCG@10", "R@100", "R@1000", "MRR@10", "MAP")
"""The measures of every report, in the order of its table."""

QueryMetrics = dict[str, dict[str, float]]
"""Query id → measure → value."""


def measure(qrels: Qrels, rankings: Mapping[str, Sequence[str]], *, relevance_level: int = 1) -> QueryMetrics:
    """Measure rankings against judgements, query by query.

    Every judged query is measured; one that was not answered scores 0 everywhere. Queries without judgements
    are left out. The order within a ranking is taken as given: trec_eval, and ir_measures with it, would sort
    by score and break ties by document id, which is neither the order that was searched for nor the one that
    a user sees.

    Args:
        qrels: query id → document id → grade.
        rankings: query id → document ids, best first, each at most once.
        relevance_level: lowest grade that counts as relevant, for all measures but nDCG (whose gain is the
            grade itself, discounted by log2, as in trec_eval's ``ndcg_cut``).

    Returns:
        For each judged query, in the order of `qrels`, the value of each of `MEASURES`.

    Raises:
        InputError: there are no judgements.
        UsageError: a relevance level that no grade can have.
        NotFoundError: ir_measures is not installed.
    """
    if not qrels:
        raise InputError("there are no judgements to measure against")
    require_relevance_level(relevance_level)
    measures = _ir_measures(relevance_level)
    import ir_measures

    run = {
        query: {document: float(len(ranking) - rank) for rank, document in enumerate(ranking)}
        for query, ranking in rankings.items()
        if query in qrels and ranking
    }
    values: QueryMetrics = {query: dict.fromkeys(MEASURES, 0.0) for query in qrels}
    if run:
        names = {measured: name for name, measured in measures.items()}
        for metric in ir_measures.iter_calc(list(names), {q: dict(rows) for q, rows in qrels.items()}, run):
            values[metric.query_id][names[metric.measure]] = float(metric.value)
    return values


def mean(per_query: QueryMetrics, measures: Iterable[str] = MEASURES) -> dict[str, float]:
    """Arithmetic mean of each measure over the queries."""
    from math import fsum

    return {name: fsum(row[name] for row in per_query.values()) / len(per_query) for name in measures}


def require_ir_measures() -> None:
    """Raise NotFoundError unless ir_measures is installed: to be told before the work, not after."""
    from importlib.util import find_spec

    if find_spec("ir_measures") is None:
        raise NotFoundError("measuring needs ir_measures; run: pip install 'lexpert[eval]'")


def require_relevance_level(level: int) -> None:
    """Raise UsageError unless `level` is a grade that can mean relevant."""
    if not 1 <= level <= LARGEST_GRADE:
        raise UsageError(f"--relevance-level must lie between 1 and {LARGEST_GRADE}, got {level}")


def _ir_measures(relevance_level: int) -> dict[str, Any]:
    require_ir_measures()
    from ir_measures import AP, RR, R, nDCG

    rel = relevance_level
    return {
        "nDCG@10": nDCG @ 10,
        "R@100": R(rel=rel) @ 100,
        "R@1000": R(rel=rel) @ 1000,
        "MRR@10": RR(rel=rel) @ 10,
        "MAP": AP(rel=rel),
    }
