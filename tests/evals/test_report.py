"""Reports: saved, read back, printed and drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from evals.comparison import compare
from evals.metrics import MEASURES, QueryMetrics, mean
from evals.plots import plot_comparison, plot_report, plot_reports
from evals.report import Report, human_bytes, load_report, mean_metrics, print_comparison, print_reports
from runtime.errors import FormatError, InputError, NotFoundError


def report(name: str = "tiny", shift: float = 0.0, queries: int = 20) -> Report:
    per_query: QueryMetrics = {
        f"q{number}": dict.fromkeys(MEASURES, min(1.0, number / 19 + shift)) for number in range(queries)
    }
    return Report(
        collection=name,
        split="test",
        encoder="bm25",
        metrics=mean(per_query),
        queries=queries,
        unanswered=1,
        documents=1234,
        k=1000,
        seconds={"index": 1.5, "search": 0.25},
        queries_per_second=80.0,
        index={"path": "idx", "action": "built", "bytes": 4_200_000},
        encoder_fingerprint="abc",
        per_query=per_query,
    )


def test_the_json_begins_with_collection_encoder_and_metrics() -> None:
    values = report().to_json()
    assert list(values)[:3] == ["collection", "encoder", "metrics"]
    assert list(values["metrics"]) == ["nDCG@10", "R@100", "R@1000", "MRR@10", "MAP"]
    assert "per_query" not in values
    assert json.loads(json.dumps(values)) == values


def test_a_report_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    saved = report()
    saved.save(tmp_path / "out")
    for path in (tmp_path / "out", tmp_path / "out" / "report.json"):
        loaded = load_report(path)
        assert loaded.to_json() == saved.to_json()
        assert loaded.per_query.keys() == saved.per_query.keys()
        for query, row in saved.per_query.items():
            assert loaded.per_query[query] == row
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["per_query.tsv", "report.json"]


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"holds no report\.json"):
        load_report(tmp_path)
    (tmp_path / "report.json").write_text('{"collection": "x"}')
    with pytest.raises(FormatError, match="is not a report"):
        load_report(tmp_path)
    report().save(tmp_path)
    header = "\t".join(["query-id", *MEASURES]).encode()
    for content, message in (
        (header + b"\nq1\thalf\t1\t1\t1\t1\n", "line 2: a value is not a number"),
        (header + b"\nq1\t1\n", "line 2: expected 6 columns, got 2"),
        (header + b"\nq\xff1\t1\t1\t1\t1\t1\n", "line 2: byte 2 is not UTF-8"),
        (header.removesuffix(b"\tMAP") + b"\nq1\t1\t1\t1\t1\n", "line 1: there is no column MAP"),
        (b"", "line 1: there is no column nDCG@10"),
    ):
        (tmp_path / "per_query.tsv").write_bytes(content)
        with pytest.raises(InputError, match=rf"per_query\.tsv, {message}"):
            load_report(tmp_path)


def test_the_table_shows_every_measure_and_the_mean_of_several() -> None:
    console = Console(width=140, record=True, quiet=True)
    console.quiet = False
    with console.capture() as capture:
        print_reports([report("one"), report("two", 0.2)], console)
    text = capture.get()
    for word in ("one/test", "two/test", "mean", *MEASURES, "4.2 MB", "1,234"):
        assert word in text
    means = mean_metrics([report("one"), report("two", 0.2)])
    assert f"{means['nDCG@10']:.4f}" in text


def test_the_comparison_table_names_both_systems() -> None:
    console = Console(width=140)
    with console.capture() as capture:
        print_comparison(compare(report().per_query, report(shift=0.1).per_query), "bm25", "splade", console)
    assert "A: bm25" in capture.get()
    assert "B: splade" in capture.get()


def test_pictures_are_png_files(tmp_path: Path) -> None:
    one, other = report("one"), report("two", 0.3)
    plot_report(one, tmp_path / "a.png")
    plot_reports([one, other], tmp_path / "b.png")
    plot_comparison(compare(one.per_query, other.per_query), "one", "two", tmp_path / "c.png")
    plot_comparison(compare(one.per_query, one.per_query), "one", "one", tmp_path / "d.png")
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 5_000


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (4_200_000, "4.2 MB"), (999_950_000, "1 GB")],
)
def test_sizes_are_written_for_people(size: int, text: str) -> None:
    assert human_bytes(size) == text
