"""Measuring a run file, of this or any other system, against judgements."""

from __future__ import annotations

from pathlib import Path

from evals.collections.collection import Qrels
from evals.evaluation import measure_run
from evals.metrics import mean
from evals.report import Report
from retrieval.interop.trec_run import read_tagged_run
from runtime.errors import InputError


def measure_run_file(run: Path, qrels: Path, judgements: Qrels, *, relevance_level: int = 1) -> Report:
    """Read a run file and measure it; the report names the system by the tag of the run, or else by its file.

    Args:
        qrels: the file of the judgements, which names collection and split.
        judgements: what that file holds.

    Raises:
        NotFoundError: no such run file.
        InputError: it is malformed (names file and line), holds no ranking, or none for a judged query; or there
            are no judgements.
        UsageError: a relevance level that no grade can have.
    """
    rankings, tag = read_tagged_run(run)
    if not rankings:
        raise InputError(f"{run} holds no rankings; nothing can be measured without any")
    if not judgements:
        raise InputError(f"{qrels} holds no judgements; nothing can be measured without any")
    if rankings.keys().isdisjoint(judgements):
        raise InputError(
            f"{run} ranks for no query that {qrels} judges (the first ones are {next(iter(rankings))!r} and "
            f"{next(iter(judgements))!r}); are they of the same collection and split?"
        )
    per_query = measure_run(rankings, judgements, relevance_level=relevance_level)
    file = qrels.resolve()
    return Report(
        collection=file.parents[1].name if file.parent.name == "qrels" else file.name,
        split=Path(file.name.removesuffix(".gz")).stem,
        encoder=tag or Path(run.name.removesuffix(".gz")).stem,
        metrics=mean(per_query),
        queries=len(judgements),
        unanswered=sum(query not in rankings for query in judgements),
        relevance_level=relevance_level,
        per_query=per_query,
    )
