"""The main job, end to end, on what every machine has: the documentation of its own Python."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from evals.collections.python_docs import PythonDocs
from evals.evaluation import evaluate
from evals.fused_runs import fuse_reports
from evals.report import Report
from retrieval.encoders import catalogue
from retrieval.encoders.bm25 import Bm25Encoder
from retrieval.encoders.english import EnglishAnalyzer
from retrieval.index.build import BuildReport, build_index
from retrieval.index.sparse_index import SparseIndex
from runtime.errors import ConflictError, NotFoundError
from serving.ports import choose_port

INDEX_NAME = "python"
QUESTIONS = (
    "run a function in another thread and get its result",
    "parse a date from a string in a given format",
    "find the most similar strings to a word",
)
LEARNED = "lexpert-mini"
SAMPLE = 5
"""Encoders are compared on every fifth document: a model encodes so many in about half a minute on two cores."""

HITS = 3
SNIPPET_WORDS = 36
BAR_WIDTH = 24
INDENT = 3


@dataclass(frozen=True)
class PreparedDemo:
    """What was built and measured before the server starts.

    Attributes:
        index: of BM25 impacts, to be served.
        build: how it came about.
        reports: on known-item search, of bm25; and of the learned encoder and both fused, if it can run here.
        left_out: why it cannot; None if it can.
    """

    index: Path
    build: BuildReport
    reports: list[Report]
    left_out: str | None = None


def prepare(folder: Path) -> PreparedDemo:
    """Index the documentation into `folder`, and evaluate known-item search in it; reuses what is there.

    Where a learned encoder came with this installation, both are compared, in a sample.
    """
    documentation = PythonDocs()
    index = folder / "python-docs"
    fields = {"kind": "keyword", "module": "keyword"}
    # Whatever index is there and is not this one, or cannot be read, is of another Python or another lexpert.
    build = build_index(index, Bm25Encoder(), documentation, fields=fields, overwrite=True)
    is_compared = catalogue.PACKAGED[LEARNED].is_dir()
    sample = documentation.known_items(every=SAMPLE if is_compared else 1)
    reports: list[Report] = []
    left_out: str | None = None
    encoders = ("bm25", LEARNED) if is_compared else ("bm25",)
    places = [folder / "known-items" / encoder for encoder in encoders]
    for place in places:
        try:
            reports.append(evaluate(sample, place.name, out=place, indexes=folder / "indexes").report)
        except NotFoundError as error:  # without torch everything else works
            if place.name != LEARNED:
                raise
            left_out = str(error)
    if len(reports) > 1:
        reports.append(fuse_reports(places, sample, folder / "known-items" / "fused", plot=False).report)
    return PreparedDemo(index, build, reports, left_out)


def show_preparation(prepared: PreparedDemo, console: Console) -> None:
    """Say what was built, and how well each encoder finds what it should."""
    first = prepared.reports[0]
    is_sample = first.documents != prepared.build.documents
    searched = f"a sample of {first.documents:,} of them" if is_sample else "all of them"
    console.print(
        f"[bold]{prepared.build.documents:,} documents[/]: every documented module, class, function and method of "
        f"this Python's standard library; index of BM25 impacts {prepared.build.action} in {prepared.index}",
        highlight=False,
    )
    console.print(
        f"[bold]Known-item search[/] in {searched}: for {first.queries:,} docstrings the first "
        "sentence is the query, and is left out of the document that should be found",
        highlight=False,
    )
    console.print(_table(prepared.reports))
    if prepared.left_out:
        console.print(
            f"{LEARNED}, a learned encoder, is left out: {prepared.left_out}", highlight=False, markup=False
        )


def _table(reports: list[Report]) -> Table:
    """A row for each encoder; the best value of each measure is bold."""
    shown = ("nDCG@10", "MRR@10", "R@100")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("encoder")
    for heading in (*shown, "terms a document", "queries/s"):
        table.add_column(heading, justify="right")
    best = {name: max(report.metrics[name] for report in reports) for name in shown}
    for report in reports:
        values = [(f"{report.metrics[name]:.3f}", report.metrics[name] == best[name]) for name in shown]
        table.add_row(
            report.encoder,
            *(Text(value, style="bold" if is_best else "") for value, is_best in values),
            _terms_of_a_document(report),
            f"{report.queries_per_second:,.0f}" if report.queries_per_second else "",
        )
    return table


def _terms_of_a_document(report: Report) -> str:
    if "path" not in report.index:  # of a fusion
        return ""
    with SparseIndex.open(report.index["path"]) as index:
        return f"{index.stats()['units_per_document']:.1f}"


def ask(url: str, question: str) -> dict[str, Any]:
    """One search over HTTP, with text and explanation."""
    body = {"query": question, "k": HITS, "with": ["text", "explain"]}
    request = urllib.request.Request(
        f"{url}/v1/indexes/{INDEX_NAME}/search",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def show_answer(question: str, answer: dict[str, Any], console: Console) -> None:
    """Print the hits of one question: matching words marked, and what each term added to the score."""
    console.print()
    console.rule(Text(question, style="bold"), align="left", style="dim")
    (result,) = answer["results"]
    for rank, hit in enumerate(result["hits"], start=1):
        shares = hit["explanation"]
        matching = {share["token"] for share in shares}
        document = hit["document"]
        console.print(
            Text.assemble((f"{rank}. ", "dim"), (hit["id"], "bold cyan"), f"  {hit['score']:.2f}"),
            highlight=False,
        )
        snippet = _snippet(document.get("text", ""), matching, console.is_terminal)
        console.print(Padding(snippet, (0, 4, 0, INDENT)))
        for share in shares:
            length = max(1, round(BAR_WIDTH * share["share"] / hit["score"]))
            console.print(
                Text.assemble(
                    f"{'':{INDENT}}{share['token']:<14}", ("▇" * length, "green"), f" {share['share']:.2f}"
                ),
                highlight=False,
            )


def _snippet(text: str, matching: set[str], is_terminal: bool) -> Text:
    """The stretch of a text with the most matching words, these highlighted."""
    words = text.split()
    analyzer = EnglishAnalyzer()
    marks = [not matching.isdisjoint(analyzer.terms(word)) for word in words]
    starts = range(max(1, len(words) - SNIPPET_WORDS + 1))
    start = max(starts, key=lambda place: sum(marks[place : place + SNIPPET_WORDS]))
    end = start + SNIPPET_WORDS
    snippet = Text("… " if start else "")
    for word, marked in zip(words[start:end], marks[start:end], strict=True):
        snippet.append(
            word if is_terminal or not marked else f"*{word}*", style="bold yellow" if marked else ""
        )
        snippet.append(" ")
    if end < len(words):
        snippet.append("…")
    return snippet


def free_port(wanted: int) -> int:
    """`wanted`, or another one if something listens there."""
    try:
        return choose_port(wanted)
    except ConflictError:
        return choose_port(0)
