"""Texts from models, as OpenAI's clients ask for them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import uuid4

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from serving.answer_models import ChatCompletionBody, CompletionBody
from serving.asgi import Answer, Request, Response, Route
from serving.completion_answers import Answers, ChatAnswers, TextAnswers
from serving.configuration import Limits
from serving.description import Description
from serving.errors import RETRY, ApiError, from_library, from_validation
from serving.generation import Stream, collect
from serving.one_or_more import one_or_more
from serving.state import ServerState
from serving.streaming import DONE, StreamingResponse, server_sent_event, unless_gone

if TYPE_CHECKING:
    from moe.generation.engine import Event
    from moe.generation.engine import Request as EngineRequest

logger = logging.getLogger("serving")

EVENTS = "text/event-stream"

MOST_STOPS = 16
MOST_SEED = 2**32
"""Seeds are taken modulo this."""


def prompts(value: Any) -> list[Any]:
    """One or more prompts, each a text or a list of ids."""
    if isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int)):
        value = [value]
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("prompt_type", "input should be a text, a list of ids, or a list of either")
    for prompt in value:
        of_ids = isinstance(prompt, list) and all(type(token) is int for token in prompt)
        if not isinstance(prompt, str) and not of_ids:
            raise PydanticCustomError(
                "prompt_type", "input should be a text, a list of ids, or a list of either"
            )
    return value


class StreamOptions(BaseModel):
    """What a stream has beside its texts."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class GenerationRequest(BaseModel):
    """What both routes take. The last six fields are not OpenAI's."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    n: int = Field(default=1, ge=1)
    seed: int | None = None
    stop: (
        Annotated[
            list[Annotated[str, Field(min_length=1)]],
            Field(max_length=MOST_STOPS),
            BeforeValidator(one_or_more, json_schema_input_type=str | list[str]),
        ]
        | None
    ) = None
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = {}
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    top_k: int | None = Field(default=None, ge=1)
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0, le=10)
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    return_routing: bool = False


class CompletionRequest(GenerationRequest):
    """The body of a completion."""

    prompt: Annotated[
        list[Any],
        BeforeValidator(prompts, json_schema_input_type=str | list[int] | list[str | list[int]]),
    ]
    max_tokens: int | None = Field(default=16, ge=1)
    logprobs: int | None = Field(default=None, ge=0, le=20)


class TextPart(BaseModel):
    """A piece of a message."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart]
    name: str | None = None

    def for_template(self) -> dict[str, Any]:
        """As templates of tokenizers take it."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": text}


class ChatRequest(GenerationRequest):
    """The body of an answer in a conversation."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)


def read(kind: type[GenerationRequest], body: bytes, limits: Limits) -> Any:
    """Parse and check a body.

    Raises:
        ApiError: 400 if it is not JSON, 422 if it is not what the route takes, within the limits.
    """
    try:
        parsed = kind.model_validate_json(body)
    except ValidationError as error:
        raise from_validation(error) from None
    if parsed.stream_options is not None and not parsed.stream:
        raise ApiError(422, "invalid_value", "stream_options is for streams; set stream", "stream_options")
    texts = parsed.n * len(getattr(parsed, "prompt", (None,)))
    if texts > limits.max_choices:
        raise ApiError(
            422,
            "invalid_value",
            f"{texts} texts are asked for, but at most {limits.max_choices} are allowed",
            "n",
        )
    most = getattr(parsed, "max_completion_tokens", None) or getattr(parsed, "max_tokens", None)
    if most is not None and most > limits.max_new_tokens:
        raise ApiError(
            422,
            "invalid_value",
            f"max_tokens is {most}, but at most {limits.max_new_tokens} is allowed",
            "max_tokens",
        )
    return parsed


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
    from moe.generation.engine import QueueFullError

    request.refuse_query_parameters()
    limits = state.configuration.limits
    with state.admitted():
        body = await request.json_body(limits.max_body_bytes, limits.body_timeout_s)
        parsed = read(kind, body, limits)
        generator = state.generators.named(parsed.model)
        asked = await asyncio.to_thread(ask, generator.tokenizer, parsed)
    streams: list[Stream] = []
    try:
        for each in asked:
            with named("prompt" if kind is CompletionRequest else "messages"):
                streams.append(await generator.submit(each))
    except BaseException as error:
        cancel(streams)
        if isinstance(error.__cause__, QueueFullError):
            raise ApiError(429, "overloaded", str(error.__cause__), headers=RETRY) from error
        raise
    made = answers(generator, parsed, uuid4().hex, int(time.time()))
    if parsed.stream:
        failed = partial(logger.error, "a stream of %s failed: %r", parsed.model)
        return await StreamingResponse.started(pieces(streams, parsed, made), failed)
    try:
        found = await unless_gone(request, collect_all(streams))
    finally:
        cancel(streams)
    return Response.json(made.whole(found))


async def collect_all(streams: list[Stream]) -> list[tuple[int, Event]]:
    """All events, each with the number of its prompt."""
    lists = await asyncio.gather(*(collect(stream) for stream in streams))
    return [(number, event) for number, events in enumerate(lists) for event in events]


async def pieces(
    streams: list[Stream], parsed: GenerationRequest, made: Answers
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
