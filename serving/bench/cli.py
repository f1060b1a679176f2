"""The command ``lexpert bench serve``."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from runtime.errors import UsageError

PARTS = ("search", "encode", "generate")
DEFAULT_CACHE = Path(".lexpert/bench")
QUERIES = 1000
TEXTS = 512


def bench_serve(
    parts: Annotated[str, typer.Option(help="What to measure, with commas between.")] = ",".join(PARTS),
    documents: Annotated[int, typer.Option(help="Generated, to search in.")] = 100_000,
    index: Annotated[
        Path | None, typer.Option(metavar="DIR", help="An index to search in instead; with --queries.")
    ] = None,
    queries: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Queries for --index, one on each line.")
    ] = None,
    k: Annotated[int, typer.Option("--k", help="Results a query.")] = 10,
    target_recall: Annotated[
        float | None, typer.Option(help="Search approximately, for this share of the exact results.")
    ] = None,
    effort: Annotated[
        float | None, typer.Option(help="Search approximately, over this share of the postings.")
    ] = None,
    encoder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="To encode with.  [default: random weights, 6 layers of width 384]"),
    ] = None,
    connections: Annotated[int, typer.Option(help="Beside a lone one.")] = 32,
    rounds: Annotated[int, typer.Option(help="How often everything is measured, after a first time.")] = 5,
    seconds: Annotated[float, typer.Option(help="Of each measurement.")] = 2.0,
    default_proxy: Annotated[
        bool, typer.Option("--default-proxy", help="Search through Ray's default proxy as well.")
    ] = False,
    cache: Annotated[Path, typer.Option(help="Folder for what is generated; used again.")] = DEFAULT_CACHE,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on standard output and nothing else.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="OUT.png", help="Draw where the cores' time of a search goes.")
    ] = None,
) -> None:
    """What it costs to ask a server, beside a route that does nothing and beside the same work in this process.

    The client shares the cores with the server, so the cores' time of a request is told part by part, and which part
    limits. `generate` is `lexpert bench generate-concurrent` with its defaults.

    Examples:

        lexpert bench serve --parts search --default-proxy --plot serve.png

        lexpert bench serve --parts search --index ./docs-index --queries queries.txt --json

        lexpert bench serve --parts encode --encoder ./splade
    """
    chosen = list(dict.fromkeys(part.strip() for part in parts.split(",")))
    if unknown := [part for part in chosen if part not in PARTS]:
        raise UsageError(f"--parts has {unknown[0]!r}; choose from {', '.join(PARTS)}")
    if not sys.platform.startswith("linux"):
        raise UsageError("the bench reads the processes of the server as Linux shows them; run it there")
    if (index is None) != (queries is None):
        raise UsageError("--index and --queries belong together; give both, or neither")
    if target_recall is not None and effort is not None:
        raise UsageError("--target-recall and --effort exclude each other; give one")
    for option, value, least in (
        ("--documents", documents, 1),
        ("--k", k, 1),
        ("--connections", connections, 2),
        ("--rounds", rounds, 1),
        ("--seconds", seconds, 0.1),
    ):
        if value < least:
            raise UsageError(f"{option} must be at least {least}, got {value}")
    how = {
        name: value
        for name, value in (("target_recall", target_recall), ("effort", effort))
        if value is not None
    }
    measured: dict[str, Any] = {"connections": connections, "rounds": rounds, "seconds": seconds}
    cache = cache.absolute()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        scratch = Path(temporary)
        if "search" in chosen:
            from serving.bench.search import Questions, generated_index, measure_search, queries_of

            if index is not None and queries is not None:
                folder, asked = index.absolute(), queries_of(queries)
            else:
                folder, asked = generated_index(cache, documents, QUERIES)
            found["search"] = measure_search(
                folder, Questions(k, how, asked), scratch, with_default_proxy=default_proxy, **measured
            )
        if "encode" in chosen:
            from serving.bench.encode import generated_texts, measure_encode, random_encoder

            given = random_encoder(cache) if encoder is None else encoder.absolute()
            found["encode"] = measure_encode(given, generated_texts(TEXTS), scratch, **measured)
        if "generate" in chosen:
            from evals.moe_bench.concurrent import SHAPE, Load, compare_concurrency

            found["generate"] = compare_concurrency(SHAPE, Load(), clients=16, rounds=rounds)
    if plot is not None and "search" in found:
        from serving.bench.picture import plot_search

        plot_search(found["search"], plot)
    if as_json:
        print(json.dumps({part: each.to_json() for part, each in found.items()}))
        return
    _print(found)


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console

    from evals.moe_bench.generation_report import print_concurrency
    from serving.bench.report import print_encode, print_search

    printers: dict[str, Any] = {"search": print_search, "encode": print_encode, "generate": print_concurrency}
    console = Console(width=None if sys.stdout.isatty() else 200)
    for part, each in found.items():
        printers[part](each, console)
