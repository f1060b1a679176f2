"""``lexpert eval`` from the command line: tables for people, JSON and nothing else for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from evals.cli import app
from evals.metrics import MEASURES
from runtime.errors import NotFoundError, UsageError

QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t1\n"


def lexpert_eval(*arguments: object, fails: type[Exception] | None = None) -> Result:
    """Run a command; errors come out as exceptions, which the `lexpert` command turns into sentences."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if fails is None:
        assert result.exit_code == 0, result.output
    else:
        assert isinstance(result.exception, fails), result.exception
    return result


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    (folder / "qrels").mkdir(parents=True)
    rows = [("d1", "red apples grow on trees"), ("d2", "blue whales swim in oceans"), ("d3", "green pears")]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"_id": i, "text": t}) + "\n" for i, t in rows))
    queries = [("q1", "apples"), ("q2", "swimming whales")]
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": i, "text": t}) + "\n" for i, t in queries)
    )
    (folder / "qrels" / "test.tsv").write_text(QRELS)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path, Path]:
    good, bad, qrels = tmp_path / "good.trec", tmp_path / "bad.trec", tmp_path / "qrels.tsv"
    good.write_text("q1 Q0 d1 1 2 t\nq1 Q0 d9 2 1 t\nq2 Q0 d2 1 2 t\n")
    bad.write_text("q1 Q0 d9 1 2 t\nq1 Q0 d1 2 1 t\n")
    qrels.write_text(QRELS)
    return good, bad, qrels


def test_beir_prints_json_and_nothing_else(beir: Path, tmp_path: Path) -> None:
    result = lexpert_eval(
        "beir", beir, "--encoder", "bm25", "--out", tmp_path / "out", "--json", "--workers", 1
    )
    values = json.loads(result.stdout)
    assert values["collection"] == "tiny"
    assert values["encoder"] == "bm25"
    assert values["metrics"] == dict.fromkeys(MEASURES, 1.0)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "indexes", "per_query.tsv", "plot.png", "report.json", "run.trec",
    }  # fmt: skip


def test_several_collections_give_one_table_with_their_mean(beir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in beir.iterdir():
        (copy / path.name).symlink_to(path)
    result = lexpert_eval("beir", beir, copy, "--out", tmp_path / "out", "--workers", 1)
    for word in ("tiny/test", "copy/test", "mean", *MEASURES):
        assert word in result.stdout
    assert (tmp_path / "out" / "tiny" / "report.json").is_file()
    assert (tmp_path / "out" / "plot.png").is_file()
    result = lexpert_eval("beir", beir, copy, "--out", tmp_path / "out", "--json", "--no-plot")
    values = json.loads(result.stdout)
    assert values["mean"] == dict.fromkeys(MEASURES, 1.0)
    assert [report["index"]["action"] for report in values["collections"]] == ["reused", "reused"]


def test_results_go_under_the_current_directory_by_default(
    beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lexpert_eval("beir", beir, "--workers", 1, "--no-plot")
    assert (tmp_path / ".lexpert" / "reports" / "tiny-test-bm25" / "report.json").is_file()
    (index,) = (tmp_path / ".lexpert" / "indexes").iterdir()
    assert index.name.startswith("tiny-bm25-")


def test_msmarco_evaluates_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "msmarco"
    folder.mkdir()
    (folder / "collection.tsv").write_text("0\tred apples\n1\tblue whales\n")
    (folder / "msmarco-test2020-queries.tsv").write_text("5\twhales\n")
    (folder / "2020qrels-pass.txt").write_text("5 0 1 3\n5 0 0 1\n")
    result = lexpert_eval(
        "msmarco", folder, "--split", "dl20", "--out", tmp_path / "out", "--json", "--workers", 1
    )
    values = json.loads(result.stdout)
    assert values["relevance_level"] == 2
    assert values["metrics"]["MRR@10"] == 1.0


def test_run_measures_a_run_file(runs: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, bad, qrels = runs
    values = json.loads(lexpert_eval("run", bad, qrels, "--json").stdout)
    assert values["metrics"]["MRR@10"] == 0.25
    assert (values["queries"], values["unanswered"]) == (2, 1)
    result = lexpert_eval("run", bad, qrels, "--out", tmp_path / "out")
    assert "0.2500" in result.stdout
    assert "1 queries got no result" in result.stdout
    assert (tmp_path / "out" / "plot.png").is_file()


def test_compare_takes_runs_and_reports(runs: tuple[Path, Path, Path], tmp_path: Path) -> None:
    good, bad, qrels = runs
    of_runs = json.loads(lexpert_eval("compare", bad, good, "--qrels", qrels, "--json").stdout)
    assert (of_runs["a"], of_runs["b"]) == ("bad", "good")
    assert of_runs["measures"]["MRR@10"]["wins"] == 2
    for path in (good, bad):
        lexpert_eval("run", path, qrels, "--out", tmp_path / path.stem, "--no-plot")
    result = lexpert_eval(
        "compare", tmp_path / "bad", tmp_path / "good" / "report.json", "--out", tmp_path / "both"
    )
    assert "B wins" in result.stdout
    of_reports = json.loads((tmp_path / "both" / "comparison.json").read_text())
    assert of_reports == of_runs
    assert (tmp_path / "both" / "plot.png").is_file()


def test_wrong_usage_is_said_so(beir: Path, runs: tuple[Path, Path, Path], tmp_path: Path) -> None:
    good, bad, _ = runs
    for option in ("--k", "--memory", "--workers"):
        result = lexpert_eval("beir", beir, option, 0, "--out", tmp_path / "out", fails=UsageError)
        assert f"{option} must be at least 1, got 0" in str(result.exception)
    lexpert_eval("compare", good, bad, fails=UsageError)
    lexpert_eval("msmarco", beir, "--split", "test", fails=UsageError)
    lexpert_eval("beir", tmp_path / "no-such-folder", fails=NotFoundError)
    lexpert_eval("run", tmp_path / "none.trec", tmp_path / "none.tsv", fails=NotFoundError)
    assert not (tmp_path / "out").exists()


def test_reports_of_different_collections_are_not_compared(
    runs: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    good, _, qrels = runs
    other = tmp_path / "other.tsv"
    other.write_text(QRELS)
    lexpert_eval("run", good, qrels, "--out", tmp_path / "one", "--no-plot")
    lexpert_eval("run", good, other, "--out", tmp_path / "two", "--no-plot")
    result = lexpert_eval("compare", tmp_path / "one", tmp_path / "two", fails=UsageError)
    assert "A was measured on qrels.tsv/qrels and B on other.tsv/other" in str(result.exception)


def test_a_wrong_name_among_several_is_told_before_anything_is_indexed(beir: Path, tmp_path: Path) -> None:
    lexpert_eval("beir", beir, tmp_path / "none", "--out", tmp_path / "out", fails=NotFoundError)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["beir", "msmarco", "run", "compare"])
def test_help_has_examples(command: str) -> None:
    assert f"lexpert eval {command}" in lexpert_eval(command, "--help").stdout
