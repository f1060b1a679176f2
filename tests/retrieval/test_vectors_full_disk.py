"""Writers of vectors on a disk that is full, or that are interrupted: one sentence, and nothing left behind."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from retrieval.encoders.subword_vocabulary import SubwordVocabulary
from retrieval.interop.anserini import AnseriniWriter, read_anserini
from retrieval.interop.vectors import SparseVectors, VectorWriter
from runtime.activations import SparseActivations
from runtime.errors import ConflictError, LexpertError

NUM_UNITS = 500
VOCABULARY = SubwordVocabulary({f"token{unit}": unit for unit in range(NUM_UNITS)}, NUM_UNITS)
ROW = SparseActivations.from_dense(np.arange(1, NUM_UNITS + 1, dtype=np.float32)[None])
SMALL = SparseActivations.from_rows([([3], [1.0])], NUM_UNITS)


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """What a full disk does to a write, by a limit that the system keeps."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def binary(path: Path) -> VectorWriter:
    return VectorWriter(path, NUM_UNITS, "f00d")


def anserini(path: Path) -> AnseriniWriter:
    return AnseriniWriter(path, VOCABULARY)


WRITERS = pytest.mark.parametrize(
    ("open_writer", "name"), [(binary, "vectors"), (anserini, "v.jsonl"), (anserini, "v.jsonl.gz")]
)
OpenWriter = Callable[[Path], VectorWriter | AnseriniWriter]


def write(
    open_writer: OpenWriter,
    path: Path,
    rows: SparseActivations,
    times: int = 1,
    then: Callable[[], object] = lambda: None,
) -> None:
    with open_writer(path) as writer:
        for place in range(times):
            writer.append([str(place)], rows)
        then()


# For the folder of arrays: the lock file, the first offset, a row, and the manifest do not fit.
@pytest.mark.parametrize("num_bytes", [0, 7, 30, 400])
@WRITERS
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, open_writer: OpenWriter, name: str, num_bytes: int
) -> None:
    rows = ROW if num_bytes == 30 or open_writer is anserini else SMALL
    with files_of_at_most(num_bytes), pytest.raises(LexpertError, match=f"no space left to write .*{name}"):
        write(open_writer, tmp_path / name, rows, times=10)
    assert list(tmp_path.iterdir()) == []
    write(open_writer, tmp_path / name, rows)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def interrupt() -> None:
    raise KeyboardInterrupt


def fail_on_a_full_disk() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    raise KeyError("mine")


@WRITERS
@pytest.mark.parametrize(
    ("happen", "error"), [(interrupt, KeyboardInterrupt), (fail_on_a_full_disk, KeyError)]
)
def test_a_write_that_ends_early_leaves_nothing_and_says_why(
    tmp_path: Path, open_writer: OpenWriter, name: str, happen: Callable[[], None], error: type[BaseException]
) -> None:
    with files_of_at_most(10**6), pytest.raises(error):
        write(open_writer, tmp_path / name, ROW, then=happen)
    assert list(tmp_path.iterdir()) == []


@WRITERS
def test_a_place_that_cannot_be_written_is_left_as_it_is(
    tmp_path: Path, open_writer: OpenWriter, name: str
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises((NotADirectoryError, FileExistsError)):
        open_writer(tmp_path / "file" / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_second_writer_leaves_the_first_ones_files_alone(tmp_path: Path) -> None:
    with binary(tmp_path / "vectors") as writer:
        with pytest.raises(ConflictError, match="written by another"):
            binary(tmp_path / "vectors")
        writer.append(["a"], SMALL)
    SparseVectors(tmp_path / "vectors").verify()


def test_a_file_that_came_into_being_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "vectors"
    with pytest.raises(ConflictError, match="meanwhile"):
        write(binary, path, SMALL, then=lambda: path.write_text("another's"))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["another's"]


def test_what_is_complete_is_read_back(tmp_path: Path) -> None:
    write(anserini, tmp_path / "v.jsonl.gz", SMALL, times=3)
    (batch,) = read_anserini(tmp_path / "v.jsonl.gz", VOCABULARY)
    assert batch.ids == ["0", "1", "2"]
