"""``lexpert index dense``: a corpus as dense vectors, searched exactly."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from retrieval.cli.options import Json, print_json


def dense(
    corpus: Annotated[Path, typer.Argument(help="corpus.jsonl, plain or .gz.", metavar="CORPUS")],
    out: Annotated[Path, typer.Argument(help="Folder to write.", metavar="OUT")],
    encoder: Annotated[
        Path,
        typer.Option(help="Dense encoder: a sentence-transformers folder, or a transformer.", metavar="DIR"),
    ],
    as_json: Json = False,
) -> None:
    """Encode a corpus into an index of dense vectors, to be fused with sparse results.

    Example: lexpert index dense data/scifact/corpus.jsonl scifact-dense --encoder all-MiniLM-L6-v2
    """
    from retrieval.corpus import JsonlCorpus
    from retrieval.encoders.dense import DenseEncoder
    from retrieval.index.dense_index import build_dense_index

    report = build_dense_index(out, DenseEncoder.load(encoder), JsonlCorpus(corpus))
    if as_json:
        print_json({"out": str(out), **asdict(report)})
        return
    gave_way = f" ({report.replaced:,} gave way to a later one of the same id)" if report.replaced else ""
    typer.echo(
        f"{report.action} {out}: {report.documents:,} documents{gave_way}, vectors of {report.width} values"
    )
