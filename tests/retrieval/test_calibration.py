"""Calibration: recalls that are aimed at are reached, the same every time, stored, and shown on the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lexpert
import retrieval.index.merge
import retrieval.search.calibrate
from retrieval import IndexWriter, SparseIndex
from retrieval.encoders.precomputed import PrecomputedEncoder
from retrieval.index.calibration import Calibration, CalibrationPoint
from retrieval.search.calibrate import calibrate
from retrieval.search.traversal import Traversal, choose_traversal
from runtime.activations import SparseActivations
from runtime.errors import InputError, UsageError

NUM_UNITS, DOCUMENTS, TOPICS = 2_000, 10_000, 60


def vectors_about_topics(seed: int, rows: int, size: int) -> SparseActivations:
    """Units that come together in topics, some of them common; the heaviest carry most of the weight."""
    topics = np.random.default_rng(0).integers(0, NUM_UNITS, (TOPICS, 80))
    generator = np.random.default_rng(seed)
    of_topic = topics[generator.integers(0, TOPICS, rows)]
    own = np.take_along_axis(of_topic, np.minimum(generator.zipf(1.2, (rows, size)) - 1, 79), axis=1)
    common = np.minimum(generator.zipf(1.4, (rows, size)) - 1, NUM_UNITS - 1)
    units = np.where(generator.random((rows, size)) < 0.7, own, common).astype(np.int32)
    weights = generator.gamma(1.0, 1.0, (rows, size)).astype(np.float32) + np.float32(0.05)
    indptr = np.arange(0, rows * size + 1, size, dtype=np.int64)
    return SparseActivations(indptr, units.ravel(), weights.ravel(), NUM_UNITS).coalesce()


@pytest.fixture(scope="module")
def path(tmp_path_factory: Any) -> Path:
    """10,000 documents in tiers, 200 more in windows, some of all deleted."""
    folder: Path = tmp_path_factory.mktemp("calibration") / "index"
    with IndexWriter.create(
        folder, encoder=PrecomputedEncoder(num_units=NUM_UNITS), impacts="uint8", merge_policy=None
    ) as writer:
        writer.add_vectors([str(row) for row in range(DOCUMENTS)], vectors_about_topics(1, DOCUMENTS, 24))
        writer.merge()
        writer.add_vectors([f"late {row}" for row in range(200)], vectors_about_topics(2, 200, 24))
        writer.commit()
        writer.delete([str(row) for row in range(0, DOCUMENTS, 20)])
        assert writer.has_tiers
    return folder


@pytest.fixture(scope="module")
def index(path: Path) -> SparseIndex:
    return SparseIndex.open(path)


@pytest.fixture(scope="module")
def held_back(index: SparseIndex) -> Calibration:
    return calibrate(index, vectors_about_topics(3, 128, 8))


@pytest.fixture(scope="module")
def made(index: SparseIndex) -> Calibration:
    return calibrate(index)


def recall(index: SparseIndex, queries: SparseActivations, k: int, traversal: Traversal) -> float:
    """What calibration measures, by ids alone: ties at the last place are rare."""
    exact = index.search_vectors(queries, k, Traversal("exhaustive"))
    found = index.search_vectors(queries, k, traversal)
    pairs = zip(exact, found, strict=True)
    return float(
        np.mean([len({*best.tolist()} & {*rows.tolist()}) / len(best) for (_, best), (_, rows) in pairs])
    )


@pytest.mark.parametrize("k", [1, 10, 30, 100, 1000])
@pytest.mark.parametrize("target", [0.9, 0.95, 0.99])
def test_targets_are_reached_by_other_queries(
    index: SparseIndex, held_back: Calibration, k: int, target: float
) -> None:
    traversal = choose_traversal(None, None, target, k, held_back)
    assert recall(index, vectors_about_topics(4, 150, 8), k, traversal) >= target - 0.02


@pytest.mark.parametrize("target", [0.9, 0.95, 0.99])
def test_targets_are_reached_without_queries(index: SparseIndex, made: Calibration, target: float) -> None:
    traversal = choose_traversal(None, None, target, 10, made)
    assert not made.held_back
    documents = vectors_about_topics(1, DOCUMENTS, 24)[7:1000:8]
    heaviest = [np.sort(np.argsort(-weights)[: len(units) // 3]) for units, weights in documents]
    queries = SparseActivations.from_rows(
        [(units[rows], weights[rows]) for (units, weights), rows in zip(documents, heaviest, strict=True)],
        NUM_UNITS,
    )
    assert recall(index, queries, 10, traversal) >= target - 0.02


def test_less_recall_takes_less_work(held_back: Calibration, made: Calibration) -> None:
    for calibration in (held_back, made):
        assert {point.k for point in calibration.points} >= {10, 100}
        for k in (10, 100, 1000):
            front = [point for point in calibration.points if point.k == k]
            assert front == sorted(front, key=lambda point: point.cost)
            assert all(less.recall < more.recall for less, more in pairwise(front))
            assert all(0 <= point.recall <= point.mean <= 1 for point in front)
    assert choose_traversal(None, None, 0.9, 10, held_back).mode == "approximate"


def test_it_is_the_same_every_time(index: SparseIndex, made: Calibration) -> None:
    advanced: list[int] = []
    assert calibrate(index, advance=advanced.append) == made
    assert sum(advanced) > made.queries
    assert calibrate(index, seed=1) != made


def test_recall_is_what_a_slow_count_says(index: SparseIndex) -> None:
    queries = vectors_about_topics(5, 40, 8)
    calibration = calibrate(index, queries)
    assert calibration.queries == 40
    for point in calibration.points[::5]:
        if point.k <= 100:
            setting = Traversal("approximate", point.effort, point.candidates)
            assert recall(index, queries, point.k, setting) == pytest.approx(point.mean, abs=0.01)


def test_it_is_stored_and_kept(path: Path) -> None:
    queries = vectors_about_topics(3, 32, 8)
    with IndexWriter.open(path, merge_policy=None) as writer:
        writer.add_vectors(["new"], vectors_about_topics(6, 1, 24))
        measured = writer.calibrate(queries)  # and with it the document
    with SparseIndex.open(path) as opened:
        assert opened.manifest.calibration == measured
        assert measured.documents == opened.num_documents
        assert opened.document("new") is not None
        assert opened.stats()["calibration"]["queries"] == 32
        counted = opened.search(queries, 10, target_recall=0.9)
        assert recall(opened, queries, 10, choose_traversal(None, None, 0.9, 10, measured)) >= 0.9
        assert len(counted.ids) == 32
    with IndexWriter.open(path, merge_policy=None) as writer:
        writer.delete(["new"])
        writer.commit()
    with SparseIndex.open(path) as opened:
        assert opened.manifest.calibration == measured
        assert opened.num_documents == measured.documents - 1


def test_what_cannot_be_measured_with_is_refused(index: SparseIndex) -> None:
    few = vectors_about_topics(3, 7, 8)
    with pytest.raises(UsageError, match="only 7 of 7 queries find anything"):
        calibrate(index, few)
    with pytest.raises(UsageError, match="only 0 of 0"):
        calibrate(index, few[:0])
    negative = SparseActivations(few.indptr, few.units, -few.weights, few.num_units)
    with pytest.raises(InputError, match="negative"):
        calibrate(index, negative)


def test_exact_search_is_taken_where_nothing_else_keeps_the_promise() -> None:
    point = CalibrationPoint(k=100, effort=0.1, candidates=2.0, recall=0.9, mean=0.92, cost=10)
    dearer = CalibrationPoint(k=100, effort=0.2, candidates=2.0, recall=0.95, mean=0.96, cost=20)
    calibration = Calibration(documents=1, queries=8, held_back=True, points=[point, dearer])
    assert choose_traversal(None, None, 0.9, 100, calibration) == Traversal("approximate", 0.1, 2.0)
    assert choose_traversal(None, None, 0.91, 100, calibration) == Traversal("approximate", 0.2, 2.0)
    # For fewer results as many documents are scored.
    assert choose_traversal(None, None, 0.9, 20, calibration).num_candidates(20) == 200
    assert choose_traversal(None, None, 0.96, 100, calibration) == Traversal("exact")
    assert choose_traversal(None, None, 1.0, 100, calibration) == Traversal("exact")
    assert choose_traversal(None, None, 0.5, 101, calibration) == Traversal("exact")


def test_small_indexes_need_no_calibration(tmp_path: Path) -> None:
    vectors = vectors_about_topics(1, 50, 24)
    with IndexWriter.create(tmp_path / "index", encoder=PrecomputedEncoder(num_units=NUM_UNITS)) as writer:
        writer.add_vectors([str(row) for row in range(50)], vectors)
        writer.commit()
        with SparseIndex.open(tmp_path / "index") as small:
            exact = small.search(vectors[:5], 3)
            assert small.search(vectors[:5], 3, target_recall=0.9).ids == exact.ids
        assert writer.calibrate().points == []
    with SparseIndex.open(tmp_path / "index") as small:
        assert small.search(vectors[:5], 3, target_recall=0.9).ids == exact.ids


def test_documents_too_poor_for_queries_are_searched_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval.index.merge, "TIERED_DOCUMENTS", 1)
    with IndexWriter.create(tmp_path / "index", encoder=PrecomputedEncoder(num_units=NUM_UNITS)) as writer:
        writer.add_vectors([str(row) for row in range(50)], vectors_about_topics(1, 50, 3))
        writer.merge()
        assert writer.has_tiers
        assert writer.calibrate().points == []


# On the command line


Run = Callable[..., tuple[int, str, str]]

BUILD = ("index", "build", "--corpus", "corpus.jsonl", "--out", "idx", "--impacts", "uint8")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in a folder of its own, which holds a corpus and queries."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(retrieval.index.merge, "TIERED_DOCUMENTS", 1)
    # Fewer settings: this is about what is passed on.
    monkeypatch.setattr(retrieval.search.calibrate, "EFFORTS", (0.05, 0.2, 0.6))
    write_texts("corpus.jsonl", vectors_about_topics(1, 6000, 24))
    write_texts("queries.jsonl", vectors_about_topics(3, 40, 8))

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lexpert", *arguments])
        code = 0
        try:
            lexpert.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return command


def write_texts(name: str, vectors: SparseActivations) -> None:
    with Path(name).open("w") as file:
        for row, (units, _) in enumerate(vectors):
            text = " ".join(f"word{unit}" for unit in units.tolist())
            file.write(json.dumps({"_id": str(row), "text": text}) + "\n")


def test_a_build_ends_with_calibration(run: Run) -> None:
    code, _, error = run(*BUILD)
    assert code == 0, error
    assert "calibrating" in error
    stats = json.loads(run("index", "stats", "idx", "--json")[1])
    assert stats["calibration"]["documents"] == 6000
    assert not stats["calibration"]["held_back"]
    assert "made queries on 6,000 documents" in run("index", "stats", "idx")[1]
    manifest = Path("idx/manifest.json").read_bytes()
    assert json.loads(manifest)["impacts"] == "uint8"
    # The same build again has nothing to do; one with other impacts is another.
    code, again, error = run(*BUILD)
    assert code == 0, error
    assert "nothing to do" in again
    assert Path("idx/manifest.json").read_bytes() == manifest
    code, _, error = run(*BUILD[:-1], "float32")
    assert code == 1
    assert "stores impacts as uint8" in error
    assert run(*BUILD[:-1], "int4")[0] == 2
    assert run(*BUILD[:-1], "float32", "--overwrite")[0] == 0


def test_queries_that_were_held_back(run: Run) -> None:
    assert run(*BUILD, "--calibrate-queries", "queries.jsonl")[0] == 0
    stats = json.loads(run("index", "stats", "idx", "--json")[1])
    assert stats["calibration"]["held_back"]
    assert stats["calibration"]["queries"] == 40
    assert run("index", "calibrate", "idx")[0] == 0
    assert not json.loads(run("index", "stats", "idx", "--json")[1])["calibration"]["held_back"]
    code, table, _ = run("index", "calibrate", "idx", "--queries", "queries.jsonl")
    assert code == 0
    assert "6,000 documents, 40 held-back queries" in table
    shown = [line.split()[:2] for line in table.splitlines()[2:]]
    found = json.loads(run("index", "calibrate", "idx", "--queries", "queries.jsonl", "--json")[1])
    assert [[f"{choice['target_recall']:.2f}", f"{choice['k']:,}"] for choice in found["choices"]] == shown
    assert found["queries"] == 40
    Path("few.jsonl").write_text('{"_id": "1", "text": "word1"}\n')
    code, _, error = run("index", "calibrate", "idx", "--queries", "few.jsonl")
    assert code == 2
    assert "only 1 of 1 queries find anything" in error
    # What was measured before stays.
    assert json.loads(run("index", "stats", "idx", "--json")[1])["calibration"]["queries"] == 40


def test_a_build_that_ended_before_its_merges_and_calibration_is_finished(run: Run) -> None:
    def stats() -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(run("index", "stats", "idx", "--json")[1])
        return shown

    Path("few.jsonl").write_text('{"_id": "1", "text": "word1"}\n')
    # Without merges nothing is laid out for approximate search, which leaves held-back queries without a use.
    code, built, error = run(*BUILD, "--no-merge", "--calibrate-queries", "queries.jsonl")
    assert code == 0, error
    assert "nothing to calibrate" in error
    assert stats()["layouts"] == {"windows": 1}
    assert "up to date" in run(*BUILD, "--no-merge")[1]
    # A calibration that fails leaves the merges, and is made up for.
    code, _, error = run(*BUILD, "--calibrate-queries", "few.jsonl")
    assert code == 2
    assert "only 1 of 1 queries find anything" in error
    assert stats()["layouts"] == {"tiers": 1}
    assert not stats()["calibration"]
    code, built, error = run(*BUILD)
    assert code == 0, error
    assert "continued idx: 6,000 documents" in built
    assert not stats()["calibration"]["held_back"]
    assert "up to date" in run(*BUILD)[1]
    # Other queries measure anew.
    assert run(*BUILD, "--calibrate-queries", "queries.jsonl")[0] == 0
    assert stats()["calibration"]["held_back"]
    assert stats()["complete"]


def test_ways_to_search(run: Run) -> None:
    assert run(*BUILD)[0] == 0
    query = " ".join(f"word{unit}" for unit in vectors_about_topics(3, 1, 8).units.tolist())

    def ids(*options: str) -> list[str]:
        code, found, error = run("search", "--index", "idx", query, "--json", *options)
        assert code == 0, error
        return [hit["id"] for hit in json.loads(found)["hits"]]

    exact = ids()
    assert len(exact) == 10
    assert ids("--mode", "exact") == ids("--mode", "exhaustive") == ids("--target-recall", "1") == exact
    assert len({*ids("--effort", "1")} & {*exact}) >= 9
    assert len({*ids("--mode", "approximate", "--target-recall", "0.9")} & {*exact}) >= 5
    assert run("search", "--index", "idx", query, "--mode", "fast")[0] == 2
    assert run("search", "--index", "idx", query, "--effort", "2")[0] == 2
    assert run("search", "--index", "idx", query, "--effort", "0.5", "--target-recall", "0.9")[0] == 2
    file = ("search", "--index", "idx", "--queries", "queries.jsonl", "--run", "out.trec")
    assert run(*file, "--target-recall", "0.9")[0] == 0
    assert run(*file, "--mode", "exact", "--effort", "0.5")[0] == 2


def test_a_small_index_says_that_it_is_searched_exactly(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval.index.merge, "TIERED_DOCUMENTS", 1 << 13)
    assert run(*BUILD)[0] == 0
    assert "none" in run("index", "stats", "idx")[1].splitlines()[-1]
    code, shown, _ = run("index", "calibrate", "idx")
    assert code == 0
    assert "searched exactly whatever recall is aimed at" in shown
    assert run("search", "--index", "idx", "word1", "--target-recall", "0.9")[0] == 0
