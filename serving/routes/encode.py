"""Texts to sparse vectors."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.asgi import Request, Response, Route
from serving.catalogue import Catalogue
from serving.configuration import Limits
from serving.errors import ApiError, from_validation
from serving.state import ServerState


class EncodeRequest(BaseModel):
    """The body of an encoding."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    input: str | list[str]
    role: Literal["document", "query"] = "document"
    top_k: int | None = Field(None, ge=1)
    return_tokens: bool = False

    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


def read_encode_request(body: bytes, limits: Limits) -> EncodeRequest:
    """Parse and check a body.

    Raises:
        ApiError: 400 if it is not JSON, 422 if it is not an encoding within the limits.
    """
    try:
        parsed = EncodeRequest.model_validate_json(body)
    except ValidationError as error:
        raise from_validation(error) from None
    count = len(parsed.texts())
    if not 1 <= count <= limits.max_inputs:
        raise ApiError(
            422, "invalid_value", f"input has {count} texts, but must have 1 to {limits.max_inputs}", "input"
        )
    return parsed


def answer(catalogue: Catalogue, body: bytes, limits: Limits) -> bytes:
    """Parse and encode, and build the body of the answer (blocking)."""
    request = read_encode_request(body, limits)
    encoder = catalogue.encoder(request.model)
    encode = encoder.encode_queries if request.role == "query" else encoder.encode_documents
    data = []
    for place, (units, weights) in enumerate(encode(request.texts())):
        order = strongest_first(np.asarray(units), np.asarray(weights))[: request.top_k]
        vector: dict[str, Any] = {
            "index": place,
            "indices": units[order].tolist(),
            "values": weights[order].tolist(),
        }
        if request.return_tokens:
            vector["tokens"] = [encoder.vocabulary.term(unit) for unit in vector["indices"]]
        data.append(vector)
    usage = {"prompt_tokens": encoder.count_tokens(request.texts())}
    return orjson.dumps({"data": data, "model": request.model, "usage": usage})


def strongest_first(units: np.ndarray[Any, Any], weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The order of descending weight; equal weights by lower unit."""
    return np.lexsort((units, -weights))


async def encode(state: ServerState, request: Request) -> Response:
    request.refuse_query_parameters()
    catalogue = state.catalogue
    limits = state.configuration.limits
    return await state.respond(answer, catalogue, await request.json_body(limits.max_body_bytes), limits)


ROUTES = (Route("POST", "/v1/encode", encode),)
