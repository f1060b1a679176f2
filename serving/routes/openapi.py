"""What the routes say of themselves, for programs and for people."""

from __future__ import annotations

from functools import cache
from typing import Any

import orjson

from serving.asgi import Request, Response, Route
from serving.description import Description
from serving.openapi import openapi
from serving.openapi_page import openapi_page
from serving.routes.health import installed_version
from serving.state import ServerState

NOTHING_ELSE = (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'")


@cache
def document() -> dict[str, Any]:
    from serving.routes import ROUTES as ALL  # which this module is a part of

    return openapi(ALL, installed_version())


@cache
def document_body() -> bytes:
    return orjson.dumps(document())


@cache
def page_body() -> bytes:
    return openapi_page(document()).encode()


async def openapi_json(_: ServerState, request: Request) -> Response:
    """OpenAPI 3.1 of this server."""
    request.refuse_query_parameters()
    return Response(200, document_body())


async def docs(_: ServerState, request: Request) -> Response:
    """The same as a page, without scripts."""
    request.refuse_query_parameters()
    return Response(200, page_body(), (NOTHING_ELSE,), b"text/html; charset=utf-8")


ROUTES = (
    Route(
        "GET",
        "/openapi.json",
        openapi_json,
        "read",
        Description("OpenAPI document", {200: ("application/json",)}),
    ),
    Route("GET", "/docs", docs, "read", Description("This page", {200: ("text/html",)})),
)
