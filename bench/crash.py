"""Does an index survive being killed? Kills a writer at random moments and checks what is left, again and again.

    python bench/crash.py --kills 200

Half of the kills hit a writer that adds, replaces, deletes and commits while segments are merged in the background,
and at times merges all; half hit a build from a corpus, which is run again by the same call until it is done. Prints
what was checked; exit code 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from retrieval import IndexWriter, SparseIndex
from retrieval.corpus import JsonlCorpus
from retrieval.encoders.bm25 import Bm25Encoder
from retrieval.index.build import build_index
from retrieval.index.manifest import read_manifest
from retrieval.index.merge_policy import MergePolicy
from runtime.errors import NotFoundError

KEPT_COMMITS = 7
DOCUMENTS_EACH = 40
EAGER = MergePolicy(segments_per_tier=2, max_deleted=0.05, smallest=1)
"""Merges nearly all the time."""


def write_forever(path: Path) -> None:
    """Commit number n adds its documents, replaces the counter and deletes the documents of commit n - 7."""
    if (path / "manifest.json").exists():
        writer = IndexWriter.open(path, workers=1, merge_policy=EAGER)
    else:
        encoder = Bm25Encoder().fit(["commit number counter"])
        writer = IndexWriter.create(path, encoder=encoder, workers=1, merge_policy=EAGER)
        writer.commit()
    number = committed_number(path)
    while True:
        number += 1
        writer.add(
            {"_id": f"{number}-{place}", "text": f"commit number{number} place{place}"}
            for place in range(DOCUMENTS_EACH)
        )
        writer.add([{"_id": "counter", "title": str(number), "text": "counter"}])
        writer.delete([f"{number - KEPT_COMMITS}-{place}" for place in range(DOCUMENTS_EACH)])
        match number % 10:
            case 0:
                writer.merge()
            case 5:
                writer.finish_merges()
            case _:
                writer.commit()
        print(number, flush=True)


def committed_number(path: Path) -> int:
    with SparseIndex.open(path) as index:
        counter = index.document("counter")
        return int(counter["title"]) if counter else 0


def check(path: Path, acknowledged: int) -> None:
    """The last commit opens and verifies, holds what it should, and is not older than the last acknowledged."""
    with SparseIndex.open(path) as index:
        index.verify()
        counter = index.document("counter")
        number = int(counter["title"]) if counter else 0
        assert number >= acknowledged, f"commit {acknowledged} was acknowledged, but {number} is there"
        expected = {
            f"{commit}-{place}"
            for commit in range(max(1, number - KEPT_COMMITS + 1), number + 1)
            for place in range(DOCUMENTS_EACH)
        }
        hits = index.search(["commit", "counter"], k=10_000)
        assert sorted(hits.ids[0]) == sorted(expected)
        assert hits.ids[1] == (["counter"] if number else [])
        assert index.num_documents == len(expected) + (number > 0)


def unfinished_segments(path: Path) -> int:
    """Segments that were being written, or merged away, when the writer was killed."""
    committed = {segment.name for segment in read_manifest(path).segments}
    return len([folder for folder in (path / "segments").iterdir() if folder.name not in committed])


def kill_writers(path: Path, kills: int, generator: random.Random) -> tuple[int, int]:
    """Commits acknowledged, and kills that came while segments were being written or merged."""
    acknowledged = interrupted = 0
    for _ in range(kills):
        command = [sys.executable, __file__, "--write", str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
            assert child.stdout is not None
            first = child.stdout.readline()  # from here on it commits as fast as it can
            time.sleep(generator.uniform(0, 0.15))
            child.kill()
            numbers = [first, *child.stdout.read().splitlines()]
        complete = [int(line) for line in numbers if line.strip()]
        acknowledged = max([acknowledged, *complete])
        interrupted += unfinished_segments(path) > 0
        check(path, acknowledged)
    return acknowledged, interrupted


def kill_builds(folder: Path, kills: int, generator: random.Random) -> int:
    """Kill builds of a fitted and an unfitted encoder at random moments; the rerun gives the uninterrupted index."""
    corpus = folder / "corpus.jsonl"
    with corpus.open("w") as file:
        for number in range(20_000):
            words = " ".join(f"w{int(generator.paretovariate(0.6)) % 5000}" for _ in range(20))
            file.write(f'{{"_id": "{number}", "text": "{words}"}}\n')
    truth = {}
    for kind in ("fitted", "unfitted"):
        build_index(folder / f"truth-{kind}", encoder_of(kind), JsonlCorpus(corpus), workers=1)
        truth[kind] = results(folder / f"truth-{kind}")
    done = finished = 0
    while done < kills:
        kind = ("fitted", "unfitted")[done % 2]
        path = folder / f"build-{kind}"
        command = [sys.executable, __file__, "--build", str(path), str(corpus), kind]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
            assert child.stdout is not None
            child.stdout.readline()
            try:
                child.wait(generator.uniform(0, 2.5))
                assert child.returncode == 0
                finished += 1
            except subprocess.TimeoutExpired:
                child.kill()
                done += 1
        try:
            with SparseIndex.open(path) as index:
                index.verify()
                complete = index.stats()["complete"]
        except NotFoundError:
            continue  # killed before the first commit
        if complete:
            assert results(path) == truth[kind]
            shutil.rmtree(path)
    for kind, expected in truth.items():
        build_index(folder / f"build-{kind}", encoder_of(kind), JsonlCorpus(corpus), workers=1)
        assert results(folder / f"build-{kind}") == expected
    return finished + 2


def results(path: Path) -> list[tuple[list[str], list[float]]]:
    with SparseIndex.open(path) as index:
        hits = index.search([f"w{number} w{number * 3}" for number in range(1, 40)], k=100)
        return [(ids, scores.tolist()) for ids, scores in zip(hits.ids, hits.scores, strict=True)]


def encoder_of(kind: str) -> Bm25Encoder:
    encoder = Bm25Encoder()
    return encoder.fit(f"w{number}" for number in range(5000)) if kind == "fitted" else encoder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--build", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write_forever(arguments.write)
    if arguments.build:
        path, corpus, kind = arguments.build
        print("started", flush=True)
        build_index(
            Path(path),
            encoder_of(kind),
            JsonlCorpus(Path(corpus)),
            workers=1,
            merge_policy=EAGER,
            commit_interval_s=0,
        )
        return
    generator = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        half = arguments.kills // 2
        commits, interrupted = kill_writers(Path(folder) / "index", half, generator)
        print(
            f"{half} kills of a writer, {interrupted} of them while segments were written or merged: "
            f"{commits} commits acknowledged, none lost, every state intact"
        )
        builds = arguments.kills - half
        finished = kill_builds(Path(folder), builds, generator)
        print(
            f"{builds} kills of a build: every rerun that finished ({finished} runs) gave the uninterrupted index"
        )


if __name__ == "__main__":
    main()
