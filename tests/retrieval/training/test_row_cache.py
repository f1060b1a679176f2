from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.training.row_cache import CacheUse, DenseRows, SparseRows, text_keys
from runtime.activations import SparseActivations
from runtime.errors import LexpertError


def length_rows(texts: list[str], asked: list[str]):  # type: ignore[no-untyped-def]
    """A model that gives the length of a text, and writes down what it was asked."""

    def make(places: NDArray[np.int64], advance) -> NDArray[np.float32]:  # type: ignore[no-untyped-def]
        asked.extend(texts[place] for place in places)
        advance(len(places))
        return np.array([[len(texts[place]), 1.0] for place in places], np.float32).reshape(-1, 2)

    return make


@given(calls=st.lists(st.lists(st.text(max_size=3), max_size=12), max_size=4), batch=st.integers(1, 5))
def test_rows_are_what_the_model_gives_and_no_text_is_asked_twice(
    tmp_path_factory: pytest.TempPathFactory, calls: list[list[str]], batch: int
) -> None:
    root = tmp_path_factory.mktemp("cache")
    asked: list[str] = []
    for texts in calls:
        done: list[int] = []
        rows = DenseRows(root, CacheUse(), "model").rows(
            text_keys(texts), length_rows(texts, asked), done.append, batch
        )
        assert rows.tolist() == [[len(text), 1.0] for text in texts]
        assert sum(done) == len(texts)
    assert len(asked) == len(set(asked))


def test_sparse_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = SparseActivations.from_rows([([1, 4], [0.5, 2.0]), ([], []), ([0], [1.0])], 5)
    texts = ["one", "two", "three"]
    for wanted in (["one", "two", "three"], ["three", "one", "three"]):
        use = CacheUse()
        found = SparseRows(tmp_path, use, "m").rows(
            text_keys(wanted), lambda places, _, w=wanted: rows[[texts.index(w[place]) for place in places]]
        )
        assert found.to_dense().tolist() == rows[[texts.index(text) for text in wanted]].to_dense().tolist()
        assert found.num_units == 5
    assert (use.found, use.made) == (3, 0)


def test_keys_tell_pairs_apart_by_both_texts() -> None:
    keys = text_keys(["ab", "a", "ab", "ab"], ["c", "bc", "c", "d"])
    assert keys[0] == keys[2]
    assert len(set(keys.tolist())) == 3
    assert text_keys(["ab"]) != text_keys(["ab"], [""])


def test_models_and_roles_do_not_share_rows(tmp_path: Path) -> None:
    texts = ["x"]
    for identity in (("a", "query"), ("a", "passage"), ("b", "query")):
        use = CacheUse()
        DenseRows(tmp_path, use, *identity).rows(text_keys(texts), length_rows(texts, []))
        assert (use.found, use.made) == (0, 1)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_damaged_files_are_made_anew(tmp_path: Path, damage: str) -> None:
    texts = [f"text {number}" for number in range(40)]
    asked: list[str] = []
    whole = DenseRows(tmp_path, CacheUse(), "m").rows(
        text_keys(texts), length_rows(texts, asked), batch_rows=20
    )
    path = sorted(tmp_path.glob("*/*.npz"))[0]
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        {
            "cut": content[:middle],
            "flipped": content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :],
            "empty": b"",
            "other": b"not an archive at all",
        }[damage]
    )
    use = CacheUse()
    again = DenseRows(tmp_path, use, "m").rows(text_keys(texts), length_rows(texts, asked))
    np.testing.assert_array_equal(again, whole)
    assert (use.found, use.made, use.damaged) == (20, 20, 1)
    use = CacheUse()
    DenseRows(tmp_path, use, "m").rows(text_keys(texts), length_rows(texts, asked))
    assert (use.found, use.made, use.damaged) == (40, 0, 0)


def test_what_was_made_before_a_failure_is_kept(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(10)]
    asked: list[str] = []
    make = length_rows(texts, asked)

    def fails_later(places: NDArray[np.int64], advance) -> NDArray[np.float32]:  # type: ignore[no-untyped-def]
        if len(asked) >= 4:
            raise KeyboardInterrupt
        return make(places, advance)

    with pytest.raises(KeyboardInterrupt):
        DenseRows(tmp_path, CacheUse(), "m").rows(text_keys(texts), fails_later, batch_rows=4)
    use = CacheUse()
    DenseRows(tmp_path, use, "m").rows(text_keys(texts), make, batch_rows=4)
    assert (use.found, use.made) == (4, 6)


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(LexpertError, match="no space left"):
        DenseRows(tmp_path, CacheUse(), "m").rows(text_keys(["a"]), length_rows(["a"], []))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
