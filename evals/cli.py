"""``lexpert eval``: evaluate encoders on collections, measure run files, compare systems."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from evals.language_model_cli import lm_command
from evals.train_cli import app as train_app  # noqa: F401 - lexpert.py adds it
from runtime.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from evals.collections.collection import Collection
    from evals.report import Report
    from retrieval.search.fusion import FusionMethod

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Evaluate encoders and language models, measure run files, compare systems.",
)
app.command("lm")(lm_command)

EncoderOption = Annotated[
    str,
    typer.Option(
        "--encoder",
        help="bm25, lexpert-mini, a folder of a model, its name on the Hugging Face hub, or dense=FOLDER.",
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder for report.json, per_query.tsv, run.trec, plot.png and the index; else .lexpert/."
    ),
]
DepthOption = Annotated[int, typer.Option("--k", help="Results asked for a query.")]
MemoryOption = Annotated[int, typer.Option("--memory", help="Bound for the index writer, in MiB.")]
WorkersOption = Annotated[
    int | None, typer.Option(help="Processes that encode and build; default: all cores.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else.")]
PlotOption = Annotated[bool, typer.Option("--plot/--no-plot", help="Draw plot.png.")]
RelevanceOption = Annotated[
    int, typer.Option(help="Lowest grade that counts as relevant, except in nDCG (TREC DL: 2).")
]


@app.command("beir")
def beir_command(
    collections: Annotated[
        list[str],
        typer.Argument(metavar="DIR_OR_NAME...", help="BEIR folders, or names such as scifact (downloaded)."),
    ],
    encoder: EncoderOption = "bm25",
    split: Annotated[
        str | None, typer.Option(help="Which judgements: qrels/SPLIT.tsv.  [default: test]")
    ] = None,
    out: OutOption = None,
    k: DepthOption = 1000,
    memory: MemoryOption = 1024,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
    plot: PlotOption = True,
) -> None:
    """Evaluate an encoder on BEIR collections; several give one table with their mean.

    The index is built once and reused while encoder and documents stay the same, so that a second evaluation
    only searches.

    Examples:

        lexpert eval beir data/scifact --encoder bm25

        lexpert eval beir data/scifact data/nfcorpus --encoder naver/splade-v3 --out results

        lexpert eval beir scifact --split train --json

        lexpert eval beir python-docs          (known-item search in Python's own documentation; no download)
    """
    _evaluate(collections, split, encoder, out, k, memory, workers, as_json, plot)


@app.command("msmarco")
def msmarco_command(
    collection: Annotated[
        str,
        typer.Argument(
            metavar="DIR_OR_NAME", help="Folder with collection.tsv, or msmarco-passage (downloaded, 3 GB)."
        ),
    ],
    encoder: EncoderOption = "bm25",
    split: Annotated[str, typer.Option(help="dev, dl19 or dl20.")] = "dev",
    out: OutOption = None,
    k: DepthOption = 1000,
    memory: MemoryOption = 1024,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
    plot: PlotOption = True,
) -> None:
    """Evaluate an encoder on MS MARCO passage ranking, in its own files; the passages are streamed.

    A folder holds collection.tsv and, for each split, the published files: queries.dev.small.tsv and
    qrels.dev.small.tsv; msmarco-test2019-queries.tsv and 2019qrels-pass.txt; msmarco-test2020-queries.tsv and
    2020qrels-pass.txt.

    Examples:

        lexpert eval msmarco data/msmarco --encoder bm25

        lexpert eval msmarco data/msmarco --encoder naver/splade-v3 --split dl19 --out results/dl19

        lexpert eval msmarco msmarco-passage --split dl20 --json
    """
    from evals.collections.msmarco import SPLITS

    if split not in SPLITS:
        raise UsageError(f"MS MARCO has no split {split!r}; choose one of {', '.join(SPLITS)}")
    _evaluate([collection], split, encoder, out, k, memory, workers, as_json, plot)


@app.command("run")
def run_command(
    run: Annotated[
        Path, typer.Argument(metavar="RUN.trec", help="A TREC run file: qid Q0 docid rank score tag.")
    ],
    qrels: Annotated[Path, typer.Argument(metavar="QRELS", help="Judgements, in BEIR's or TREC's form.")],
    relevance_level: RelevanceOption = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.json, per_query.tsv and plot.png.")
    ] = None,
    as_json: JsonOption = False,
    plot: PlotOption = True,
) -> None:
    """Measure a run file, of this or any other system, against judgements.

    Rankings are read in the order of their scores, equal scores in the order of their ranks. The system goes by
    the tag of its run, or by the name of the file where the lines have several.

    Examples:

        lexpert eval run results/run.trec data/scifact/qrels/test.tsv

        lexpert eval run dl19.trec 2019qrels-pass.txt --relevance-level 2 --json
    """
    from evals.metrics import require_relevance_level
    from evals.qrels import read_qrels
    from evals.report import PLOT_FILE, require_folder
    from evals.run_file import measure_run_file

    require_relevance_level(relevance_level)
    if out is not None:
        require_folder(out)
    report = measure_run_file(run, qrels, read_qrels(qrels), relevance_level=relevance_level)
    if out is not None:
        report.save(out)
        if plot:
            from evals.plots import plot_report

            plot_report(report, out / PLOT_FILE)
    _print_reports([report], as_json, [out] if out else [])


@app.command("fuse")
def fuse_command(
    collections: Annotated[
        list[str],
        typer.Argument(metavar="DIR_OR_NAME...", help="The collections that were evaluated."),
    ],
    of: Annotated[
        list[Path],
        typer.Option(
            "--of", metavar="DIR", help="--out of an evaluation of these. Repeat it, once for each system."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for reports and runs, as of eval beir.")],
    method: Annotated[
        str, typer.Option(help="min_max: mean of normalised scores; rrf: reciprocal ranks.")
    ] = "min_max",
    weight: Annotated[
        list[float] | None,
        typer.Option("--weight", help="Of each system, in their order.", show_default="all the same"),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Which judgements: qrels/SPLIT.tsv.  [default: test]")
    ] = None,
    k: DepthOption = 1000,
    as_json: JsonOption = False,
    plot: PlotOption = True,
) -> None:
    """Fuse the runs of several evaluations, query by query, and measure what comes out.

    Examples:

        lexpert eval fuse data/scifact --of results/bm25 --of results/splade --out results/both

        lexpert eval fuse data/scifact data/nfcorpus --of bm25 --of dense --out both --method rrf
    """
    from evals.collections.catalogue import load_collection
    from evals.fused_runs import fuse_reports
    from evals.report import REPORT_FILE, require_folder

    require_folder(out)
    loaded = [load_collection(name, split) for name in collections]
    several = len(loaded) > 1
    done = [
        fuse_reports(
            [one if (one / REPORT_FILE).is_file() and not several else one / collection.name for one in of],
            collection,
            out / collection.name if several else out,
            method=cast("FusionMethod", method),  # checked where it is used
            weights=weight or None,
            k=k,
            plot=plot,
        )
        for collection in loaded
    ]
    reports = [evaluation.report for evaluation in done]
    if several and plot:
        from evals.plots import plot_reports
        from evals.report import PLOT_FILE

        plot_reports(reports, out / PLOT_FILE)
    _print_reports(reports, as_json, [evaluation.folder for evaluation in done])


@app.command("compare")
def compare_command(
    a: Annotated[
        Path, typer.Argument(metavar="A", help="Report folder, report.json, or a run file with --qrels.")
    ],
    b: Annotated[Path, typer.Argument(metavar="B", help="The same, of the system that is to be better.")],
    qrels: Annotated[
        Path | None, typer.Option(help="Judgements that run files are measured against.")
    ] = None,
    relevance_level: RelevanceOption = 1,
    out: Annotated[Path | None, typer.Option(help="Folder for comparison.json and plot.png.")] = None,
    as_json: JsonOption = False,
    plot: PlotOption = True,
) -> None:
    """Compare two systems, query by query: means, wins and losses, and whether chance may explain it.

    The p-values are those of the two-sided paired randomisation test.

    Examples:

        lexpert eval compare results/bm25 results/splade --out results/comparison

        lexpert eval compare bm25.trec splade.trec --qrels data/scifact/qrels/test.tsv --json
    """
    from evals.comparison import compare
    from evals.metrics import require_relevance_level
    from evals.report import comparison_json, print_comparison, require_folder

    require_relevance_level(relevance_level)
    if out is not None:
        require_folder(out)
    of_a, of_b = _systems((a, b), qrels, relevance_level)
    on_a, on_b = (f"{report.collection}/{report.split}" for report in (of_a, of_b))
    if on_a != on_b and _is_report(a) and _is_report(b):
        raise UsageError(
            f"A was measured on {on_a} and B on {on_b}; compare two of the same collection and split"
        )
    if of_a.relevance_level != of_b.relevance_level:
        raise UsageError(
            f"in A relevant means grade {of_a.relevance_level} or more, in B {of_b.relevance_level}; measure "
            "both alike (--relevance-level is that of run files)"
        )
    name_a, name_b = of_a.encoder, of_b.encoder
    if name_a == name_b:
        name_a, name_b = str(a), str(b)
    comparison = compare(of_a.per_query, of_b.per_query)
    values = comparison_json(comparison, name_a, name_b)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "comparison.json").write_text(json.dumps(values, indent=2) + "\n", "utf-8")
        if plot:
            from evals.plots import plot_comparison

            plot_comparison(comparison, name_a, name_b, out / "plot.png")
    if as_json:
        print(json.dumps(values))
        return
    console = _console()
    print_comparison(comparison, name_a, name_b, console)
    if out is not None:
        console.print(f"comparison and plot: {out}", highlight=False)


def _evaluate(
    names: list[str],
    split: str | None,
    encoder: str,
    out: Path | None,
    k: int,
    memory: int,
    workers: int | None,
    as_json: bool,
    plot: bool,
) -> None:
    for option, value in (("--k", k), ("--memory", memory), ("--workers", workers)):
        if value is not None and value < 1:
            raise UsageError(f"{option} must be at least 1, got {value}")
    from evals.collections.catalogue import load_collection
    from evals.evaluation import evaluate
    from evals.report import require_folder

    # All are read before the first is indexed, so that a wrong name is told at once.
    loaded = [load_collection(name, split) for name in names]
    folders = [out] if len(loaded) == 1 else _folders(out, loaded, encoder)
    for folder in filter(None, folders):
        require_folder(folder)
    done = [
        evaluate(
            collection,
            encoder,
            out=folder,
            indexes=None if out is None else out / "indexes",
            k=k,
            memory=memory << 20,
            workers=workers,
            plot=plot,
        )
        for collection, folder in zip(loaded, folders, strict=True)
    ]
    reports = [evaluation.report for evaluation in done]
    if len(done) > 1 and out is not None and plot:
        from evals.plots import plot_reports
        from evals.report import PLOT_FILE

        plot_reports(reports, out / PLOT_FILE)
    _print_reports(reports, as_json, [evaluation.folder for evaluation in done])


def _folders(out: Path | None, loaded: list[Collection], encoder: str) -> list[Path | None]:
    """A folder for each of several collections: its name, with as much behind it as tells all apart."""
    from evals.evaluation import origin_of

    origins = [origin_of(collection, encoder) for collection in loaded]
    names = [collection.name for collection in loaded]
    for more in ([collection.split for collection in loaded], origins):
        names = [
            f"{name}-{behind}" if names.count(name) > 1 else name
            for name, behind in zip(names, more, strict=True)
        ]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"the collection {loaded[names.index(twice)].name} is given twice; give it once")
    return [out and out / name for name in names]


def _print_reports(reports: list[Report], as_json: bool, folders: list[Path]) -> None:
    from evals.report import mean_metrics, print_reports

    if as_json:
        values: dict[str, Any] = reports[0].to_json()
        if len(reports) > 1:
            values = {
                "encoder": reports[0].encoder,
                "mean": mean_metrics(reports),
                "collections": [report.to_json() for report in reports],
            }
        print(json.dumps(values))
        return
    console = _console()
    print_reports(reports, console)
    for folder in folders:
        console.print(f"report: {folder}", highlight=False, soft_wrap=True)


def _is_report(path: Path) -> bool:
    return path.is_dir() or path.suffix == ".json"


def _systems(paths: tuple[Path, Path], qrels: Path | None, relevance_level: int) -> list[Report]:
    """The reports that `compare` was given, or those of the run files that it was given."""
    from evals.qrels import read_qrels
    from evals.report import load_report
    from evals.run_file import measure_run_file

    reports: list[Report] = []
    judgements = None
    for path in paths:
        if _is_report(path):
            report = load_report(path)
            if not report.per_query:
                raise UsageError(f"{path} has no per_query.tsv beside its report, so it cannot be compared")
        elif not path.exists():
            raise NotFoundError(f"{path} is missing; give a report folder, its report.json, or a run file")
        elif qrels is None:
            raise UsageError(f"{path} is a run file; give the judgements to measure it against with --qrels")
        else:
            judgements = judgements or read_qrels(qrels)
            report = measure_run_file(path, qrels, judgements, relevance_level=relevance_level)
        reports.append(report)
    return reports


def _console() -> Console:
    from rich.console import Console

    # In a file or a pipe there is no width to fit into; 80 columns would fold the table.
    return Console(width=None if sys.stdout.isatty() else 140)
