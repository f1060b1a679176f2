"""Indexes out to the formats of other engines, and in from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from retrieval.encoders.encoder import CountingEncoder, SparseEncoder
from retrieval.encoders.precomputed import PrecomputedEncoder
from retrieval.index.settings import DEFAULT_MEMORY, check_folder
from retrieval.index.sparse_index import SparseIndex
from retrieval.index.writer import IndexWriter
from retrieval.interop.anserini import AnseriniWriter, read_anserini
from retrieval.interop.bigann import BigAnnReader, looks_like_bigann, write_bigann
from retrieval.interop.ciff import CiffReader, write_ciff
from retrieval.interop.exported import Exported
from retrieval.interop.live_rows import live_rows
from retrieval.interop.lucene import export_lucene
from retrieval.interop.whole_file import scratch_folder
from retrieval.interop.whole_numbers import check_scale, scale_of
from runtime.activations import SparseActivations
from runtime.errors import InputError, NotFoundError, UsageError
from runtime.progress import Advance, progress

IMPORT_FORMATS = ("anserini", "ciff", "bigann")
EXPORT_FORMATS = (*IMPORT_FORMATS, "lucene")

LUCENE_MEMORY = 256 << 20
"""Heap that Java needs at least: less does not hold Lucene's buffer and what stands around it."""

ENDINGS = {
    "anserini": (".jsonl", ".json", ".jsonl.gz", ".json.gz"),
    "ciff": (".ciff", ".ciff.gz"),
    "bigann": (".csr", ".csr.gz"),
}


def export_index(
    index: SparseIndex,
    out: Path,
    format_: str,
    *,
    scale: float | None = None,
    memory: int | None = None,
) -> Exported:
    """Write the live documents of an index in another format; `out` appears when it is complete.

    Args:
        format_: one of `EXPORT_FORMATS`.
        scale: what impacts are multiplied by before rounding, in the formats that hold whole numbers; default: 100,
            or 1 where all are whole numbers already.
        memory: for ``"lucene"``, bytes of heap that Java may take, at least `LUCENE_MEMORY`; default:
            `DEFAULT_MEMORY`.

    Raises:
        UsageError: an unknown format, a scale for one that does not round, or memory for one that needs none, or
            too little.
        ConflictError: `out` exists.
        InputError: a document, term or impact that the format cannot hold.
        NotFoundError: a package that the format needs is not installed.
    """
    if format_ not in EXPORT_FORMATS:
        raise UsageError(f"the format is {format_}, but must be one of {', '.join(EXPORT_FORMATS)}")
    if format_ == "bigann" and scale is not None:
        raise UsageError("--scale does not go with bigann, which holds impacts as they are")
    if memory is not None and format_ != "lucene":
        raise UsageError(f"--memory does not go with {format_}, which needs little; it is for lucene's Java")
    if memory is not None and memory < LUCENE_MEMORY:
        raise UsageError(
            f"--memory is {memory >> 20} MiB, but lucene's Java needs {LUCENE_MEMORY >> 20} MiB or more; give "
            f"--memory {LUCENE_MEMORY >> 20}, or leave it out for {DEFAULT_MEMORY >> 20}"
        )
    if format_ == "ciff":
        return write_ciff(index, out, scale)
    with progress("writing", index.num_documents) as advance:
        if format_ == "bigann":
            return write_bigann(index, out, advance)
        if format_ == "lucene":
            return export_lucene(index, out, scale=scale, memory=memory or DEFAULT_MEMORY, advance=advance)
        return _write_anserini(index, out, scale, advance)


def _write_anserini(index: SparseIndex, out: Path, scale: float | None, advance: Advance) -> Exported:
    scale = scale_of(index) if scale is None else check_scale(scale)
    documents = 0
    stores = bool(index.manifest.store)
    with AnseriniWriter(out, index.encoder.vocabulary, scale) as writer:
        for batch in live_rows(index):
            writer.append(batch.ids, batch.vectors, batch.texts if stores else None)
            documents += len(batch.rows)
            advance(len(batch.rows))
    return Exported(documents, writer.written, writer.dropped, writer.empty, scale)


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import read.

    Attributes:
        documents: in the index now.
        replaced: documents of the file that gave way to a later one of the same id.
        empty: documents without an impact.
        units: size of the vocabulary.
    """

    documents: int
    replaced: int
    empty: int
    units: int


class _Batch(NamedTuple):
    """Some documents on their way into an index."""

    ids: list[str]
    vectors: SparseActivations
    texts: list[str] | None = None


def guess_format(source: Path) -> str:
    """The format of a file or folder, from its name, and where that says nothing from how it begins.

    Raises:
        NotFoundError: it is not there.
        UsageError: it could be anything.
    """
    if not source.exists():
        raise NotFoundError(f"{source} is missing; give a file, or a folder of Anserini's JSON lines")
    if source.is_dir():
        return "anserini"
    for format_, endings in ENDINGS.items():
        if source.name.endswith(endings):
            return format_
    if source.is_file():
        with source.open("rb") as file:
            if file.read(64).lstrip().startswith(b"{"):
                return "anserini"
        if looks_like_bigann(source):
            return "bigann"
    raise UsageError(f"the format of {source} cannot be told; give --format {', '.join(IMPORT_FORMATS)}")


def import_index(
    source: Path,
    out: Path,
    format_: str,
    *,
    encoder: SparseEncoder | None = None,
    ids: Path | None = None,
    scale: float = 1.0,
    impacts: str = "float32",
    memory: int = DEFAULT_MEMORY,
    overwrite: bool = False,
) -> Imported:
    """Make an index in the folder `out` of the vectors in a file; committed when everything was read.

    Args:
        format_: one of `IMPORT_FORMATS`.
        encoder: the one that made the vectors: its vocabulary numbers the terms (or is what columns count), and the
            index takes texts as queries. Default: the terms of the file, and queries must be vectors.
        ids: for ``"bigann"``, one id a line.
        scale: what whole numbers are divided by; 1 keeps them.
        impacts: how the index stores them: "float32", or "uint8" for a quarter of the bytes.
        memory: bytes that the writer should stay within.
        overwrite: replace an index that is there.

    Raises:
        UsageError: an unknown format or way to store impacts, or an option that the format does not have.
        NotFoundError: no such file, or a package that the format needs is not installed.
        FormatError: the file is damaged, cut short, or of another format; says where.
        InputError: a vector that cannot be one, or a term that `encoder` does not have; says where.
        ConflictError: `out` holds something already.
    """
    if format_ not in IMPORT_FORMATS:
        raise UsageError(f"the format is {format_}, but must be one of {', '.join(IMPORT_FORMATS)}")
    if ids is not None and format_ != "bigann":
        raise UsageError(f"--ids does not go with {format_}, which has ids of its own")
    if scale != 1.0 and format_ == "bigann":
        raise UsageError("--scale does not go with bigann, which holds impacts as they are")
    if isinstance(encoder, CountingEncoder) and not encoder.is_fitted:
        raise UsageError(
            f"an untrained {encoder.family} has no vocabulary; give the encoder folder of the index that it was in"
        )
    check_scale(scale)
    check_folder(out, overwrite)
    with ExitStack() as leaving:
        batches: Iterator[_Batch]
        total = None
        if format_ == "anserini":
            filler = encoder or PrecomputedEncoder([])
            batches = _from_anserini(source, filler, scale, learn=encoder is None)
        elif format_ == "ciff":
            reader = leaving.enter_context(CiffReader(source))
            reader.read_lists(leaving.enter_context(scratch_folder(out)))
            filler = encoder or PrecomputedEncoder(reader.terms)
            batches, total = _from_ciff(reader, filler, scale), reader.num_documents
        else:
            csr = leaving.enter_context(BigAnnReader(source, ids))
            filler = encoder or PrecomputedEncoder(num_units=csr.num_units)
            batches, total = _from_bigann(csr, filler), csr.num_rows
        store = ["text"] if format_ == "anserini" else []
        writer = leaving.enter_context(
            IndexWriter.create(
                out, encoder=filler, store=store, impacts=impacts, memory=memory, overwrite=overwrite
            )
        )
        advance = leaving.enter_context(progress("importing", total))
        for batch in batches:
            texts = [{"text": text} for text in batch.texts] if batch.texts else None
            writer.add_vectors(batch.ids, batch.vectors, texts)
            advance(len(batch.ids))
        report = writer.commit()
    return Imported(report.added - report.replaced, report.replaced, report.empty, len(filler.vocabulary))


def _from_anserini(source: Path, encoder: SparseEncoder, scale: float, learn: bool) -> Iterator[_Batch]:
    for batch in read_anserini(source, encoder.vocabulary, scale, learn=learn):
        yield _Batch(batch.ids, batch.vectors, batch.contents)


def _from_ciff(reader: CiffReader, encoder: SparseEncoder, scale: float) -> Iterator[_Batch]:
    unit_of = np.array(encoder.vocabulary.find(reader.terms), np.int32)
    if (unit_of < 0).any():
        term = reader.terms[int(np.argmin(unit_of))]
        raise InputError(
            f"{reader.path}: the term {term!r:.60} is not in the vocabulary; import with the encoder that wrote it"
        )
    for ids, rows in reader.documents():
        weights = (rows.weights / scale).astype(np.float32)
        yield _Batch(
            ids, SparseActivations(rows.indptr, unit_of[rows.units], weights, len(encoder.vocabulary))
        )


def _from_bigann(reader: BigAnnReader, encoder: SparseEncoder) -> Iterator[_Batch]:
    units = len(encoder.vocabulary)
    if units < reader.num_units:
        raise InputError(
            f"{reader.path} has {reader.num_units:,} columns, but the encoder {units:,} terms; import with the encoder "
            "that made the vectors"
        )
    for ids, rows in reader.batches():
        yield _Batch(ids, SparseActivations(rows.indptr, rows.units, rows.weights, units))
