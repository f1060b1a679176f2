"""Search in one index."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from runtime.errors import LexpertError
from serving.asgi import Request, Response, Route
from serving.catalogue import ServedIndex
from serving.configuration import Limits
from serving.errors import ApiError, from_library, from_validation
from serving.query_vectors import read_query_vectors
from serving.state import ServerState

if TYPE_CHECKING:
    from runtime.activations import SparseActivations

Vector = dict[str, Any]

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
    return parsed


def answer(served: ServedIndex, body: bytes, limits: Limits) -> bytes:
    """Parse, encode and search, and build the body of the answer (blocking)."""
    started = time.perf_counter()
    request = read_search_request(body, limits)
    queries, unknown_terms = read_queries(served, request)
    try:
        hits = served.index.search(queries, k=request.k, filter=request.filter)
    except LexpertError as error:
        raise from_library(error, "filter" if request.filter is not None else None) from error
    results = []
    for row, (ids, scores) in enumerate(zip(hits.ids, hits.scores, strict=True)):
        found = []
        for identifier, score in zip(ids, scores.tolist(), strict=True):
            hit: dict[str, Any] = {"id": identifier, "score": score}
            if "text" in request.parts:
                hit["document"] = document_body(served, identifier)
            if "explain" in request.parts:
                hit["explanation"] = explanation_body(served, queries[row], identifier)
            found.append(hit)
        results.append({"hits": found, "unknown_terms": unknown_terms[row], "partial": False})
    took_ms = round((time.perf_counter() - started) * 1e3, 3)
    return orjson.dumps({"results": results, "version": served.index.generation, "took_ms": took_ms})


def read_queries(served: ServedIndex, request: SearchRequest) -> tuple[SparseActivations, list[list[str]]]:
    """The query vectors of a request, and the terms of each query that the vocabulary cannot express."""
    texts = request.texts()
    if texts:
        return served.encoder.encode_queries(texts), served.encoder.unknown_terms(texts)
    vectors = read_query_vectors(*request.named_vectors(), served.encoder.vocabulary)
    return vectors.activations, vectors.unknown_terms


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
    served = state.catalogue.index(request.path_parameters["name"])
    limits = state.configuration.limits
    return await state.respond(answer, served, await request.json_body(limits.max_body_bytes), limits)


ROUTES = (Route("POST", "/v1/indexes/{name}/search", search),)
