"""Documents as clients send them, checked one by one: what is wrong with one does not lose the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from retrieval.index.fields import check_value
from retrieval.index.manifest import FieldKind
from runtime.errors import InputError
from serving.errors import ApiError
from serving.query_vectors import read_query_vectors

if TYPE_CHECKING:
    from retrieval.encoders.encoder import Vocabulary

LONGEST_ID = 512
"""Bytes of a document id: what a URL can hold."""

Line = tuple[int, bytes | None]
"""A line of a stream with its number, from 1; None in place of one that was too long to be kept."""


@dataclass(frozen=True)
class DocumentRules:
    """What the documents of an index must be.

    Attributes:
        fields: kinds of the fields.
        vocabulary: that vectors are over; None where the index takes no vectors.
        takes_texts: whether the encoder can encode.
        max_bytes: of a document as JSON.
    """

    fields: Mapping[str, FieldKind]
    vocabulary: Vocabulary | None
    takes_texts: bool
    max_bytes: int


class DocumentError(Exception):
    """What is wrong with one document: code, message, and the key at fault."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


@dataclass
class Checked:
    """Documents that can be taken, in the form of the library, and what is wrong with the others.

    Attributes:
        max_errors: more are counted, but not kept.
    """

    max_errors: int
    documents: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    num_errors: int = 0

    def add_error(self, line: int, identifier: Any, error: DocumentError) -> None:
        self.num_errors += 1
        if len(self.errors) < self.max_errors:
            named = identifier if isinstance(identifier, str) and len(identifier) <= LONGEST_ID else None
            self.errors.append(
                {
                    "line": line,
                    "id": named,
                    "code": error.code,
                    "message": error.message,
                    "param": error.param,
                }
            )


def check_lines(lines: Iterable[Line], rules: DocumentRules, checked: Checked) -> None:
    """Parse and check lines of JSON, adding to `checked`; blank ones are passed over."""
    for number, line in lines:
        if line is None or len(line) > rules.max_bytes:
            checked.add_error(number, None, too_long(rules.max_bytes))
            continue
        if not line.strip():
            continue
        try:
            document = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            reason = f"the line is not valid JSON in UTF-8: {error}"
            checked.add_error(number, None, DocumentError("malformed_json", reason))
            continue
        check_values([(number, document)], rules, checked)


def check_values(values: Iterable[tuple[int, Any]], rules: DocumentRules, checked: Checked) -> None:
    """Check parsed documents, adding to `checked`."""
    for number, value in values:
        try:
            checked.documents.append(checked_document(value, rules))
        except DocumentError as error:
            checked.add_error(number, value.get("id") if isinstance(value, dict) else None, error)


def checked_document(value: Any, rules: DocumentRules) -> dict[str, Any]:
    """A document as the writer of an index takes it.

    Raises:
        DocumentError: it is none, or not one of this index.
    """
    if not isinstance(value, dict):
        raise DocumentError("invalid_value", "a document must be a JSON object")
    identifier = value.get("id")
    if not isinstance(identifier, str) or not 1 <= len(identifier.encode()) <= LONGEST_ID:
        code = "missing_parameter" if identifier is None else "invalid_value"
        raise DocumentError(code, f"id must be a string of 1 to {LONGEST_ID} bytes", "id")
    if not {".", ".."}.isdisjoint(identifier.split("/")):
        # Clients resolve these before they send a URL: to delete document ".." would be to delete the index.
        raise DocumentError("invalid_value", "id must not be, or have between slashes, . or ..", "id")
    document: dict[str, Any] = {"_id": identifier}
    for key, given in value.items():
        if key in ("title", "text"):
            if given is not None and not isinstance(given, str):
                raise DocumentError("invalid_value", f"{key} must be a string", key)
            document[key] = given
        elif key in rules.fields:
            try:
                check_value(key, rules.fields[key], given, identifier)
            except InputError as error:
                raise DocumentError("invalid_value", str(error), key) from None
            is_float = rules.fields[key] == "float" and given is not None
            document[key] = float(given) if is_float else given  # the log has no whole numbers beyond 64 bits
        elif key == "vector":
            if given is not None:
                document["vector"] = checked_vector(given, rules.vocabulary)
        elif key != "id":
            known = ", ".join(["id", "title", "text", "vector", *rules.fields])
            raise DocumentError(
                "unknown_parameter", f"the index has no field {key!r:.80}; it has {known}", key
            )
    if "vector" not in document and not rules.takes_texts:
        raise DocumentError(
            "missing_parameter", "vector is missing: this index cannot encode texts", "vector"
        )
    return document


def checked_vector(given: Any, vocabulary: Vocabulary | None) -> dict[str, Any]:
    """A vector by unit numbers, ascending."""
    if vocabulary is None:
        raise DocumentError(
            "invalid_value", "this index learns its weights from texts; leave vector out", "vector"
        )
    if not isinstance(given, dict):
        raise DocumentError("invalid_value", "vector must be an object", "vector")
    try:
        read = read_query_vectors([given], ["vector"], vocabulary)
    except ApiError as error:
        raise DocumentError(error.code, error.message, error.param) from None
    if read.unknown_terms[0]:
        term = read.unknown_terms[0][0]
        raise DocumentError(
            "invalid_value", f"vector: the vocabulary has no term {term!r:.80}", f"vector.{term:.80}"
        )
    ((units, weights),) = list(read.activations)
    return {"indices": units.tolist(), "values": weights.tolist()}


def too_long(max_bytes: int) -> DocumentError:
    return DocumentError(
        "document_too_large", f"the document is longer than the {max_bytes:,} bytes that are allowed"
    )


class LineSplitter:
    """Cuts a stream of bytes into lines; keeps no more of it than one line that may still become a document."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept = bytearray()
        self._is_too_long = False
        self._number = 0

    def split(self, piece: bytes) -> Iterator[Line]:
        """The lines that end in the next piece."""
        *ended, rest = piece.split(b"\n")
        for part in ended:
            yield self._end(part)
        self._hold(rest)

    def finish(self) -> Iterator[Line]:
        """The last line, if the stream did not end with a line feed."""
        if self._kept or self._is_too_long:
            yield self._end(b"")

    def _hold(self, part: bytes) -> None:
        if self._is_too_long or len(self._kept) + len(part) > self._max_bytes + 1:
            self._is_too_long = True
            self._kept.clear()
        else:
            self._kept += part

    def _end(self, part: bytes) -> Line:
        self._hold(part)
        line = None if self._is_too_long else bytes(self._kept)
        self._kept.clear()
        self._is_too_long = False
        self._number += 1
        return self._number, line
