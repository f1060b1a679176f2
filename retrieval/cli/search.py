"""``lexpert search``: one question, or a file of queries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retrieval.cli.options import IndexOption, Json, MovedEncoder, load_encoder, print_json
from runtime.errors import InputError, UsageError

if TYPE_CHECKING:
    from retrieval.index.sharded_index import ShardedIndex
    from retrieval.index.sparse_index import SparseIndex


def search(
    index: IndexOption,
    query: Annotated[str | None, typer.Argument(help="The question.")] = None,
    queries: Annotated[
        Path | None, typer.Option(help="queries.jsonl: one {_id, text} a line.", metavar="FILE")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="TREC run file to write for --queries.", metavar="FILE")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Results for each query.")] = 10,
    filter_: Annotated[
        str | None,
        typer.Option("--filter", help='JSON, such as {"field": "year", "gte": 2020}.', metavar="JSON"),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="exact (the default), exhaustive (the same, slowly) or approximate.", metavar="MODE"
        ),
    ] = None,
    effort: Annotated[
        float | None,
        typer.Option(help="Approximate: share of the query's postings to add up, up to 1.", metavar="E"),
    ] = None,
    target_recall: Annotated[
        float | None,
        typer.Option(help="Approximate: share of the exact results to find on average.", metavar="R"),
    ] = None,
    encoder: MovedEncoder = None,
    explain: Annotated[bool, typer.Option(help="Show what each term adds to each score.")] = False,
    as_json: Json = False,
) -> None:
    """Search an index: one question, or a file of queries into a TREC run file.

    Examples:

    lexpert search --index idx "how do vaccines work" --explain

    lexpert search --index idx --queries queries.jsonl --run out.trec -k 1000 --target-recall 0.99
    """
    from retrieval.index.sharded_index import open_index

    if (query is None) == (queries is None):
        raise UsageError("give either one question or --queries FILE")
    if (queries is None) != (run is None):
        raise UsageError("--queries and --run go together: the run file takes the results of the queries")
    if run is not None and (not run.name or run.is_dir()):
        raise UsageError(f"--run {run} is a folder; give a file for the run")
    if queries is not None and explain:
        raise UsageError("--explain goes with one question; a run file has no place for explanations")
    options: dict[str, Any] = {
        "k": k,
        "filter": _parse_filter(filter_),
        "mode": mode,
        "effort": effort,
        "target_recall": target_recall,
    }
    with open_index(index, encoder=load_encoder(encoder) if encoder else None) as opened:
        if queries is not None and run is not None:
            _search_file(opened, queries, run, options, as_json)
        else:
            _search_one(opened, query or "", options, explain, as_json)


def _parse_filter(text: str | None) -> Any:
    import orjson

    if text is None:
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise UsageError(f"--filter is not valid JSON ({error})") from None


def _search_one(
    index: SparseIndex | ShardedIndex, query: str, options: dict[str, Any], explain: bool, as_json: bool
) -> None:
    from dataclasses import asdict

    hits = index.search([query], **options)
    vector = index.encoder.encode_queries([query]) if explain else None
    rows: list[dict[str, Any]] = []
    for identifier, score in zip(hits.ids[0], hits.scores[0].tolist(), strict=True):
        row: dict[str, Any] = {"id": identifier, "score": score, "document": index.document(identifier)}
        if vector is not None:
            row["explanation"] = [asdict(share) for share in index.explain(vector, identifier).shares]
        rows.append(row)
    if as_json:
        print_json({"query": query, "hits": rows, "unknown_terms": hits.unknown_terms[0]})
        return
    if hits.unknown_terms[0]:
        typer.echo(f"not in the index: {', '.join(hits.unknown_terms[0])}", err=True)
    if not rows:
        typer.echo("no document shares a term with the question", err=True)
    for rank, row in enumerate(rows, start=1):
        document = row["document"]
        typer.echo(f"{rank:3}. {row['score']:8.4f}  {row['id']}  {document.get('title', '')}".rstrip())
        if text := document.get("text"):
            typer.echo(f"               {text[:160].replace(chr(10), ' ')}{'…' if len(text) > 160 else ''}")
        for share in row.get("explanation", ()):
            typer.echo(
                f"               {share['share']:8.4f}  {share['term']}  "
                f"(query {share['query_weight']:.4g} × document {share['document_weight']:.4g})"
            )


def _search_file(
    index: SparseIndex | ShardedIndex, queries: Path, run: Path, options: dict[str, Any], as_json: bool
) -> None:
    from retrieval.documents import read_queries
    from retrieval.interop.trec_run import write_run
    from runtime.batches import batched
    from runtime.progress import progress

    rankings: dict[str, list[tuple[str, float]]] = {}
    with progress("searching", unit="queries") as advance:
        for batch in batched(read_queries(queries), 256):
            hits = index.search([text for _, text in batch], **options)
            for (identifier, _), ids, scores in zip(batch, hits.ids, hits.scores, strict=True):
                if identifier in rankings:
                    raise InputError(f"{queries} has the query id {identifier!r} twice; ids must differ")
                rankings[identifier] = list(zip(ids, scores.tolist(), strict=True))
            advance(len(batch))
    write_run(rankings, run)
    unanswered = sum(not ranking for ranking in rankings.values())
    if as_json:
        print_json({"queries": len(rankings), "without_results": unanswered, "run": str(run)})
    else:
        note = f" ({unanswered:,} without a result)" if unanswered else ""
        typer.echo(f"wrote {run}: {len(rankings):,} queries{note}")
