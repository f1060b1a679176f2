"""The main job, end to end, on what every machine has: the documentation of its own Python."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from evals.collections.python_docs import PythonDocs
from evals.evaluation import evaluate
from evals.report import Report
from retrieval.encoders.bm25 import Bm25Encoder
from retrieval.encoders.english import EnglishAnalyzer
from retrieval.index.build import BuildReport, build_index
from runtime.errors import ConflictError
from serving.ports import choose_port

INDEX_NAME = "python"
QUESTIONS = (
    "run a function in another thread and get its result",
    "parse a date from a string in a given format",
    "find the most similar strings to a word",
)
HITS = 3
SNIPPET_WORDS = 36
BAR_WIDTH = 24
INDENT = 3


@dataclass(frozen=True)
class PreparedDemo:
    """What was built and measured before the server starts."""

    index: Path
    build: BuildReport
    report: Report


def prepare(folder: Path) -> PreparedDemo:
    """Index the documentation into `folder` and evaluate known-item search on it; reuses what is there."""
    documentation = PythonDocs()
    index = folder / "python-docs"
    fields = {"kind": "keyword", "module": "keyword"}
    build = build_index(
        index, Bm25Encoder(), documentation, fields=fields, overwrite=_is_stale(index, documentation)
    )
    evaluation = evaluate(
        documentation.known_items(), "bm25", out=folder / "known-items", indexes=folder / "indexes"
    )
    return PreparedDemo(index, build, evaluation.report)


def _is_stale(index: Path, documentation: PythonDocs) -> bool:
    """Whether an index of another Python's documentation is there."""
    from retrieval.index.manifest import MANIFEST_FILE, read_manifest

    if not (index / MANIFEST_FILE).exists():
        return False
    source = read_manifest(index).source
    return source is None or source.corpus != documentation.checksum()


def show_preparation(prepared: PreparedDemo, console: Console) -> None:
    """Say what was built and how well it finds what it should."""
    report = prepared.report
    console.print(
        f"[bold]{prepared.build.documents:,} documents[/]: every documented module, class, function and method of "
        f"this Python's standard library; index of BM25 impacts {prepared.build.action} in {prepared.index}",
        highlight=False,
    )
    console.print(
        f"[bold]Known-item search[/]: for {report.queries:,} docstrings the first sentence is the query, and is left "
        "out of the document that should be found (these documents are an index of their own)",
        highlight=False,
    )
    shown = ("nDCG@10", "MRR@10", "R@100")
    measured = "   ".join(f"{name} [bold]{report.metrics[name]:.3f}[/]" for name in shown)
    console.print(f"{'':{INDENT}}{measured}", highlight=False)
    if report.queries_per_second:
        console.print(f"{'':{INDENT}}{report.queries_per_second:,.0f} queries a second at 1,000 results each")


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
