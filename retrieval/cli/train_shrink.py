"""``lexpert train shrink``: an encoder in a quarter of its bytes or less."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retrieval.cli.options import Json, print_json
from runtime.errors import UsageError

if TYPE_CHECKING:
    from retrieval.encoders.shrink import Shrunk
    from retrieval.encoders.vector_difference import VectorDifference


def shrink(
    encoder: Annotated[
        Path, typer.Argument(metavar="ENCODER", help="Folder of a SPLADE or inference-free encoder.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the encoder to write.")],
    layers: Annotated[
        int | None,
        typer.Option(help="Layers to keep, evenly spread; train what is left.", show_default="all", min=1),
    ] = None,
    max_active_dims: Annotated[
        int | None,
        typer.Option(help="Keep only so many terms of a text.", show_default="as the encoder has it", min=1),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Most tokens of a text that a model reads.", show_default="as the encoder has it", min=1
        ),
    ] = None,
    word_bits: Annotated[
        int,
        typer.Option(help="Bits of the tables with a row for each term, 8 or 4; all else has 8."),
    ] = 8,
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="BEIR folder, or a corpus.jsonl, on whose documents vectors are compared."
        ),
    ] = None,
    documents: Annotated[int, typer.Option(help="How many of them, the first.", min=1)] = 200,
    as_json: Json = False,
) -> None:
    """Write an encoder with its weights in 8 bits: a quarter of the bytes, and nearly the same vectors.

    With --word-bits 4 the tables of words, half of a small model and more, take 4 bits.

    The new folder is used like any other encoder's. It computes in float32 or bfloat16 as before, so that it is
    smaller, not faster; other libraries do not read its weights.

    Examples:

    lexpert train shrink run/model mini

    lexpert train shrink run/model mini --max-active-dims 200 --check data/scifact

    lexpert train shrink run/model shallow --layers 4

    lexpert train shrink run/model tiny --word-bits 4
    """
    from dataclasses import asdict

    from retrieval.encoders.shrink import shrink

    if word_bits not in (8, 4):
        raise UsageError(f"--word-bits is 8 or 4, not {word_bits}")
    texts = _first_texts(check, documents) if check is not None else None
    done = shrink(
        encoder,
        out,
        layers=layers,
        max_active_dims=max_active_dims,
        max_length=max_length,
        word_bits=word_bits,  # type: ignore[arg-type]  # checked above
    )
    difference = None if texts is None else _compare(encoder, out, texts)
    if as_json:
        compared = None if difference is None else asdict(difference)
        print_json({"encoder": str(encoder), "out": str(out), **asdict(done), "check": compared})
        return
    typer.echo(f"wrote {out}: {_told(done)}")
    if difference is not None:
        typer.echo(
            f"on {difference.documents:,} documents: cosine of a vector with the one before "
            f"{difference.mean_cosine:.4f} on average, {difference.lowest_cosine:.4f} at least; "
            f"{difference.terms_before:.1f} terms before, {difference.terms_after:.1f} now, "
            f"{difference.most_terms_after:,} at most"
        )


def _told(done: Shrunk) -> str:
    share = done.bytes_after / done.bytes_before if done.bytes_before else 0.0
    return (
        f"{done.bytes_before:,} bytes before, {done.bytes_after:,} now ({share:.0%}); "
        f"layers {', '.join(map(str, done.layers))}"
    )


def _first_texts(check: Path, count: int) -> list[str]:
    """The texts of the first documents; read before anything is written."""
    from itertools import islice

    from retrieval.documents import document_text, read_documents

    corpus = check / "corpus.jsonl" if check.is_dir() else check
    texts = [document_text(document) for document in islice(read_documents(corpus), count)]
    if not texts:
        raise UsageError(f"{corpus} holds no documents, so there is nothing to compare vectors of")
    return texts


def _compare(encoder: Path, out: Path, texts: list[str]) -> VectorDifference:
    from retrieval.encoders.encoder import SparseEncoder
    from retrieval.encoders.vector_difference import vector_difference

    before, after = (SparseEncoder.load(folder) for folder in (encoder, out))
    return vector_difference(before, after, texts)
