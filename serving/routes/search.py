"""Search in one index."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from runtime.errors import LexpertError
from serving.answer_models import SearchBody
from serving.asgi import Request, Response, Route
from serving.catalogue import ServedIndex
from serving.configuration import Limits
from serving.deadline import Deadline
from serving.description import Description
from serving.encoding import BATCH, EncodingTurn
from serving.errors import ApiError, from_library, from_validation
from serving.query_vectors import read_query_vectors
from serving.state import AwaitsVersion, ServerState

if TYPE_CHECKING:
    from runtime.activations import SparseActivations

Vector = dict[str, Any]

Queries: TypeAlias = "tuple[SparseActivations, list[list[str]]]"
"""Query vectors, and the terms of each query that the vocabulary cannot express."""

QUERY_FORMS = ("query", "queries", "vector", "vectors")


class SearchRequest(BaseModel):
    """The body of a search; exactly one of `QUERY_FORMS` must be given."""

    model_config = ConfigDict(extra="forbid", strict=True)

    query: str | None = None
    queries: list[str] | None = Field(default=None, min_length=1)
    vector: Vector | None = None
    vectors: list[Vector] | None = Field(default=None, min_length=1)
    k: int = Field(default=10, ge=1)
    filter: dict[str, Any] | None = None
    parts: list[Literal["text", "explain"]] = Field(default=[], alias="with")
    min_version: int | None = Field(default=None, ge=1)

    def texts(self) -> list[str]:
        """The query texts; none if the queries are vectors."""
        return [self.query] if self.query is not None else self.queries or []

    def named_vectors(self) -> tuple[list[Vector], list[str]]:
        """The query vectors, and the parameter that each came in."""
        if self.vector is not None:
            return [self.vector], ["vector"]
        vectors = self.vectors or []
        return vectors, [f"vectors.{place}" for place in range(len(vectors))]


def read_search_request(body: bytes, limits: Limits) -> SearchRequest:
    """Parse and check a body.

    Raises:
        ApiError: 400 if it is not JSON, 422 if it is not a search within the limits.
    """
    try:
        parsed = SearchRequest.model_validate_json(body)
    except ValidationError as error:
        raise from_validation(error) from None
    given = [form for form in QUERY_FORMS if getattr(parsed, form) is not None]
    if not given:
        raise ApiError(422, "missing_parameter", f"give one of {', '.join(QUERY_FORMS)}", "query")
    if len(given) > 1:
        raise ApiError(422, "invalid_value", f"{given[0]} and {given[1]} exclude each other", given[1])
    if parsed.k > limits.max_k:
        raise ApiError(422, "invalid_value", f"k is {parsed.k}, but at most {limits.max_k} is allowed", "k")
    if given[0] in ("queries", "vectors"):
        count = len(getattr(parsed, given[0]))
        if count > limits.max_queries:
            raise ApiError(
                422,
                "invalid_value",
                f"{count} {given[0]}, but at most {limits.max_queries} are allowed",
                given[0],
            )
    check_results(parsed, max(len(parsed.queries or ()), len(parsed.vectors or ()), 1), limits)
    return parsed


def check_results(request: SearchRequest, count: int, limits: Limits) -> None:
    """Raise a 422 if `count` queries may have more hits together than one request may ask for."""
    most, kind = limits.max_results, "results"
    if request.parts:
        most, kind = (
            min(limits.max_documents, most),
            f"results with {' and '.join(sorted(set(request.parts)))}",
        )
    if count * request.k > most:
        raise ApiError(
            422,
            "invalid_value",
            f"{count} queries with k {request.k} ask for {count * request.k:,} {kind}, but at most {most:,} "
            "are allowed in one request; lower k or split the queries",
            "k",
        )


def answer(
    find: Callable[[], ServedIndex], limits: Limits, body: bytes, deadline: Deadline
) -> bytes | EncodingTurn[Queries] | AwaitsVersion:
    """Parse, encode and search in what `find` gives, and build the body of the answer (blocking)."""
    started = time.perf_counter()
    request = read_search_request(body, limits)
    served = find()
    if request.min_version is not None and served.index.generation < request.min_version:
        return AwaitsVersion(
            served, request.min_version, lambda: search_in(find(), request, started, deadline)
        )
    return search_in(served, request, started, deadline)


def search_in(
    served: ServedIndex, request: SearchRequest, started: float, deadline: Deadline
) -> bytes | EncodingTurn[Queries]:
    """Encode and search, and build the body of the answer (blocking)."""
    finish = partial(answer_body, served, request, started, deadline)
    texts = request.texts()
    if texts:
        return served.encoder.apart(partial(encode_texts, served, texts, deadline), finish)
    vectors = read_query_vectors(*request.named_vectors(), served.encoder.vocabulary)
    return finish((vectors.activations, vectors.unknown_terms))


def encode_texts(served: ServedIndex, texts: list[str], deadline: Deadline) -> Queries:
    return served.encoder.encode(texts, "query", deadline), served.encoder.unknown_terms(texts)


def answer_body(
    served: ServedIndex, request: SearchRequest, started: float, deadline: Deadline, encoded: Queries
) -> bytes:
    """Search batch by batch, and describe the hits, while there is time."""
    queries, unknown_terms = encoded
    results: list[dict[str, Any]] = []
    for first in range(0, len(queries), BATCH):
        deadline.check()
        batch = queries[first : first + BATCH]
        try:
            with deadline.stage("search"):
                hits = served.index.search(batch, k=request.k, filter=request.filter)
        except LexpertError as error:
            raise from_library(error, "filter" if request.filter is not None else None) from error
        for row, (ids, scores) in enumerate(zip(hits.ids, hits.scores, strict=True)):
            found = [
                {"id": identifier, "score": score}
                for identifier, score in zip(ids, scores.tolist(), strict=True)
            ]
            if request.parts:
                describe(found, served, request, batch[row : row + 1], deadline)
            results.append({"hits": found, "unknown_terms": unknown_terms[first + row], "partial": False})
    took_ms = round((time.perf_counter() - started) * 1e3, 3)
    return orjson.dumps({"results": results, "version": served.index.generation, "took_ms": took_ms})


def describe(
    hits: list[dict[str, Any]],
    served: ServedIndex,
    request: SearchRequest,
    query: SparseActivations,
    deadline: Deadline,
) -> None:
    """Add what the request wants to know of each hit."""
    for hit in hits:
        deadline.check()
        if "text" in request.parts:
            hit["document"] = document_body(served, hit["id"])
        if "explain" in request.parts:
            hit["explanation"] = explanation_body(served, query, hit["id"])


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


async def search(state: ServerState, request: Request) -> Response:
    request.refuse_query_parameters()
    name = request.path_parameters["name"]
    state.catalogue.index(name)  # an index that is not there is said so before the body is read
    return await state.respond(
        request, partial(answer, lambda: state.catalogue.index(name), state.configuration.limits)
    )


ROUTES = (
    Route(
        "POST",
        "/v1/indexes/{name}/search",
        search,
        "read",
        Description("Search an index", {200: (SearchBody,)}, SearchRequest, errors=(409, 504)),
    ),
)
