"""Metrics for Prometheus."""

from __future__ import annotations

from serving.asgi import Request, Response, Route
from serving.description import Description
from serving.metrics_text import metrics_text
from serving.routes.health import installed_version
from serving.state import ServerState

TEXT_FORMAT = b"text/plain; version=0.0.4; charset=utf-8"


async def metrics(state: ServerState, request: Request) -> Response:
    """What this server does and has done; also while it is not ready."""
    request.refuse_query_parameters()
    return Response(200, await metrics_text(state, installed_version()), content_type=TEXT_FORMAT)


ROUTES = (
    Route("GET", "/metrics", metrics, "read", Description("Metrics for Prometheus", {200: ("text/plain",)})),
)
