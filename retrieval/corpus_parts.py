"""A corpus file cut into ranges of bytes, for several processes to read at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from retrieval.documents import (
    BATCH_CHARACTERS,
    Document,
    check_document,
    document_text,
    parse_json_line,
)
from retrieval.text_lines import UTF_8_MARK, check_is_file
from runtime.errors import UsageError


@dataclass(frozen=True, slots=True)
class CorpusPart:
    """Whole lines of a ``corpus.jsonl``.

    Attributes:
        number: of the part in its corpus, from 0.
        path: the file.
        start, end: its range of bytes.
        first_line: number of its first line, from 1.
    """

    number: int
    path: str
    start: int
    end: int
    first_line: int

    def __iter__(self) -> Iterator[Document]:
        """The checked documents; errors as in `retrieval.documents.read_documents`, with the lines of the file."""
        for number, _, line in _lines(Path(self.path), self.start, self.first_line, self.end):
            where = f"{self.path}, line {number}"
            yield check_document(parse_json_line(line, where), where)


def cut_corpus(path: Path, part_bytes: int, batch_documents: int | None = None) -> Iterator[CorpusPart]:
    """Cut a file into parts of about `part_bytes`, reading it once.

    Args:
        path: a ``corpus.jsonl``, not compressed.
        part_bytes: a part ends with the first line, or batch, that reaches so many.
        batch_documents: where given, a part ends only where a batch of `retrieval.documents.document_batches` of
            that size over the whole corpus does, so that batches are the same however the corpus is cut. A model
            may give a text another vector, in the last bits, in other company.

    Raises:
        NotFoundError: no such file.
        UsageError: it is compressed.
        InputError: where batches are to be kept, a line that is no document.
    """
    check_is_file(path, "a corpus.jsonl file")
    if path.suffix == ".gz":
        raise UsageError(f"{path} is compressed, and can only be read from its start; unpack it first")
    part = start = documents = characters = 0
    first_line = 1
    is_empty = True
    size = path.stat().st_size
    for number, position, line in _lines(path, 0, 1, size):
        if batch_documents is None:
            may_end = True
        else:
            where = f"{path}, line {number}"
            weight = len(document_text(check_document(parse_json_line(line, where), where)))
            may_end = documents > 0 and (
                documents == batch_documents or characters + weight > BATCH_CHARACTERS
            )
            documents, characters = (1, weight) if may_end else (documents + 1, characters + weight)
        if may_end and position - start >= part_bytes:
            yield CorpusPart(part, str(path), start, position, first_line)
            part, start, first_line = part + 1, position, number
        is_empty = False
    if not is_empty:
        yield CorpusPart(part, str(path), start, size, first_line)


def _lines(path: Path, start: int, first_line: int, end: int) -> Iterator[tuple[int, int, bytes]]:
    """Number, place in the file and content of every line that is not blank."""
    position = start
    with path.open("rb") as lines:
        lines.seek(start)
        for number, line in enumerate(lines, start=first_line):
            if position >= end:
                return
            content = line.removeprefix(UTF_8_MARK) if number == 1 else line
            if content.strip():
                yield number, position, content
            position += len(line)
