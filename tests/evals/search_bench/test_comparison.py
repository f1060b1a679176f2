"""The bench end to end, on a few hundred documents: ours and SciPy, each in its own process."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from evals.search_bench.cli import app
from evals.search_bench.comparison import BuiltIndex, Comparison, Measurement, best_settings, compare_engines
from evals.search_bench.csr_file import map_csr_file, write_csr_file
from evals.search_bench.engines.catalogue import ENGINES, load_engine
from evals.search_bench.report import ratios
from evals.search_bench.workload import given_workload, synthetic_workload
from runtime.activations import SparseActivations
from runtime.errors import FormatError, InputError, LexpertError, NotFoundError, UsageError

pytest.importorskip("scipy")
DOCUMENTS, QUERIES = 8200, 30
"""Enough that our merged segment is in tiers."""
FEW = 500

linux_only = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="the bench pins processes to cores, which only Linux offers"
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def found(cache: Path) -> Comparison:
    workload = synthetic_workload(cache, DOCUMENTS, QUERIES)
    cores = sorted(os.sched_getaffinity(0))[-1:]
    return compare_engines(workload, ["lexpert", "scipy"], [10], rounds=2, cores=cores)


@linux_only
def test_scipy_is_exact_and_ours_nearly(found: Comparison) -> None:
    assert found.failed == []
    best = {row.engine: row.recall for row in found.measurements}
    assert best["scipy"] == 1.0
    assert best["lexpert"] > 0.98  # impacts are of 8 bits
    assert any(row.work and row.work["postings"] for row in found.measurements if row.engine == "lexpert")
    for row in found.measurements:
        assert 0 < row.median_us <= row.p99_us
        assert row.rate > 0
        assert row.bytes > 0
        assert row.build_s > 0
        assert row.resident_bytes > 0


@linux_only
def test_ratios_compare_at_equal_recall(found: Comparison) -> None:
    scipy = next(row for row in found.measurements if row.engine == "scipy")
    compared = ratios(found.measurements)
    assert compared
    for row, of_peers in compared:
        assert of_peers == {"scipy": pytest.approx(row.rate / scipy.rate)}


@linux_only
def test_a_second_run_reuses_vectors_and_indexes_and_prints_json(found: Comparison, cache: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.suffix != ".log"}
    arguments = [
        "search",
        "--documents",
        str(DOCUMENTS),
        "--queries",
        str(QUERIES),
        "--k",
        "10",
        "--rounds",
        "1",
    ]
    run = CliRunner().invoke(app, [*arguments, "--engines", "scipy", "--cache", str(cache), "--json"])
    assert run.exit_code == 0, run.output
    values = json.loads(run.stdout)
    assert values["documents"] == found.documents
    assert [row["engine"] for row in values["measurements"]] == ["scipy"]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def bench_of_the_caller(folder: Path, engines: str) -> Result:
    rows = SparseActivations.from_dense(np.eye(4, dtype=np.float32))
    for name in ("d.csr", "q.csr"):
        if not (folder / name).exists():
            write_csr_file(folder / name, rows)
    files = ["--data", str(folder / "d.csr"), "--query-file", str(folder / "q.csr")]
    options = ["--k", "2", "--rounds", "1", "--cache", str(folder / "cache"), "--engines", engines]
    return CliRunner().invoke(app, ["search", *files, *options])


@linux_only
def test_engines_that_fail_are_named_and_end_with_an_error(tmp_path: Path) -> None:
    run = bench_of_the_caller(tmp_path, "scipy, scipy")
    assert run.exit_code == 0, run.output
    assert run.stdout.count("scipy") == 2, run.stdout  # measured once, and started once
    # An index that is kept, and has lost a file.
    for lost in tmp_path.glob("cache/*/indexes/scipy/*/indptr.npy"):
        lost.unlink()
    run = bench_of_the_caller(tmp_path, "scipy")
    assert "not measured: scipy: FileNotFoundError" in run.stdout
    assert isinstance(run.exception, LexpertError)
    assert str(run.exception).startswith("no engine could be measured")
    run = bench_of_the_caller(tmp_path, "lexpert,scipy")
    assert "not measured: scipy: FileNotFoundError" in run.stdout
    assert "queries/s" in run.stdout
    assert "—" in run.stdout  # so few documents are in windows, whose work is not counted
    assert isinstance(run.exception, LexpertError)
    assert str(run.exception).startswith("scipy could not be measured")


@linux_only
def test_tables_and_a_picture_are_made_of_it(found: Comparison, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from rich.console import Console

    from evals.search_bench.picture import plot_comparison
    from evals.search_bench.report import print_comparison

    with (tmp_path / "tables.txt").open("w") as out:
        print_comparison(found, Console(file=out, width=200))
    text = (tmp_path / "tables.txt").read_text()
    assert f"{DOCUMENTS:,} documents of" in text
    assert "ours at this recall" in text
    assert "open ms" in text
    plot_comparison(found, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_an_engine_without_weights_is_asked_with_ones(cache: Path) -> None:
    workload = synthetic_workload(cache, FEW, QUERIES)
    ones, given = map_csr_file(workload.queries_for(False)), map_csr_file(workload.queries)
    assert np.array_equal(ones.units, given.units)
    assert (ones.weights == 1).all()
    assert workload.queries_for(True) == workload.queries


def test_files_of_the_caller_are_taken_in_part(tmp_path: Path) -> None:
    rows = SparseActivations.from_dense(np.eye(4, dtype=np.float32))
    documents, queries = tmp_path / "d.csr", tmp_path / "q.csr"
    write_csr_file(documents, rows)
    write_csr_file(queries, rows)
    workload = given_workload(tmp_path / "cache", documents, queries, 3, 2)
    assert map_csr_file(workload.documents).num_rows == 3
    assert map_csr_file(workload.queries).num_rows == 2
    write_csr_file(queries, SparseActivations.from_dense(-np.eye(4, dtype=np.float32)))
    for given in ((documents, queries), (queries, documents)):
        with pytest.raises(InputError, match="weight -1"):
            given_workload(tmp_path / "cache", *given, None, 2)
    write_csr_file(queries, SparseActivations.empty(1, 7))
    with pytest.raises(FormatError, match="one vocabulary"):
        given_workload(tmp_path / "cache", documents, queries, None, 2)


def test_the_fastest_setting_at_each_recall_is_chosen() -> None:
    def tried(recall: float, rate: float) -> Measurement:
        return Measurement("seismic", {}, {}, 10, 1, 1.0, recall=recall, rate=rate)

    index = BuiltIndex("seismic", {}, Path(), 1.0, 1)
    rows = [
        tried(0.5, 99),
        tried(0.91, 50),
        tried(0.92, 60),
        tried(0.96, 20),
        tried(0.995, 5),
        tried(0.995, 6),
    ]
    chosen = best_settings([(index, row) for row in rows], [False] * 6)
    assert [row for _, row in chosen] == [rows[2], rows[3], rows[5]]
    chosen = best_settings([(index, row) for row in rows], [True, *[False] * 5])
    assert [row for _, row in chosen] == [rows[0], rows[2], rows[3], rows[5]]
    assert best_settings([], []) == []


@pytest.mark.parametrize("name", [name for name in ENGINES if name not in ("lexpert", "scipy")])
def test_peers_answer_as_the_exact_ones_where_their_settings_are_widest(name: str, cache: Path) -> None:
    if name == "lucene":
        pytest.skip("Java stays in its process; tests/retrieval/interop compares with Lucene")
    try:
        engine = load_engine(name)
    except NotFoundError as error:
        pytest.skip(str(error))
    workload = synthetic_workload(cache, FEW, QUERIES)
    vectors, queries = (
        map_csr_file(workload.documents),
        map_csr_file(workload.queries_for(engine.takes_weights)),
    )
    from evals.search_bench.truth import load_truth

    truth = load_truth(workload.truths([10], engine.takes_weights)[10])
    options = engine.builds(vectors)[0]
    folder, scratch = cache / name, cache / f"{name}.scratch"
    folder.mkdir()
    scratch.mkdir()
    engine.build(vectors, folder, options, scratch)
    engine.open(folder, options)
    recalls = {}
    for setting in engine.settings(options, 10):
        hits = [
            engine.hits(engine.search(engine.prepare(np.array(units), np.array(weights)), 10, setting))
            for units, weights in queries
        ]
        assert all((np.diff(scores) <= 0).all() for _, scores in hits)
        recalls[json.dumps(setting)] = np.mean([truth.recall(row, ids) for row, (ids, _) in enumerate(hits)])
    assert max(recalls.values()) > 0.9


def test_bad_options_are_refused() -> None:
    runner = CliRunner()
    for arguments, reason in (
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--data", "real"], "--texts"),
        (["--data", "no-such.csr"], "is missing"),
        (["--data", __file__], "--query-file"),
        (["--documents", "0"], "--documents must be at least 1"),
        (["--query-file", __file__], "--query-file goes with a CSR file"),
        (["--data", "real", "--texts", ".", "--query-file", __file__], "--query-file goes with a CSR file"),
        (["--texts", "."], "--texts goes with --data real"),
        (["--query-model", "ed"], "--query-model goes with --data real"),
        (["--data", __file__, "--query-model", "v3"], "--query-model goes with --data real"),
    ):
        run = runner.invoke(app, ["search", *arguments])
        assert isinstance(run.exception, UsageError | NotFoundError), arguments
        assert reason in str(run.exception)
    with pytest.raises(UsageError, match="choose from"):
        load_engine("elastic")
