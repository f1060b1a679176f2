"""Search in one index, or in several whose rankings are fused."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from serving.answer_models import SearchBody
from serving.asgi import Request, Response, Route
from serving.catalogue import Catalogue
from serving.configuration import Limits
from serving.deadline import Deadline
from serving.description import Description
from serving.encoding import Rest
from serving.search_request import SearchRequest, read_search_request
from serving.searching import Search, searched_indexes
from serving.state import AwaitsVersion, ServerState


def answer(
    catalogue: Callable[[], Catalogue], name: str, limits: Limits, body: bytes, deadline: Deadline
) -> Rest | AwaitsVersion:
    """Parse a body, and go on as `found` (blocking)."""
    started = time.perf_counter()
    return found(catalogue, name, limits, read_search_request(body, limits), started, deadline)


def found(
    catalogue: Callable[[], Catalogue],
    name: str,
    limits: Limits,
    request: SearchRequest,
    started: float,
    deadline: Deadline,
) -> Rest | AwaitsVersion:
    """Encode and search in what `catalogue` has then, and build the body of the answer (blocking)."""

    def search_now() -> Search:
        indexes = searched_indexes(catalogue(), name, request)
        return Search(indexes, request, request.depth(limits), started, deadline)

    search = search_now()
    served = search.indexes[0]
    if request.min_version is not None and served.version < request.min_version:
        return AwaitsVersion(served, request.min_version, lambda: search_now().run())
    return search.run()


async def search(state: ServerState, request: Request) -> Response:
    request.refuse_query_parameters()
    name = request.path_parameters["name"]
    await state.look_for(name)
    state.catalogue.searched(name)  # an index that is not there is said so before the body is read
    work = partial(answer, lambda: state.catalogue, name, state.configuration.limits)
    return await state.respond(request, work, takes_timeout=True)


ROUTES = (
    Route(
        "POST",
        "/v1/indexes/{name}/search",
        search,
        "read",
        Description("Search an index", {200: (SearchBody,)}, SearchRequest, errors=(409, 504)),
    ),
)
