"""Searching one index, or several that are fused, and describing what is found. No HTTP in it but errors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import orjson
from numpy.typing import NDArray

from runtime.activations import SparseActivations
from runtime.errors import LexpertError
from serving.catalogue import Catalogue, Searched, ServedIndex
from serving.deadline import Deadline
from serving.dense import ServedDense
from serving.encoding import BATCH, Rest, ToEncode
from serving.errors import from_library
from serving.query_vectors import read_query_vectors
from serving.search_request import SearchRequest, invalid
from serving.shards import FromShards, ToShards

if TYPE_CHECKING:
    from retrieval.search.hits import Hits

Vectors: TypeAlias = "SparseActivations | NDArray[np.float32]"

Ranking: TypeAlias = list[tuple[str, float]]


@dataclass(frozen=True)
class Queries:
    """Query vectors as one index takes them, and the terms of each query that its vocabulary cannot express."""

    vectors: Vectors
    unknown_terms: list[list[str]]


def searched_indexes(catalogue: Catalogue, name: str, request: SearchRequest) -> list[Searched]:
    """The index `name`, and those that are fused with it.

    Raises:
        ApiError: 404 for one that is not there, 422 if one cannot do what the request asks for.
    """
    others = request.fuse.others if request.fuse is not None else []
    indexes = [catalogue.searched(name), *(catalogue.searched(other, "fuse.with") for other in others)]
    if len({index.name for index in indexes}) < len(indexes):
        raise invalid("an index cannot be fused with itself, nor twice with another", "fuse.with")
    sparse = [index for index in indexes if isinstance(index, ServedIndex)]
    if len(sparse) < len(indexes):
        check_dense(next(index for index in indexes if isinstance(index, ServedDense)), request, not sparse)
    for index in sparse:
        check_sparse(index, request)
    return indexes


def check_dense(index: ServedDense, request: SearchRequest, is_alone: bool) -> None:
    """Raise a 422 for what a dense index cannot do, `is_alone` without a sparse index beside it."""
    if not request.texts():
        raise invalid(f"{index.name} is a dense index, which takes queries as texts only", request.form)
    if request.filter is not None:
        raise invalid(f"{index.name} is a dense index, which has no fields to filter by", "filter")
    if is_alone and request.approximation is not None:
        raise invalid(f"{index.name} is a dense index, which is searched exactly", request.approximation)
    if is_alone and request.parts:
        raise invalid(
            f"{index.name} is a dense index, which keeps neither texts nor terms; fuse it with one that does",
            "with",
        )


def check_sparse(index: ServedIndex, request: SearchRequest) -> None:
    """Raise a 422 for a filter that does not suit the index, or one that cannot be fused for lack of an encoder."""
    if request.fuse is not None and not index.encoder.can_encode:
        raise invalid(
            f"{index.name} takes vectors only, and cannot be searched with the text of a query", "fuse"
        )
    if request.filter is not None:
        from retrieval.search.filters import check_filter

        try:
            check_filter(request.filter, index.index.manifest.fields)
        except LexpertError as error:
            where = "" if request.fuse is None else f"in the index {index.name}: "
            raise invalid(f"{where}{error}", "filter") from error


@dataclass(frozen=True)
class Search:
    """One search, from its request to the body of its answer.

    Attributes:
        indexes: the one of the URL, and those that are fused with it.
        depth: hits wanted of each of them.
        started: when, by `time.perf_counter`.
    """

    indexes: Sequence[Searched]
    request: SearchRequest
    depth: int
    started: float
    deadline: Deadline

    def run(self) -> Rest:
        """Encode and search, and build the body of the answer (blocking)."""
        if self.request.texts():
            return self._encoded(())
        (served,) = self.indexes
        assert isinstance(served, ServedIndex)
        vectors = read_query_vectors(*self.request.named_vectors(), served.encoder.vocabulary)
        return self._found([Queries(vectors.activations, vectors.unknown_terms)], ())

    def _encoded(self, done: tuple[Queries, ...]) -> Rest:
        """Encode for one index after the other."""
        if len(done) == len(self.indexes):
            return self._found(done, ())
        served = self.indexes[len(done)]
        texts = self.request.texts()
        unknown_terms: list[list[str]] = [[] for _ in texts]
        if not done and isinstance(served, ServedIndex):
            unknown_terms = served.encoder.unknown_terms(texts)

        def go_on(vectors: Vectors, _: int | None) -> Rest:
            return self._encoded((*done, Queries(vectors, unknown_terms)))

        if isinstance(served, ServedDense):
            return ToEncode(served.batcher, texts, "query", go_on)
        return served.encoder.encode(texts, "query", self.deadline, go_on)

    def _found(self, queries: Sequence[Queries], found: tuple[FromShards | None, ...]) -> bytes | ToShards:
        """Search the shards of one index after the other, those that have any; the others with the answer."""
        if len(found) == len(self.indexes):
            return self._answer(queries, found)
        served, vectors = self.indexes[len(found)], queries[len(found)].vectors
        if not isinstance(served, ServedIndex) or served.fan_out is None:
            return self._found(queries, (*found, None))
        request, fan_out = self.request, served.fan_out
        assert isinstance(vectors, SparseActivations)
        try:
            traversals = fan_out.index.traversals(
                self.depth, request.mode, request.effort, request.target_recall
            )
        except LexpertError as error:
            raise from_library(error, request.approximation) from error
        return fan_out.to_shards(
            fan_out.index.scorable(vectors),
            self.depth,
            request.filter,
            traversals,
            request.allow_partial,
            lambda hits: self._found(queries, (*found, hits)),
        )

    def _answer(self, queries: Sequence[Queries], from_shards: Sequence[FromShards | None]) -> bytes:
        """Search batch by batch, and describe the hits, while there is time."""
        for served, asked_of in zip(self.indexes, queries, strict=True):
            if not isinstance(asked_of.vectors, np.ndarray):
                ends = asked_of.vectors.indptr.tolist()
                self.deadline.query_terms += [(served.name, end - start) for start, end in pairwise(ends)]
        results: list[dict[str, Any]] = []
        missing = [
            {"index": served.name, "shard": shard, "reason": why}
            for served, found in zip(self.indexes, from_shards, strict=True)
            if found is not None
            for shard, why in found.missing.items()
        ]
        unknown_terms = queries[0].unknown_terms
        for first in range(0, len(unknown_terms), BATCH):
            self.deadline.check()
            batches = [asked.vectors[first : first + BATCH] for asked in queries]
            found = [
                self._hits(served, batch) if there is None else there.batch(first, len(batch))
                for served, batch, there in zip(self.indexes, batches, from_shards, strict=True)
            ]
            for row in range(len(found[0])):
                rankings = [ranking(hits, row) for hits in found]
                asked = [batch[row : row + 1] for batch in batches]
                results.append(
                    {
                        "hits": self._described(rankings, asked),
                        "unknown_terms": unknown_terms[first + row],
                        "partial": bool(missing),
                    }
                )
        took_ms = round((time.perf_counter() - self.started) * 1e3, 3)
        body = {"results": results, "version": self.indexes[0].version, "took_ms": took_ms}
        return orjson.dumps(body | {"missing_shards": missing} if missing else body)

    def _hits(self, served: Searched, batch: Any) -> Hits:
        request = self.request
        with self.deadline.stage("search"):
            if isinstance(served, ServedDense):
                return served.search(batch, self.depth)
            try:
                return served.index.search(
                    batch,
                    k=self.depth,
                    filter=request.filter,
                    mode=request.mode,
                    effort=request.effort,
                    target_recall=request.target_recall,
                )
            except LexpertError as error:  # the filter is checked already
                param = request.approximation or ("filter" if request.filter is not None else None)
                raise from_library(error, param) from error

    def _described(self, rankings: list[Ranking], queries: list[Any]) -> list[dict[str, Any]]:
        """The hits of one query, with what the request wants to know of each."""
        hits: list[dict[str, Any]] = [
            {"id": identifier, "score": score} for identifier, score in self._best(rankings)
        ]
        if not self.request.parts:
            return hits
        is_explained = "explain" in self.request.parts
        if is_explained and self.request.fuse is not None:
            places = [
                {identifier: place for place, (identifier, _) in enumerate(ranked)} for ranked in rankings
            ]
            for hit in hits:
                hit["sources"] = self._sources(hit["id"], rankings, places)
        for hit in hits:
            self.deadline.check()
            served, query = self._holder(hit["id"], queries)
            if "text" in self.request.parts:
                hit["document"] = document_body(served, hit["id"]) if served is not None else None
            if is_explained:
                hit["explanation"] = explanation_body(served, query, hit["id"]) if served is not None else []
        return hits

    def _best(self, rankings: list[Ranking]) -> Ranking:
        how = self.request.fuse
        if how is None:
            return rankings[0]
        from retrieval.search.fusion import fuse

        with self.deadline.stage("merge"):
            return fuse(rankings, self.request.k, how.method, how.weights)

    def _sources(
        self, identifier: str, rankings: list[Ranking], places: list[dict[str, int]]
    ) -> list[dict[str, Any]]:
        """Which of the fused indexes have found a document, at which rank and with which score."""
        return [
            {"index": served.name, "rank": place[identifier] + 1, "score": ranked[place[identifier]][1]}
            for served, ranked, place in zip(self.indexes, rankings, places, strict=True)
            if identifier in place
        ]

    def _holder(self, identifier: str, queries: list[Any]) -> tuple[ServedIndex | None, Any]:
        """The first index that keeps a document, and the query as that takes it."""
        for served, query in zip(self.indexes, queries, strict=True):
            if isinstance(served, ServedIndex) and (
                len(self.indexes) == 1 or served.index.document(identifier) is not None
            ):
                return served, query
        return None, None


def ranking(hits: Hits, row: int) -> Ranking:
    return list(zip(hits.ids[row], hits.scores[row].tolist(), strict=True))


def document_body(served: ServedIndex, identifier: str) -> dict[str, Any] | None:
    """The stored document without its id, which the hit has already."""
    document = served.index.document(identifier)
    if document is None:
        return None
    return {key: value for key, value in document.items() if key != "_id"}


def explanation_body(served: ServedIndex, query: SparseActivations, identifier: str) -> list[dict[str, Any]]:
    """The shares of the terms in a hit's score, largest first; they add up to the score."""
    return [
        {
            "token": share.term,
            "query": share.query_weight,
            "document": share.document_weight,
            "share": share.share,
        }
        for share in served.index.explain(query, identifier).shares
    ]
