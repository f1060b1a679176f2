"""Which indexes there are."""

from __future__ import annotations

from serving.asgi import Request, Response, Route
from serving.state import ServerState


async def list_indexes(state: ServerState, request: Request) -> Response:
    request.refuse_query_parameters()
    indexes = state.catalogue.indexes
    return Response.json({"indexes": [indexes[name].describe() for name in sorted(indexes)]})


async def describe_index(state: ServerState, request: Request) -> Response:
    request.refuse_query_parameters()
    return Response.json(state.catalogue.index(request.path_parameters["name"]).describe())


ROUTES = (
    Route("GET", "/v1/indexes", list_indexes),
    Route("GET", "/v1/indexes/{name}", describe_index),
)
