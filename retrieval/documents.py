"""Documents as they come in: the shape every reader yields and every writer takes, and JSONL files of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from retrieval.text_lines import not_utf_8, read_byte_lines
from runtime.batches import batched_within
from runtime.errors import InputError

Document = Mapping[str, Any]
"""``{"_id": str, "title": str, "text": str, …}``; `title` may be missing, other keys are fields."""

BATCH_DOCUMENTS = 2048
BATCH_CHARACTERS = 1 << 22


def document_text(document: Document) -> str:
    """What is encoded of a document: title, a space, text (BEIR's convention)."""
    title = document.get("title") or ""
    text = document.get("text") or ""
    return f"{title} {text}" if title and text else title or text


def document_batches(documents: Iterable[Document], size: int = BATCH_DOCUMENTS) -> Iterator[list[Document]]:
    """Batches for encoding, bounded in documents and in characters, so that long documents take no more memory."""
    return batched_within(documents, size, BATCH_CHARACTERS, lambda document: len(document_text(document)))


def text_batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """The same for texts."""
    return batched_within(texts, BATCH_DOCUMENTS, BATCH_CHARACTERS, len)


def check_document(document: Any, where: str) -> Document:
    """Return `document` if it has a usable `_id`, `title` and `text`, else raise InputError naming `where`."""
    if not isinstance(document, Mapping):
        raise InputError(
            f"{where}: expected a JSON object with _id, title and text, got {type(document).__name__}"
        )
    identifier = document.get("_id")
    if identifier is None:
        raise InputError(f'{where}: the document has no "_id"; give it a non-empty string')
    if not isinstance(identifier, str) or not identifier:
        raise InputError(f'{where}: "_id" must be a non-empty string, got {identifier!r:.60}')
    for key in ("title", "text"):
        value = document.get(key)
        if value is not None and not isinstance(value, str):
            raise InputError(
                f'{where}: "{key}" of document {identifier!r} must be a string, got {value!r:.60}'
            )
    return document


def read_jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield ``("file, line n", value)`` for every non-blank line of a JSONL file (plain or .gz).

    Raises:
        NotFoundError: the file is missing.
        InputError: a line is not UTF-8 or not JSON, or a .gz is damaged; names file and line.
    """
    for number, line in read_byte_lines(path, "a JSONL file with one JSON object a line"):
        where = f"{path}, line {number}"
        yield where, parse_json_line(line, where)


def parse_json_line(line: bytes, where: str) -> Any:
    """The JSON value of one line; InputError, naming `where`, if it is not UTF-8 or not JSON."""
    import orjson

    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InputError(f"{where}: {_why_not_json(line, error)}") from None


def read_documents(path: Path) -> Iterator[Document]:
    """Yield the checked documents of a BEIR ``corpus.jsonl``; errors as in `read_jsonl`."""
    for where, value in read_jsonl(path):
        yield check_document(value, where)


def read_queries(path: Path) -> Iterator[tuple[str, str]]:
    """Yield ``(_id, text)`` of a BEIR ``queries.jsonl``; errors as in `read_jsonl`."""
    for where, value in read_jsonl(path):
        query = check_document(value, where)
        yield query["_id"], query.get("text") or ""


def _why_not_json(line: bytes, error: Exception) -> str:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as damage:
        return not_utf_8(damage)
    return f"not valid JSON ({error}); every line must hold one JSON object"
