"""``lexpert encode``: texts to files of sparse vectors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retrieval.cli.options import K1, B, Encoder, Json, load_encoder, print_json
from runtime.errors import ConflictError, UsageError
from runtime.progress import Advance

if TYPE_CHECKING:
    from retrieval.encoders.encoder import SparseEncoder


def encode(
    corpus: Annotated[
        Path,
        typer.Option(help="corpus.jsonl or queries.jsonl: one {_id, title, text} a line.", metavar="FILE"),
    ],
    out: Annotated[Path, typer.Option(help="File (anserini) or folder (binary) to write.", metavar="PATH")],
    encoder: Encoder = "bm25",
    format_: Annotated[
        str, typer.Option("--format", help="binary: lexpert's arrays. anserini: JSON lines of whole numbers.")
    ] = "binary",
    role: Annotated[str, typer.Option(help="document or query.")] = "document",
    k1: K1 = None,
    b: B = None,
    as_json: Json = False,
) -> None:
    """Encode texts and write their sparse vectors.

    Untrained bm25 takes its statistics from the file, which is then read twice.

    Examples:

    lexpert encode --encoder naver/splade-v3 --corpus corpus.jsonl --out vectors

    lexpert encode --encoder naver/splade-v3 --corpus queries.jsonl --role query --format anserini --out q.jsonl
    """
    from retrieval.documents import document_text, read_documents
    from retrieval.encoders.encoder import CountingEncoder
    from runtime.progress import progress

    if format_ not in ("binary", "anserini"):
        raise UsageError(f"--format is {format_}, but must be binary or anserini")
    if role not in ("document", "query"):
        raise UsageError(f"--role is {role}, but must be document or query")
    if out.exists():
        raise ConflictError(f"{out} exists; remove it or write to another place")
    loaded = load_encoder(encoder, k1, b)
    if isinstance(loaded, CountingEncoder) and not loaded.is_fitted:
        if role == "query":
            raise UsageError("bm25 queries need a fitted encoder; give the encoder folder of an index")
        with progress("counting") as advance:
            loaded.fit(_advancing((document_text(document) for document in read_documents(corpus)), advance))
    with progress("encoding") as advance:
        encoded, non_zeros = _write_vectors(loaded, corpus, out, format_, role, advance)
    if as_json:
        print_json({"out": str(out), "format": format_, "rows": encoded, "non_zeros": non_zeros})
    else:
        typer.echo(f"wrote {out}: {encoded:,} vectors, {non_zeros / max(encoded, 1):.1f} terms each")


def _advancing(texts: Iterator[str], advance: Advance) -> Iterator[str]:
    for text in texts:
        yield text
        advance(1)


def _write_vectors(
    encoder: SparseEncoder, corpus: Path, out: Path, format_: str, role: str, advance: Advance
) -> tuple[int, int]:
    from retrieval.documents import document_batches, document_text, read_documents
    from retrieval.interop.anserini import AnseriniWriter
    from retrieval.interop.vectors import VectorWriter

    encoded = non_zeros = 0
    writer: AnseriniWriter | VectorWriter = (
        AnseriniWriter(out, encoder.vocabulary)
        if format_ == "anserini"
        else VectorWriter(out, len(encoder.vocabulary), encoder.fingerprint)
    )
    with writer:
        for batch in document_batches(read_documents(corpus)):
            texts = [document_text(document) for document in batch]
            vectors = encoder.encode_documents(texts) if role == "document" else encoder.encode_queries(texts)
            ids = [document["_id"] for document in batch]
            if isinstance(writer, VectorWriter):
                writer.append(ids, vectors)
            else:
                writer.append(ids, vectors, texts)
            encoded += len(ids)
            non_zeros += vectors.nnz
            advance(len(ids))
    if isinstance(writer, AnseriniWriter) and writer.dropped:
        typer.echo(f"{writer.dropped:,} weights round to 0 in whole numbers and were left out", err=True)
    return encoded, non_zeros
