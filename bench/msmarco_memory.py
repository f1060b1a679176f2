"""Does evaluating MS MARCO stay within the writer's memory bound, however many passages there are?

Generates passages of about 55 words, with word frequencies after Zipf's law, in MS MARCO's own files; builds
their index and evaluates on it, each in a process of its own; prints the peak memory of each against the bound,
and passages a second. Linux only: it reads /proc.

    python bench/msmarco_memory.py --passages 2000000 --memory 1024

"Anonymous" memory is what the processes allocated themselves; resident memory adds the pages of mapped files,
which the system takes back whenever it needs them. The bound is for the first.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# Frequencies after Zipf and Mandelbrot, 1 / (rank + SHIFT) ** EXPONENT, so chosen that the vocabulary grows as
# that of MS MARCO does: 23 thousand terms in 5 thousand passages, 2.7 million in 8.8 million.
VOCABULARY, EXPONENT, SHIFT = 20_000_000, 1.5, 60
MEAN_WORDS, STOP_WORDS, STOP_SHARE = 55, ("the", "of", "and", "a", "to", "in", "is"), 0.28
FREQUENT = 300_000
"""Words that are spelt once and kept; the others are spelt when they occur."""
QUERIES = 200
BLOCK = 20_000
SAMPLE_INTERVAL_S = 0.1


@dataclass
class Peak:
    """Peak memory of a process and its children together, in bytes."""

    anonymous: int = 0
    resident: int = 0
    main_anonymous: int = 0


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--passages", type=int, default=2_000_000, help="how many to generate")
    arguments.add_argument("--memory", type=int, default=1024, help="the writer's bound, in MiB")
    arguments.add_argument("--workers", type=int, default=None, help="processes that analyse text")
    arguments.add_argument("--folder", type=Path, default=None, help="where to generate; kept and used again")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        if not (folder / "qrels.dev.small.tsv").is_file():
            started = time.perf_counter()
            generate(folder, given.passages)
            size = (folder / "collection.tsv").stat().st_size
            print(
                f"generated {given.passages:,} passages, {size / 1e9:.2f} GB, {time.perf_counter() - started:.0f} s"
            )
        for step in ("build", "search"):
            seconds, peak = measured(step, folder, Path(temporary) / "results", given.memory, given.workers)
            rate = f", {given.passages / seconds:,.0f} passages/s" if step == "build" else ""
            print(
                f"{step}: {seconds:.0f} s{rate}; peak anonymous memory {peak.anonymous >> 20:,} MiB in all processes "
                f"({peak.main_anonymous >> 20:,} in the main one), resident {peak.resident >> 20:,} MiB; "
                f"{peak.anonymous / (given.memory << 20):.2f} of the bound of {given.memory:,} MiB",
                flush=True,
            )


def generate(folder: Path, passages: int, seed: int = 0) -> None:
    """Write collection.tsv, queries and judgements in MS MARCO's form, a block of passages at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    words = [*STOP_WORDS, *(spell(rank) for rank in range(FREQUENT))]
    asked = set(random.choice(passages, min(QUERIES, passages), replace=False).tolist())
    queries, qrels = [], []
    with (folder / "collection.tsv").open("w", encoding="ascii") as file:
        for start in range(0, passages, BLOCK):
            count = min(BLOCK, passages - start)
            lengths = np.maximum(5, random.normal(MEAN_WORDS, 20, count)).astype(np.int64)
            ranks = draw_ranks(random, int(lengths.sum()))
            ends = np.cumsum(lengths)
            for row, (begin, end) in enumerate(zip(ends - lengths, ends, strict=True)):
                drawn = ranks[begin:end].tolist()
                text = " ".join(words[r] if r < len(words) else spell(r - len(STOP_WORDS)) for r in drawn)
                file.write(f"{start + row}\t{text}\n")
                if start + row in asked:
                    rare = sorted(zip(drawn, text.split(" "), strict=True))[-16:-10]
                    queries.append(f"{len(queries)}\t{' '.join(word for _, word in rare)}\n")
                    qrels.append(f"{len(qrels)}\t0\t{start + row}\t1\n")
    (folder / "queries.dev.small.tsv").write_text("".join(queries))
    (folder / "qrels.dev.small.tsv").write_text("".join(qrels))


def draw_ranks(random: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Words of a text, as places in the stop words followed by all others by falling frequency."""
    power = 1 - EXPONENT
    first, last = (SHIFT + 1.0) ** power, (VOCABULARY + SHIFT + 1.0) ** power
    ranks = (first - random.random(count) * (first - last)) ** (1 / power) - SHIFT - 1
    places = ranks.astype(np.int64) + len(STOP_WORDS)
    stops = random.random(count) < STOP_SHARE
    places[stops] = random.integers(0, len(STOP_WORDS), int(stops.sum()))
    return places


def spell(rank: int) -> str:
    """A pronounceable word for a rank; frequent words are short."""
    consonants, vowels = "bcdfghjklmnprstvwz", "aeiou"
    syllables = []
    number = rank + 90  # two syllables at least, so that none is a stop word
    while number:
        number, rest = divmod(number, 90)
        syllables.append(consonants[rest // 5] + vowels[rest % 5])
    return "".join(syllables)


def measured(step: str, folder: Path, out: Path, memory: int, workers: int | None) -> tuple[float, Peak]:
    """Run one step in a process of its own; its seconds, and the peak memory of it and its children."""
    command = [sys.executable, "-c", STEP, step, str(folder), str(out), str(memory), str(workers or 0)]
    started = time.perf_counter()
    process = subprocess.Popen(command)
    peak = Peak()
    sampler = threading.Thread(target=sample, args=(process, peak))
    sampler.start()
    code = process.wait()
    seconds = time.perf_counter() - started
    sampler.join()
    if code:
        raise SystemExit(f"{step} ended with exit code {code}")
    return seconds, peak


STEP = """
import sys
from pathlib import Path

from evals.collections.msmarco import load_msmarco
from evals.evaluation import evaluate, index_path
from retrieval import SparseEncoder
from retrieval.index.build import build_index
from retrieval.index.manifest import VERSION

step, folder, out, memory, workers = sys.argv[1:]
collection, memory, workers = load_msmarco(Path(folder)), int(memory) << 20, int(workers) or None
encoder = SparseEncoder.load("bm25")
if step == "build":
    path = index_path(Path(out) / "indexes", collection, "bm25", encoder.fingerprint, VERSION)
    build_index(path, encoder, collection.corpus, memory=memory, workers=workers)
else:
    report = evaluate(collection, encoder, out=Path(out), memory=memory, workers=workers, plot=False).report
    assert report.index["action"] == "reused", report.index
    print(f"MRR@10 {report.metrics['MRR@10']:.3f}, {report.queries_per_second:.1f} queries/s, "
          f"index {report.index['bytes'] / 1e9:.2f} GB")
"""


def sample(process: subprocess.Popen[bytes], peak: Peak) -> None:
    while process.poll() is None:
        anonymous = resident = 0
        for pid in family(process.pid):
            own, mapped = memory_of(pid)
            anonymous, resident = anonymous + own, resident + own + mapped
            if pid == process.pid:
                peak.main_anonymous = max(peak.main_anonymous, own)
        peak.anonymous, peak.resident = max(peak.anonymous, anonymous), max(peak.resident, resident)
        time.sleep(SAMPLE_INTERVAL_S)


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for parent in found:
        try:
            for children in Path(f"/proc/{parent}/task").glob("*/children"):
                found += [int(child) for child in children.read_text().split()]
        except OSError:  # it ended meanwhile
            continue
    return found


def memory_of(pid: int) -> tuple[int, int]:
    """Anonymous and mapped resident bytes of a process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    values = {line.partition(":")[0]: line.partition(":")[2].split() for line in lines}
    sizes = [int(values[key][0]) << 10 if key in values else 0 for key in ("RssAnon", "RssFile", "RssShmem")]
    return sizes[0] + sizes[2], sizes[1]


if __name__ == "__main__":
    main()
