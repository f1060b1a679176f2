"""Does the index return exactly what brute force over the encoder's own vectors returns, ids, order and scores?

    python bench/exactness.py ../shared/data/scifact ../shared/data/nfcorpus …

For every query of each BEIR folder the top 1000 of an index on disk is compared with the scores of all documents,
computed from a SciPy matrix of the vectors that the encoder gives (the index is not involved in those).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np

from retrieval import SparseEncoder, SparseIndex
from retrieval.corpus import JsonlCorpus
from retrieval.documents import document_text, read_documents, read_queries
from retrieval.index.build import build_index

K = 1000


def differences(
    collection: Path, folder: Path, encoder: str = "bm25", limit: int | None = None
) -> tuple[int, int]:
    """Search all queries of a collection (or the first `limit`) both ways; how many, and how many differ."""
    from scipy.sparse import csc_array, csr_array

    corpus = collection / "corpus.jsonl"
    build_index(folder, SparseEncoder.load(encoder), JsonlCorpus(corpus), workers=1)
    documents = list(read_documents(corpus))
    queries = [text for _, text in islice(read_queries(collection / "queries.jsonl"), limit)]
    with SparseIndex.open(folder) as index:
        vectors = index.encoder.encode_documents([document_text(document) for document in documents])
        shape = len(documents), vectors.num_units
        columns = csc_array(csr_array((vectors.weights, vectors.units, vectors.indptr), shape=shape))
        hits = index.search(queries, k=K)
        different = 0
        for row, (units, weights) in enumerate(index.encoder.encode_queries(queries)):
            scores = np.zeros(len(documents), np.float32)
            for unit, weight in zip(units, weights, strict=True):  # ascending: the order that defines a score
                postings = slice(columns.indptr[unit], columns.indptr[unit + 1])
                scores[columns.indices[postings]] += weight * columns.data[postings]
            order = np.lexsort((np.arange(len(scores)), -scores))[: min(K, np.count_nonzero(scores))]
            same_ids = hits.ids[row] == [documents[place]["_id"] for place in order]
            different += not (same_ids and np.array_equal(hits.scores[row], scores[order]))
    return len(queries), different


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("collections", nargs="+", type=Path, help="BEIR folders")
    parser.add_argument("--encoder", default="bm25")
    arguments = parser.parse_args()
    failed = False
    for collection in arguments.collections:
        with tempfile.TemporaryDirectory() as folder:
            queries, different = differences(collection, Path(folder) / "index", arguments.encoder)
        print(f"{collection.name:24} {queries:6,} queries, {different} differ")
        failed |= different > 0
    sys.exit(failed)


if __name__ == "__main__":
    main()
