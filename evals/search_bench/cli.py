"""``lexpert bench``: measure this project beside its peers."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runtime.errors import LexpertError, NotFoundError, UsageError

if TYPE_CHECKING:
    from evals.search_bench.workload import Workload

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Measure this project beside its peers."
)

DEFAULT_CACHE = Path(".lexpert/bench")
MODELS = ("v3", "ed", "unicoil")


@app.callback()
def _area() -> None:
    """Keeps `search` a command of its own while it is the only one."""


@app.command("search")
def search_command(
    data: Annotated[
        str,
        typer.Option(
            metavar="synthetic|real|FILE.csr", help="Documents: generated, real passages, or a CSR file."
        ),
    ] = "synthetic",
    documents: Annotated[
        int | None, typer.Option(help="How many.  [default: 100,000 generated, else all]")
    ] = None,
    queries: Annotated[int, typer.Option(help="How many.")] = 1000,
    query_file: Annotated[
        Path | None, typer.Option(help="CSR file of queries; with a CSR file of documents.")
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(help="With real: folder of NAME/text.txt.gz, NAME/corpus.jsonl and sparse-queries/."),
    ] = None,
    query_model: Annotated[
        str | None,
        typer.Option(help="With real: whose queries: v3 or ed (SPLADE), unicoil.  [default: v3]"),
    ] = None,
    k: Annotated[
        list[int] | None, typer.Option("--k", help="Results a query; may be repeated.  [default: 10, 1000]")
    ] = None,
    engines: Annotated[
        str | None, typer.Option(help="Names, with commas between.  [default: all that are installed]")
    ] = None,
    rounds: Annotated[int, typer.Option(help="How often each setting answers all queries.")] = 5,
    cache: Annotated[
        Path, typer.Option(help="Folder for vectors, exact answers and indexes; used again.")
    ] = DEFAULT_CACHE,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on standard output and nothing else.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(metavar="OUT.png", help="Draw recall against latency.")] = None,
) -> None:
    """Search side by side: this project and its peers on the same vectors, pinned to one core, in turns.

    Each engine builds its indexes once, tries its settings on a few queries, and is measured with those that reach
    .90, .95, .97, .99 and .999 of the exact top k fastest. Peers come with the extra `peers`.

    Examples:

        lexpert bench search --documents 300000 --plot bench.png

        lexpert bench search --data real --texts data --query-model ed --engines lexpert,seismic

        lexpert bench search --data docs.csr --query-file queries.csr --k 10 --json
    """
    depths = list(dict.fromkeys(k or [10, 1000]))
    counts = [("--k", depth) for depth in depths] + [("--rounds", rounds), ("--queries", queries)]
    for option, value in [*counts, ("--documents", documents)]:
        if value is not None and value < 1:
            raise UsageError(f"{option} must be at least 1, got {value}")
    if not hasattr(os, "sched_setaffinity"):
        raise UsageError(
            "the bench pins processes to cores, which this system does not offer; run it on Linux"
        )
    from evals.search_bench.comparison import compare_engines
    from evals.search_bench.engines.catalogue import installed_engines

    asked = [] if engines is None else list(dict.fromkeys(name.strip() for name in engines.split(",")))
    workload = _workload(data, documents, queries, query_file, texts, query_model, cache)
    cores = sorted(os.sched_getaffinity(0))
    found = compare_engines(workload, asked or installed_engines(), depths, rounds=rounds, cores=cores)
    if plot is not None and found.measurements:
        from evals.search_bench.picture import plot_comparison

        plot_comparison(found, plot)
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        from rich.console import Console

        from evals.search_bench.report import print_comparison

        console = Console(width=None if sys.stdout.isatty() else 200)
        print_comparison(found, console)
        if plot is not None and found.measurements:
            console.print(f"picture: {plot}", highlight=False)
    if not found.measurements:
        raise LexpertError("no engine could be measured; why is said with the results")
    measured = {(row.engine, row.k) for row in found.measurements}
    missing = [name for name in asked if any((name, depth) not in measured for depth in depths)]
    if missing:
        raise LexpertError(
            f"{', '.join(missing)} could not be measured at every k; why is said with the results"
        )


def _workload(
    data: str,
    documents: int | None,
    queries: int,
    query_file: Path | None,
    texts: Path | None,
    query_model: str | None,
    cache: Path,
) -> Workload:
    from evals.search_bench.workload import given_workload, real_workload, synthetic_workload

    if data in ("synthetic", "real") and query_file is not None:
        raise UsageError(
            f"--query-file goes with a CSR file of documents, not with --data {data}; leave it out"
        )
    for option, value in (("--texts", texts), ("--query-model", query_model)):
        if data != "real" and value is not None:
            raise UsageError(f"{option} goes with --data real, not with --data {data}; leave it out")
    if data == "synthetic":
        return synthetic_workload(cache, documents or 100_000, queries)
    if data == "real":
        if texts is None:
            raise UsageError("--data real needs --texts, the folder of texts, collections and sparse-queries")
        query_model = query_model or MODELS[0]
        if query_model not in MODELS:
            raise UsageError(f"there are no queries of {query_model!r}; choose from {', '.join(MODELS)}")
        return real_workload(cache, texts, query_model, documents, queries)
    if not Path(data).is_file():
        raise NotFoundError(f"{data} is missing; give synthetic, real, or a CSR file of documents")
    if query_file is None:
        raise UsageError(
            f"{data} needs queries of the same vocabulary; give a CSR file of them with --query-file"
        )
    return given_workload(cache, Path(data), query_file, documents, queries)
