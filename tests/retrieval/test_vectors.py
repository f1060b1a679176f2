"""The folder of vectors: what is written is read back, and damage is found."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.interop.vectors import FILES, SparseVectors, VectorWriter
from runtime.activations import SparseActivations
from runtime.errors import ConflictError, FormatError, InputError, NotFoundError

NUM_UNITS = 12
ROW = st.dictionaries(st.integers(0, NUM_UNITS - 1), st.floats(0.125, 100, width=32), max_size=6)


def activations(rows: list[dict[int, float]]) -> SparseActivations:
    pairs = [sorted(row.items()) for row in rows]
    return SparseActivations.from_rows(
        [([unit for unit, _ in row], [weight for _, weight in row]) for row in pairs], NUM_UNITS
    )


def as_dicts(rows: SparseActivations) -> list[dict[int, float]]:
    return [dict(zip(units.tolist(), weights.tolist(), strict=True)) for units, weights in rows]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "vectors"
    with VectorWriter(path, NUM_UNITS, "f00d") as writer:
        writer.append(["a", "b"], activations([{0: 1.0, 3: 2.0}, {}]))
        writer.append([], activations([]))
        writer.append(["ünï"], activations([{11: 0.5}]))
    return path


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.lists(st.lists(st.tuples(st.text(), ROW), max_size=4), max_size=4), st.integers(1, 5))
def test_what_is_written_in_batches_is_read_back(
    batches: list[list[tuple[str, dict[int, float]]]], num_rows: int
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "vectors"
        with VectorWriter(path, NUM_UNITS, "f00d") as writer:
            for batch in batches:
                writer.append([name for name, _ in batch], activations([row for _, row in batch]))
        read = SparseVectors(path)
        read.verify()
        expected = [pair for batch in batches for pair in batch]
        assert list(read.ids) == [name for name, _ in expected]
        assert as_dicts(read.activations) == [row for _, row in expected]
        again = [
            pair for ids, part in read.batches(num_rows) for pair in zip(ids, as_dicts(part), strict=True)
        ]
        assert again == expected
        assert (read.encoder, read.manifest.num_units, len(read)) == ("f00d", NUM_UNITS, len(expected))


def test_the_arrays_are_plain_and_little_endian(folder: Path) -> None:
    assert (folder / "ids").read_bytes().decode() == "abünï"
    assert np.fromfile(folder / "ids.offsets", "<i8").tolist() == [0, 1, 2, 7]
    assert np.fromfile(folder / "indptr", "<i8").tolist() == [0, 2, 2, 3]
    assert np.fromfile(folder / "units", "<i4").tolist() == [0, 3, 11]
    assert np.fromfile(folder / "weights", "<f4").tolist() == [1.0, 2.0, 0.5]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "manifest.json"])


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_every_flipped_bit_is_found(folder: Path, name: str) -> None:
    original = (folder / name).read_bytes()
    for place in range(0, len(original), max(len(original) // 40, 1)):
        damaged = bytearray(original)
        damaged[place] ^= 4
        (folder / name).write_bytes(bytes(damaged))
        with pytest.raises(FormatError):
            SparseVectors(folder).verify()
    (folder / name).write_bytes(original)
    SparseVectors(folder).verify()


@pytest.mark.parametrize("name", FILES)
def test_truncated_and_missing_files_are_found_on_opening(folder: Path, name: str) -> None:
    original = (folder / name).read_bytes()
    (folder / name).write_bytes(original[:-1])
    with pytest.raises(FormatError, match="damaged"):
        SparseVectors(folder)
    (folder / name).unlink()
    with pytest.raises(FormatError, match="missing"):
        SparseVectors(folder)


def test_an_unknown_version_is_said_before_anything_else(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "version": 2, "new": 1}))
    with pytest.raises(FormatError, match="version 2"):
        SparseVectors(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(NotFoundError, match=r"no manifest\.json"):
        SparseVectors(folder)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    writer = VectorWriter(tmp_path / "vectors", NUM_UNITS, "f00d")
    writer.append(["a"], activations([{1: 1.0}]))
    with pytest.raises(InputError), writer:
        writer.append(["b"], activations([{1: 1.0}, {2: 1.0}]))
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / ".vectors.partial"
    left.mkdir()
    (left / "units").write_bytes(b"half")
    with VectorWriter(tmp_path / "vectors", NUM_UNITS, "f00d") as writer:
        writer.append(["a"], activations([{1: 1.0}]))
    assert [path.name for path in tmp_path.iterdir()] == ["vectors"]
    SparseVectors(tmp_path / "vectors").verify()


def test_an_existing_folder_and_a_second_writer_are_conflicts(folder: Path) -> None:
    with pytest.raises(ConflictError, match="exists"):
        VectorWriter(folder, NUM_UNITS, "f00d")
    other = folder.with_name("other")
    with VectorWriter(other, NUM_UNITS, "f00d"), pytest.raises(ConflictError, match="written by another"):
        VectorWriter(other, NUM_UNITS, "f00d")


@pytest.mark.parametrize(
    "row",
    [
        ([3, 1], [1.0, 1.0]),
        ([1, 1], [1.0, 1.0]),
        ([NUM_UNITS], [1.0]),
        ([-1], [1.0]),
        ([1], [0.0]),
        ([1], [-1.0]),
        ([1], [float("nan")]),
        ([1], [float("inf")]),
    ],
)
def test_vectors_that_are_none_are_refused_by_id(tmp_path: Path, row: tuple[list[int], list[float]]) -> None:
    rows = SparseActivations.from_rows([([2], [1.0]), ([], []), row, ([0], [1.0])], NUM_UNITS)
    with (
        pytest.raises(InputError, match="vector of 'third'"),
        VectorWriter(tmp_path / "vectors", NUM_UNITS, "f00d") as writer,
    ):
        writer.append(["first", "second", "third", "fourth"], rows)
    with (
        pytest.raises(InputError, match="1 ids were given for 4"),
        VectorWriter(tmp_path / "vectors", NUM_UNITS, "f00d") as writer,
    ):
        writer.append(["first"], rows)
