"""MS MARCO passage ranking in its own files: collection.tsv, queries.*.tsv and four-column judgements."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from evals.collections.collection import Collection, judged_queries
from evals.qrels import read_qrels
from retrieval.corpus import FileCorpus
from retrieval.documents import Document
from retrieval.text_lines import read_lines
from runtime.errors import InputError, NotFoundError, UsageError

# split: (queries files, judgement files, lowest relevant grade). The names are those of the published
# archives; the first one that lies in the folder, plain or as .gz, is read. TREC DL counts grades 2 and 3 as
# relevant in the measures that know only relevant and not; grade 1 is "related, but does not answer".
SPLITS = {
    "dev": (("queries.dev.small.tsv", "queries.dev.tsv"), ("qrels.dev.small.tsv", "qrels.dev.tsv"), 1),
    "dl19": (
        ("msmarco-test2019-queries.tsv", "queries.dl19.tsv"),
        ("2019qrels-pass.txt", "qrels.dl19.txt"),
        2,
    ),
    "dl20": (
        ("msmarco-test2020-queries.tsv", "queries.dl20.tsv"),
        ("2020qrels-pass.txt", "qrels.dl20.txt"),
        2,
    ),
}
COLLECTION_FILES = ("collection.tsv",)


class TsvCorpus(FileCorpus):
    """A ``collection.tsv`` of ``pid<TAB>passage`` lines (plain or .gz), read line by line and never held."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _read_passages)


def _read_passages(path: Path) -> Iterator[Document]:
    for _, identifier, text in read_tsv(path):
        yield {"_id": identifier, "text": text}


def is_msmarco_folder(folder: Path) -> bool:
    """Whether `folder` has MS MARCO's layout."""
    return _lying(folder, COLLECTION_FILES) is not None


def load_msmarco(folder: Path, split: str = "dev") -> Collection:
    """Read an MS MARCO passage folder in place; the passages are streamed whenever they are iterated.

    Args:
        split: ``"dev"`` (the 6,980 queries of dev/small where that file is there), ``"dl19"`` or ``"dl20"``
            (TREC Deep Learning 2019 and 2020; grades below 2 do not count as relevant there, except in nDCG).

    Raises:
        UsageError: another split.
        NotFoundError: a file is missing; names those looked for.
        InputError: a malformed line; names file and line.
    """
    if split not in SPLITS:
        raise UsageError(f"MS MARCO has no split {split!r}; choose one of {', '.join(SPLITS)}")
    folder = folder.resolve()
    queries_files, qrels_files, relevance_level = SPLITS[split]
    corpus = TsvCorpus(_first(folder, COLLECTION_FILES))
    queries_path, qrels_path = _first(folder, queries_files), _first(folder, qrels_files)
    qrels = read_qrels(qrels_path)
    queries = {identifier: text for _, identifier, text in read_tsv(queries_path)}
    return Collection(
        name=folder.name,
        split=split,
        corpus=corpus,
        queries=judged_queries(queries, qrels, str(qrels_path)),
        qrels=qrels,
        relevance_level=relevance_level,
    )


def read_tsv(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield ``(line number, id, text)`` of an ``id<TAB>text`` file (plain or .gz); blank lines are skipped.

    Raises:
        NotFoundError: no such file.
        InputError: a line without a tab, with an empty id, or not in UTF-8, or a .gz that is damaged; names
            file and line.
    """
    for number, line in read_lines(path, "a file of id<TAB>text lines"):
        identifier, tab, text = line.partition("\t")
        if not tab or not identifier:
            raise InputError(f"{path}, line {number}: expected id<TAB>text, got {line:.60}")
        yield number, identifier, text


def _first(folder: Path, names: tuple[str, ...]) -> Path:
    found = _lying(folder, names)
    if found is None:
        raise NotFoundError(
            f"{folder} has no {' or '.join(names)} (plain or .gz); give a folder with MS MARCO's passage files"
        )
    return found


def _lying(folder: Path, names: tuple[str, ...]) -> Path | None:
    paths = (folder / f"{name}{end}" for name in names for end in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)
