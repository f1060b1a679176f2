"""Which indexes there are; making, copying and deleting them, and their further names."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from serving.answer_models import AliasesBody, IndexBody, IndexDeleted, IndexList, IndexStats, SnapshotBody
from serving.asgi import Request, Response, Route
from serving.catalogue import ServedIndex
from serving.configuration import INDEX_NAME
from serving.description import Description
from serving.errors import ApiError
from serving.indexes.writers import NewIndex
from serving.parsed_body import parsed_body
from serving.state import ServerState

NO_LONGER_S = 30.0
"""How long the server that made a change waits to see it itself."""


class AliasChanges(BaseModel):
    """Aliases to set, all at once: each with the index that it is to stand for, or null to remove it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    aliases: dict[str, str | None] = Field(min_length=1, max_length=1000)


async def list_indexes(state: ServerState, request: Request) -> Response:
    request.refuse_query_parameters()
    return Response.json({"indexes": [served.describe() for served in state.catalogue.all()]})


async def describe_index(state: ServerState, request: Request) -> Response:
    request.refuse_query_parameters()
    name = request.path_parameters["name"]
    await state.look_for(name)
    return Response.json(state.catalogue.searched(name).describe())


async def create_index(state: ServerState, request: Request) -> Response:
    """Make an index: 201, or 200 if it is there already and was made with the same."""
    request.refuse_query_parameters()
    name = checked_name(request.path_parameters["name"], "name")
    new = await read_body(state, request, NewIndex)
    if new.shards > 1:
        raise ApiError(
            422,
            "invalid_value",
            f"shards is {new.shards}, but an index that is written to has one; when it is filled, lexpert index shard "
            "splits a copy of it",
            "shards",
        )
    has_made = await state.writing.create(name, new)
    await state.see(lambda catalogue: name in catalogue.indexes, NO_LONGER_S)
    return Response.json(state.catalogue.index(name).describe(), 201 if has_made else 200)


async def delete_index(state: ServerState, request: Request) -> Response:
    request.refuse_query_parameters()
    name = request.path_parameters["name"]
    if name in state.catalogue.aliases:
        raise ApiError(409, "is_alias", f"{name} is an alias; name the index, or remove the alias", "name")
    served = await state.index(name)
    await state.writing.delete(name)
    await state.see(lambda catalogue: is_gone(catalogue.indexes.get(name), served), NO_LONGER_S)
    return Response.json({"status": "completed", "name": name})


async def index_stats(state: ServerState, request: Request) -> Response:
    request.refuse_query_parameters()
    served = await state.index(request.path_parameters["name"])
    pending = {"documents": 0, "bytes": 0}
    if served.is_writable:
        pending = await state.writing.pending(served.name, served.uid)
    stats = await asyncio.to_thread(served.index.stats)
    kept = {key: value for key, value in stats.items() if key not in ("path", "generation")}
    return Response.json({"name": served.name, "version": stats["generation"], **kept, "pending": pending})


async def make_snapshot(state: ServerState, request: Request) -> Response:
    """Copy the index as it is, with all that was answered before, into the data folder."""
    request.refuse_query_parameters()
    served = await state.index(request.path_parameters["name"])
    made = await state.writing.snapshot(served.name, served.uid)
    return Response.json({"index": served.name, **made}, 201)


async def list_aliases(state: ServerState, request: Request) -> Response:
    request.refuse_query_parameters()
    return Response.json({"aliases": dict(state.catalogue.aliases)})


async def set_aliases(state: ServerState, request: Request) -> Response:
    """Set and remove aliases, all at once."""
    request.refuse_query_parameters()
    changes = await read_body(state, request, AliasChanges)
    for alias, name in changes.aliases.items():
        checked_name(alias, f"aliases.{alias}")
        if name is not None:
            checked_name(name, f"aliases.{alias}")
    aliases = await state.writing.set_aliases(changes.aliases)
    await state.see(lambda catalogue: dict(catalogue.aliases) == aliases, NO_LONGER_S)
    return Response.json({"aliases": aliases})


async def read_body(state: ServerState, request: Request, kind: type[Any]) -> Any:
    """The body as a pydantic model; 400 or 422 if it is none."""
    limits = state.configuration.limits
    body = await request.json_body(limits.max_body_bytes, limits.body_timeout_s)
    return parsed_body(kind, body)


def checked_name(name: str, param: str) -> str:
    """A name that can stand in a path and in a folder; 422 otherwise."""
    if not re.fullmatch(INDEX_NAME, name):
        raise ApiError(
            422,
            "invalid_value",
            f"the name {name!r:.80} must be 1 to 64 letters, digits, dots, dashes or underscores, with a letter or "
            "digit first",
            param,
        )
    return name


def is_gone(now: ServedIndex | None, before: ServedIndex) -> bool:
    return now is None or now.uid != before.uid


ROUTES = (
    Route("GET", "/v1/indexes", list_indexes, "read", Description("The indexes", {200: (IndexList,)})),
    Route("GET", "/v1/indexes/{name}", describe_index, "read", Description("One index", {200: (IndexBody,)})),
    Route(
        "PUT",
        "/v1/indexes/{name}",
        create_index,
        "admin",
        Description("Make an index", {200: (IndexBody,), 201: (IndexBody,)}, NewIndex, errors=(409,)),
    ),
    Route(
        "DELETE",
        "/v1/indexes/{name}",
        delete_index,
        "admin",
        Description("Delete an index", {200: (IndexDeleted,)}, errors=(409,)),
    ),
    Route(
        "GET",
        "/v1/indexes/{name}/stats",
        index_stats,
        "read",
        Description("Sizes of an index", {200: (IndexStats,)}),
    ),
    Route(
        "POST",
        "/v1/indexes/{name}/snapshots",
        make_snapshot,
        "admin",
        Description("Copy an index", {201: (SnapshotBody,)}, errors=(409,)),
    ),
    Route(
        "GET",
        "/v1/aliases",
        list_aliases,
        "read",
        Description("Further names of indexes", {200: (AliasesBody,)}),
    ),
    Route(
        "POST",
        "/v1/aliases",
        set_aliases,
        "admin",
        Description("Set and remove aliases", {200: (AliasesBody,)}, AliasChanges, errors=(404, 409)),
    ),
)
