"""``lexpert eval`` from the command line: tables for people, JSON and nothing else for programs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from evals.cli import app
from evals.metrics import MEASURES
from evals.report import load_report
from runtime.errors import ConflictError, InputError, NotFoundError, UsageError

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
    good.write_text("q1 Q0 d1 1 2 new\nq1 Q0 d9 2 1 new\nq2 Q0 d2 1 2 new\n")
    bad.write_text("q1 Q0 d9 1 2 old\nq1 Q0 d1 2 1 old\n")
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
    assert (of_runs["a"], of_runs["b"]) == ("old", "new")
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
    good, bad, qrels = runs
    for option in ("--k", "--memory", "--workers"):
        result = lexpert_eval("beir", beir, option, 0, "--out", tmp_path / "out", fails=UsageError)
        assert f"{option} must be at least 1, got 0" in str(result.exception)
    lexpert_eval("compare", good, bad, fails=UsageError)
    for level in (0, -1, 1 << 70):
        for command in (("run", good, qrels), ("compare", good, bad, "--qrels", qrels)):
            result = lexpert_eval(*command, "--relevance-level", level, fails=UsageError)
            assert f"must lie between 1 and 10000, got {level}" in str(result.exception)
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


def test_systems_go_by_the_tag_of_their_run_or_else_by_its_file(
    runs: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    good, bad, qrels = runs
    assert json.loads(lexpert_eval("run", good, qrels, "--json").stdout)["encoder"] == "new"
    mixed = tmp_path / "mixed.trec"
    mixed.write_text(good.read_text().replace("new", "other", 1))
    assert json.loads(lexpert_eval("run", mixed, qrels, "--json").stdout)["encoder"] == "mixed"
    same = tmp_path / "same.trec"
    same.write_text(bad.read_text().replace("old", "new"))
    values = json.loads(lexpert_eval("compare", same, good, "--qrels", qrels, "--json").stdout)
    assert (values["a"], values["b"]) == (str(same), str(good))


def test_compare_reads_the_judgements_once(
    runs: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad, qrels = runs
    opened = []
    path_open = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, *rest, **named: opened.append(path) or path_open(path, *rest, **named)
    )
    lexpert_eval("compare", bad, good, "--qrels", qrels, "--json")
    assert opened.count(qrels) == 1


def test_systems_that_counted_other_grades_as_relevant_are_not_compared(
    runs: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    good, bad, qrels = runs
    lexpert_eval("run", good, qrels, "--relevance-level", 2, "--out", tmp_path / "two", "--no-plot")
    result = lexpert_eval("compare", bad, tmp_path / "two", "--qrels", qrels, fails=UsageError)
    assert "in A relevant means grade 1 or more, in B 2" in str(result.exception)


def test_a_run_that_has_nothing_to_measure_is_an_error(runs: tuple[Path, Path, Path], tmp_path: Path) -> None:
    good, _, qrels = runs
    empty, stranger = tmp_path / "empty.trec", tmp_path / "stranger.trec"
    empty.write_text("\n")
    stranger.write_text("q9 Q0 d1 1 2 t\n")
    for run, message in (
        (empty, "empty.trec holds no rankings"),
        (stranger, "ranks for no query that"),
    ):
        for command in (("run", run, qrels), ("compare", good, run, "--qrels", qrels)):
            assert message in str(lexpert_eval(*command, fails=InputError).exception)
    qrels.write_text("query-id\tcorpus-id\tscore\n")
    assert "holds no judgements" in str(lexpert_eval("run", good, qrels, fails=InputError).exception)


def test_an_empty_corpus_is_an_error(beir: Path, tmp_path: Path) -> None:
    (beir / "corpus.jsonl").write_text("\n")
    result = lexpert_eval("beir", beir, "--out", tmp_path / "out", fails=InputError)
    assert "corpus.jsonl holds no documents" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_repeated_ids_and_empty_documents_are_told_whether_the_index_is_built_or_reused(
    beir: Path, tmp_path: Path
) -> None:
    with (beir / "corpus.jsonl").open("a") as file:
        file.writelines(f'{{"_id": "{i}", "text": "{t}"}}\n' for i, t in (("d3", "red pears"), ("d4", "")))
    for action in ("built", "reused"):
        out = ("--out", tmp_path / "out", "--workers", 1, "--no-plot")
        values = json.loads(lexpert_eval("beir", beir, *out, "--json").stdout)
        assert (values["index"]["action"], values["documents"]) == (action, 4)
        assert values["corpus"] == {"replaced": 1, "empty": 1}
    table = lexpert_eval("beir", beir, *out).stdout
    assert "1 replaced by a later document of the same id, and 1 empty" in table


def test_a_file_in_the_place_of_a_folder_is_told_before_the_work(
    beir: Path, runs: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad, qrels = runs
    file = tmp_path / "file"
    file.write_text("kept")
    for command in (
        ("beir", beir),
        ("run", good, qrels),
        ("compare", bad, good, "--qrels", qrels),
    ):
        for out in (file, file / "below"):
            lexpert_eval(*command, "--out", out, fails=ConflictError)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".lexpert").write_text("")
    result = lexpert_eval("beir", beir, fails=ConflictError)
    assert ".lexpert is a file" in str(result.exception)
    assert file.read_text() == "kept"


@pytest.fixture
def namesakes(beir: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two collections in folders of one name; the second one has another corpus."""
    other = shutil.copytree(beir, tmp_path / "other" / "tiny")
    (other / "corpus.jsonl").write_text('{"_id": "d1", "text": "apples and whales"}\n')
    return beir, other


def test_collections_of_one_name_get_folders_of_their_own(
    namesakes: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    values = json.loads(
        lexpert_eval("beir", *namesakes, "--out", out, "--json", "--no-plot", "--workers", 1).stdout
    )
    saved = [load_report(path.parent).to_json() for path in out.glob("*/report.json")]
    assert len(saved) == 2
    assert all(report in saved for report in values["collections"])
    result = lexpert_eval("beir", namesakes[0], namesakes[0], "--out", out, fails=UsageError)
    assert "tiny is given twice" in str(result.exception)


def test_a_report_of_a_namesake_is_not_overwritten(
    namesakes: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    reports = tmp_path / ".lexpert" / "reports"
    for _ in range(2):
        for folder in namesakes:
            lexpert_eval("beir", folder, "--workers", 1, "--no-plot")
    plain, marked = sorted(path.name for path in reports.iterdir())
    assert plain == "tiny-test-bm25"
    assert marked == f"{plain}-{load_report(reports / marked).origin}"
    assert (load_report(reports / plain).documents, load_report(reports / marked).documents) == (3, 1)


def test_a_wrong_name_among_several_is_told_before_anything_is_indexed(beir: Path, tmp_path: Path) -> None:
    lexpert_eval("beir", beir, tmp_path / "none", "--out", tmp_path / "out", fails=NotFoundError)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["beir", "msmarco", "run", "compare"])
def test_help_has_examples(command: str) -> None:
    assert f"lexpert eval {command}" in lexpert_eval(command, "--help").stdout


def test_fusing_measures_the_mean_of_normalised_scores(beir: Path, tmp_path: Path) -> None:
    """One system finds q1 alone, the other q2 alone; both together find both."""
    for name, lines in {
        "one": "q1 Q0 d1 1 9 one\nq1 Q0 d2 2 1 one\nq2 Q0 d1 1 2 one\nq2 Q0 d3 2 1 one\n",
        "two": "q2 Q0 d2 1 5 two\nq2 Q0 d1 2 1 two\nq1 Q0 d3 1 2 two\nq1 Q0 d1 2 1.5 two\nq1 Q0 d2 3 1 two\n",
    }.items():
        run = tmp_path / name / "run.trec"
        run.parent.mkdir()
        run.write_text(lines)
        lexpert_eval("run", run, beir / "qrels" / "test.tsv", "--out", tmp_path / name)
        report = json.loads((tmp_path / name / "report.json").read_text())
        assert report["metrics"]["nDCG@10"] < 0.9
    of = ("--of", tmp_path / "one", "--of", tmp_path / "two")
    values = json.loads(lexpert_eval("fuse", beir, *of, "--out", tmp_path / "both", "--json").stdout)
    assert values["encoder"] == "one+two"
    assert values["metrics"]["MRR@10"] == pytest.approx((1 + 1 / 2) / 2)
    run_lines = (tmp_path / "both" / "run.trec").read_text().splitlines()
    assert [line.split()[2] for line in run_lines if line.startswith("q1")] == ["d1", "d3", "d2"]
    again = json.loads(
        lexpert_eval("run", tmp_path / "both" / "run.trec", beir / "qrels" / "test.tsv", "--json").stdout
    )
    assert again["metrics"] == values["metrics"]
    weighted = json.loads(
        lexpert_eval(
            "fuse", beir, *of, "--out", tmp_path / "w", "--weight", 1, "--weight", 3, "--json"
        ).stdout
    )
    assert weighted["metrics"]["MRR@10"] == pytest.approx((1 / 2 + 1) / 2)


def test_what_cannot_be_fused_is_said(beir: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "both")
    result = lexpert_eval(
        "fuse", beir, "--of", tmp_path / "none", "--of", tmp_path, *out, fails=NotFoundError
    )
    assert "no report.json" in str(result.exception).replace("holds ", "") or "none" in str(result.exception)
    lexpert_eval("beir", beir, "--out", tmp_path / "a", "--workers", 1)
    lexpert_eval("fuse", beir, "--of", tmp_path / "a", *out, fails=UsageError)
    both = ("--of", tmp_path / "a", "--of", tmp_path / "a")
    lexpert_eval("fuse", beir, *both, *out, "--weight", 1, fails=UsageError)
    lexpert_eval("fuse", beir, *both, *out, "--method", "borda", fails=UsageError)
    (tmp_path / "a" / "run.trec").unlink()
    lexpert_eval("fuse", beir, *both, *out, fails=NotFoundError)
    assert not (tmp_path / "both").exists()
