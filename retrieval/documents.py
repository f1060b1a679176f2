"""Documents as they come in: the shape every reader yields and every writer takes, and JSONL files of them."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from runtime.batches import batched_within
from runtime.errors import InputError, NotFoundError

Document = Mapping[str, Any]
"""``{"_id": str, "title": str, "text": str, …}``; `title` may be missing, other keys are fields."""

UTF_8_MARK = b"\xef\xbb\xbf"

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
        InputError: a line is not UTF-8 or not JSON; names file and line.
    """
    import orjson

    if not path.is_file():
        raise NotFoundError(f"{path} is missing; give a JSONL file with one JSON object a line")
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
        for number, line in enumerate(_intact_lines(path, lines), start=1):
            if number == 1:
                line = line.removeprefix(UTF_8_MARK)
            if not line.strip():
                continue
            try:
                value = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise InputError(f"{path}, line {number}: {_why_not_json(line, error)}") from None
            yield f"{path}, line {number}", value


def _intact_lines(path: Path, lines: Iterable[bytes]) -> Iterator[bytes]:
    try:
        yield from lines
    except (EOFError, OSError, zlib.error) as error:
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            raise
        raise InputError(f"{path} is not a whole gzip file ({error}); compress it again") from None


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
        return f"byte {damage.start + 1} is not UTF-8; re-encode the file as UTF-8"
    return f"not valid JSON ({error}); every line must hold one JSON object"
