"""Traces of requests, as OpenTelemetry has them: a span of the request, and one of each stage of its work below it.

Off unless the configuration says where they go. A span has the route, the status and the id of its request; no
question, no body, no path and no key.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any

from runtime.errors import NotFoundError, UsageError
from serving.asgi import Header, Message, Request, Send
from serving.configuration import Traces
from serving.deadline import Interval
from serving.request_identity import REQUEST_ID

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

SERVICE = "lexpert"

SENT_S = 5.0
"""How long a collector may take for what it is sent, with all tries: a server that ends waits for it."""


def check_traces(traces: Traces | None) -> None:
    """Look for what traces need, so that a missing package or folder is found before anything is started.

    Raises:
        NotFoundError: a package is missing.
        UsageError: the file cannot be written.
    """
    if traces is not None:
        exporter(traces).shutdown()


class Tracing:
    """Makes spans of requests and sends them off in a thread.

    Args:
        traces: where they go, and of how many requests.

    Raises:
        NotFoundError: a package is missing.
        UsageError: the file cannot be written.
    """

    def __init__(self, traces: Traces) -> None:
        to = exporter(traces)
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(traces.share)),
            resource=Resource.create({"service.name": SERVICE}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(to))
        self._tracer = self._provider.get_tracer("serving")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, request: Request) -> Trace:
        """The span of a request, below that of its client if its headers name one."""
        from opentelemetry.trace import SpanKind

        sent = {name: request.header(name.encode()) for name in ("traceparent", "tracestate")}
        context = self._propagator.extract({name: value for name, value in sent.items() if value is not None})
        span = self._tracer.start_span(request.scope["method"], context, SpanKind.SERVER)
        return Trace(self, request, span)

    def headers(self, span: Span) -> list[Header]:
        """What tells others of a span: ``traceparent``, and ``tracestate`` where there is one."""
        from opentelemetry.trace import set_span_in_context

        told: dict[str, str] = {}
        self._propagator.inject(told, set_span_in_context(span))
        return [(name.encode(), value.encode()) for name, value in told.items()]

    def stages(self, span: Span, intervals: Sequence[Interval], epoch_ns: int) -> None:
        """The spans below that of a request; `epoch_ns` is when `time.perf_counter` was 0."""
        from opentelemetry.trace import set_span_in_context

        context = set_span_in_context(span)
        for interval in intervals:
            began, ended = (epoch_ns + int(moment * 1e9) for moment in (interval.began, interval.ended))
            self._tracer.start_span(interval.name, context, start_time=began).end(ended)

    def close(self) -> None:
        """Send off what there is (blocking)."""
        self._provider.shutdown()


class Trace:
    """Of one request."""

    def __init__(self, tracing: Tracing, request: Request, span: Span) -> None:
        self._tracing = tracing
        self._request = request
        self._span = span
        self._epoch_ns = time.time_ns() - time.perf_counter_ns()

    def told(self, send: Send) -> Send:
        """`send`, with headers that tell the client of the trace."""

        async def send_and_tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {
                    **message,
                    "headers": [*message["headers"], *self._tracing.headers(self._span)],
                }
            await send(message)

        return send_and_tell

    def end(self, status: str) -> None:
        """Note how the request ended, with what its time went into; `status` is as the log has it."""
        span, request = self._span, self._request
        if span.is_recording():
            from opentelemetry.trace import StatusCode

            method = request.scope["method"] if request.route else "HTTP"
            span.update_name(f"{method} {request.route}".rstrip())
            span.set_attributes(self._attributes(status))
            if status.startswith("5"):
                span.set_status(StatusCode.ERROR)
            self._tracing.stages(span, request.intervals, self._epoch_ns)
        span.end()

    def _attributes(self, status: str) -> dict[str, Any]:
        request = self._request
        told: dict[str, Any] = {"lexpert.request_id": request.header(REQUEST_ID) or ""}
        if request.route:
            told |= {"http.request.method": request.scope["method"], "http.route": request.route}
        if status.isdigit():
            return told | {"http.response.status_code": int(status)}
        return told | {"error.type": status}


def exporter(traces: Traces) -> SpanExporter:
    """What takes spans to where they go; see `Tracing` for what it raises."""
    try:
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        if traces.endpoint is not None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            return OTLPSpanExporter(endpoint=traces.endpoint, timeout=SENT_S)
    except ImportError as error:
        raise NotFoundError(
            f"traces need the package {error.name}; run: pip install 'lexpert[tracing]'"
        ) from None

    class FileSpanExporter(ConsoleSpanExporter):
        """A span on a line. The file is appended to, line by line, for other replicas may write to it too."""

        def __init__(self, file: IO[str]) -> None:
            super().__init__(out=file, formatter=lambda span: span.to_json(indent=None) + "\n")

        def shutdown(self) -> None:
            self.out.close()

    assert traces.file is not None
    try:
        return FileSpanExporter(traces.file.open("a", encoding="utf-8", buffering=1))
    except OSError as error:
        raise UsageError(
            f"the file of traces {traces.file} cannot be written ({error.strerror}); give another"
        ) from None
