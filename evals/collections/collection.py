"""A test collection: documents, queries and the judgements that say which document answers which query."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from retrieval.corpus import Corpus
from runtime.errors import InputError

Qrels = Mapping[str, Mapping[str, int]]
"""Judgements: query id → document id → grade; 0 and below mean judged and not relevant."""

# In these two the queries are themselves documents of the corpus, and finding oneself is no answer.
SELF_MATCHING = frozenset({"arguana", "quora"})


@dataclass(frozen=True)
class Collection:
    """What an encoder is evaluated on.

    Attributes:
        name: short name for tables and folder names, such as ``"scifact"``.
        split: which queries and judgements: ``"test"``, ``"dev"``, ``"dl19"``.
        corpus: the documents; never held in memory by the collection itself where it comes from a file.
        queries: query id → text, exactly the judged queries, in the order of their file.
        qrels: the judgements; every query has at least one.
        drop_self_matches: a document with the query's own id is taken out of the query's results.
        relevance_level: lowest grade that counts as relevant for recall, reciprocal rank and average
            precision (nDCG uses the grades as they are).
    """

    name: str
    split: str
    corpus: Corpus
    queries: Mapping[str, str]
    qrels: Qrels
    drop_self_matches: bool = False
    relevance_level: int = 1


def drops_self_matches(name: str) -> bool:
    """Whether a collection of this name leaves the query's own document out (ArguAna and Quora do).

    `name` may be a folder name or an ir_datasets id: ``"arguana"``, ``"beir/quora/test"``, ``"beir-quora"``.
    """
    return not SELF_MATCHING.isdisjoint(re.split(r"[^a-z0-9]+", name.lower()))


def judged_queries(queries: Mapping[str, str], qrels: Qrels, where: str) -> dict[str, str]:
    """The queries that have judgements, in the order of `queries`.

    Raises:
        InputError: there are no judgements, or a judged query has no text; names `where`.
    """
    if not qrels:
        raise InputError(f"{where} holds no judgements; nothing can be measured without any")
    missing = [query for query in qrels if query not in queries]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"{where} judges query {missing[0]!r}{more}, which the queries file does not have")
    return {query: text for query, text in queries.items() if query in qrels}
