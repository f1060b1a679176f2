"""What a search asks for: the body of the request, and what makes it one that is within the limits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from retrieval.search.fusion import FusionMethod
from serving.configuration import Limits
from serving.errors import ApiError
from serving.one_or_more import one_or_more
from serving.parsed_body import parsed_body

Vector = dict[str, Any]

QUERY_FORMS = ("query", "queries", "vector", "vectors")

USUAL_DEPTH = 100
"""Hits of each index that are fused, if the request does not say how many."""

Effort = Annotated[float, Field(gt=0, le=1)]


class FuseRequest(BaseModel):
    """Other indexes to search with the same texts, and how to make one ranking of theirs.

    Attributes:
        others: their names.
        method: see `retrieval.search.fusion.fuse`.
        weights: of the index of the URL, then of the others.
        depth: hits of each index that are fused.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    others: Annotated[list[str], BeforeValidator(one_or_more, json_schema_input_type=str | list[str])] = (
        Field(alias="with", min_length=1, max_length=7)
    )
    method: FusionMethod = "rrf"
    weights: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = None
    depth: int | None = Field(default=None, ge=1)


class SearchRequest(BaseModel):
    """The body of a search; exactly one of `QUERY_FORMS` must be given."""

    model_config = ConfigDict(extra="forbid", strict=True)

    query: str | None = None
    queries: list[str] | None = Field(default=None, min_length=1)
    vector: Vector | None = None
    vectors: list[Vector] | None = Field(default=None, min_length=1)
    k: int = Field(default=10, ge=1)
    mode: Literal["exact", "approximate"] | None = None
    effort: Effort | None = None
    target_recall: Effort | None = None
    filter: dict[str, Any] | None = None
    parts: list[Literal["text", "explain"]] = Field(default=[], alias="with")
    fuse: FuseRequest | None = None
    min_version: int | None = Field(default=None, ge=1)
    allow_partial: bool = False
    timeout_ms: int | None = Field(default=None, ge=1)

    @property
    def form(self) -> str:
        """The field that the queries came in."""
        return next(form for form in QUERY_FORMS if getattr(self, form) is not None)

    @property
    def approximation(self) -> str | None:
        """The field that asks for an approximate search; None if none does."""
        if self.target_recall is not None:
            return "target_recall"
        if self.effort is not None:
            return "effort"
        return "mode" if self.mode == "approximate" else None

    def texts(self) -> list[str]:
        """The query texts; none if the queries are vectors."""
        return [self.query] if self.query is not None else self.queries or []

    def named_vectors(self) -> tuple[list[Vector], list[str]]:
        """The query vectors, and the parameter that each came in."""
        if self.vector is not None:
            return [self.vector], ["vector"]
        vectors = self.vectors or []
        return vectors, [f"vectors.{place}" for place in range(len(vectors))]

    def depth(self, limits: Limits) -> int:
        """Hits wanted of each index: as many as are fused, or `k`."""
        if self.fuse is None:
            return self.k
        return self.fuse.depth or min(max(USUAL_DEPTH, self.k), limits.max_k)


def read_search_request(body: bytes, limits: Limits) -> SearchRequest:
    """Parse and check a body.

    Raises:
        ApiError: 400 if it is not JSON, 422 if it is not a search within the limits.
    """
    parsed = parsed_body(SearchRequest, body)
    check_search_request(parsed, limits)
    return parsed


def check_search_request(parsed: SearchRequest, limits: Limits) -> None:
    """Raise a 422 if it is not a search within the limits."""
    given = [form for form in QUERY_FORMS if getattr(parsed, form) is not None]
    if not given:
        raise ApiError(422, "missing_parameter", f"give one of {', '.join(QUERY_FORMS)}", "query")
    if len(given) > 1:
        raise invalid(f"{given[0]} and {given[1]} exclude each other", given[1])
    if parsed.k > limits.max_k:
        raise invalid(f"k is {parsed.k}, but at most {limits.max_k} is allowed", "k")
    count = 1
    if given[0] in ("queries", "vectors"):
        count = len(getattr(parsed, given[0]))
        if count > limits.max_queries:
            raise invalid(
                f"{count} {given[0]}, but at most {limits.max_queries} are allowed",
                given[0],
            )
    check_results(parsed, count, limits)
    check_approximation(parsed)
    if parsed.fuse is not None:
        check_fuse(parsed, parsed.fuse, count, limits)


def check_results(request: SearchRequest, count: int, limits: Limits) -> None:
    """Raise a 422 if `count` queries may have more hits together than one request may ask for."""
    most, kind = limits.max_results, "results"
    if request.parts:
        most, kind = (
            min(limits.max_documents, most),
            f"results with {' and '.join(sorted(set(request.parts)))}",
        )
    if count * request.k > most:
        raise invalid(
            f"{count} queries with k {request.k} ask for {count * request.k:,} {kind}, but at most {most:,} "
            "are allowed in one request; lower k or split the queries",
            "k",
        )


def check_approximation(request: SearchRequest) -> None:
    """Raise a 422 if what is said of the way to search does not go together."""
    if request.effort is not None and request.target_recall is not None:
        raise invalid("effort and target_recall exclude each other", "target_recall")
    if request.mode == "exact" and request.approximation is not None:
        raise invalid(
            f"{request.approximation} is for approximate searches, but mode is exact", request.approximation
        )


def check_fuse(request: SearchRequest, fuse: FuseRequest, count: int, limits: Limits) -> None:
    """Raise a 422 if so much cannot be fused, or not so."""
    if not request.texts():
        raise invalid(
            f"{request.form} cannot be fused, since a vector fits one vocabulary only; give a query as text",
            request.form,
        )
    systems = 1 + len(fuse.others)
    depth = request.depth(limits)
    if not request.k <= depth <= limits.max_k:
        raise invalid(
            f"depth is {depth}, but must be at least k, {request.k}, and at most {limits.max_k}", "fuse.depth"
        )
    if systems * depth * count > limits.max_results:
        raise invalid(
            f"{count} queries in {systems} indexes with a depth of {depth} fuse {systems * depth * count:,} results, "
            f"but at most {limits.max_results:,} are allowed in one request; lower the depth or split the queries",
            "fuse.depth",
        )
    if fuse.weights is None:
        return
    if len(fuse.weights) != systems:
        raise invalid(
            f"{systems} indexes are fused with {len(fuse.weights)} weights; give one for the index of the URL, and "
            "one for each of the others",
            "fuse.weights",
        )
    if not 0 < sum(fuse.weights) < 1e300:
        raise invalid("weights must not all be 0, nor add up to more than can be written", "fuse.weights")


def invalid(message: str, param: str) -> ApiError:
    return ApiError(422, "invalid_value", message, param)
