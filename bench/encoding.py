"""How many documents are encoded per second, beside sentence-transformers' SparseEncoder on the same checkpoint?

    python bench/encoding.py FOLDER COLLECTION... [--documents 64] [--rounds 3] [--threads 2]

FOLDER is a SPLADE encoder (a plain masked language model, or a sentence-transformers folder): it is written once more
as a sentence-transformers folder, and both read that. COLLECTIONs are BEIR folders; of each, `--documents` are drawn
with a seed, title and text, and cut at the same number of tokens by both.

Every variant runs in a process of its own: ours as it is, and the peer with each of `--batches`. The peer's batch size
that is fastest in a first pass over all collections is the one that is compared. Then rounds take turns, collection by
collection, in alternating order; the rate comes from the median of rounds, on the clock and, for machines that are busy
otherwise, in processor time.

Memory is the highest resident size of a pass over a whole collection: of the process as a whole, and beyond what it
had just before, with model and libraries loaded (freed memory given back to the system first).

The vectors of both are compared: the largest difference of a weight, and the terms that only one of the two has, with
the largest of their weights. Both compute in float32, in batches of their own, so the last digits differ.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import scipy.sparse

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

Encode = Callable[[Sequence[str]], scipy.sparse.csr_array]


def make_encoder(variant: str, folder: Path) -> Encode:
    """`variant` is ``ours`` or ``peer:B`` with the peer's batch size."""
    if variant == "ours":
        from retrieval.encoders.encoder import SparseEncoder

        encoder = SparseEncoder.load(str(folder), device="cpu", dtype="float32")

        def encode(texts: Sequence[str]) -> scipy.sparse.csr_array:
            rows = encoder.encode_documents(texts)
            return scipy.sparse.csr_array(
                (rows.weights, rows.units, rows.indptr), (len(texts), rows.num_units)
            )

        return encode

    from sentence_transformers import SparseEncoder as Peer

    peer = Peer(str(folder), device="cpu", local_files_only=True)
    batch = int(variant.partition(":")[2])

    def encode_as_peer(texts: Sequence[str]) -> scipy.sparse.csr_array:
        found = peer.encode_document(list(texts), batch_size=batch, show_progress_bar=False).coalesce()
        at, values = found.indices().numpy(), found.values().numpy()
        return scipy.sparse.coo_array((values, (at[0], at[1])), tuple(found.shape)).tocsr()

    return encode_as_peer


def resident_bytes(field: str) -> int:
    """`VmRSS` or `VmHWM` (its highest since `clear_highest`) of this process."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system does not tell the resident size of a process")


def clear_highest() -> None:
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", "ascii")


def serve(variant: str, folder: Path, scratch: Path, threads: int) -> None:
    """Child process: encode the collection named on each line of standard input, and answer with what that took."""
    import torch

    torch.set_num_threads(threads)
    encode = make_encoder(variant, folder)
    encode(["a short text", "and another one"])  # weights are paged in, and what is compiled is compiled
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        name = line.strip()
        texts = json.loads((scratch / f"{name}.json").read_text("utf-8"))
        clear_highest()
        before = resident_bytes("VmRSS")
        started, processor_started = time.perf_counter(), time.process_time()
        rows = encode(texts)
        answer = {
            "seconds": time.perf_counter() - started,
            "processor": time.process_time() - processor_started,
            "peak": resident_bytes("VmHWM"),
            "grown": resident_bytes("VmHWM") - before,
        }
        scipy.sparse.save_npz(scratch / f"{name}-{variant}.npz", rows, compressed=False)
        print(json.dumps(answer), flush=True)


@dataclass
class Child:
    """A process that encodes with one variant."""

    process: subprocess.Popen[str]
    stdin: IO[str]
    stdout: IO[str]

    def encode(self, collection: str) -> dict[str, float]:
        self.stdin.write(collection + "\n")
        self.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, float]:
        line = self.stdout.readline()
        if not line:
            raise SystemExit(
                f"{self.process.args!r} ended with status {self.process.wait()} (out of memory?)"
            )
        answer: dict[str, float] = json.loads(line)
        return answer

    def end(self) -> None:
        self.stdin.close()
        self.process.wait()


def start(variant: str, folder: Path, scratch: Path, threads: int) -> Child:
    count = str(threads)
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", variant, str(folder), str(scratch), count],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": count, "RAYON_NUM_THREADS": count, "NUMBA_NUM_THREADS": count},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    child = Child(process, process.stdin, process.stdout)
    child.answer()
    return child


def draw_texts(collection: Path, count: int) -> list[str]:
    """`count` documents of a BEIR folder, drawn from its first 20,000."""
    from retrieval.corpus import JsonlCorpus
    from retrieval.documents import document_text

    texts = [document_text(d) for d in islice(JsonlCorpus(collection / "corpus.jsonl"), 20_000)]
    texts = [text for text in texts if text.strip()]
    return random.Random(0).sample(texts, min(count, len(texts)))


def compare_vectors(ours: scipy.sparse.csr_array, peer: scipy.sparse.csr_array) -> dict[str, float]:
    one_sided = ((ours > 0).astype(np.int8) - (peer > 0).astype(np.int8)).tocoo()
    missed = abs(ours - peer).tocsr()[one_sided.coords[0], one_sided.coords[1]] if one_sided.nnz else None
    return {
        "largest_difference": float(f"{abs(ours - peer).max():.2g}"),
        "largest_weight": round(float(ours.max()), 2),
        "terms_of_one_alone": int(np.count_nonzero(one_sided.data)),
        "heaviest_of_those": float(f"{missed.max():.2g}") if missed is not None else 0.0,
        "terms_per_document": round(ours.nnz / ours.shape[0], 1),
    }


def report(
    names: list[str],
    taken: dict[str, dict[str, list[dict[str, float]]]],
    documents: dict[str, int],
    best: str,
) -> list[dict[str, Any]]:
    """A row for each collection, and one for all of them together."""

    def middle(variant: str, name: str, field: str) -> float:
        return statistics.median(answer[field] for answer in taken[variant][name])

    def highest(variant: str, chosen: list[str], field: str) -> float:
        return max(answer[field] for name in chosen for answer in taken[variant][name])

    rows = []
    for chosen in [*([name] for name in names), *([names] if len(names) > 1 else [])]:
        count = sum(documents[name] for name in chosen)
        row: dict[str, Any] = {"collection": "+".join(chosen), "documents": count, "peer": best}
        for field in ("seconds", "processor"):
            ours, peer = (sum(middle(variant, name, field) for name in chosen) for variant in ("ours", best))
            row[field] = {
                "ours_per_second": round(count / ours, 2),
                "peer_per_second": round(count / peer, 2),
                "ratio": round(peer / ours, 2),
            }
        for field in ("peak", "grown"):
            ours, peer = (highest(variant, chosen, field) for variant in ("ours", best))
            row[field] = {
                "ours_mib": round(ours / 2**20),
                "peer_mib": round(peer / 2**20),
                "ratio": round(ours / peer, 2),
            }
        rows.append(row)
    return rows


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        variant, given, scratch, threads = sys.argv[2:]
        serve(variant, Path(given), Path(scratch), int(threads))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("collections", type=Path, nargs="+")
    parser.add_argument("--documents", type=int, default=64, help="of each collection")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="by default one for each core"
    )
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[4, 8, 32], help="of the peer; 32 is its default"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        names = [collection.name for collection in arguments.collections]
        documents = {}
        for collection in arguments.collections:
            texts = draw_texts(collection, arguments.documents)
            documents[collection.name] = len(texts)
            (scratch / f"{collection.name}.json").write_text(json.dumps(texts), "utf-8")
        from retrieval.encoders.encoder import SparseEncoder

        folder = scratch / "encoder"
        SparseEncoder.load(str(arguments.folder)).save(folder)

        peers: dict[str, float] = {}
        for batch in arguments.batches:
            child = start(f"peer:{batch}", folder, scratch, arguments.threads)
            tried = [child.encode(name) for name in names]
            child.end()
            peers[f"peer:{batch}"] = sum(answer["processor"] for answer in tried)
            grown = max(answer["grown"] for answer in tried)
            print(
                json.dumps(
                    {
                        "peer": f"peer:{batch}",
                        "seconds": round(sum(answer["seconds"] for answer in tried), 2),
                        "processor": round(peers[f"peer:{batch}"], 2),
                        "grown_mib": round(grown / 2**20),
                    }
                ),
                flush=True,
            )
        best = min(peers, key=peers.__getitem__)
        variants = ["ours", best]
        children = {variant: start(variant, folder, scratch, arguments.threads) for variant in variants}
        taken: dict[str, dict[str, list[dict[str, float]]]] = {v: {n: [] for n in names} for v in variants}
        for turn in range(arguments.rounds):
            for name in names:
                for variant in variants if turn % 2 == 0 else reversed(variants):
                    taken[variant][name].append(children[variant].encode(name))
        for child in children.values():
            child.end()
        for row in report(names, taken, documents, best):
            print(json.dumps(row), flush=True)
        for name in names:
            ours, peer = (scipy.sparse.load_npz(scratch / f"{name}-{variant}.npz") for variant in variants)
            print(json.dumps({"collection": name} | compare_vectors(ours, peer)), flush=True)


if __name__ == "__main__":
    main()
