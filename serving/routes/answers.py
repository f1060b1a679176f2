"""Answers from the passages of an index, with citations."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import orjson

from serving.answer_models import CitedAnswerBody
from serving.answer_request import AnswerRequest, read_answer_request
from serving.asgi import Answer, Request, Response, Route
from serving.cited_answer import CitedAnswer
from serving.deadline import Deadline
from serving.description import Description
from serving.errors import ApiError
from serving.generation import Generator, Stream, collect
from serving.grounded_prompt import GroundedPrompt, Passage, grounded_prompt
from serving.log import of_request
from serving.request_identity import REQUEST_ID
from serving.routes.completions import EVENTS, MOST_SEED, named, submit
from serving.routes.search import found
from serving.state import ServerState
from serving.streaming import StreamingResponse, named_event, unless_gone

if TYPE_CHECKING:
    from moe.generation.engine import Request as EngineRequest

logger = logging.getLogger("serving")

NEXT_QUESTION = ("\nQuestion:",)
"""Where the text of a model ends that was not trained on conversations and goes on with questions of its own."""


async def answers(state: ServerState, request: Request) -> Answer:
    """Answer a question from passages of an index, and cite them by number.

    A stream has the events `sources`, `token` for each piece of the text, and `done`. Citations that point at no
    passage are taken out. Where no passage is found nothing is generated.
    """
    request.refuse_query_parameters()
    limits = state.configuration.limits
    with state.admitted():
        body = await request.json_body(limits.max_body_bytes, limits.body_timeout_s)
        parsed = read_answer_request(body, limits)
        generator = state.generators.named(parsed.model)
        await state.look_for(parsed.index)
        state.catalogue.searched(parsed.index, "index")
        deadline = Deadline(limits.timeout_s)
        request.intervals = deadline.intervals
        result = orjson.loads(await searched(state, parsed, deadline, request))
        state.metrics.spent(request.route, deadline)
        hits = [hit for hit in result["results"][0]["hits"] if has_text(hit)]
        room, new = parsed.room((await generator.about())[1], limits)
        prompt = await asyncio.to_thread(prompt_of, generator.tokenizer, parsed.query, hits, room)
    about = {
        "id": f"answer-{uuid4().hex}",
        "created": int(time.time()),
        "model": generator.name,
        "index": parsed.index,
        "version": result["version"],
    }
    made = CitedAnswer(about, sources(hits, prompt))
    stream = None
    if prompt is not None:
        stream = await submit(generator, engine_request(generator, parsed, prompt, new), "query")
    if parsed.stream:
        noted = of_request(request.header(REQUEST_ID))
        failed = partial(logger.error, "a stream of %s failed: %r", parsed.model, extra=noted)
        return await StreamingResponse.started(pieces(request, stream, made), failed)
    text = ""
    if stream is not None:
        try:
            with request.interval("generate"):
                events = await unless_gone(request, collect(stream))
            text = "".join([made.take(event) for event in events])
        finally:
            stream.cancel()
    return Response.json(made.whole(text))


async def searched(state: ServerState, parsed: AnswerRequest, deadline: Deadline, request: Request) -> bytes:
    """The body of a search for the passages."""
    limits, started = state.configuration.limits, time.perf_counter()
    work = partial(found, lambda: state.catalogue, parsed.index, limits, parsed.search(), started)
    try:
        return await state.work(lambda _, until: work(until), b"", deadline, [], request)
    except ApiError as error:
        if error.param != "with":
            raise
        raise ApiError(error.status, error.code, error.message, "index") from error


def has_text(hit: dict[str, Any]) -> bool:
    """Whether there is something to read in a hit."""
    passage = passage_of(hit)
    return bool(passage.title.strip() or passage.text.strip())


def passage_of(hit: dict[str, Any]) -> Passage:
    document = hit["document"] or {}
    return Passage(str(document.get("title") or ""), str(document.get("text") or ""))


def prompt_of(tokenizer: Any, query: str, hits: list[dict[str, Any]], room: int) -> GroundedPrompt | None:
    """The prompt, through the template for conversations if the model has one; None without a hit (blocking)."""
    from moe.generation.conversation import conversation_ids

    def encode(text: str) -> list[int]:
        if is_conversational(tokenizer):
            return conversation_ids(tokenizer, [{"role": "user", "content": text}])
        return list(tokenizer(f"{text}\nAnswer:")["input_ids"])

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    if not hits:
        return None
    with named("query"):
        return grounded_prompt(
            query, [passage_of(hit) for hit in hits], room, encode, count, special_tokens(tokenizer)
        )


def special_tokens(tokenizer: Any) -> list[str]:
    """What stands for a token of its own where a tokenizer finds it in a text."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return [*dict.fromkeys([*tokenizer.all_special_tokens, *added])]


def is_conversational(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def sources(hits: list[dict[str, Any]], prompt: GroundedPrompt | None) -> list[dict[str, Any]]:
    """The passages of a prompt, by number."""
    if prompt is None:
        return []
    told = zip(hits, prompt.cut, strict=False)
    return [{"number": number, **hit, "cut": cut} for number, (hit, cut) in enumerate(told, 1)]


def engine_request(
    generator: Generator, parsed: AnswerRequest, prompt: GroundedPrompt, max_tokens: int
) -> EngineRequest:
    from moe.generation.engine import Request as EngineRequest
    from moe.generation.sampling import Sampling

    stop = () if is_conversational(generator.tokenizer) else NEXT_QUESTION
    return EngineRequest(
        prompt=prompt.ids,
        max_tokens=max_tokens,
        sampling=Sampling(parsed.temperature, None, parsed.top_p, 0.0),
        seed=None if parsed.seed is None else parsed.seed % MOST_SEED,
        stop=(*(parsed.stop or ()), *stop),
    )


async def pieces(request: Request, stream: Stream | None, made: CitedAnswer) -> AsyncGenerator[bytes, None]:
    """The events of an answer; ends the generation when it is closed."""
    try:
        yield named_event("sources", made.opening)
        if stream is not None:
            with request.interval("generate"):
                async for event in stream:
                    text = made.take(event)
                    if text:
                        yield named_event("token", {"text": text})
        yield named_event("done", made.closing())
    finally:
        if stream is not None:
            stream.cancel()


ROUTES = (
    Route(
        "POST",
        "/v1/answers",
        answers,
        "read",
        Description(
            "Answer a question from an index",
            {200: (CitedAnswerBody, EVENTS)},
            AnswerRequest,
            errors=(404, 409, 504),
        ),
    ),
)
