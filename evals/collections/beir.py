"""BEIR folders, read where they lie: corpus.jsonl, queries.jsonl (either may be .gz) and qrels/SPLIT.tsv."""

from __future__ import annotations

from pathlib import Path

from evals.collections.collection import Collection, drops_self_matches, judged_queries
from evals.qrels import read_qrels
from retrieval.corpus import JsonlCorpus
from retrieval.documents import read_jsonl
from runtime.errors import InputError, NotFoundError


def is_beir_folder(folder: Path) -> bool:
    """Whether `folder` has BEIR's layout."""
    return (folder / "qrels").is_dir() or any(
        (folder / f"corpus.jsonl{end}").is_file() for end in ("", ".gz")
    )


def load_beir(folder: Path, split: str = "test") -> Collection:
    """Read a BEIR folder in place; the corpus is streamed whenever it is iterated.

    Raises:
        NotFoundError: a file of the layout is missing, or there is no such split (names those there are).
        InputError: a malformed query or judgement; names file and line.
    """
    folder = folder.resolve()
    qrels_path = folder / "qrels" / f"{split}.tsv"
    corpus_path, queries_path = _jsonl(folder, "corpus"), _jsonl(folder, "queries")
    if not qrels_path.is_file():
        there = ", ".join(sorted(path.stem for path in (folder / "qrels").glob("*.tsv"))) or "none"
        raise NotFoundError(f"{folder} has no split {split!r} (no qrels/{split}.tsv); splits there: {there}")
    qrels = read_qrels(qrels_path)
    return Collection(
        name=folder.name,
        split=split,
        corpus=JsonlCorpus(corpus_path),
        queries=judged_queries(read_queries(queries_path), qrels, str(qrels_path)),
        qrels=qrels,
        drop_self_matches=drops_self_matches(folder.name),
    )


def read_queries(path: Path) -> dict[str, str]:
    """Read a ``queries.jsonl`` of ``{"_id": str, "text": str}``; a repeated id keeps its last text.

    Raises:
        InputError: a line without a usable `_id` or `text`; names file and line.
    """
    queries: dict[str, str] = {}
    for where, value in read_jsonl(path):
        if not isinstance(value, dict):
            raise InputError(f"{where}: expected a JSON object with _id and text, got {type(value).__name__}")
        identifier, text = value.get("_id"), value.get("text")
        if not isinstance(identifier, str) or not identifier:
            raise InputError(f'{where}: the query has no "_id"; give it a non-empty string')
        if not isinstance(text, str):
            raise InputError(f'{where}: "text" of query {identifier!r} must be a string, got {text!r:.60}')
        queries[identifier] = text
    return queries


def _jsonl(folder: Path, stem: str) -> Path:
    for name in (f"{stem}.jsonl", f"{stem}.jsonl.gz"):
        if (folder / name).is_file():
            return folder / name
    raise NotFoundError(
        f"{folder} has no {stem}.jsonl or {stem}.jsonl.gz; a BEIR folder holds corpus.jsonl, queries.jsonl "
        "and qrels/SPLIT.tsv"
    )
