"""The result of an evaluation: what was measured, on what, at what cost; saved, read back, and shown."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.comparison import Comparison
from evals.metrics import MEASURES, QueryMetrics
from retrieval.text_lines import read_lines
from runtime.errors import ConflictError, FormatError, InputError, NotFoundError

if TYPE_CHECKING:
    from rich.console import Console

REPORT_FILE, PER_QUERY_FILE, RUN_FILE, PLOT_FILE = "report.json", "per_query.tsv", "run.trec", "plot.png"


@dataclass(frozen=True)
class Report:
    """One encoder on one collection.

    Attributes:
        collection, split, encoder: names.
        metrics: measure → mean over the judged queries.
        queries: number of judged queries; `unanswered` of them got no result at all.
        documents: number of documents in the index.
        corpus: of the documents read, how many were ``replaced`` by a later one of the same id; of those in
            the index, how many are ``empty``: they light up no unit, so no query finds them.
        relevance_level: lowest grade that counted as relevant, except in nDCG.
        k: number of results asked for a query; measures that look deeper see no further.
        seconds: duration of ``index`` (building it; near 0 where it was reused) and ``search`` (encoding the
            queries and searching).
        queries_per_second: queries / search seconds.
        index: ``path``, ``action`` ("built", "continued" or "reused") and ``bytes`` on disk.
        encoder_fingerprint: of the encoder as it is in the index.
        origin: eight hexadecimal digits that stand for where collection and encoder lie; they tell two of the
            same names apart.
        per_query: query id → measure → value; kept in its own file.
    """

    collection: str
    split: str
    encoder: str
    metrics: dict[str, float]
    queries: int
    unanswered: int = 0
    documents: int | None = None
    corpus: dict[str, int] = field(default_factory=dict)
    relevance_level: int = 1
    k: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    queries_per_second: float | None = None
    index: dict[str, Any] = field(default_factory=dict)
    encoder_fingerprint: str | None = None
    origin: str | None = None
    per_query: QueryMetrics = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        """What ``--json`` prints: ``{"collection", "encoder", "metrics": {"nDCG@10": …}, …}``."""
        values = asdict(self)
        del values["per_query"]
        first = {key: values.pop(key) for key in ("collection", "encoder", "metrics")}
        return {**first, **{key: value for key, value in values.items() if value not in (None, {})}}

    def save(self, folder: Path) -> None:
        """Write report.json and per_query.tsv; an earlier report stays until the new one is complete."""
        folder.mkdir(parents=True, exist_ok=True)
        names = list(self.metrics)
        lines = ["\t".join(["query-id", *names])]
        lines += ["\t".join([query, *(repr(row[n]) for n in names)]) for query, row in self.per_query.items()]
        _replace(folder / PER_QUERY_FILE, "\n".join(lines) + "\n")
        _replace(folder / REPORT_FILE, json.dumps(self.to_json(), indent=2) + "\n")


def load_report(path: Path) -> Report:
    """Read a report folder, or its report.json, with the values per query where they lie beside it.

    Raises:
        NotFoundError: no report there.
        FormatError: the file is no report.
        InputError: a malformed line in per_query.tsv, or a measure that it lacks.
    """
    file = path / REPORT_FILE if path.is_dir() else path
    if not file.is_file():
        raise NotFoundError(f"{path} holds no {REPORT_FILE}; give the --out folder of an evaluation")
    try:
        values = json.loads(file.read_text("utf-8"))
        known = {name: values[name] for name in Report.__dataclass_fields__ if name in values}
        report = Report(**known)
    except (ValueError, TypeError) as error:
        raise FormatError(f"{file} is not a report of an evaluation ({error})") from None
    beside = file.with_name(PER_QUERY_FILE)
    if beside.is_file():
        report.per_query.update(read_per_query(beside))
    return report


def read_per_query(path: Path) -> QueryMetrics:
    """Read a per_query.tsv: a header with the measures, then one query a line.

    Raises:
        InputError: a measure without a column, or a malformed line; names file and line.
    """
    lines = read_lines(path, "the per_query.tsv of a report")
    names = next(lines, (1, ""))[1].split("\t")[1:]
    lacking = [name for name in MEASURES if name not in names]
    if lacking:
        raise InputError(
            f"{path}, line 1: there is no column {' or '.join(lacking)}; evaluate again to get all measures"
        )
    rows: QueryMetrics = {}
    for number, line in lines:
        query, *values = line.split("\t")
        if len(values) != len(names):
            raise InputError(
                f"{path}, line {number}: expected {len(names) + 1} columns, got {len(values) + 1}"
            )
        try:
            rows[query] = {name: float(value) for name, value in zip(names, values, strict=True)}
        except ValueError:
            raise InputError(f"{path}, line {number}: a value is not a number: {line:.60}") from None
    return rows


def require_folder(path: Path) -> None:
    """Raise ConflictError where a file lies in the way of a folder: to be told before the work, not after."""
    existing = next(above for above in (path, *path.absolute().parents) if above.exists())
    if not existing.is_dir():
        raise ConflictError(f"{existing} is a file, so no folder {path} can be made; give another --out")


def mean_metrics(reports: Sequence[Report]) -> dict[str, float]:
    """Mean over collections, each weighing the same (how BEIR's average is taken)."""
    return {name: sum(report.metrics[name] for report in reports) / len(reports) for name in MEASURES}


def print_reports(reports: Sequence[Report], console: Console) -> None:
    """Print one table, a row for each report, with their mean where there are several."""
    from rich import box
    from rich.table import Table

    encoders = {report.encoder for report in reports}
    table = Table(
        box=box.SIMPLE_HEAD, title=f"{', '.join(sorted(encoders))}", title_justify="left", pad_edge=False
    )
    table.add_column("collection", style="bold")
    for heading in ("queries", "documents", *MEASURES, "queries/s", "index"):
        table.add_column(heading, justify="right")
    for report in reports:
        table.add_row(
            f"{report.collection}/{report.split}",
            f"{report.queries:,}",
            f"{report.documents:,}" if report.documents is not None else "",
            *_cells(report.metrics),
            f"{report.queries_per_second:,.0f}" if report.queries_per_second else "",
            f"{human_bytes(report.index['bytes'])}, {report.index['action']}" if report.index else "",
        )
    if len(reports) > 1:
        table.add_section()
        table.add_row("mean", "", "", *_cells(mean_metrics(reports)), "", "", style="bold")
    console.print(table)
    for report in reports:
        lost = {
            "replaced by a later document of the same id": report.corpus.get("replaced"),
            "empty, so that no query finds them": report.corpus.get("empty"),
        }
        notes = [f"{count:,} {what}" for what, count in lost.items() if count]
        if notes:
            console.print(f"{report.collection}: of the documents, {', and '.join(notes)}")
        if report.unanswered:
            console.print(f"{report.collection}: {report.unanswered} queries got no result and count as 0")
        if report.relevance_level > 1:
            console.print(
                f"{report.collection}/{report.split}: relevant means grade {report.relevance_level} or more, "
                "except in nDCG"
            )


def comparison_json(comparison: Comparison, name_a: str, name_b: str) -> dict[str, Any]:
    """What ``lexpert eval compare --json`` prints."""
    return {
        "a": name_a,
        "b": name_b,
        "queries": len(comparison.queries),
        "left_out": comparison.left_out,
        "measures": {
            row.measure: {
                "a": row.mean_a,
                "b": row.mean_b,
                "difference": row.difference,
                "wins": row.wins,
                "losses": row.losses,
                "ties": row.ties,
                "p": row.p_value,
            }
            for row in comparison.measures
        },
    }


def print_comparison(comparison: Comparison, name_a: str, name_b: str, console: Console) -> None:
    """Print a table with a row for each measure; wins and losses are B's."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("measure", style="bold")
    for heading in (f"A: {name_a}", f"B: {name_b}", "B - A", "B wins", "B loses", "ties", "p"):
        table.add_column(heading, justify="right")
    for row in comparison.measures:
        table.add_row(
            row.measure,
            f"{row.mean_a:.4f}",
            f"{row.mean_b:.4f}",
            f"{row.difference:+.4f}",
            *(f"{count:,}" for count in (row.wins, row.losses, row.ties)),
            f"{row.p_value:.4f}" if row.p_value >= 1e-4 else "< 0.0001",
        )
    console.print(table)
    only = (
        f"; {comparison.left_out} queries that only one of them has are left out"
        if comparison.left_out
        else ""
    )
    console.print(
        f"{len(comparison.queries):,} queries{only}; p: two-sided paired randomisation test, "
        "one measure at a time"
    )


def human_bytes(size: int) -> str:
    """A size for people: ``"4.2 MB"`` (powers of 1000)."""
    amount, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 999.5:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.3g} {unit}"


def _cells(metrics: Mapping[str, float]) -> list[str]:
    return [f"{metrics[name]:.4f}" for name in MEASURES]


def _replace(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text, "utf-8")
    os.replace(unfinished, path)
