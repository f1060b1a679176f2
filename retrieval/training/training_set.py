"""A training set: queries, passages, which passage answers which query, mined negatives, and what teachers say.

On disk it is a folder:

==================  ========  ==========================================================================
file                type      content
==================  ========  ==========================================================================
manifest.json       JSON      version, sizes, sources, teachers, checksums; replaced last, in one step
DATA/queries        UTF-8     the texts, one after the other; DATA is a folder that the manifest names
DATA/queries.ends   int64     where each ends, in bytes
DATA/passages…                the same
DATA/positives      int32     ``[queries]``: number of the passage that answers each
DATA/negatives      int32     numbers of passages, those of one query after those of the one before
DATA/negatives.ends int64     where those of each query end
DATA/scores         float32   of the positive and the negatives of each query, if teachers gave them
DATA/groups         int32     ``[queries]``: topic of each, if there are
DATA/teacher-N.…              vectors of the N-th bi-encoder teacher, float16 or sparse
==================  ========  ==========================================================================

All numbers are little-endian. Saving over a set that is there writes a new data folder, replaces the manifest and
removes the old one, so that a killed process leaves the set as it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import unicodedata
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from retrieval.index.arrays import (
    ArrayFile,
    ArrayFolderWriter,
    disk_errors,
    map_array,
    sync_folder,
    verify_file,
)
from retrieval.index.string_table import pack_strings
from retrieval.training.teachers.vectors import KINDS, Kind, TeacherVectors
from runtime.errors import ConflictError, FormatError, NotFoundError, UsageError

FORMAT = "lexpert-training-set"
VERSION = 1
MANIFEST = "manifest.json"
DATA_PREFIX = "data-"


def same_text(text: str) -> str:
    """A form in which texts are compared: Unicode-normalised, without case, white space as single blanks."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """What an encoder is trained on.

    Attributes:
        queries: texts; the same text may come several times, with other positives.
        passages: distinct texts.
        positives: int32 ``[queries]``, the passage that answers each query.
        negatives: per query int32 numbers of passages, hardest first; possibly none.
        scores: per query float32 ``[1 + negatives]`` as the teachers combined give them, the positive's first;
            None before a teacher was asked.
        teachers: bi-encoders, which score any query with any passage.
        groups: int32 ``[queries]``, topic of each query, for batches by topic; None without.
        sources: the files that it came from, each with a checksum.
    """

    queries: list[str]
    passages: list[str]
    positives: NDArray[np.int32]
    negatives: list[NDArray[np.int32]]
    scores: list[NDArray[np.float32]] | None = None
    teachers: list[TeacherVectors] = field(default_factory=list)
    groups: NDArray[np.int32] | None = None
    sources: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check that everything fits together.

        Raises:
            UsageError: sizes differ, or a number is of no passage.
        """
        counts = {"positives": len(self.positives), "negatives": len(self.negatives)}
        if self.scores is not None:
            counts["scores"] = len(self.scores)
        if self.groups is not None:
            counts["groups"] = len(self.groups)
        for name, count in counts.items():
            if count != len(self.queries):
                raise UsageError(f"a training set of {len(self.queries)} queries has {count} {name}")
        for name, numbers in (("positive", self.positives), ("negative", _joined(self.negatives, np.int32))):
            if len(numbers) and not (numbers.min() >= 0 and numbers.max() < len(self.passages)):
                wrong = int(numbers.min()) if numbers.min() < 0 else int(numbers.max())
                raise UsageError(
                    f"a {name} is passage {wrong}, but the training set has {len(self.passages)} passages"
                )
        if self.scores is not None:
            for place, (scores, negatives) in enumerate(zip(self.scores, self.negatives, strict=True)):
                if len(scores) != 1 + len(negatives):
                    raise UsageError(
                        f"query {place} has {len(scores)} scores for its positive and {len(negatives)} negatives"
                    )
        for teacher in self.teachers:
            if teacher.sizes() != (len(self.queries), len(self.passages)):
                queries, passages = teacher.sizes()
                raise UsageError(
                    f"the teacher {teacher.name} has vectors of {queries} queries and {passages} passages, but the "
                    f"training set has {len(self.queries)} and {len(self.passages)}"
                )

    def __len__(self) -> int:
        return len(self.queries)

    @cached_property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of everything that a training depends on; where it came from is not part of it."""
        digest = hashlib.sha256(f"{FORMAT} {VERSION}".encode())
        for texts in (self.queries, self.passages):
            data, offsets = pack_strings(texts)
            digest.update(np.ascontiguousarray(offsets, "<i8").data)
            digest.update(np.ascontiguousarray(data).data)
        digest.update(np.ascontiguousarray(self.positives, "<i4").data)
        for rows, dtype in ((self.negatives, "<i4"), (self.scores, "<f4")):
            digest.update(b"none" if rows is None else np.ascontiguousarray(_ends(rows), "<i8").tobytes())
            digest.update(np.ascontiguousarray(_joined(rows or [], dtype)).data)
        digest.update(b"none" if self.groups is None else np.ascontiguousarray(self.groups, "<i4").tobytes())
        for teacher in self.teachers:
            digest.update(f"\n{teacher.kind} {teacher.fingerprint}".encode())
        return digest.hexdigest()

    # On disk

    def save(self, folder: Path, *, replace: bool = False) -> None:
        """Write the set.

        Args:
            folder: made if missing.
            replace: put it in the place of the set that is there.

        Raises:
            ConflictError: the folder holds something, and it is not a set that may be replaced.
            LexpertError: no space is left.
        """
        check_writable(folder, replace)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        data = folder / f"{DATA_PREFIX}{uuid.uuid4().hex[:12]}"
        try:
            with ArrayFolderWriter(data) as arrays:
                self._write(arrays)
                files = arrays.close()
            manifest = Manifest(
                digest=self.digest,
                data=data.name,
                queries=len(self.queries),
                passages=len(self.passages),
                sources=self.sources,
                teachers=[
                    TeacherEntry(
                        kind=teacher.kind,
                        name=teacher.name,
                        fingerprint=teacher.fingerprint,
                        width=teacher.width(),
                    )
                    for teacher in self.teachers
                ],
                files=files,
            )
            _replace_manifest(folder, manifest.with_checksum())
        except BaseException:
            shutil.rmtree(data, ignore_errors=True)
            raise
        for old in folder.glob(f"{DATA_PREFIX}*"):
            if old != data:
                shutil.rmtree(old, ignore_errors=True)

    def _write(self, arrays: ArrayFolderWriter) -> None:
        for name, texts in (("queries", self.queries), ("passages", self.passages)):
            data, offsets = pack_strings(texts)
            arrays.array(name, np.uint8).append(data)
            arrays.array(f"{name}.ends", np.int64).append(offsets[1:])
        arrays.array("positives", np.int32).append(self.positives)
        arrays.array("negatives", np.int32).append(_joined(self.negatives, np.int32))
        arrays.array("negatives.ends", np.int64).append(_ends(self.negatives))
        if self.scores is not None:
            arrays.array("scores", np.float32).append(_joined(self.scores, np.float32))
        if self.groups is not None:
            arrays.array("groups", np.int32).append(self.groups)
        for number, teacher in enumerate(self.teachers):
            teacher.write(arrays, f"teacher-{number}")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a set, comparing all checksums; vectors of teachers stay on disk and are mapped.

        Raises:
            NotFoundError: there is no training set.
            FormatError: it is damaged or of an unknown version.
        """
        manifest = read_manifest(folder)
        data = folder / manifest.data
        for name, file in manifest.files.items():
            verify_file(data / name, file)
        try:
            return cls._read(manifest, data)
        except FileNotFoundError as error:
            raise FormatError(f"{error.filename} is missing; make the training set again") from None
        except (KeyError, UsageError, ValueError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(
                f"{folder} is damaged: its files do not fit together ({error}); make the training set again"
            ) from error

    @classmethod
    def _read(cls, manifest: Manifest, data: Path) -> Self:
        def array(name: str, dtype: Any) -> NDArray[Any]:
            return map_array(data / name, dtype, manifest.files[name]).copy()

        ends = array("negatives.ends", np.int64)
        return cls(
            queries=_split_text(array("queries", np.uint8), array("queries.ends", np.int64)),
            passages=_split_text(array("passages", np.uint8), array("passages.ends", np.int64)),
            positives=array("positives", np.int32),
            negatives=_split(array("negatives", np.int32), ends),
            scores=_split(array("scores", np.float32), ends + np.arange(1, len(ends) + 1))
            if "scores" in manifest.files
            else None,
            teachers=[
                KINDS[entry.kind].open(
                    data, f"teacher-{number}", manifest.files, entry.name, entry.fingerprint, entry.width
                )
                for number, entry in enumerate(manifest.teachers)
            ],
            groups=array("groups", np.int32) if "groups" in manifest.files else None,
            sources=manifest.sources,
        )


class TeacherEntry(BaseModel):
    """One bi-encoder teacher, as the manifest names it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    name: str
    fingerprint: str
    width: int


class Manifest(BaseModel):
    """What manifest.json says; `checksum` is the SHA-256 of the rest of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str = FORMAT
    version: int = VERSION
    digest: str
    data: str
    queries: int
    passages: int
    sources: list[str]
    teachers: list[TeacherEntry]
    files: dict[str, ArrayFile]
    checksum: str = ""

    def with_checksum(self) -> Manifest:
        rest = json.dumps(self.model_dump(exclude={"checksum"}), sort_keys=True)
        return self.model_copy(update={"checksum": hashlib.sha256(rest.encode()).hexdigest()})


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a training set, checked.

    Raises:
        NotFoundError: there is none.
        FormatError: it is damaged or of an unknown version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise NotFoundError(
            f"{folder} is no training set (it has no {MANIFEST}); make one with: lexpert train mine"
        )
    try:
        described = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise FormatError(f"{path} is damaged ({error}); make the training set again") from error
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise FormatError(f"{path} is not the manifest of a training set; give a folder that train mine made")
    if described.get("version") != VERSION:
        raise FormatError(
            f"{path} has version {described.get('version')}, but this lexpert reads version {VERSION}; "
            "make the training set again or install that lexpert"
        )
    try:
        manifest = Manifest.model_validate(described)
    except ValidationError as error:
        raise FormatError(
            f"{path} is damaged ({error.error_count()} values are not as they should be); make the training set again"
        ) from error
    if manifest.with_checksum().checksum != manifest.checksum:
        raise FormatError(
            f"{path} does not have its own checksum: it is damaged; make the training set again"
        )
    return manifest


def check_writable(folder: Path, replace: bool = False) -> None:
    """Raise ConflictError unless a training set can be saved to `folder`."""
    if folder.exists() and not folder.is_dir():
        raise ConflictError(f"{folder} is a file; write to another folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / MANIFEST).is_file():
        # A process that was killed during its first save leaves data folders and nothing else.
        if all(path.name.startswith(DATA_PREFIX) for path in folder.iterdir()):
            return
        raise ConflictError(f"{folder} holds other files than a training set; write to another folder")
    if not replace:
        raise ConflictError(f"{folder} exists; remove it or write to another folder")


def _replace_manifest(folder: Path, manifest: Manifest) -> None:
    partial = folder / f".{MANIFEST}.{os.getpid()}.partial"
    try:
        with disk_errors(folder):
            with partial.open("w", encoding="utf-8") as file:
                file.write(manifest.model_dump_json(indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, folder / MANIFEST)
            sync_folder(folder)
    finally:
        partial.unlink(missing_ok=True)


def _joined(rows: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *rows]).astype(dtype, copy=False)


def _ends(rows: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    ends: NDArray[np.int64] = np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)))
    return ends


def _split(values: NDArray[Any], ends: NDArray[np.int64]) -> list[NDArray[Any]]:
    if (len(ends) and ends[-1] != len(values)) or np.any(np.diff(ends) < 0):
        raise ValueError(f"{len(values)} values do not split at {len(ends)} ends")
    return np.split(values, ends[:-1]) if len(ends) else []


def _split_text(data: NDArray[np.uint8], ends: NDArray[np.int64]) -> list[str]:
    if (len(ends) and ends[-1] != len(data)) or np.any(np.diff(ends) < 0):
        raise ValueError(f"{len(data)} bytes of text do not split at {len(ends)} ends")
    raw, start, texts = data.tobytes(), 0, []
    for end in ends.tolist():
        texts.append(raw[start:end].decode("utf-8", "surrogatepass"))
        start = end
    return texts
