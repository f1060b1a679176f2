"""The manifest: the one file that says what an index consists of; replacing it is a commit."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from retrieval.index.arrays import ArrayFile
from retrieval.index.calibration import Calibration
from retrieval.index.checked_json import without_checksum, write_checked_json
from retrieval.index.impact_codec import ImpactCodec
from runtime.errors import FormatError, NotFoundError

FORMAT = "lexpert-index"
VERSION = 2
MANIFEST_FILE = "manifest.json"
SHARDS_FILE = "shards.json"
"""In place of the manifest, in the folder of a sharded index; see `shards_manifest`."""

Layout = Literal["windows", "tiers"]
FieldKind = Literal["int", "float", "keyword"]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EncoderEntry(_Entry):
    """The encoder that filled the index, and the folder that holds what queries need of it."""

    family: str
    fingerprint: str
    folder: str
    files: dict[str, ArrayFile]


class DeletesEntry(_Entry):
    """Which documents of a segment are deleted: a packed bitmap."""

    name: str
    documents: int
    file: ArrayFile


class SegmentEntry(_Entry):
    """One immutable folder of arrays: how its postings are laid out, and how their impacts are stored."""

    name: str
    layout: Layout = "windows"
    impacts: ImpactCodec = "float32"
    documents: int
    postings: int
    files: dict[str, ArrayFile]
    deletes: DeletesEntry | None = None

    @property
    def live(self) -> int:
        """Documents that are not deleted."""
        return self.documents - (self.deletes.documents if self.deletes else 0)


class SourceEntry(_Entry):
    """What a build read, so that the same command can go on from here, or see that nothing is left to do."""

    corpus: str
    encoder: str
    consumed: int
    complete: bool


class Manifest(_Entry):
    """Everything that a reader has to know; `generation` grows by one with every commit."""

    format: Literal["lexpert-index"] = "lexpert-index"
    version: Literal[2] = 2
    generation: int
    num_units: int
    encoder: EncoderEntry
    fields: dict[str, FieldKind]
    store: list[str]
    impacts: ImpactCodec = "float32"
    segments: list[SegmentEntry]
    calibration: Calibration | None = None
    source: SourceEntry | None = None

    @property
    def num_documents(self) -> int:
        return sum(segment.live for segment in self.segments)


def write_manifest(index: Path, manifest: Manifest) -> None:
    """Replace the manifest atomically and durably."""
    write_checked_json(index / MANIFEST_FILE, manifest.model_dump())


def read_manifest(index: Path) -> Manifest:
    """Read and check the manifest of an index.

    Raises:
        NotFoundError: there is no index in the folder, or nothing was committed to it yet.
        FormatError: another format, an unknown version, or any byte that differs from what was written.
    """
    path = index / MANIFEST_FILE
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(_nothing_there(index)) from None
    damaged = f"{path} is damaged; restore it from a copy or build the index again"
    try:
        content = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise FormatError(damaged) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FormatError(f"{path} is not the manifest of a lexpert index")
    if content.get("version") != VERSION:
        raise FormatError(
            f"{index} has index format version {content.get('version')}, but this lexpert reads version {VERSION}; "
            "build the index again, or open it with the lexpert that wrote it"
        )
    bare = without_checksum(content, data)
    if bare is None:
        raise FormatError(damaged)
    try:
        return Manifest.model_validate(bare)
    except ValidationError as error:
        raise FormatError(f"{path} is not understood ({error.errors()[0]['msg']})") from error


def _nothing_there(index: Path) -> str:
    if not index.exists():
        return f"there is no index {index}; build one with: lexpert index build --encoder bm25 --corpus … --out {index}"
    if index.is_file():
        return f"{index} is a file; give the folder of an index"
    if (index / SHARDS_FILE).exists():
        return (
            f"{index} is a sharded index, which can be searched and served but not used as one index; take the one "
            "that it was split from"
        )
    return f"{index} holds no committed index (no {MANIFEST_FILE}); run the build that was to fill it again"
