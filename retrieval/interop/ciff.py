"""The Common Index File Format (CIFF): impacts as term frequencies, by term, in one file (compressed or not).

Other engines read it as an index of theirs: Lucene, PISA, JASS, Terrier, OldDog. Terms are written in the order of
their UTF-8 bytes, which some of them need. `doclength` is the sum of a document's impacts.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.index.sparse_index import SparseIndex
from retrieval.interop.ciff_messages import ciff_messages
from retrieval.interop.exported import Exported
from retrieval.interop.external_transpose import FILE_ENTRIES, ExternalTranspose, ends_by_count
from retrieval.interop.live_rows import live_rows
from retrieval.interop.whole_file import check_free, scratch_folder, whole_file
from retrieval.interop.whole_numbers import LARGEST, check_scale, scale_of, whole_rows
from retrieval.text_lines import check_is_file
from runtime.activations import SparseActivations
from runtime.errors import FormatError, InputError, LexpertError
from runtime.progress import Advance, progress

VERSION = 1
GZIP_MAGIC = b"\x1f\x8b"
LARGEST_MESSAGE = 2**31 - 1
PIECE_POSTINGS = 1 << 16
"""Postings of a long list that are made into messages at a time; pieces of one message add up to it."""
BATCH_ROWS = 1 << 12
SHORTEST_POSTING = 6
"""Bytes that a posting takes in a file, about; only sizes of scratch files depend on it."""


# Writing


class _Counts(NamedTuple):
    """What has to be known before the first posting is written: documents of each unit, sum of each document."""

    documents: NDArray[np.int64]
    lengths: NDArray[np.int64]
    dropped: int
    empty: int


def write_ciff(index: SparseIndex, out: Path, scale: float | None = None) -> Exported:
    """Write the live documents of an index as a CIFF file, compressed if `out` ends in .gz.

    Needs memory for a few numbers a unit, one number a document, the terms, and `FILE_ENTRIES` postings at a time; the
    rest waits in files beside `out`, at 12 bytes a posting.

    Args:
        scale: what impacts are multiplied by before rounding; default: 100, or 1 where all are whole numbers.

    Raises:
        ConflictError: `out` exists.
        InputError: an impact, or the sum of a document's, does not fit 32 bits; a term or id that is no Unicode.
        NotFoundError: protobuf is not installed.
    """
    check_free(out)
    ciff_messages()
    scale = scale_of(index) if scale is None else check_scale(scale)
    with progress("counting", index.num_documents) as advance:
        counts = _count(index, scale, advance)
    vocabulary = index.encoder.vocabulary
    used = np.flatnonzero(counts.documents)
    terms = [_unicode(vocabulary.term(unit), "term").encode() for unit in used.tolist()]
    order = np.array(sorted(range(len(terms)), key=terms.__getitem__), np.int64)
    units, terms = used[order], [terms[place] for place in order.tolist()]
    place_of = np.full(len(counts.documents), -1, np.int64)
    place_of[units] = np.arange(len(units))
    with scratch_folder(out) as scratch, whole_file(out) as partial, _created(partial, out) as file:
        _write_message(file, _header(index, counts, scale))
        by_term = ExternalTranspose(scratch, ends_by_count(counts.documents[units]))
        _sort(index, scale, place_of, by_term)
        with progress("writing", len(terms), "terms") as advance:
            lists = (row for part in by_term.parts(len(counts.lengths)) for row in part)
            for term, (documents, values) in zip(terms, lists, strict=True):
                _write_list(file, term.decode(), documents, values)
                advance(1)
        _write_documents(file, index, counts.lengths)
    return Exported(len(counts.lengths), int(counts.documents.sum()), counts.dropped, counts.empty, scale)


def _count(index: SparseIndex, scale: float, advance: Advance) -> _Counts:
    num_units = index.manifest.num_units
    documents = np.zeros(num_units, np.int64)
    lengths = [np.zeros(0, np.int64)]
    dropped = empty = 0
    for batch in live_rows(index):
        rows = whole_rows(batch.vectors, scale)
        documents += np.bincount(rows.units, minlength=num_units)
        running = np.concatenate([np.zeros(1, np.int64), np.cumsum(rows.weights)])
        lengths.append(running[rows.indptr[1:]] - running[rows.indptr[:-1]])
        dropped += batch.vectors.nnz - rows.nnz
        empty += int(np.count_nonzero(np.diff(rows.indptr) == 0))
        if lengths[-1].max(initial=0) > LARGEST:
            worst = batch.ids[int(np.argmax(lengths[-1]))]
            raise InputError(
                f"the impacts of {worst!r:.60} add up to more than 32 bits hold; give a smaller scale"
            )
        advance(len(rows))
    return _Counts(documents, np.concatenate(lengths), dropped, empty)


def _sort(index: SparseIndex, scale: float, place_of: NDArray[np.int64], by_term: ExternalTranspose) -> None:
    first = 0
    with progress("sorting", index.num_documents) as advance:
        for batch in live_rows(index):
            rows = whole_rows(batch.vectors, scale)
            documents = np.repeat(np.arange(first, first + len(rows)), np.diff(rows.indptr))
            by_term.add(place_of[rows.units], documents, rows.weights)
            first += len(rows)
            advance(len(rows))


def _header(index: SparseIndex, counts: _Counts, scale: float) -> Any:
    lists = int(np.count_nonzero(counts.documents))
    total = int(counts.lengths.sum())
    return ciff_messages().header(
        version=VERSION,
        num_postings_lists=lists,
        num_docs=len(counts.lengths),
        total_postings_lists=lists,
        total_docs=len(counts.lengths),
        total_terms_in_collection=total,
        average_doclength=total / max(len(counts.lengths), 1),
        description=f"lexpert: impacts of a {index.manifest.encoder.family} index, times {scale:g}, rounded",
    )


def _write_list(file: IO[bytes], term: str, documents: NDArray[np.int64], values: NDArray[np.int64]) -> None:
    """One list, its postings made into messages piece by piece; protobuf defines the pieces' sum as the whole."""
    message = ciff_messages().postings_list
    gaps = np.diff(documents, prepend=0)
    encoded = [message(term=term, df=len(documents), cf=int(values.sum())).SerializeToString()]
    for start in range(0, len(documents), PIECE_POSTINGS):
        end = start + PIECE_POSTINGS
        piece = message()
        add = piece.postings.add  # and then set: seven times faster than messages made with their values
        for gap, value in zip(gaps[start:end].tolist(), values[start:end].tolist(), strict=True):
            posting = add()
            posting.docid = gap
            posting.tf = value
        encoded.append(piece.SerializeToString())
    length = sum(map(len, encoded))
    if length > LARGEST_MESSAGE:
        raise InputError(f"the postings of {term!r:.60} take more than the 2 GiB that a message may have")
    _write_length(file, length)
    file.writelines(encoded)


def _write_documents(file: IO[bytes], index: SparseIndex, lengths: NDArray[np.int64]) -> None:
    doc_record = ciff_messages().doc_record
    docid = 0
    for batch in live_rows(index):
        for identifier in batch.ids:
            name = _unicode(identifier, "id")
            _write_message(
                file, doc_record(docid=docid, collection_docid=name, doclength=int(lengths[docid]))
            )
            docid += 1


def _unicode(text: str, what: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"the {what} {text!r:.60} holds half of a surrogate pair, which CIFF cannot hold"
        ) from None
    return text


def _write_message(file: IO[bytes], message: Any) -> None:
    encoded = message.SerializeToString()
    _write_length(file, len(encoded))
    file.write(encoded)


def _write_length(file: IO[bytes], length: int) -> None:
    """A base-128 varint, lowest seven bits first."""
    while length > 127:
        file.write(bytes((length & 127 | 128,)))
        length >>= 7
    file.write(bytes((length,)))


@contextmanager
def _created(partial: Path, out: Path) -> Iterator[IO[bytes]]:
    # level 1: higher ones cost more than everything else together
    with gzip.open(partial, "wb", 1) if out.suffix == ".gz" else partial.open("wb") as file:
        yield file  # type: ignore[misc]


# Reading


class CiffBatch(NamedTuple):
    """Some documents: ids and whole-numbered impacts, by terms in the order of the file."""

    ids: list[str]
    vectors: SparseActivations


class CiffReader:
    """Reads a CIFF file once from its start to its end: first all terms, then the documents; a context manager.

    Attributes:
        description: what the writer says of it.
        num_documents: how many it holds.
        terms: the term of every list; there once `read_lists` is done.
    """

    def __init__(self, path: Path) -> None:
        """Open a file, compressed or not.

        Raises:
            NotFoundError: no such file, or protobuf is not installed.
            FormatError: it is not CIFF, or of an unknown version.
        """
        check_is_file(path, "a CIFF file")
        self.path = path
        self._messages = ciff_messages()
        with path.open("rb") as start:
            compressed = start.read(2) == GZIP_MAGIC
        self._file: IO[bytes] = gzip.open(path, "rb") if compressed else path.open("rb")  # type: ignore[assignment]  # noqa: SIM115
        self._bytes = path.stat().st_size * (3 if compressed else 1)
        self._lists: ExternalTranspose | None = None
        self.terms: list[str] = []
        try:
            header = self._read(self._messages.header, "its header")
        except LexpertError as error:
            self._file.close()
            raise FormatError(f"{path} is not a CIFF file: it does not begin with a header") from error
        except BaseException:
            self._file.close()
            raise
        self._num_lists = int(header.num_postings_lists)
        self.num_documents = int(header.num_docs)
        self.description = str(header.description)
        if header.version != VERSION or self._num_lists < 0 or self.num_documents < 0:
            self._file.close()
            raise FormatError(
                f"{path} is not a CIFF file of version {VERSION}: its header has version {header.version}, "
                f"{self._num_lists:,} lists and {self.num_documents:,} documents"
            )

    def __enter__(self) -> CiffReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read_lists(self, scratch: Path) -> None:
        """Read all postings, and put them by documents into files in the empty folder `scratch`.

        Holds the terms, one list as protobuf has it (some 100 bytes a posting), and the buffers of `ExternalTranspose`.

        Raises:
            FormatError: a list that is truncated, or contradicts the header or itself; names the term.
        """
        lists = ExternalTranspose(scratch, self._file_ends())
        known: set[str] = set()
        with progress("reading", self._num_lists, "terms") as advance:
            for number in range(self._num_lists):
                found = self._read(
                    self._messages.postings_list, f"list {number + 1:,} of {self._num_lists:,}"
                )
                documents, values = self._checked(found)
                if found.term in known:
                    raise self._wrong(f"it has two lists of {found.term!r:.60}")
                known.add(found.term)
                self.terms.append(found.term)
                lists.add(documents, np.full(len(documents), number), values)
                advance(1)
        self._lists = lists

    def _file_ends(self) -> NDArray[np.int64]:
        """Documents of each scratch file: as many as should have `FILE_ENTRIES` postings."""
        postings = max(self._bytes // SHORTEST_POSTING, 1)
        documents = max(1, min(self.num_documents, FILE_ENTRIES * self.num_documents // postings))
        ends = np.arange(documents, self.num_documents + documents, documents)
        return np.minimum(ends, self.num_documents)

    def _checked(self, found: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        number = len(found.postings)
        pairs = np.fromiter(
            (value for posting in found.postings for value in (posting.docid, posting.tf)),
            np.int64,
            2 * number,
        )
        gaps, values = pairs[::2], pairs[1::2]
        documents = np.cumsum(gaps)
        if found.df != number:
            raise self._wrong(f"{found.term!r:.60} has {number:,} postings, but says {found.df:,}")
        if number and (gaps[0] < 0 or (gaps[1:] <= 0).any() or documents[-1] >= self.num_documents):
            raise self._wrong(
                f"the documents of {found.term!r:.60} do not ascend below {self.num_documents:,}"
            )
        if (values < 0).any():
            raise self._wrong(f"{found.term!r:.60} has an impact below 0")
        return documents, values

    def documents(self) -> Iterator[CiffBatch]:
        """Yield the documents in order; after `read_lists`, once.

        Raises:
            FormatError: a record that is truncated or out of order, or something after the last one.
        """
        assert self._lists is not None  # read_lists comes first
        docid = 0
        for part in self._lists.parts(len(self.terms)):
            for start in range(0, len(part), BATCH_ROWS):
                rows = part[start : start + BATCH_ROWS]
                ids = []
                for _ in range(len(rows)):
                    record = self._read(
                        self._messages.doc_record, f"document {docid + 1:,} of {self.num_documents:,}"
                    )
                    if record.docid != docid or not record.collection_docid:
                        raise self._wrong(
                            f"record {docid + 1:,} of its documents has number {record.docid} and id "
                            f"{record.collection_docid!r:.60}, but numbers must ascend from 0 and ids be given"
                        )
                    ids.append(record.collection_docid)
                    docid += 1
                yield CiffBatch(ids, rows)
        if self._bytes_of(1):
            raise self._wrong("it goes on after its last document")

    def _wrong(self, what: str) -> FormatError:
        return FormatError(f"{self.path} is damaged: {what}; fetch or export it again")

    def _read(self, kind: Any, what: str) -> Any:
        from google.protobuf.message import DecodeError

        length = shift = 0
        while True:
            byte = self._bytes_of(1)
            if not byte:
                raise self._wrong(f"it ends before {what}")
            length |= (byte[0] & 127) << shift
            if byte[0] < 128:
                break
            shift += 7
            if shift > 28:
                raise self._wrong(f"{what} has no length that can be")
        if length > LARGEST_MESSAGE:
            raise self._wrong(f"{what} has no length that can be")
        encoded = self._bytes_of(length)
        if len(encoded) < length:
            raise self._wrong(f"it ends within {what}")
        try:
            return kind.FromString(encoded)
        except DecodeError as error:
            raise self._wrong(f"{what} is not what protobuf writes ({error})") from None

    def _bytes_of(self, length: int) -> bytes:
        try:
            return self._file.read(length)
        except (gzip.BadGzipFile, EOFError, zlib.error) as damage:
            raise self._wrong(f"it is not a whole gzip file ({damage})") from None
