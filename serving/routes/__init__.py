"""The routes, one file a group; `ROUTES` is all of them."""

from serving.asgi import Route
from serving.routes import (
    answers,
    completions,
    documents,
    encode,
    health,
    indexes,
    metrics,
    models,
    openapi,
    page,
    search,
    tei,
)
from serving.state import ServerState

ROUTES: tuple[Route[ServerState], ...] = (
    *page.ROUTES,
    *health.ROUTES,
    *metrics.ROUTES,
    *openapi.ROUTES,
    *encode.ROUTES,
    *tei.ROUTES,
    *indexes.ROUTES,
    *documents.ROUTES,
    *search.ROUTES,
    *completions.ROUTES,
    *answers.ROUTES,
    *models.ROUTES,
)
