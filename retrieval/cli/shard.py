"""``lexpert index shard``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retrieval.cli.options import IndexFolder, Json, print_json


def shard(
    index: IndexFolder,
    out: Annotated[Path, typer.Option(help="Folder to make.", metavar="DIR")],
    shards: Annotated[int, typer.Option(help="How many shards, 1 to 256.", metavar="N")],
    as_json: Json = False,
) -> None:
    """Split an index into shards, for a server that searches them in processes of their own.

    A document's id says which shard it is in. The shards together give what the index gives, scores and ties too. They
    do not change any more: to change documents, change the index, and split it again.

    Example: lexpert index shard idx --shards 4 --out idx-of-4
    """
    from retrieval.index.sparse_index import SparseIndex
    from retrieval.index.split import split_index
    from runtime.progress import progress

    with SparseIndex.open(index) as opened, progress("splitting", opened.num_documents) as advance:
        made = split_index(opened, out, shards, advance)
    counts = [entry.documents for entry in made.shards]
    if as_json:
        print_json({"path": str(out), "documents": sum(counts), "shards": counts})
    else:
        typer.echo(
            f"split {index} into {out}: {sum(counts):,} documents in {len(counts):,} shards of {min(counts):,} to "
            f"{max(counts):,}"
        )
