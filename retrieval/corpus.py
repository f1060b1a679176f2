"""A corpus: documents that can be read more than once, and a checksum that names their content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from retrieval.documents import Document, read_documents
from runtime.errors import NotFoundError


class Corpus(Protocol):
    """What an index is built from."""

    @property
    def name(self) -> str:
        """For messages: a path or a data-set name."""
        ...

    @property
    def num_documents(self) -> int | None:
        """Number of documents where it is known without reading them, for progress."""
        ...

    def checksum(self) -> str:
        """Changes whenever a document changes; decides whether a built index can be reused."""
        ...

    def __iter__(self) -> Iterator[Document]: ...


class JsonlCorpus:
    """A ``corpus.jsonl`` (or ``.jsonl.gz``) file in BEIR's form."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def num_documents(self) -> int | None:
        return None

    def checksum(self) -> str:
        return file_checksum(self.path)

    def __iter__(self) -> Iterator[Document]:
        return read_documents(self.path)


def file_checksum(path: Path) -> str:
    """``sha256:…`` of a file's bytes, read in blocks."""
    if not path.is_file():
        raise NotFoundError(f"{path} is missing; give a JSONL file with one JSON object a line")
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
