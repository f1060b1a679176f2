"""``lexpert index export`` and ``lexpert index import``: the formats of other engines."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from retrieval.cli.options import Impacts, IndexFolder, Json, Memory, load_encoder, print_json


def export(
    index: IndexFolder,
    out: Annotated[Path, typer.Argument(help="File to write; for lucene a folder.", metavar="OUT")],
    format_: Annotated[str, typer.Option("--format", help="anserini, ciff, bigann or lucene.")],
    scale: Annotated[
        float | None,
        typer.Option(
            help="Impacts are multiplied by it and rounded; not for bigann. "
            "Default: 100, or 1 where all impacts are whole numbers."
        ),
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option(help="lucene: heap that Java may take, in MiB. Default: 1024.", metavar="MIB"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write an index in the format of other engines, without deleted documents.

    Examples:

    lexpert index export idx vectors.jsonl.gz --format anserini

    lexpert index export idx idx.ciff --format ciff

    lexpert index export idx idx.csr --format bigann

    lexpert index export idx lucene-idx --format lucene --scale 30
    """
    from retrieval.index.sparse_index import SparseIndex
    from retrieval.interop.exchange import export_index

    with SparseIndex.open(index) as opened:
        exported = export_index(
            opened, out, format_, scale=scale, memory=None if memory is None else memory << 20
        )
    if as_json:
        print_json({"out": str(out), "format": format_, **asdict(exported)})
        return
    if exported.dropped:
        typer.echo(f"{exported.dropped:,} impacts round to 0 in whole numbers and were left out", err=True)
    if format_ == "lucene" and exported.empty:
        typer.echo(f"{exported.empty:,} documents have no impact, and Lucene leaves them out", err=True)
    scaled = f", times {exported.scale:g} and rounded" if exported.scale is not None else ""
    typer.echo(f"wrote {out}: {exported.documents:,} documents, {exported.postings:,} impacts{scaled}")


def import_(
    source: Annotated[
        Path, typer.Argument(help="File to read, or a folder of Anserini's JSON lines.", metavar="IN")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the index to make.", metavar="DIR")],
    format_: Annotated[
        str | None,
        typer.Option(
            "--format", help="anserini, ciff or bigann. Default: told from the name and the content."
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            "-e",
            help="What made the vectors, so that texts can be searched for: an encoder folder, or a name on the hub.",
            metavar="E",
        ),
    ] = None,
    ids: Annotated[
        Path | None,
        typer.Option(
            help="bigann: one id a line. Default: IN.ids, or the numbers of the rows.", metavar="FILE"
        ),
    ] = None,
    scale: Annotated[float, typer.Option(help="Whole numbers are divided by it; 1 keeps them.")] = 1.0,
    impacts: Impacts = "float32",
    memory: Memory = 1024,
    overwrite: Annotated[bool, typer.Option(help="Replace an index that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Make an index of vectors that another engine or an encoder left in a file.

    Examples:

    lexpert index import vectors.jsonl.gz --out idx --encoder naver/splade-v3 --scale 100

    lexpert index import robust04.ciff.gz --out idx

    lexpert index import base_full.csr --out idx
    """
    from retrieval.interop.exchange import guess_format, import_index

    format_ = format_ or guess_format(source)
    imported = import_index(
        source,
        out,
        format_,
        encoder=load_encoder(encoder) if encoder else None,
        ids=ids,
        scale=scale,
        impacts=impacts,
        memory=memory << 20,
        overwrite=overwrite,
    )
    if as_json:
        print_json({"out": str(out), "format": format_, **asdict(imported)})
        return
    notes = [f"{imported.replaced:,} replaced by a later one of the same id"] if imported.replaced else []
    notes += [f"{imported.empty:,} empty"] if imported.empty else []
    typer.echo(
        f"made {out} from {format_}: {imported.documents:,} documents"
        + (f" ({', '.join(notes)})" if notes else "")
        + f" over {imported.units:,} units"
    )
