"""The page at ``/``: static files that ask the other routes, as any client does."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from serving.asgi import Header, Request, Response, Route
from serving.description import Description
from serving.errors import ApiError
from serving.state import ServerState

FOLDER = Path(__file__).parents[1] / "page"

START = "page.html"

TYPES = {
    ".css": b"text/css; charset=utf-8",
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Text becomes markup nowhere: a browser that knows of this refuses it.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

HEADERS: tuple[Header, ...] = (
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-cache"),
)


@cache
def files() -> dict[str, Response]:
    """The answer for each file of the page, by its name."""
    return {
        path.name: Response(200, path.read_bytes(), HEADERS, TYPES[path.suffix])
        for path in FOLDER.iterdir()
        if path.suffix in TYPES
    }


async def page(_: ServerState, request: Request) -> Response:
    """Search, compare, statistics and generation in a browser; it asks for a key where there are keys."""
    request.refuse_query_parameters()
    return files()[START]


async def page_file(_: ServerState, request: Request) -> Response:
    """What the page is made of; the same on every server."""
    request.refuse_query_parameters()
    found = files().get(request.path_parameters["file"])
    if found is None:
        raise ApiError(404, "route_not_found", f"there is no {request.scope['path']} on this server")
    return found


ROUTES = (
    Route("GET", "/", page, "open", Description("A page to look at", {200: ("text/html",)})),
    Route(
        "GET",
        "/page/{file}",
        page_file,
        "open",
        Description(
            "A file of that page", {200: ("text/css", "text/javascript", "image/svg+xml", "text/html")}
        ),
    ),
)
