"""What sparse codes of dense vectors (CSR) keep of their ranking, for each allocation.

    python bench/csr.py DENSE_FOLDER PAIRS... [--max-pairs 400] [--k 32 16]

Every query of the pairs searches the passages of all pairs for its own. The autoencoder is trained on the vectors of
the passages alone; codes are searched with an ordinary index.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evals.metrics import mean, measure
from retrieval.encoders.dense import DenseEncoder
from retrieval.encoders.precomputed import PrecomputedEncoder
from retrieval.encoders.sparse_autoencoder import ALLOCATIONS, SparseAutoencoder
from retrieval.index.sparse_index import SparseIndex
from retrieval.index.writer import IndexWriter
from retrieval.training.csr_autoencoder import CsrSettings, CsrStep, train_autoencoder
from retrieval.training.pairs import read_training_set
from retrieval.training.row_cache import CacheUse
from retrieval.training.teachers.dense import encode_dense
from runtime.activations import SparseActivations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dense", type=Path)
    parser.add_argument("pairs", type=Path, nargs="+")
    parser.add_argument("--max-pairs", type=int, default=None, help="of each file")
    parser.add_argument("--max-length", type=int, default=None)
    parser.add_argument("--cache", type=Path, default=Path(".lexpert/training"))
    parser.add_argument("--k", type=int, nargs="+", default=[32])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--contrastive", type=float, nargs="+", default=[0.1])
    arguments = parser.parse_args()
    encoder = DenseEncoder.load(arguments.dense, max_length=arguments.max_length)
    pairs = read_training_set(arguments.pairs, arguments.max_pairs)
    ids = [str(number) for number in range(len(pairs.passages))]
    judged: dict[str, dict[str, int]] = {}
    for query, positive in zip(pairs.queries, pairs.positives.tolist(), strict=True):
        judged.setdefault(query, {})[str(positive)] = 1
    queries = list(judged)
    vectors = encode_dense(encoder, "dense", queries, pairs.passages, arguments.cache, CacheUse())
    asked, passages = (np.asarray(side, np.float32) for side in (vectors.queries, vectors.passages))
    order = np.argsort(-(asked @ passages.T), axis=1, kind="stable")[:, :100]
    rankings = {name: [ids[row] for row in rows] for name, rows in zip(queries, order.tolist(), strict=True)}
    print("| codes | k | contrastive | nDCG@10 | R@100 | active | most | out of use | not restored |")
    print("|-|-|-|-|-|-|-|-|-|")
    dense = mean(measure(judged, rankings), ("nDCG@10", "R@100"))
    print(f"| dense | {asked.shape[1]} | | {dense['nDCG@10']:.3f} | {dense['R@100']:.3f} | | | | |")
    for k in arguments.k:
        for weight in arguments.contrastive:
            for allocation in ALLOCATIONS:
                steps: list[CsrStep] = []
                settings = CsrSettings(
                    k=k,
                    allocation=allocation,
                    steps=arguments.steps,
                    batch=arguments.batch,
                    contrastive=weight,
                )
                trained = train_autoencoder(passages, settings, report=steps.append)
                codes = _unit(trained.codes(passages))
                rankings = dict(zip(queries, _search(codes, _unit(trained.codes(asked)), ids), strict=True))
                found = mean(measure(judged, rankings), ("nDCG@10", "R@100"))
                active = np.diff(codes.indptr)
                print(
                    f"| {allocation} | {k} | {weight:g} | {found['nDCG@10']:.3f} | {found['R@100']:.3f} "
                    f"| {active.mean():.1f} | {active.max()} | {steps[-1].dead} "
                    f"| {_not_restored(trained, passages):.3f} |",
                    flush=True,
                )


def _unit(codes: SparseActivations) -> SparseActivations:
    rows = np.repeat(np.arange(codes.num_rows), np.diff(codes.indptr))
    norms = np.sqrt(np.bincount(rows, np.square(codes.weights), codes.num_rows))
    return SparseActivations(
        codes.indptr, codes.units, (codes.weights / norms[rows]).astype(np.float32), codes.num_units
    )


def _search(codes: SparseActivations, queries: SparseActivations, ids: Sequence[str]) -> list[list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        with IndexWriter.create(index, encoder=PrecomputedEncoder(num_units=codes.num_units)) as writer:
            writer.add_vectors(ids, codes)
            writer.commit()
        with SparseIndex.open(index) as opened:
            return opened.search(queries, k=100, threads=1).ids


def _not_restored(trained: SparseAutoencoder, vectors: np.ndarray) -> float:
    restored = trained.codes(vectors).to_dense() @ trained.weight + trained.bias
    return float(np.square(restored - vectors).mean() / vectors.var(0).mean())


if __name__ == "__main__":
    main()
