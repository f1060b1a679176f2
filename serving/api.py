"""The HTTP interface as one ASGI application, independent of what runs it."""

from __future__ import annotations

import asyncio
import logging
import time

from runtime.errors import LexpertError
from serving.asgi import Answer, ClientGoneError, Receive, Request, Response, Route, Router, Scope, Send
from serving.configuration import ServerConfiguration
from serving.deadline import WorkStoppedError
from serving.errors import ApiError, from_library, internal_error
from serving.generators import Generators
from serving.indexes.writing import Writing
from serving.key_file import with_keys
from serving.keys import KeyRing
from serving.log import log_request, of_request
from serving.metrics import GONE, OTHER
from serving.request_identity import REQUEST_ID
from serving.routes import ROUTES
from serving.shards import OpenShards
from serving.state import ServerState
from serving.tracing import Tracing

logger = logging.getLogger("serving")

ROUTER = Router(ROUTES)


class Api:
    """ASGI application; opens its indexes at lifespan start and closes them at its end.

    It writes to indexes, holds models and searches shards itself unless it is given other processes that do.

    Request ids are given to it by `serving.request_identity.RequestIdentity`, which belongs around it.
    """

    def __init__(
        self,
        configuration: ServerConfiguration,
        writing: Writing | None = None,
        generators: Generators | None = None,
        open_shards: OpenShards | None = None,
    ) -> None:
        configuration = with_keys(configuration)
        self.state = ServerState(configuration, writing, generators, open_shards)
        self._keys = KeyRing(configuration.keys)
        self._tracing = Tracing(configuration.traces) if configuration.traces is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._handle(Request(scope, receive), send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self.state.start()
                except Exception as error:
                    logger.error("%s", error, exc_info=not isinstance(error, LexpertError))
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    return
                await send({"type": "lifespan.startup.complete"})
            else:
                await asyncio.to_thread(self.state.close)
                if self._tracing is not None:
                    await asyncio.to_thread(self._tracing.close)
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _handle(self, request: Request, send: Send) -> None:
        metrics = self.state.metrics
        began, status = time.perf_counter(), GONE
        metrics.in_flight += 1
        trace = self._tracing.begin(request) if self._tracing is not None else None
        if trace is not None:
            send = trace.told(send)
        try:
            try:
                response: Answer = await self._answer(request)
            except ApiError as error:
                metrics.refuse(error.status, error.code)
                response = self._refuse(request, error)
            await response.send(request, send)
            status = str(response.status)
        except (ClientGoneError, WorkStoppedError):
            return
        finally:
            metrics.in_flight -= 1
            route, seconds = request.route or OTHER, time.perf_counter() - began
            method = request.scope["method"]
            metrics.answered(method if request.route else OTHER, route, status, seconds)
            log_request(method, route, status, seconds, request.header(REQUEST_ID))
            if trace is not None:
                trace.end(status)

    async def _answer(self, request: Request) -> Answer:
        """Find and run the handler; everything that it may raise becomes an ApiError."""
        try:
            route = self._route(request)
            return await route.handler(self.state, request)
        except (ApiError, ClientGoneError, WorkStoppedError):
            raise
        except Exception as error:
            raise (from_library(error) if isinstance(error, LexpertError) else internal_error()) from error

    def _route(self, request: Request) -> Route[ServerState]:
        """The route of a request that has the key for it; without a key nobody learns which others there are."""
        headers = request.scope["headers"]
        try:
            route, request.path_parameters = ROUTER.find(request.scope["method"], request.scope["path"])
            request.route = route.path
        except ApiError:
            self._keys.admit(headers, "read")
            raise
        self._keys.admit(headers, route.scope)
        return route

    def _refuse(self, request: Request, error: ApiError) -> Response:
        request_id = request.header(REQUEST_ID)
        if error.status == 500:
            logger.error(
                "request %s to %s failed",
                request_id,
                request.route or OTHER,
                exc_info=error.__cause__ or error,
                extra=of_request(request_id),
            )
        return Response(error.status, error.body(request_id), error.headers)
