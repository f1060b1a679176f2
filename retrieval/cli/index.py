"""``lexpert index``: build, add, delete, merge, calibrate, verify, stats, shard; export and import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from retrieval.cli.dense import dense
from retrieval.cli.densify import densify, search_densified
from retrieval.cli.exchange import export, import_
from retrieval.cli.options import (
    K1,
    B,
    Encoder,
    FieldsOption,
    Impacts,
    IndexFolder,
    Json,
    Memory,
    MovedEncoder,
    Workers,
    load_encoder,
    parse_fields,
    print_json,
)
from retrieval.cli.shard import shard
from runtime.errors import UsageError

Merge = Annotated[
    bool,
    typer.Option(help="Merge segments in the background as they gather, and wait for that at the end."),
]

TARGETS = (0.9, 0.95, 0.99)
"""Recalls that a calibration is shown for."""

index_app = typer.Typer(no_args_is_help=True, help="Build, change, inspect and exchange indexes.")
index_app.command("export")(export)
index_app.command("import")(import_)
index_app.command("densify")(densify)
index_app.command("search-densified")(search_densified)
index_app.command("dense")(dense)
index_app.command("shard")(shard)


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
    impacts: Impacts = "float32",
    memory: Memory = 1024,
    workers: Workers = None,
    merge: Merge = True,
    calibrate_queries: Annotated[
        Path | None,
        typer.Option(
            help="queries.jsonl that searches aiming at a recall are tuned with; default: made from documents.",
            metavar="FILE",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an index that is there.")] = False,
    k1: K1 = None,
    b: B = None,
    on_ray: Annotated[
        bool, typer.Option("--ray", help="Encode and write segments on Ray: needs lexpert[cluster].")
    ] = False,
    ray_address: Annotated[
        str | None,
        typer.Option(help="A running Ray cluster, in place of RAY_ADDRESS or this machine.", metavar="A"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Build an index from a corpus.

    Run the same command again after an interruption: it goes on after the last commit, or starts over where
    nothing was committed yet, and says which. When nothing changed, and merges and calibration are done, it has
    nothing to do.

    With --ray the same index is built by the workers of a Ray cluster. All of them must see the corpus and the
    folder of the index under the same paths: on a cluster of several machines they belong on shared storage.

    At the end of a build of some thousand documents or more, approximate search is calibrated, for
    lexpert search --target-recall; calibrating again is lexpert index calibrate.

    Example: lexpert index build --encoder bm25 --corpus corpus.jsonl --out idx --field year:int
    """
    from retrieval.corpus import JsonlCorpus
    from retrieval.index.settings import MERGE_POLICY

    if ray_address is not None and not on_ray:
        raise UsageError("--ray-address belongs to --ray; add it")
    arguments: dict[str, Any] = {
        "memory": memory << 20,
        "workers": workers,
        "fields": parse_fields(field),
        "store": [] if store == "none" else [name.strip() for name in store.split(",")],
        "impacts": impacts,
        "merge_policy": MERGE_POLICY if merge else None,
        "calibrate_queries": _texts(calibrate_queries) if calibrate_queries else None,
        "overwrite": overwrite,
    }
    read, loaded = JsonlCorpus(corpus), load_encoder(encoder, k1, b)
    if on_ray:
        from retrieval.index.ray_build import build_index_on_ray

        report = build_index_on_ray(out, loaded, read, address=ray_address, **arguments)
    else:
        from retrieval.index.build import build_index

        report = build_index(out, loaded, read, **arguments)
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
    encoder: MovedEncoder = None,
    memory: Memory = 1024,
    workers: Workers = None,
    merge: Merge = True,
    as_json: Json = False,
) -> None:
    """Add documents to an index; a document whose id is there already is replaced.

    Example: lexpert index add idx --corpus new.jsonl
    """
    from retrieval.documents import read_documents
    from retrieval.index.build import finish_merges
    from retrieval.index.settings import MERGE_POLICY
    from retrieval.index.writer import IndexWriter
    from runtime.progress import progress

    with IndexWriter.open(
        index,
        encoder=load_encoder(encoder) if encoder else None,
        memory=memory << 20,
        workers=workers,
        merge_policy=MERGE_POLICY if merge else None,
    ) as writer:
        with progress("adding") as advance:
            writer.add(read_documents(corpus), advance)
        report = writer.commit()
        finish_merges(writer)
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
    merge: Merge = True,
    as_json: Json = False,
) -> None:
    """Delete documents by id.

    Example: lexpert index delete idx doc17 doc18
    """
    from retrieval.index.build import finish_merges
    from retrieval.index.settings import MERGE_POLICY
    from retrieval.index.writer import IndexWriter
    from retrieval.text_lines import read_lines

    wanted = list(ids or [])
    if ids_from is not None:
        wanted += [line for _, line in read_lines(ids_from, "a file with one document id a line")]
    if not wanted:
        raise UsageError("no ids given; name them, or a file of them with --ids-from")
    with IndexWriter.open(index, merge_policy=MERGE_POLICY if merge else None) as writer:
        deleted = writer.delete(wanted)
        finish_merges(writer)
    missing = len(dict.fromkeys(wanted)) - deleted
    if as_json:
        print_json({"deleted": deleted, "missing": missing})
    else:
        typer.echo(
            f"deleted {deleted:,} documents from {index}"
            + (f"; {missing:,} were not there" if missing else "")
        )


@index_app.command("merge")
def merge(index: IndexFolder, encoder: MovedEncoder = None, as_json: Json = False) -> None:
    """Rewrite all segments as one, without deleted documents; results stay the same.

    With --encoder the index refers to its model's new place from then on.

    Example: lexpert index merge idx
    """
    from retrieval.index.writer import IndexWriter
    from runtime.progress import progress

    given = load_encoder(encoder) if encoder else None
    with IndexWriter.open(index, encoder=given) as writer, progress("merging") as advance:
        before = writer.num_segments
        report = writer.merge(advance)
        after = writer.num_segments
    if as_json:
        print_json({"generation": report.generation, "segments_before": before, "segments": after})
    else:
        typer.echo(f"merged {before:,} segments of {index} into {after:,}")


@index_app.command("calibrate")
def calibrate(
    index: IndexFolder,
    queries: Annotated[
        Path | None,
        typer.Option(
            help="queries.jsonl like those to be searched for; default: made from documents.", metavar="FILE"
        ),
    ] = None,
    encoder: MovedEncoder = None,
    as_json: Json = False,
) -> None:
    """Measure what recall approximate search reaches by how much work, for lexpert search --target-recall.

    Calibrate again after large changes: what was measured on few documents need not hold on many.

    Example: lexpert index calibrate idx --queries held-back.jsonl
    """
    from retrieval.index.writer import IndexWriter
    from runtime.progress import progress

    texts = _texts(queries) if queries else None
    given = load_encoder(encoder) if encoder else None
    with (
        IndexWriter.open(index, encoder=given, merge_policy=None) as writer,
        progress("calibrating", unit="searches") as advance,
    ):
        found = writer.calibrate(texts, advance)
    choices = [
        {"target_recall": recall, "k": k, **(point.model_dump() if point else {"k": k, "mode": "exact"})}
        for recall in TARGETS
        for k in sorted({point.k for point in found.points})
        for point in [found.cheapest(recall, k)]
    ]
    if as_json:
        print_json({**found.model_dump(), "choices": choices})
        return
    if not found.points:
        typer.echo(
            f"{index} is searched exactly whatever recall is aimed at: that is as fast as any other way"
        )
        return
    kind = "held-back queries" if found.held_back else "queries made from documents"
    typer.echo(f"{index}: {found.documents:,} documents, {found.queries:,} {kind}")
    typer.echo(f"{'aim':>5} {'k':>6} {'effort':>8} {'candidates':>11} {'recall':>8}")
    for choice in choices:
        setting = (
            f"{choice['effort']:8.3g} {choice['candidates']:11.3g} {choice['mean']:8.4f}"
            if "effort" in choice
            else f"{'exact':>8} {'':11} {1:8.4f}"
        )
        typer.echo(f"{choice['target_recall']:5.2f} {choice['k']:6,} {setting}")


def _texts(queries: Path) -> list[str]:
    from retrieval.documents import read_queries

    return [text for _, text in read_queries(queries)]


@index_app.command("verify")
def verify(index: IndexFolder, as_json: Json = False) -> None:
    """Read every byte of an index and compare it with its checksums.

    Example: lexpert index verify idx
    """
    from retrieval.index.sharded_index import open_index

    with open_index(index) as opened:
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
    from retrieval.index.sharded_index import open_index

    with open_index(index) as opened:
        found = opened.stats()
    if as_json:
        print_json(found)
        return
    calibration = found.pop("calibration", {})
    layouts = found.pop("layouts")
    found["segments"] = f"{found['segments']:,}" + (
        f" ({', '.join(f'{count:,} in {layout}' for layout, count in layouts.items())})" if layouts else ""
    )
    for name, value in found.items():
        typer.echo(f"{name:20} {_shown(value)}")
    typer.echo(f"{'calibration':20} {_shown_calibration(calibration)}")


def _shown_calibration(value: dict[str, Any]) -> str:
    if not value:
        return "none"
    kind = "held-back" if value["held_back"] else "made"
    return f"{value['points']:,} settings, by {value['queries']:,} {kind} queries on {value['documents']:,} documents"


def _shown(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.2f}"
        case dict():
            return ", ".join(f"{name} ({kind})" for name, kind in value.items()) or "none"
        case list():
            return ", ".join(str(item) for item in value) or "none"
    return str(value)
