"""Sparse vectors and rankings of texts in the forms of text-embeddings-inference, for its clients."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from numpy.typing import NDArray

from serving.answer_models import Ranks, SparseEmbeddings, TeiInfo
from serving.asgi import Request, Response, Route
from serving.catalogue import Catalogue
from serving.configuration import Limits
from serving.deadline import Deadline
from serving.description import Description
from serving.encoding import Rest, ServedEncoder
from serving.errors import ApiError
from serving.routes.health import installed_version
from serving.state import ServerState
from serving.tei_request import EmbedSparseRequest, RerankRequest, TeiRequest, read_tei_request

if TYPE_CHECKING:
    from runtime.activations import SparseActivations

CUTTING_NOTHING = frozenset({"bm25"})
"""Families that read a text to its end, however long it is."""


def encoder_for(catalogue: Catalogue, request: TeiRequest) -> ServedEncoder:
    """The encoder that a request means.

    Raises:
        ApiError: 404 if there is none, 422 if there are several, or if it cannot do what `truncate` asks for.
    """
    encoder = catalogue.encoder(request.model) if request.model is not None else catalogue.only_encoder()
    if request.truncate is False and encoder.name not in CUTTING_NOTHING:
        raise ApiError(
            422,
            "invalid_value",
            f"{encoder.name} encoders cut texts at the longest that they read; leave truncate out, or set it",
            "truncate",
        )
    return encoder


def embedded(catalogue: Catalogue, limits: Limits, body: bytes, deadline: Deadline) -> Rest:
    """Parse and encode, and build the body of the answer (blocking)."""
    request = read_tei_request(EmbedSparseRequest, "inputs", body, limits)
    encoder = encoder_for(catalogue, request)
    role = request.prompt_name or "document"
    return encoder.encode(request.inputs, role, deadline, partial(embedding_body, deadline))


def embedding_body(deadline: Deadline, vectors: SparseActivations, _: int | None) -> bytes:
    rows = []
    for units, weights in vectors:
        deadline.check()
        pairs = zip(units.tolist(), weights.tolist(), strict=True)
        rows.append([{"index": unit, "value": weight} for unit, weight in pairs])
    return orjson.dumps(rows)


def reranked(catalogue: Catalogue, limits: Limits, body: bytes, deadline: Deadline) -> Rest:
    """Parse, encode and score, and build the body of the answer (blocking)."""
    request = read_tei_request(RerankRequest, "texts", body, limits)
    encoder = encoder_for(catalogue, request)

    def with_query(query: SparseActivations, _: int | None) -> Rest:
        return encoder.encode(
            request.texts, "document", deadline, lambda texts, _: ranks_body(request, products(query, texts))
        )

    return encoder.encode([request.query], "query", deadline, with_query)


def products(query: SparseActivations, documents: SparseActivations) -> NDArray[np.float64]:
    """Scores float64 ``[documents]`` of one query: sums of products of weights."""
    weights = np.zeros(query.num_units)
    weights[query.units] = query.weights
    rows = np.repeat(np.arange(documents.num_rows), np.diff(documents.indptr))
    scores = np.zeros(documents.num_rows)
    np.add.at(scores, rows, weights[documents.units] * documents.weights)
    return scores


def ranks_body(request: RerankRequest, scores: NDArray[np.float64]) -> bytes:
    """Best first; equal scores in the order of the texts."""
    told = scores if request.raw_scores else scores / (1.0 + scores)
    ranks: list[dict[str, Any]] = []
    for place in np.argsort(-scores, kind="stable").tolist():
        text = {"text": request.texts[place]} if request.return_text else {}
        ranks.append({"index": place, **text, "score": float(told[place])})
    return orjson.dumps(ranks)


async def embed_sparse(state: ServerState, request: Request) -> Response:
    """As text-embeddings-inference answers; `prompt_name` may be "document" (as without one) or "query"."""
    request.refuse_query_parameters()
    return await state.respond(request, partial(embedded, state.catalogue, state.configuration.limits))


async def rerank(state: ServerState, request: Request) -> Response:
    """As text-embeddings-inference answers.

    Scores are products of sparse vectors, of the query and of each text; s / (1 + s) of them without `raw_scores`.
    """
    request.refuse_query_parameters()
    return await state.respond(request, partial(reranked, state.catalogue, state.configuration.limits))


async def info(state: ServerState, request: Request) -> Response:
    """What clients of text-embeddings-inference ask a server for; null for an encoder where there are several."""
    request.refuse_query_parameters()
    configuration = state.configuration
    encoders = state.catalogue.encoders()
    name = next(iter(encoders.values())).name if len(encoders) == 1 else None
    return Response.json(
        {
            "model_id": name,
            "model_sha": next(iter(encoders)) if len(encoders) == 1 else None,
            "model_dtype": "float32",
            "model_type": {"embedding": {"pooling": "splade"}},
            "max_concurrent_requests": configuration.limits.max_in_hand,
            "max_client_batch_size": configuration.limits.max_inputs,
            "auto_truncate": True,
            "version": installed_version(),
        }
    )


ROUTES = (
    Route(
        "POST",
        "/embed_sparse",
        embed_sparse,
        "read",
        Description(
            "Texts to sparse vectors, for clients of text-embeddings-inference",
            {200: (SparseEmbeddings,)},
            EmbedSparseRequest,
            errors=(404, 504),
        ),
    ),
    Route(
        "POST",
        "/rerank",
        rerank,
        "read",
        Description("Texts in the order of a query", {200: (Ranks,)}, RerankRequest, errors=(404, 504)),
    ),
    Route("GET", "/info", info, "read", Description("What encodes", {200: (TeiInfo,)})),
)
