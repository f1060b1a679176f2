"""Collections by name through ir_datasets, which downloads them (needs a network the first time)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from evals.collections.collection import Collection, drops_self_matches, judged_queries
from retrieval.documents import Document
from runtime.errors import NotFoundError, UsageError

# Short names for the splits of MS MARCO; BEIR's are found by looking them up.
MSMARCO_SPLITS = {
    "dev": ("msmarco-passage/dev/small", 1),
    "dl19": ("msmarco-passage/trec-dl-2019/judged", 2),
    "dl20": ("msmarco-passage/trec-dl-2020/judged", 2),
}


class IrDatasetsCorpus:
    """The documents of an ir_datasets data set."""

    def __init__(self, identifier: str, dataset: Any) -> None:
        self._identifier = identifier
        self._dataset = dataset

    @property
    def name(self) -> str:
        return self._identifier

    @property
    def num_documents(self) -> int | None:
        return int(self._dataset.docs_count())

    def checksum(self) -> str:
        return self._checksum

    @cached_property
    def _checksum(self) -> str:
        digest = hashlib.sha256()
        for document in self:
            for value in (document["_id"], document["title"], document["text"]):
                encoded = value.encode()
                digest.update(len(encoded).to_bytes(8, "little") + encoded)
        return f"sha256:{digest.hexdigest()}"

    def __iter__(self) -> Iterator[Document]:
        for document in self._dataset.docs_iter():
            # Types without a field called text (body, abstract, …) give all of it as one text instead.
            text = getattr(document, "text", None)
            title = getattr(document, "title", None) if text is not None else None
            yield {
                "_id": document.doc_id,
                "title": title or "",
                "text": text if text is not None else document.default_text(),
            }


def resolve(name: str, split: str | None = None) -> str:
    """The ir_datasets id that a short name means; without a split, ``"test"`` (``"dev"`` for MS MARCO).

    ``"scifact"`` with split ``"test"`` is ``"beir/scifact/test"``, ``"scidocs"`` is ``"beir/scidocs"``,
    ``"msmarco-passage"`` with ``"dl19"`` is ``"msmarco-passage/trec-dl-2019/judged"``; an id that names
    queries and judgements itself is taken as it is.

    Raises:
        NotFoundError: ir_datasets has no such data set.
        UsageError: the data set has no such split.
    """
    ir_datasets = _import()
    if name in ("msmarco", "msmarco-passage") and (split or "dev") in MSMARCO_SPLITS:
        return MSMARCO_SPLITS[split or "dev"][0]
    known = set(ir_datasets.registry._registered)
    # A data set that is not split (beir/scidocs) has its judgements at its own id; they are its test split.
    candidates = [f"beir/{name}/{split or 'test'}", f"{name}/{split or 'test'}"]
    if split in (None, "test", name.rpartition("/")[2]):
        candidates += [name, f"beir/{name}"]
    for candidate in candidates:
        if candidate in known and ir_datasets.load(candidate).has_qrels():
            return candidate
    if name in known or f"beir/{name}" in known:
        base = name if name in known else f"beir/{name}"
        below = sorted(
            identifier.removeprefix(f"{base}/")
            for identifier in known
            if identifier.startswith(f"{base}/") and ir_datasets.load(identifier).has_qrels()
        )
        raise UsageError(
            f"{name} has no split {split or 'test'!r}; ir_datasets has {', '.join(below) or 'none'} below it"
        )
    raise NotFoundError(
        f"there is no folder {name}, and ir_datasets knows no data set of that name; give a folder with "
        "corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv, or a name such as scifact or beir/scifact/test"
    )


def load_ir_datasets(name: str, split: str | None = None) -> Collection:
    """Load a collection by its ir_datasets id or short name, downloading it where it is not there yet.

    Raises:
        NotFoundError: no such data set, ir_datasets is not installed, or the download failed.
        UsageError: the data set has no such split.
    """
    ir_datasets = _import()
    identifier = resolve(name, split)
    dataset = ir_datasets.load(identifier)
    try:
        qrels: dict[str, dict[str, int]] = {}
        for judgement in dataset.qrels_iter():
            qrels.setdefault(judgement.query_id, {})[judgement.doc_id] = int(judgement.relevance)
        queries = {query.query_id: query.default_text() for query in dataset.queries_iter()}
        dataset.docs_count()
    except Exception as error:  # the downloader raises its own, requests', zipfile's and OSError's types
        raise NotFoundError(
            f"{identifier} is not here and could not be downloaded ({type(error).__name__}); without network "
            f"give a local folder instead: {_local_form(identifier)}"
        ) from error
    levels = dict(MSMARCO_SPLITS.values())
    return Collection(
        name=identifier.replace("/", "-"),
        split=split
        or next((short for short, (known, _) in MSMARCO_SPLITS.items() if known == identifier), "test"),
        corpus=IrDatasetsCorpus(identifier, dataset),
        queries=judged_queries(queries, qrels, identifier),
        qrels=qrels,
        drop_self_matches=drops_self_matches(identifier),
        relevance_level=levels.get(identifier, 1),
    )


def _local_form(identifier: str) -> str:
    if identifier.startswith("msmarco-passage"):
        return "collection.tsv with queries.dev.small.tsv and qrels.dev.small.tsv (lexpert eval msmarco DIR)"
    return "corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv (lexpert eval beir DIR)"


def _import() -> Any:
    try:
        import ir_datasets
    except ImportError:
        raise NotFoundError(
            "collections by name need ir_datasets; run: pip install 'lexpert[eval]', or give a local folder"
        ) from None
    import logging

    # It reports each retry of a download on standard error; one sentence of ours says the same. Its logger
    # sets its level when it is first asked for, so asked for it must be.
    ir_datasets.log.easy().logger().setLevel(logging.ERROR)
    return ir_datasets
