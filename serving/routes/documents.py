"""Documents of an index: written as JSON or as a stream of lines, read, and deleted.

What one JSON request brings becomes visible in one commit, all of it or nothing. A stream is written in pieces of
whole lines as it comes: each piece is kept, and becomes visible, for itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from runtime.errors import LexpertError
from serving.answer_models import DeletionBody, DocumentBody, UpsertBody
from serving.asgi import Request, Response, Route, require_uncompressed
from serving.catalogue import ServedIndex
from serving.description import Description, Parameter
from serving.errors import ApiError, from_library
from serving.indexes.incoming_documents import (
    Checked,
    DocumentRules,
    Line,
    LineSplitter,
    check_lines,
    check_values,
)
from serving.indexes.known_answers import KnownAnswer
from serving.indexes.readers import reaches
from serving.indexes.writing import Written
from serving.parsed_body import parsed_body
from serving.state import ServerState

if TYPE_CHECKING:
    from serving.indexes.live_index import Operation

STREAM_TYPES = ("application/x-ndjson", "application/ndjson", "application/jsonl")

WRITE_PARAMETERS = (
    Parameter(
        "wait", "answer when a commit has it, and not as soon as it is kept", {"enum": ["true", "false"]}
    ),
    Parameter(
        "Idempotency-Key",
        "the same request with the same key is worked on once",
        {"type": "string", "minLength": 1, "maxLength": 128},
        "header",
    ),
)

DELETED = {200: (DeletionBody,), 202: (DeletionBody,)}

PIECE_BYTES = 512 << 10
"""Lines of a stream that are checked and written at a time."""

USABLE_KEY = re.compile(r"[\x21-\x7e]{1,128}")

SEEN_S = 1.0
"""How long a write that is committed waits until this replica searches that commit too."""


DOCUMENT: dict[str, Any] = {
    "type": "object",
    "required": ["id"],
    "properties": {
        "id": {"type": "string", "minLength": 1},
        "title": {"type": "string"},
        "text": {"type": "string"},
        "vector": {"type": "object"},
    },
    "description": "further keys are fields of the index",
}


class Upsert(BaseModel):
    """The body of a write; what each document must be depends on the index."""

    model_config = ConfigDict(extra="forbid", strict=True)

    documents: list[Annotated[Any, WithJsonSchema(DOCUMENT)]] = Field(min_length=1)


class Deletion(BaseModel):
    """What to delete: documents by id, or all that fulfil a filter."""

    model_config = ConfigDict(extra="forbid", strict=True)

    ids: list[str] | None = Field(default=None, min_length=1)
    filter: dict[str, Any] | None = None


@dataclass(frozen=True)
class WriteOptions:
    """What a write asks for, beside its body.

    Attributes:
        waits: whether it is answered when it can be searched, and not as soon as it is kept.
        key: of idempotency, if it has one.
    """

    waits: bool
    key: str | None


async def put_documents(state: ServerState, request: Request) -> Response:
    """Write documents; those of an id that is there take its place."""
    options = read_options(request)
    served = await state.index(request.path_parameters["name"])
    with state.writing_admitted():
        if media_type(request) in STREAM_TYPES:
            return await put_stream(state, request, served, options)
        return await put_json(state, request, served, options)


async def put_json(
    state: ServerState, request: Request, served: ServedIndex, options: WriteOptions
) -> Response:
    limits = state.configuration.limits
    body = await request.json_body(limits.max_body_bytes, limits.body_timeout_s)
    checked = await asyncio.to_thread(check_upsert, body, rules_of(served, state), limits.max_errors)
    digest = hashlib.sha256(b"put\0" + body).hexdigest()
    return await write(state, served, options, {"put": checked.documents}, upsert_answer(checked), digest)


def check_upsert(body: bytes, rules: DocumentRules, max_errors: int) -> Checked:
    upsert = parsed_body(Upsert, body)
    checked = Checked(max_errors)
    check_values(enumerate(upsert.documents, 1), rules, checked)
    return checked


async def put_stream(
    state: ServerState, request: Request, served: ServedIndex, options: WriteOptions
) -> Response:
    """Write a stream piece by piece: nothing is read from the socket while a piece is being kept."""
    limits = state.configuration.limits
    require_uncompressed(request.header(b"content-encoding"))
    rules = rules_of(served, state)
    splitter = LineSplitter(limits.max_document_bytes)
    checked = Checked(limits.max_errors)
    digest = hashlib.sha256(b"put stream\0")
    is_known = options.key is not None and await state.writing.knows(served.name, served.uid, options.key)
    upserted = 0
    waiting: list[Line] = []
    size = 0
    async for piece in request.body_pieces(limits.body_timeout_s):
        digest.update(piece)
        if is_known:
            continue  # only compared with what came the first time
        for line in splitter.split(piece):
            waiting.append(line)
            size += len(line[1] or b"") + 64
        if size >= PIECE_BYTES:
            upserted += await write_lines(state, served, waiting, rules, checked)
            waiting, size = [], 0
    if not is_known:
        waiting += splitter.finish()
        await asyncio.to_thread(check_lines, waiting, rules, checked)
    answer = upsert_answer(checked, upserted)
    return await write(state, served, options, {"put": checked.documents}, answer, digest.hexdigest())


async def write_lines(
    state: ServerState, served: ServedIndex, lines: list[Line], rules: DocumentRules, checked: Checked
) -> int:
    """Check lines and have them kept; returns how many documents they were."""
    await asyncio.to_thread(check_lines, lines, rules, checked)
    documents, checked.documents = checked.documents, []
    if documents:
        await state.writing.write(served.name, served.uid, {"put": documents}, None, 0)
    return len(documents)


async def delete_documents(state: ServerState, request: Request) -> Response:
    """Delete documents by id or by filter; what is not there is no error."""
    options = read_options(request)
    served = await state.index(request.path_parameters["name"])
    limits = state.configuration.limits
    with state.writing_admitted():
        body = await request.json_body(limits.max_body_bytes, limits.body_timeout_s)
        operation = await asyncio.to_thread(read_deletion, body, served)
        digest = hashlib.sha256(b"delete\0" + body).hexdigest()
        return await write(state, served, options, operation, {"deleted": None}, digest)


def read_deletion(body: bytes, served: ServedIndex) -> Operation:
    from retrieval.search.filters import check_filter

    deletion = parsed_body(Deletion, body)
    if (deletion.ids is None) == (deletion.filter is None):
        raise ApiError(422, "missing_parameter", "give ids or a filter, one of the two", "ids")
    if deletion.ids is not None:
        return {"delete": deletion.ids}
    try:
        # As the log will give it back: it has no infinities, and no whole numbers beyond 64 bits.
        condition = orjson.loads(orjson.dumps(deletion.filter))
        check_filter(condition, served.index.manifest.fields)
    except LexpertError as error:
        raise from_library(error, "filter") from error
    except TypeError as error:
        raise ApiError(422, "invalid_value", f"filter: {error}", "filter") from None
    return {"delete_matching": condition}


async def delete_document(state: ServerState, request: Request) -> Response:
    """Delete one document; that it is not there is no error."""
    options = read_options(request)
    served = await state.index(request.path_parameters["name"])
    identifier = request.path_parameters["id"]
    digest = hashlib.sha256(b"delete one\0" + identifier.encode()).hexdigest()
    with state.writing_admitted():
        return await write(state, served, options, {"delete": [identifier]}, {"deleted": None}, digest)


async def get_document(state: ServerState, request: Request) -> Response:
    """One document as the index keeps it."""
    request.refuse_query_parameters()
    served = await state.index(request.path_parameters["name"])
    identifier = request.path_parameters["id"]
    document = await asyncio.to_thread(served.index.document, identifier)
    if document is None:
        raise ApiError(
            404, "document_not_found", f"the index {served.name} has no document {identifier!r:.200}", "id"
        )
    del document["_id"]
    return Response.json({"id": identifier, "document": document, "version": served.index.generation})


async def write(
    state: ServerState,
    served: ServedIndex,
    options: WriteOptions,
    operation: Operation,
    answer: dict[str, Any],
    digest: str,
) -> Response:
    """Have an operation kept, or its key found, and answer as `options` ask."""
    known = KnownAnswer(options.key, digest, answer) if options.key is not None else None
    timeout_s = state.configuration.limits.timeout_s if options.waits else 0
    if "put" in operation and not operation["put"] and known is None and not options.waits:
        written = Written(None, None, None)
    else:
        written = await state.writing.write(served.name, served.uid, operation, known, timeout_s)
    said = dict(answer if written.answer is None else written.answer)
    if written.version is None:
        said.pop("deleted", None)
        return Response.json({"status": "acknowledged", **said}, 202)
    if "deleted" in said:
        said["deleted"] = written.deleted
    await state.see(reaches(served.name, served.uid, written.version), SEEN_S)
    return Response.json({"status": "completed", "version": written.version, **said})


def upsert_answer(checked: Checked, before: int = 0) -> dict[str, Any]:
    answer: dict[str, Any] = {"upserted": before + len(checked.documents), "errors": checked.errors}
    if checked.num_errors > len(checked.errors):
        answer["errors_left_out"] = checked.num_errors - len(checked.errors)
    return answer


def rules_of(served: ServedIndex, state: ServerState) -> DocumentRules:
    return DocumentRules(
        served.index.manifest.fields,
        served.encoder.vocabulary if served.takes_vectors else None,
        served.encoder.can_encode,
        state.configuration.limits.max_document_bytes,
    )


def read_options(request: Request) -> WriteOptions:
    """What the URL and the headers ask for; 400 if that is nothing known."""
    wait = request.query_parameters("wait").get("wait", "true")
    if wait not in ("true", "false"):
        raise ApiError(400, "invalid_value", f"wait is {wait!r:.80}, but must be true or false", "wait")
    key = request.header(b"idempotency-key")
    if key is not None and not USABLE_KEY.fullmatch(key):
        raise ApiError(
            400,
            "invalid_value",
            "Idempotency-Key must be 1 to 128 printable ASCII characters and no space",
            "Idempotency-Key",
        )
    return WriteOptions(wait == "true", key)


def media_type(request: Request) -> str:
    return (request.header(b"content-type") or "").partition(";")[0].strip().lower()


ROUTES = (
    Route(
        "PUT",
        "/v1/indexes/{name}/documents",
        put_documents,
        "write",
        Description(
            "Write documents",
            {200: (UpsertBody,), 202: (UpsertBody,)},
            Upsert,
            WRITE_PARAMETERS,
            (409,),
            STREAM_TYPES,
        ),
    ),
    Route(
        "POST",
        "/v1/indexes/{name}/documents/delete",
        delete_documents,
        "write",
        Description("Delete documents by id or filter", DELETED, Deletion, WRITE_PARAMETERS, (409,)),
    ),
    Route(
        "GET",
        "/v1/indexes/{name}/documents/{id*}",
        get_document,
        "read",
        Description("One document", {200: (DocumentBody,)}),
    ),
    Route(
        "DELETE",
        "/v1/indexes/{name}/documents/{id*}",
        delete_document,
        "write",
        Description("Delete a document", DELETED, parameters=WRITE_PARAMETERS, errors=(409, 422)),
    ),
)
