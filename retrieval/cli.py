"""The command line of retrieval: ``lexpert index``, ``lexpert search`` and ``lexpert encode``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.errors import UsageError
from runtime.progress import Advance

if TYPE_CHECKING:
    from retrieval.encoders.encoder import SparseEncoder
    from retrieval.index.sparse_index import SparseIndex

ENCODE_BATCH = 2048

index_app = typer.Typer(no_args_is_help=True, help="Build, change and inspect indexes.")

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
IndexFolder = Annotated[Path, typer.Argument(help="Folder of the index.", metavar="DIR")]
IndexOption = Annotated[Path, typer.Option("--index", help="Folder of the index.", metavar="DIR")]
Encoder = Annotated[
    str,
    typer.Option("--encoder", "-e", help="bm25, an encoder folder, or a name on the hub.", metavar="E"),
]
Memory = Annotated[int, typer.Option(help="Memory to stay within, in MiB.", metavar="MIB")]
Workers = Annotated[int | None, typer.Option(help="Processes that analyse text; default: one a core.")]
FieldsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--field", help="A document key to filter by: NAME:int, NAME:float or NAME:keyword. Repeatable."
    ),
]
K1 = Annotated[float | None, typer.Option(help="bm25: saturation of term counts (0.9).")]
B = Annotated[float | None, typer.Option(help="bm25: strength of length normalisation (0.4).")]


def load_encoder(name: str, k1: float | None = None, b: float | None = None) -> SparseEncoder:
    """Load the encoder that command-line options name."""
    from retrieval.encoders.encoder import SparseEncoder

    options = {key: value for key, value in (("k1", k1), ("b", b)) if value is not None}
    if options and name != "bm25":
        raise UsageError(f"--{next(iter(options))} belongs to --encoder bm25, not to {name}")
    return SparseEncoder.load(name, **options)


def print_json(value: Any) -> None:
    """Print one JSON value on standard output."""
    import orjson

    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_INDENT_2
    typer.echo(orjson.dumps(value, option=options, default=str).decode())


def parse_fields(declarations: list[str] | None) -> dict[str, str]:
    """``["year:int"]`` to ``{"year": "int"}``."""
    fields = {}
    for declaration in declarations or []:
        name, separator, kind = declaration.partition(":")
        if not separator:
            raise UsageError(f"--field {declaration} needs a kind: {declaration}:int, :float or :keyword")
        fields[name] = kind
    return fields


@index_app.command("build")
def build(
    corpus: Annotated[
        Path, typer.Option(help="corpus.jsonl: one {_id, title, text} a line.", metavar="FILE")
    ],
    out: Annotated[Path, typer.Option(help="Folder to build.", metavar="DIR")],
    encoder: Encoder = "bm25",
    field: FieldsOption = None,
    store: Annotated[
        str, typer.Option(help="What to keep of a document: title,text or title or none.")
    ] = "title,text",
    memory: Memory = 1024,
    workers: Workers = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an index that is there.")] = False,
    k1: K1 = None,
    b: B = None,
    as_json: Json = False,
) -> None:
    """Build an index from a corpus.

    Run the same command again after an interruption: it goes on after the last commit, or starts over where
    nothing was committed yet, and says which. When nothing changed it has nothing to do.

    Example: lexpert index build --encoder bm25 --corpus corpus.jsonl --out idx --field year:int
    """
    from retrieval.corpus import JsonlCorpus
    from retrieval.index.build import build_index

    report = build_index(
        out,
        load_encoder(encoder, k1, b),
        JsonlCorpus(corpus),
        memory=memory << 20,
        workers=workers,
        fields=parse_fields(field),
        store=[] if store == "none" else [name.strip() for name in store.split(",")],
        overwrite=overwrite,
    )
    if as_json:
        print_json({**{name: getattr(report, name) for name in report.__slots__}, "path": str(out)})
        return
    if report.action == "reused":
        typer.echo(f"{out} is up to date: {report.documents:,} documents, nothing to do")
        return
    notes = [f"{report.replaced:,} replaced by a later one of the same id"] if report.replaced else []
    notes += [f"{report.empty:,} empty"] if report.empty else []
    typer.echo(
        f"{report.action} {out}: {report.documents:,} documents"
        + (f" ({', '.join(notes)})" if notes else "")
        + f" in {report.seconds:.1f} s"
    )


@index_app.command("add")
def add(
    index: IndexFolder,
    corpus: Annotated[
        Path, typer.Option(help="Documents to add, in the form of a corpus.jsonl.", metavar="FILE")
    ],
    memory: Memory = 1024,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Add documents to an index; a document whose id is there already is replaced.

    Example: lexpert index add idx --corpus new.jsonl
    """
    from retrieval.documents import read_documents
    from retrieval.index.writer import IndexWriter
    from runtime.progress import progress

    with IndexWriter.open(index, memory=memory << 20, workers=workers) as writer:
        with progress("adding") as advance:
            writer.add(read_documents(corpus), advance)
        report = writer.commit()
    if as_json:
        print_json({name: getattr(report, name) for name in report.__slots__})
    else:
        typer.echo(
            f"added {report.added:,} documents to {index} ({report.replaced:,} replaced, {report.empty:,} empty)"
        )


@index_app.command("delete")
def delete(
    index: IndexFolder,
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of documents.", metavar="ID…")] = None,
    ids_from: Annotated[Path | None, typer.Option(help="File with one id a line.", metavar="FILE")] = None,
    as_json: Json = False,
) -> None:
    """Delete documents by id.

    Example: lexpert index delete idx doc17 doc18
    """
    from retrieval.index.writer import IndexWriter
    from runtime.errors import NotFoundError

    wanted = list(ids or [])
    if ids_from is not None:
        if not ids_from.is_file():
            raise NotFoundError(f"{ids_from} is missing; give a file with one document id a line")
        wanted += ids_from.read_text("utf-8").splitlines()
    if not wanted:
        raise UsageError("no ids given; name them, or a file of them with --ids-from")
    with IndexWriter.open(index) as writer:
        deleted = writer.delete(wanted)
    missing = len(dict.fromkeys(wanted)) - deleted
    if as_json:
        print_json({"deleted": deleted, "missing": missing})
    else:
        typer.echo(
            f"deleted {deleted:,} documents from {index}"
            + (f"; {missing:,} were not there" if missing else "")
        )


@index_app.command("merge")
def merge(index: IndexFolder, as_json: Json = False) -> None:
    """Rewrite all segments as one, without deleted documents; results stay the same.

    Example: lexpert index merge idx
    """
    from retrieval.index.writer import IndexWriter

    with IndexWriter.open(index) as writer:
        before = writer.num_segments
        report = writer.merge()
        after = writer.num_segments
    if as_json:
        print_json({"generation": report.generation, "segments_before": before, "segments": after})
    else:
        typer.echo(f"merged {before:,} segments of {index} into {after:,}")


@index_app.command("verify")
def verify(index: IndexFolder, as_json: Json = False) -> None:
    """Read every byte of an index and compare it with its checksums.

    Example: lexpert index verify idx
    """
    from retrieval.index.sparse_index import SparseIndex

    with SparseIndex.open(index) as opened:
        checked = opened.verify()
        generation = opened.generation
    if as_json:
        print_json({"ok": True, "bytes": checked, "generation": generation})
    else:
        typer.echo(f"{index} is intact: {checked:,} bytes of commit {generation} checked")


@index_app.command("stats")
def stats(index: IndexFolder, as_json: Json = False) -> None:
    """Counts and sizes of an index.

    Example: lexpert index stats idx --json
    """
    from retrieval.index.sparse_index import SparseIndex

    with SparseIndex.open(index) as opened:
        found = opened.stats()
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
        typer.echo(f"{name:20} {f'{value:.2f}' if isinstance(value, float) else shown}")


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
    explain: Annotated[bool, typer.Option(help="Show what each term adds to each score.")] = False,
    as_json: Json = False,
) -> None:
    """Search an index: one question, or a file of queries into a TREC run file.

    Examples:

    lexpert search --index idx "how do vaccines work" --explain

    lexpert search --index idx --queries queries.jsonl --run out.trec -k 1000
    """
    from retrieval.index.sparse_index import SparseIndex

    if (query is None) == (queries is None):
        raise UsageError("give either one question or --queries FILE")
    if (queries is None) != (run is None):
        raise UsageError("--queries and --run go together: the run file takes the results of the queries")
    condition = _parse_filter(filter_)
    with SparseIndex.open(index) as opened:
        if queries is not None and run is not None:
            _search_file(opened, queries, run, k, condition, as_json)
        else:
            _search_one(opened, query or "", k, condition, explain, as_json)


def _parse_filter(text: str | None) -> Any:
    import orjson

    if text is None:
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise UsageError(f"--filter is not valid JSON ({error})") from None


def _search_one(index: SparseIndex, query: str, k: int, condition: Any, explain: bool, as_json: bool) -> None:
    from dataclasses import asdict

    hits = index.search([query], k, filter=condition)
    rows: list[dict[str, Any]] = []
    for identifier, score in zip(hits.ids[0], hits.scores[0].tolist(), strict=True):
        row: dict[str, Any] = {"id": identifier, "score": score, "document": index.document(identifier)}
        if explain:
            row["explanation"] = [asdict(share) for share in index.explain(query, identifier).shares]
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


def _search_file(index: SparseIndex, queries: Path, run: Path, k: int, condition: Any, as_json: bool) -> None:
    from retrieval.documents import read_queries
    from retrieval.interop.trec_run import write_run
    from runtime.batches import batched
    from runtime.progress import progress

    rankings: dict[str, list[tuple[str, float]]] = {}
    with progress("searching", unit="queries") as advance:
        for batch in batched(read_queries(queries), 256):
            hits = index.search([text for _, text in batch], k, filter=condition)
            for (identifier, _), ids, scores in zip(batch, hits.ids, hits.scores, strict=True):
                rankings[identifier] = list(zip(ids, scores.tolist(), strict=True))
            advance(len(batch))
    write_run(rankings, run)
    unanswered = sum(not ranking for ranking in rankings.values())
    if as_json:
        print_json({"queries": len(rankings), "without_results": unanswered, "run": str(run)})
    else:
        note = f" ({unanswered:,} without a result)" if unanswered else ""
        typer.echo(f"wrote {run}: {len(rankings):,} queries{note}")


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
    from retrieval.documents import document_text, read_documents
    from retrieval.interop.anserini import AnseriniWriter
    from retrieval.interop.vectors import VectorWriter
    from runtime.batches import batched

    encoded = non_zeros = 0
    writer: AnseriniWriter | VectorWriter = (
        AnseriniWriter(out, encoder.vocabulary)
        if format_ == "anserini"
        else VectorWriter(out, len(encoder.vocabulary), encoder.fingerprint)
    )
    with writer:
        for batch in batched(read_documents(corpus), ENCODE_BATCH):
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
    return encoded, non_zeros
