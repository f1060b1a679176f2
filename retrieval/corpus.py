"""A corpus: documents that can be read more than once, and a checksum that names their content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Protocol

from retrieval.documents import Document, read_documents
from retrieval.text_lines import check_is_file


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


class FileCorpus:
    """A corpus in one file, streamed.

    Args:
        path: the file; its bytes are the checksum.
        read: yields the documents of such a file.
    """

    num_documents = None
    """Not known without reading the file."""

    def __init__(self, path: Path, read: Callable[[Path], Iterator[Document]]) -> None:
        self.path = path
        self._read = read

    @property
    def name(self) -> str:
        return str(self.path)

    def checksum(self) -> str:
        return self._checksum

    @cached_property
    def _checksum(self) -> str:
        # Kept: collections of gigabytes are asked for theirs more than once.
        return file_checksum(self.path)

    def __iter__(self) -> Iterator[Document]:
        return self._read(self.path)


class JsonlCorpus(FileCorpus):
    """A ``corpus.jsonl`` (or ``.jsonl.gz``) file in BEIR's form."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, read_documents)


def file_checksum(path: Path) -> str:
    """``sha256:…`` of a file's bytes, read in blocks."""
    check_is_file(path, "a file with one document a line")
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
