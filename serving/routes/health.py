"""Whether the server lives, whether it can answer, and what it is."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

from serving.answer_models import Health, Readiness, SoftwareVersion
from serving.asgi import Request, Response, Route
from serving.description import Description
from serving.state import ServerState


async def health(_: ServerState, request: Request) -> Response:
    """The process answers."""
    request.refuse_query_parameters()
    return Response.json({"status": "ok"})


async def ready(state: ServerState, request: Request) -> Response:
    """Every index is open; 503 otherwise. Where there are keys it does not name them: it asks for none itself."""
    request.refuse_query_parameters()
    catalogue = state.catalogue
    if state.configuration.keys:
        return Response.json({"status": "ready"})
    versions = {served.name: served.version for served in catalogue.all()}
    return Response.json({"status": "ready", "indexes": versions})


async def server_version(_: ServerState, request: Request) -> Response:
    request.refuse_query_parameters()
    return Response.json({"name": "lexpert", "version": installed_version()})


@cache
def installed_version() -> str:
    """The version of the installed distribution; "unknown" in a checkout that was never installed."""
    try:
        return version("lexpert")
    except PackageNotFoundError:
        return "unknown"


ROUTES = (
    Route("GET", "/health", health, "open", Description("The process answers", {200: (Health,)})),
    Route("GET", "/ready", ready, "open", Description("Every index is open", {200: (Readiness,)})),
    Route(
        "GET",
        "/version",
        server_version,
        "read",
        Description("Name and version of the software", {200: (SoftwareVersion,)}),
    ),
)
