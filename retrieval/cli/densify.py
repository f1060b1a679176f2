"""``lexpert index densify`` and ``search-densified``: sparse vectors as short dense ones in Faiss."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from retrieval.cli.options import IndexFolder, Json, print_json


def densify(
    index: IndexFolder,
    out: Annotated[Path, typer.Argument(help="Folder to write.", metavar="OUT")],
    slices: Annotated[
        int, typer.Option(help="Values of a vector; each stands for as many units.", min=1)
    ] = 768,
    half: Annotated[bool, typer.Option("--half", help="Keep float16 values: half the memory.")] = False,
    dense: Annotated[
        Path | None,
        typer.Option(
            help="Dense encoder whose vectors are joined; the index must store texts.", metavar="DIR"
        ),
    ] = None,
    dense_weight: Annotated[float, typer.Option(help="Of the dense score beside the sparse one.")] = 1.0,
    as_json: Json = False,
) -> None:
    """Write the vectors of an index as dense ones into a Faiss index.

    Each slice of the vocabulary keeps its largest weight and says which unit that was (DSR).

    Examples:

    lexpert index densify idx densified

    lexpert index densify idx densified --dense all-MiniLM-L6-v2 --dense-weight 10
    """
    from retrieval.encoders.dense import DenseEncoder
    from retrieval.index.sparse_index import SparseIndex
    from retrieval.interop.faiss_densified import densify_index
    from runtime.progress import progress

    encoder = DenseEncoder.load(dense) if dense is not None else None
    with SparseIndex.open(index) as opened, progress("densifying", opened.num_documents) as advance:
        report = densify_index(
            opened, out, slices=slices, half=half, dense=encoder, dense_weight=dense_weight, advance=advance
        )
    if as_json:
        print_json({"out": str(out), **asdict(report)})
        return
    joined = f", with dense vectors of {report.dense_width} values" if report.dense_width else ""
    typer.echo(
        f"wrote {out}: {report.documents:,} documents, {report.units:,} units in {report.slices:,} slices of at most "
        f"{report.depth}{joined}; {report.kept:.1%} of all weight is kept"
    )


def search_densified(
    folder: Annotated[Path, typer.Argument(help="Folder of lexpert index densify.", metavar="DIR")],
    query: Annotated[list[str], typer.Argument(help="Texts to search for.", metavar="QUERY…")],
    k: Annotated[int, typer.Option("-k", help="Results of a query.", min=1)] = 10,
    candidates: Annotated[
        int | None,
        typer.Option(
            help="Score only so many documents.", show_default="as many as it takes to be exact", min=1
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Search a densified index.

    Example: lexpert index search-densified densified "how do vaccines work"
    """
    from retrieval.interop.faiss_densified import DensifiedIndex

    hits = DensifiedIndex.open(folder).search(query, k, candidates)
    found = [
        {
            "query": text,
            "hits": [{"id": name, "score": float(score)} for name, score in zip(ids, scores, strict=True)],
        }
        for text, ids, scores in zip(query, hits.ids, hits.scores, strict=True)
    ]
    if as_json:
        print_json(found)
        return
    for text, ids, scores in zip(query, hits.ids, hits.scores, strict=True):
        typer.echo(text)
        for rank, (name, score) in enumerate(zip(ids, scores.tolist(), strict=True), 1):
            typer.echo(f"  {rank}. {name}  {score:.4f}")
