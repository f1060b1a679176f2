"""Ranking all passages for all queries by sparse vectors, on our own index: BM25, or the very model in training."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.encoders.encoder import SparseEncoder
from retrieval.index.sparse_index import SparseIndex
from retrieval.index.writer import IndexWriter
from retrieval.search.traversal import Traversal
from retrieval.training.teachers.vectors import SparseTeacher
from runtime.cores import available_cores

QUERIES_AT_ONCE = 512


def rank_sparse(
    teacher: SparseTeacher, encoder: SparseEncoder, depth: int, threads: int | None = None
) -> Iterator[NDArray[np.int32]]:
    """Yield for each query in turn the numbers of its best passages, int32, at most `depth`.

    Highest score first; of equal scores the lower number. Passages without a term of the query are not ranked.
    The search is exact.

    Args:
        teacher: the vectors of all texts.
        encoder: the one that made them.
        threads: for searching; default: one a core.
    """
    with tempfile.TemporaryDirectory(prefix="lexpert-mining-") as folder:
        path = Path(folder) / "index"
        with IndexWriter.create(path, encoder=encoder, store=()) as writer:
            writer.add_vectors([str(number) for number in range(len(teacher.passages))], teacher.passages)
            writer.merge()
        with SparseIndex.open(path, encoder=encoder) as index:
            for start in range(0, len(teacher.queries), QUERIES_AT_ONCE):
                asked = teacher.queries[start : start + QUERIES_AT_ONCE]
                for scores, rows in index.search_vectors(
                    asked, depth, Traversal(), threads=threads or available_cores()
                ):
                    numbers = np.array(index.ids(rows), np.int32)
                    # Rows of an index need not be in the order in which passages came in; ties are.
                    yield numbers[np.lexsort((numbers, -scores))]
