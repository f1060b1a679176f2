"""Texts from models, as OpenAI's clients ask for them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from serving.answer_models import ChatCompletionBody, CompletionBody
from serving.asgi import Answer, Request, Response, Route
from serving.completion_answers import Answers, ChatAnswers, TextAnswers
from serving.completion_request import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    read_generation_request,
)
from serving.description import Description
from serving.errors import RETRY, ApiError, from_library
from serving.generation import Generator, Stream, collect
from serving.log import of_request
from serving.request_identity import REQUEST_ID
from serving.state import ServerState
from serving.streaming import DONE, StreamingResponse, server_sent_event, unless_gone

if TYPE_CHECKING:
    from moe.generation.engine import Event
    from moe.generation.engine import Request as EngineRequest

logger = logging.getLogger("serving")

EVENTS = "text/event-stream"

MOST_SEED = 2**32
"""Seeds are taken modulo this."""


def engine_request(
    parsed: GenerationRequest, ids: list[int], max_tokens: int, logprobs: int | None
) -> EngineRequest:
    """What the engine is asked for one prompt.

    Raises:
        ApiError: 422, naming the field that it cannot honour.
    """
    from moe.generation.engine import Request as EngineRequest
    from moe.generation.penalties import Penalties
    from moe.generation.sampling import Sampling

    bias = {}
    for token, value in parsed.logit_bias.items():
        if not token.isascii() or not token.isdigit():
            raise ApiError(422, "invalid_value", f"logit_bias: {token!r} is no id of a token", "logit_bias")
        bias[int(token)] = value
    return EngineRequest(
        prompt=ids,
        max_tokens=max_tokens,
        sampling=Sampling(parsed.temperature, parsed.top_k, parsed.top_p, parsed.min_p),
        penalties=Penalties(
            parsed.repetition_penalty, parsed.presence_penalty, parsed.frequency_penalty, bias
        ),
        seed=None if parsed.seed is None else parsed.seed % MOST_SEED,
        stop=tuple(parsed.stop or ()),
        stop_tokens=frozenset(parsed.stop_token_ids),
        ignore_end=parsed.ignore_eos,
        choices=parsed.n,
        logprobs=logprobs,
        return_routing=parsed.return_routing,
    )


async def completions(state: ServerState, request: Request) -> Answer:
    """Go on from prompts."""

    def ask(tokenizer: Any, parsed: CompletionRequest) -> list[EngineRequest]:
        made = []
        for prompt in parsed.prompt:
            ids = list(tokenizer(prompt)["input_ids"]) if isinstance(prompt, str) else prompt
            with named("prompt"):
                limit = parsed.max_tokens or state.configuration.limits.max_new_tokens
                made.append(engine_request(parsed, ids, limit, parsed.logprobs))
        return made

    return await generate(state, request, CompletionRequest, ask, TextAnswers)


async def chat_completions(state: ServerState, request: Request) -> Answer:
    """Answer in a conversation."""
    from moe.generation.conversation import conversation_ids

    def ask(tokenizer: Any, parsed: ChatRequest) -> list[EngineRequest]:
        with named("messages"):
            ids = conversation_ids(tokenizer, [message.for_template() for message in parsed.messages])
            limit = parsed.max_completion_tokens or parsed.max_tokens
            if parsed.top_logprobs is not None and not parsed.logprobs:
                raise ApiError(422, "invalid_value", "top_logprobs needs logprobs: true", "top_logprobs")
            logprobs = (parsed.top_logprobs or 0) if parsed.logprobs else None
            limit = limit or state.configuration.limits.max_new_tokens
            return [engine_request(parsed, ids, limit, logprobs)]

    return await generate(state, request, ChatRequest, ask, ChatAnswers)


@contextmanager
def named(param: str) -> Iterator[None]:
    """Errors of the library become answers that name the field."""
    from runtime.errors import LexpertError

    try:
        yield
    except LexpertError as error:
        raise from_library(error, param) from error


async def generate(
    state: ServerState,
    request: Request,
    kind: type[GenerationRequest],
    ask: Callable[[Any, Any], list[EngineRequest]],
    answers: type[Answers],
) -> Answer:
    """Read a request, generate, and answer at once or piece by piece."""
    request.refuse_query_parameters()
    limits = state.configuration.limits
    with state.admitted():
        body = await request.json_body(limits.max_body_bytes, limits.body_timeout_s)
        parsed = read_generation_request(kind, body, limits)
        generator = state.generators.named(parsed.model)
        asked = await asyncio.to_thread(ask, generator.tokenizer, parsed)
    streams: list[Stream] = []
    try:
        for each in asked:
            stream = await submit(generator, each, "prompt" if kind is CompletionRequest else "messages")
            streams.append(stream)
    except BaseException:
        cancel(streams)
        raise
    made = answers(generator, parsed, uuid4().hex, int(time.time()))
    if parsed.stream:
        about = of_request(request.header(REQUEST_ID))
        failed = partial(logger.error, "a stream of %s failed: %r", parsed.model, extra=about)
        return await StreamingResponse.started(pieces(request, streams, parsed, made), failed)
    try:
        with request.interval("generate"):
            found = await unless_gone(request, collect_all(streams))
    finally:
        cancel(streams)
    return Response.json(made.whole(found))


async def submit(generator: Generator, asked: EngineRequest, param: str) -> Stream:
    """Put a request into a model's queue.

    Raises:
        ApiError: 422 naming `param` if it cannot be honoured, 429 if too many wait.
    """
    from moe.generation.engine import QueueFullError

    try:
        with named(param):
            return await generator.submit(asked)
    except ApiError as error:
        if isinstance(error.__cause__, QueueFullError):
            raise ApiError(429, "overloaded", str(error.__cause__), headers=RETRY) from error
        raise


async def collect_all(streams: list[Stream]) -> list[tuple[int, Event]]:
    """All events, each with the number of its prompt."""
    lists = await asyncio.gather(*(collect(stream) for stream in streams))
    return [(number, event) for number, events in enumerate(lists) for event in events]


async def pieces(
    request: Request, streams: list[Stream], parsed: GenerationRequest, made: Answers
) -> AsyncGenerator[bytes, None]:
    """The stream of an answer; ends the generation when it is closed."""
    found: asyncio.Queue[tuple[int, Event | BaseException | None]] = asyncio.Queue()

    async def forward(number: int, stream: Stream) -> None:
        try:
            async for event in stream:
                found.put_nowait((number, event))
            found.put_nowait((number, None))
        except Exception as error:
            found.put_nowait((number, error))

    tasks = [asyncio.ensure_future(forward(number, stream)) for number, stream in enumerate(streams)]
    include_usage = parsed.stream_options is not None and parsed.stream_options.include_usage
    ended = 0
    try:
        for chunk in made.opening():
            yield server_sent_event(chunk)
        with request.interval("generate"):
            while ended < len(streams):
                number, event = await found.get()
                if event is None:
                    ended += 1
                elif isinstance(event, BaseException):
                    raise event
                else:
                    news = made.chunk(number, event)
                    if news is not None:
                        yield server_sent_event(news)
        if include_usage:
            yield server_sent_event(made.usage_chunk())
        yield DONE
    finally:
        cancel(streams)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def cancel(streams: list[Stream]) -> None:
    for stream in streams:
        stream.cancel()


ROUTES = (
    Route(
        "POST",
        "/v1/completions",
        completions,
        "read",
        Description("Go on from prompts", {200: (CompletionBody, EVENTS)}, CompletionRequest, errors=(404,)),
    ),
    Route(
        "POST",
        "/v1/chat/completions",
        chat_completions,
        "read",
        Description(
            "Answer in a conversation", {200: (ChatCompletionBody, EVENTS)}, ChatRequest, errors=(404,)
        ),
    ),
)
