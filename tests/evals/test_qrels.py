"""Judgement files in both forms."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from evals.qrels import read_qrels
from runtime.errors import InputError, NotFoundError


def written(folder: Path, text: str) -> Path:
    path = folder / "qrels"
    path.write_bytes(text.encode())
    return path


def test_beir_judgements_have_a_header_and_keep_grade_zero(tmp_path: Path) -> None:
    path = written(tmp_path, "query-id\tcorpus-id\tscore\nq 1\td1\t2\nq 1\td2\t0\r\n\nq2\td1\t1\n")
    assert read_qrels(path) == {"q 1": {"d1": 2, "d2": 0}, "q2": {"d1": 1}}


@pytest.mark.parametrize("gap", ["\t", " ", "  "])
def test_trec_judgements_have_four_columns(tmp_path: Path, gap: str) -> None:
    path = written(
        tmp_path, "".join(gap.join(row) + "\n" for row in (["q1", "0", "d1", "1"], ["q1", "Q0", "d2", "0"]))
    )
    assert read_qrels(path) == {"q1": {"d1": 1, "d2": 0}}


def test_a_pair_that_is_judged_twice_keeps_its_last_grade(tmp_path: Path) -> None:
    assert read_qrels(written(tmp_path, "q 0 d 1\nq 0 d 2\n")) == {"q": {"d": 2}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("query-id\tcorpus-id\tscore\nq\td\n", "line 2: expected 3 columns"),
        ("query-id\tcorpus-id\tscore\nq\td\thigh\n", "line 2: the grade must be a whole number, got 'high'"),
        ("q 0 d 1\nq 0 d\n", "line 2: expected 4 columns"),
        ("q 0 d 1.5\n", "line 1: the grade"),
        ("q 0 d 99999999999999999999\n", "line 1: the grade must lie between -10000 and 10000"),
        ("q 0 d 1\nq 0 e -10001\n", "line 2: the grade must lie between"),
    ],
)
def test_a_malformed_line_is_named_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError, match=message) as raised:
        read_qrels(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("first_line", ["query-id\tcorpus-id\tscore\nq1\td1\t2\n", "q1 0 d1 2\n"])
def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path, first_line: str) -> None:
    assert read_qrels(written(tmp_path, "\ufeff" + first_line)) == {"q1": {"d1": 2}}


def test_judgements_may_be_compressed(tmp_path: Path) -> None:
    path = tmp_path / "qrels.gz"
    path.write_bytes(gzip.compress(b"q1 0 d1 2\n"))
    assert read_qrels(path) == {"q1": {"d1": 2}}


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_qrels(tmp_path / "none.tsv")
