"""Run files: what is written is what is read, by us and by tools that sort by score."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.interop.trec_run import read_run, strictly_decreasing, write_run
from runtime.errors import InputError, NotFoundError

finite = st.floats(-(2.0**100), 2.0**100, width=32)


def order_of_trec_eval(path: Path) -> dict[str, list[str]]:
    """trec_eval reads scores as 32-bit floats, sorts by them and breaks ties by falling document id."""
    rows: dict[str, list[tuple[np.float32, str]]] = {}
    for line in path.read_text("utf-8").splitlines():
        query, _, document, _, score, _ = line.split()
        rows.setdefault(query, []).append((np.float32(score), document))
    return {query: [document for _, document in sorted(row, reverse=True)] for query, row in rows.items()}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.lists(finite, min_size=1, max_size=20), min_size=1, max_size=3),
    st.randoms(use_true_random=False),
)
def test_a_run_comes_back_in_the_same_order(
    tmp_path_factory: pytest.TempPathFactory, scores: list[list[float]], random: Random
) -> None:
    run = {}
    for number, values in enumerate(scores):
        documents = [f"d{place}" for place in range(len(values))]
        random.shuffle(documents)
        run[f"q{number}"] = list(zip(documents, sorted(values, reverse=True), strict=True))
    path = tmp_path_factory.mktemp("runs") / "run.trec"
    write_run(run, path)
    expected = {query: [document for document, _ in ranking] for query, ranking in run.items()}
    assert {query: [d for d, _ in ranking] for query, ranking in read_run(path).items()} == expected
    assert order_of_trec_eval(path) == expected


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(finite, max_size=30))
def test_written_scores_fall_strictly_and_never_exceed_the_true_ones(scores: list[float]) -> None:
    written = strictly_decreasing(scores, "here")
    assert (written[:-1] > written[1:]).all()
    assert (written <= np.asarray(scores, np.float32)).all()


def test_scores_that_fall_already_are_written_as_they_are(tmp_path: Path) -> None:
    run = {"q": [("a", 12.25), ("b", float(np.float32(0.1))), ("c", -3.0)]}
    write_run(run, tmp_path / "run.trec")
    assert read_run(tmp_path / "run.trec") == {"q": [("a", 12.25), ("b", pytest.approx(0.1)), ("c", -3.0)]}


def test_the_file_has_the_six_columns(tmp_path: Path) -> None:
    write_run({"q1": [("d9", 2.0), ("d1", 2.0)], "q2": []}, tmp_path / "run.trec", tag="my run")
    first, second = (tmp_path / "run.trec").read_text().splitlines()
    assert first == "q1 Q0 d9 1 2.0 my_run"
    assert second.startswith("q1 Q0 d1 2 1.99999")


def test_equal_scores_of_other_systems_keep_the_order_of_their_ranks(tmp_path: Path) -> None:
    path = tmp_path / "run.trec"
    path.write_text("q Q0 a 2 1.5 t\nq Q0 b 1 1.5 t\nq Q0 c 3 9 t\n")
    assert [document for document, _ in read_run(path)["q"]] == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q Q0 d 1 2.0", "line 2: expected the six columns .* got 5"),
        ("q Q0 d 1 2.0 tag more", "line 2: .* got 7"),
        ("q Q0 d first 2.0 tag", "line 2: rank and score must be numbers, got 'first'"),
        ("q Q0 d 1 high tag", "line 2: rank and score .* 'high'"),
        ("q Q0 d 1 nan tag", "line 2: the score must be finite"),
        ("q Q0 a 2 0.5 tag", "line 2: document 'a' is twice in query 'q'"),
    ],
)
def test_a_malformed_line_is_named_with_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "run.trec"
    path.write_text(f"q Q0 a 1 1.0 tag\n{line}\n")
    with pytest.raises(InputError, match=message) as raised:
        read_run(path)
    assert str(path) in str(raised.value)


def test_bytes_that_are_not_utf8_are_named_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "run.trec"
    path.write_bytes(b"q Q0 a 1 1.0 tag\nq Q0 \xff 2 0.5 tag\n")
    with pytest.raises(InputError, match="line 2: byte 6 is not UTF-8"):
        read_run(path)


def test_a_missing_run_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="missing"):
        read_run(tmp_path / "none.trec")


@pytest.mark.parametrize(
    ("ranking", "message"),
    [
        ([("a", 2.0), ("a", 1.0)], "twice"),
        ([("a b", 2.0)], "white space"),
        ([("", 2.0)], "white space"),
        ([("a", float("nan"))], "not a finite"),
        ([("a", float("inf"))], "not a finite"),
    ],
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, ranking: list[tuple[str, float]], message: str
) -> None:
    path = tmp_path / "run.trec"
    write_run({"q": [("old", 1.0)]}, path)
    with pytest.raises(InputError, match=message):
        write_run({"p": [("new", 1.0)], "q": ranking}, path)
    assert read_run(path) == {"q": [("old", 1.0)]}
    assert list(tmp_path.iterdir()) == [path]
