"""Lucene's impact indexes, built and searched by Anserini: whole-numbered impacts as term frequencies.

The score of a document is the sum of query weight times impact, as here; both are whole numbers, so that scores
below 2²⁴ are exact in both and can be compared.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from retrieval.encoders.encoder import Vocabulary
from retrieval.index.sparse_index import SparseIndex
from retrieval.interop.anserini import AnseriniWriter
from retrieval.interop.exported import Exported
from retrieval.interop.java import ERRORS_SHOWN, anserini_jar, java_home, run_java, start_java
from retrieval.interop.live_rows import live_rows
from retrieval.interop.whole_file import check_free, scratch_folder
from retrieval.interop.whole_numbers import LARGEST, check_scale, scale_of
from retrieval.search.hits import Hits
from runtime.activations import SparseActivations
from runtime.cores import available_cores
from runtime.errors import FormatError, InputError, LexpertError, NotFoundError
from runtime.progress import Advance

INDEXER = "io.anserini.index.IndexCollection"
SEARCHER = "io.anserini.search.SimpleImpactSearcher"
DEFAULT_MEMORY = 1 << 30
LONGEST_TOKEN = 255
"""In UTF-16 units; Lucene cuts longer ones in two."""


class LuceneTokens(Vocabulary):
    """A vocabulary whose terms Lucene can take: without white space, at which it would cut them."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._checked: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._vocabulary)

    def find(self, terms: Sequence[str]) -> list[int]:
        return self._vocabulary.find(terms)

    def term(self, unit: int) -> str:
        """The term of a unit; InputError if Lucene cannot take it."""
        if unit not in self._checked:
            term = self._vocabulary.term(unit)
            length = len(term.encode("utf-16-le", "surrogatepass")) // 2
            if term.split() != [term] or length > LONGEST_TOKEN:
                raise InputError(
                    f"Lucene cannot hold the term {term!r:.60}: terms must be without white space and of "
                    f"1 to {LONGEST_TOKEN} characters"
                )
            self._checked[unit] = term
        return self._checked[unit]


def export_lucene(
    index: SparseIndex,
    out: Path,
    *,
    scale: float | None = None,
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    advance: Advance | None = None,
) -> Exported:
    """Write the live documents of an index as a Lucene index of one segment, into the folder `out`.

    Documents without an impact are left out, as Anserini does. Ids are kept, texts are not.

    Args:
        scale: what impacts are multiplied by before rounding; default: 100, or 1 where all are whole numbers.
        threads: that index; default: one a core.
        memory: bytes of heap for Java.
        advance: called with the number of documents handed over since the last call.

    Raises:
        ConflictError: `out` exists.
        NotFoundError: the `lucene` extra is not installed.
        InputError: a term that Lucene cannot hold, or an impact that does not fit 32 bits.
    """
    check_free(out)
    java_home(), anserini_jar()
    scale = scale_of(index) if scale is None else check_scale(scale)
    vocabulary = LuceneTokens(index.encoder.vocabulary)
    documents = postings = dropped = empty = 0
    with scratch_folder(out) as scratch:
        vectors = scratch / "vectors"
        vectors.mkdir()
        for number, batch in enumerate(live_rows(index)):
            with AnseriniWriter(vectors / f"{number:06d}.jsonl", vocabulary, scale) as writer:
                writer.append(batch.ids, batch.vectors)
            documents += len(batch.rows)
            postings += writer.written
            dropped += writer.dropped
            empty += writer.empty
            if advance:
                advance(len(batch.rows))
        indexed = index_vectors(vectors, scratch / "lucene", threads=threads, memory=memory)
        if indexed != documents - empty:
            raise LexpertError(
                f"Lucene took {indexed:,} of {documents - empty:,} documents; nothing was written to {out}"
            )
        (scratch / "lucene").rename(out)
    return Exported(documents, postings, dropped, empty, scale)


def index_vectors(
    vectors: Path, out: Path, *, threads: int | None = None, memory: int = DEFAULT_MEMORY
) -> int:
    """Index a folder of Anserini's JSON vectors with Lucene into the new folder `out`; how many it took.

    Threads share the work file by file. Documents with an empty vector are not taken.
    """
    arguments = ["-collection", "JsonVectorCollection", "-generator", "DefaultLuceneDocumentGenerator"]
    arguments += ["-input", str(vectors), "-index", str(out), "-impact", "-pretokenized", "-optimize"]
    arguments += ["-threads", str(threads or available_cores()), "-memoryBuffer", str((memory >> 20) // 4)]
    printed = run_java(INDEXER, arguments, memory)
    counted = re.search(r"indexed:\s+([\d,]+)", printed)
    # The number behind counts commits: a large collection takes several.
    if counted is None or not any(out.glob("segments_*")):
        raise LexpertError(f"{INDEXER} ended without an index; it printed: {printed.strip()[-ERRORS_SHOWN:]}")
    return int(counted[1].replace(",", ""))


class LuceneSearcher:
    """Searches an impact index of Anserini; starts Java in this process, where it stays (see `start_java`).

    Preparing a query, searching and unpacking are three steps, so that the second can be timed alone.
    """

    def __init__(self, folder: Path) -> None:
        """Open an index.

        Raises:
            NotFoundError: there is none in `folder`, or the `lucene` extra is not installed.
            FormatError: Lucene cannot read it.
        """
        if not any(folder.glob("segments_*")):
            raise NotFoundError(f"{folder} is not the folder of a Lucene index: it has no segments file")
        java_class = start_java()
        # The limit of 1,024 terms guards against wildcards; expanded queries may have more.
        java_class("org.apache.lucene.search.IndexSearcher").setMaxClauseCount(1 << 30)
        self._map = java_class("java.util.HashMap")
        self._integer = java_class("java.lang.Integer")
        try:
            self._searcher = java_class(SEARCHER)(str(folder))
        except Exception as error:  # pyjnius wraps whatever Java throws into one class of its own
            raise FormatError(
                f"Lucene cannot read {folder}: {str(error).splitlines()[0][:ERRORS_SHOWN]}"
            ) from None

    def prepare(self, weights: Mapping[str, int]) -> Any:
        """A query of whole-numbered weights, for `search`."""
        query = self._map()
        for token, weight in weights.items():
            query.put(token, self._integer(weight))
        return query

    def search(self, query: Any, k: int) -> Any:
        """The best `k` documents, equal scores by id; for `unpack`."""
        return self._searcher.search(query, k)

    def unpack(self, found: Any) -> tuple[list[str], NDArray[np.float32]]:
        """Ids and scores of what `search` returned.

        Anserini lowers each of several equal scores a little, so that no two are equal; the whole numbers that
        they were are restored.
        """
        return [hit.docid for hit in found], np.rint(np.array([hit.score for hit in found], np.float32))


def search_lucene(folder: Path, queries: SparseActivations, vocabulary: Vocabulary, k: int) -> Hits:
    """Search a Lucene impact index with vectors, in a process that ends with the search.

    Args:
        queries: whole-numbered weights.
        vocabulary: the terms of their units.
        k: results wanted for each query, ≥ 1.

    Raises:
        InputError: a weight is not a whole number of 32 bits.
        NotFoundError: no such index, or the `lucene` extra is not installed.
        LexpertError: Java failed; says with what.
    """
    weights = np.asarray(queries.weights, np.float64)
    if ((weights != np.rint(weights)) | (weights < 0) | (weights > LARGEST)).any():
        raise InputError("Lucene takes whole-numbered query weights of 0 or more; scale and round them first")
    if not any(folder.glob("segments_*")):
        raise NotFoundError(f"{folder} is not the folder of a Lucene index: it has no segments file")
    java_home(), anserini_jar()
    lines = [
        {
            vocabulary.term(unit): int(weight)
            for unit, weight in zip(units.tolist(), row.tolist(), strict=True)
            if weight
        }
        for units, row in queries.numpy()
    ]
    command = [sys.executable, "-m", "retrieval.interop.lucene_worker", str(folder.resolve()), str(k)]
    with TemporaryDirectory() as scratch:
        given, found = Path(scratch) / "queries.jsonl", Path(scratch) / "hits.jsonl"
        given.write_bytes(b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines))
        done = subprocess.run(
            [*command, str(given), str(found)], capture_output=True, text=True, errors="replace", check=False
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
            raise LexpertError(f"searching {folder} with Lucene failed: {last[:ERRORS_SHOWN]}")
        answers = [orjson.loads(line) for line in found.read_bytes().splitlines()]
    return Hits(
        ids=[ids for ids, _ in answers],
        scores=[np.array(scores, np.float32) for _, scores in answers],
        unknown_terms=[[] for _ in answers],
    )
