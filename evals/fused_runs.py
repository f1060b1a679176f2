"""Fusing evaluations of several systems into one more: their runs, query by query."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evals.collections.collection import Collection
from evals.evaluation import Evaluation, measure_run, save_evaluation
from evals.metrics import mean
from evals.report import RUN_FILE, Report, load_report
from retrieval.interop.trec_run import Run, read_run
from retrieval.search.fusion import FusionMethod, fuse
from runtime.errors import NotFoundError, UsageError


def fuse_reports(
    folders: Sequence[Path],
    collection: Collection,
    out: Path,
    *,
    method: FusionMethod = "min_max",
    weights: Sequence[float] | None = None,
    k: int = 1000,
    plot: bool = True,
) -> Evaluation:
    """Fuse the runs of several reports on one collection, measure the result and save it as a report.

    Args:
        folders: of the reports, each with its run.trec.
        collection: whose judgements measure the result.
        out: folder of the new report.
        method, weights, k: see `retrieval.search.fusion.fuse`; a ranking is fused as deep as it was saved.

    Raises:
        UsageError: fewer than two reports; one of another collection or split; or weights that do not fit.
        NotFoundError: a folder without a report or a run.
    """
    if len(folders) < 2:
        raise UsageError("fusing takes two reports or more")
    reports = [load_report(folder) for folder in folders]
    for folder, report in zip(folders, reports, strict=True):
        if (report.collection, report.split) != (collection.name, collection.split):
            raise UsageError(
                f"{folder} was measured on {report.collection}/{report.split}, not on "
                f"{collection.name}/{collection.split}"
            )
        if not (folder / RUN_FILE).is_file():
            raise NotFoundError(f"{folder} has no {RUN_FILE} beside its report; evaluate again")
    runs = [read_run(folder / RUN_FILE) for folder in folders]
    run: Run = {
        query: fuse([one.get(query, []) for one in runs], k, method, weights) for query in collection.queries
    }
    per_query = measure_run(run, collection.qrels, relevance_level=collection.relevance_level)
    report = Report(
        collection=collection.name,
        split=collection.split,
        encoder="+".join(report.encoder for report in reports),
        metrics=mean(per_query),
        queries=len(collection.queries),
        unanswered=sum(not ranking for ranking in run.values()),
        documents=reports[0].documents,
        relevance_level=collection.relevance_level,
        k=k,
        per_query=per_query,
    )
    return save_evaluation(report, run, out, plot)
