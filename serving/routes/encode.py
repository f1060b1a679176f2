"""Texts to sparse vectors."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from serving.answer_models import Encoding
from serving.asgi import Request, Response, Route
from serving.catalogue import Catalogue
from serving.configuration import Limits
from serving.deadline import Deadline
from serving.description import Description
from serving.encoding import Rest, ServedEncoder
from serving.errors import ApiError
from serving.one_or_more import one_or_more
from serving.parsed_body import parsed_body
from serving.state import ServerState

if TYPE_CHECKING:
    from runtime.activations import SparseActivations


class EncodeRequest(BaseModel):
    """The body of an encoding."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    input: Annotated[list[str], BeforeValidator(one_or_more, json_schema_input_type=str | list[str])]
    role: Literal["document", "query"] = "document"
    top_k: int | None = Field(None, ge=1)
    return_tokens: bool = False


def read_encode_request(body: bytes, limits: Limits) -> EncodeRequest:
    """Parse and check a body.

    Raises:
        ApiError: 400 if it is not JSON, 422 if it is not an encoding within the limits.
    """
    parsed = parsed_body(EncodeRequest, body)
    count = len(parsed.input)
    if not 1 <= count <= limits.max_inputs:
        raise ApiError(
            422, "invalid_value", f"input has {count} texts, but must have 1 to {limits.max_inputs}", "input"
        )
    return parsed


def answer(catalogue: Catalogue, limits: Limits, body: bytes, deadline: Deadline) -> Rest:
    """Parse and encode, and build the body of the answer (blocking)."""
    request = read_encode_request(body, limits)
    encoder = catalogue.encoder(request.model)
    finish = partial(answer_body, request, encoder, deadline)
    return encoder.encode(request.input, request.role, deadline, finish)


def answer_body(
    request: EncodeRequest,
    encoder: ServedEncoder,
    deadline: Deadline,
    vectors: SparseActivations,
    tokens: int | None,
) -> bytes:
    data = []
    for place, (units, weights) in enumerate(vectors):
        deadline.check()
        order = strongest_first(np.asarray(units), np.asarray(weights))[: request.top_k]
        vector: dict[str, Any] = {
            "index": place,
            "indices": units[order].tolist(),
            "values": weights[order].tolist(),
        }
        if request.return_tokens:
            vector["tokens"] = [encoder.vocabulary.term(unit) for unit in vector["indices"]]
        data.append(vector)
    if tokens is None:
        tokens = encoder.encoder.count_tokens(request.input)
    return orjson.dumps({"data": data, "model": request.model, "usage": {"prompt_tokens": tokens}})


def strongest_first(units: np.ndarray[Any, Any], weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The order of descending weight; equal weights by lower unit."""
    return np.lexsort((units, -weights))


async def encode(state: ServerState, request: Request) -> Response:
    request.refuse_query_parameters()
    return await state.respond(request, partial(answer, state.catalogue, state.configuration.limits))


ROUTES = (
    Route(
        "POST",
        "/v1/encode",
        encode,
        "read",
        Description("Texts to sparse vectors", {200: (Encoding,)}, EncodeRequest, errors=(404, 504)),
    ),
)
