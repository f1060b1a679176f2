"""``lexpert train expand-queries``: queries that look for what they mean, beside their words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retrieval.cli.options import Json, print_json


def expand_queries(
    encoder: Annotated[
        Path,
        typer.Argument(metavar="ENCODER", help="Folder of an inference-free encoder with a term expansion."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the encoder to write.")],
    training_set: Annotated[
        Path,
        typer.Option(
            "--set", metavar="DIR", help="Training set; directions are found in vectors of its passages."
        ),
    ],
    scale: Annotated[float, typer.Option(help="Of the weights that documents get from directions.")] = 20.0,
    gain: Annotated[float, typer.Option(help="What a query weighs of what a document would.")] = 0.4,
    limit: Annotated[int, typer.Option(help="Terms that a query is expanded by at most.", min=1)] = 64,
    as_json: Json = False,
) -> None:
    """Have the queries of an inference-free encoder look for what they mean, beside their words.

    Nothing is trained: two terms that no text has are given to each principal direction of the passages' dense
    vectors. Documents light them up, and queries, which then cost one pass through the transformer each.

    sentence-transformers does not read the encoder. Documents have to be indexed again.

    Examples:

    lexpert train expand-queries run/model expanded --set pairs

    lexpert train expand-queries run/model expanded --set pairs --gain 0.3 --limit 32
    """
    from dataclasses import asdict

    from retrieval.training.query_expansion import expand_queries, measured
    from retrieval.training.training_set import TrainingSet
    from runtime.output_folder import require_new
    from runtime.progress import progress

    require_new(out)
    passages = TrainingSet.load(training_set).passages
    with progress("encoding", total=len(measured(passages)), unit="texts") as advance:
        found = expand_queries(encoder, out, passages, scale=scale, gain=gain, limit=limit, advance=advance)
    if as_json:
        print_json({"encoder": str(encoder), "out": str(out), **asdict(found)})
        return
    typer.echo(
        f"wrote {out}: {found.directions:,} directions with two terms each, which have {found.variance:.1%} of the "
        f"variance of {found.texts:,} texts' vectors"
    )
