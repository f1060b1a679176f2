"""The routes, one file a group; `ROUTES` is all of them."""

from serving.asgi import Route
from serving.routes import encode, health, indexes, search
from serving.state import ServerState

ROUTES: tuple[Route[ServerState], ...] = (*health.ROUTES, *encode.ROUTES, *indexes.ROUTES, *search.ROUTES)
