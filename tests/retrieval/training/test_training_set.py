from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.training.teachers.vectors import DenseTeacher, SparseTeacher
from retrieval.training.training_set import MANIFEST, TrainingSet
from runtime.activations import SparseActivations
from runtime.errors import ConflictError, FormatError, NotFoundError, UsageError


def random_sparse(rows: int, units: int, seed: int) -> SparseActivations:
    dense = np.random.default_rng(seed).random((rows, units), np.float32)
    return SparseActivations.from_mask(dense, dense > 0.6)


def made(seed: int = 0) -> TrainingSet:
    rng = np.random.default_rng(seed)
    dense = DenseTeacher(
        "dense", "d" * 64, rng.random((3, 4)).astype(np.float16), rng.random((5, 4)).astype(np.float16)
    )
    sparse = SparseTeacher("sparse", "s" * 64, random_sparse(3, 9, seed), random_sparse(5, 9, seed + 1))
    return TrainingSet(
        queries=["first", "zweite Frage", "\ud800 odd"],
        passages=["a", "b", "ç", "d", ""],
        positives=np.array([0, 2, 4], np.int32),
        negatives=[np.array([1, 3], np.int32), np.zeros(0, np.int32), np.array([2], np.int32)],
        scores=[np.array([1, 0, 0.5], np.float32), np.ones(1, np.float32), np.array([1, 0], np.float32)],
        teachers=[dense, sparse],
        groups=np.array([0, 1, 0], np.int32),
        sources=["pairs.jsonl sha256:0"],
    )


def assert_equal(left: TrainingSet, right: TrainingSet) -> None:
    assert (left.queries, left.passages, left.sources) == (right.queries, right.passages, right.sources)
    assert left.positives.tolist() == right.positives.tolist()
    assert [row.tolist() for row in left.negatives] == [row.tolist() for row in right.negatives]
    assert (left.scores is None) == (right.scores is None)
    if left.scores is not None and right.scores is not None:
        assert [row.tolist() for row in left.scores] == [row.tolist() for row in right.scores]
    assert (None if left.groups is None else left.groups.tolist()) == (
        None if right.groups is None else right.groups.tolist()
    )
    everything = np.arange(len(left.queries)), np.arange(len(left.passages))
    assert [teacher.name for teacher in left.teachers] == [teacher.name for teacher in right.teachers]
    for one, other in zip(left.teachers, right.teachers, strict=True):
        np.testing.assert_array_equal(one.scores(*everything), other.scores(*everything))
    assert left.digest == right.digest


def test_a_set_is_what_was_saved(tmp_path: Path) -> None:
    whole = made()
    bare = replace(whole, scores=None, groups=None, teachers=[])
    for name, training_set in (("whole", whole), ("bare", bare)):
        training_set.save(tmp_path / name)
        assert_equal(TrainingSet.load(tmp_path / name), training_set)


def test_the_digest_names_the_content() -> None:
    whole = made()
    others = [
        replace(whole, queries=["first", "zweite", "Frage\ud800 odd"]),
        replace(whole, positives=np.array([0, 2, 3], np.int32)),
        replace(whole, scores=None),
        replace(whole, groups=None),
        replace(whole, teachers=whole.teachers[:1]),
        replace(whole, scores=None, negatives=[whole.negatives[0], whole.negatives[2], whole.negatives[1]]),
    ]
    assert len({whole.digest, *(other.digest for other in others)}) == len(others) + 1
    assert replace(whole, sources=[]).digest == whole.digest == made().digest


def test_a_set_gives_way_only_when_told(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    made().save(folder)
    with pytest.raises(ConflictError, match="exists"):
        made(1).save(folder)
    made(1).save(folder, replace=True)
    assert_equal(TrainingSet.load(folder), made(1))
    assert len(list(folder.glob("data-*"))) == 1
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(ConflictError, match="holds other files"):
        made().save(other, replace=True)


def test_a_failed_save_leaves_the_set_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "set"
    made().save(folder)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(Exception, match="no space left"):
        made(1).save(folder, replace=True)
    monkeypatch.undo()
    assert_equal(TrainingSet.load(folder), made())
    assert sorted(path.name.split("-")[0] for path in folder.iterdir()) == ["data", MANIFEST]


def test_damage_is_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="is no training set"):
        TrainingSet.load(tmp_path)
    folder = tmp_path / "set"
    made().save(folder)
    manifest = (folder / MANIFEST).read_text()
    (data,) = folder.glob("data-*")
    for name in ("passages", "negatives", "scores", "teacher-0.queries", "teacher-1.passages.units"):
        intact = (data / name).read_bytes()
        (data / name).write_bytes(intact[:-1])
        with pytest.raises(FormatError, match=r"damaged|bytes"):
            TrainingSet.load(folder)
        (data / name).write_bytes(intact)
        (data / name).write_bytes(bytes([intact[0] ^ 1]) + intact[1:])
        with pytest.raises(FormatError, match="checksum"):
            TrainingSet.load(folder)
        (data / name).unlink()
        with pytest.raises(FormatError, match="missing"):
            TrainingSet.load(folder)
        (data / name).write_bytes(intact)
    for changed, said in (
        (json.dumps(json.loads(manifest) | {"version": 2}), "version 2"),
        (json.dumps(json.loads(manifest) | {"queries": 9}), "checksum"),
        (manifest[:-9], "damaged"),
        ("{}", "not the manifest"),
    ):
        (folder / MANIFEST).write_text(changed)
        with pytest.raises(FormatError, match=said):
            TrainingSet.load(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"positives": np.array([0, 1, 5], np.int32)}, "a positive is passage 5"),
        ({"negatives": [np.array([-1], np.int32)] * 3, "scores": None}, "a negative is passage -1"),
        ({"positives": np.zeros(2, np.int32)}, "has 2 positives"),
        ({"groups": np.zeros(4, np.int32)}, "has 4 groups"),
        ({"scores": [np.zeros(1, np.float32)] * 3}, "query 0 has 1 scores"),
        ({"passages": ["a", "b", "c", "d", "e", "f"]}, "vectors of 3 queries and 5 passages"),
    ],
)
def test_what_does_not_fit_together_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        replace(made(), **change)  # type: ignore[arg-type]


@given(seed=st.integers(0, 1000), rows=st.integers(1, 6), units=st.integers(1, 12), data=st.data())
def test_sparse_teachers_score_as_dense_matrices_do(
    seed: int, rows: int, units: int, data: st.DataObject
) -> None:
    queries, passages = random_sparse(rows, units, seed), random_sparse(rows + 2, units, seed + 1)
    teacher = SparseTeacher("s", "0", queries, passages)
    asked = np.array(data.draw(st.lists(st.integers(0, rows - 1), max_size=8)), np.int64)
    against = np.array(data.draw(st.lists(st.integers(0, rows + 1), max_size=8)), np.int64)
    slow = queries.to_dense() @ passages.to_dense().T
    np.testing.assert_allclose(teacher.scores(asked, against), slow[np.ix_(asked, against)], rtol=1e-5)
    pairs = min(len(asked), len(against))
    np.testing.assert_allclose(
        teacher.pair_scores(asked[:pairs], against[:pairs]), slow[asked[:pairs], against[:pairs]], rtol=1e-5
    )


def test_dense_teachers_score_pairs_as_batches() -> None:
    teacher = made().teachers[0]
    queries, passages = np.array([2, 0, 0]), np.array([4, 1, 1])
    np.testing.assert_allclose(
        teacher.pair_scores(queries, passages), np.diag(teacher.scores(queries, passages)), rtol=1e-6
    )


def test_sides_of_different_widths_are_refused() -> None:
    with pytest.raises(UsageError, match="one encoder"):
        SparseTeacher("s", "0", random_sparse(1, 3, 0), random_sparse(1, 4, 0))
    with pytest.raises(UsageError, match="one width"):
        DenseTeacher("d", "0", np.zeros((1, 3), np.float16), np.zeros((1, 4), np.float16))
