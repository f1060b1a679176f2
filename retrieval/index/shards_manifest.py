"""The manifest of a sharded index: which shards it has, and where each document is.

    DIR/
      shards.json        the manifest, with its own checksum; written last
      shard-000/         an index with some of the documents
      shard-000.rows     int64 [documents of the shard], ascending: their places among all documents
      shard-001/  …

A document is in the shard that `shard_of` its id says. Weights are those of the whole collection, and the places keep
its order, so merged results are those of one index.
"""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retrieval.index.arrays import ArrayFile
from retrieval.index.checked_json import without_checksum, write_checked_json
from retrieval.index.manifest import SHARDS_FILE, FieldKind
from runtime.errors import FormatError, NotFoundError, UsageError

FORMAT = "lexpert-sharded-index"
VERSION = 1

MOST_SHARDS = 256


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShardEntry(_Entry):
    """One shard.

    Attributes:
        documents: in it.
        manifest: its manifest, so that a shard that was changed by itself is found out.
        rows: the places of its documents.
    """

    documents: int
    manifest: ArrayFile
    rows: ArrayFile


class ShardsManifest(_Entry):
    """Everything that is true of all shards; they are named by their number."""

    format: Literal["lexpert-sharded-index"] = "lexpert-sharded-index"
    version: Literal[1] = 1
    placement: Literal["blake2b"] = "blake2b"
    num_units: int
    family: str
    fingerprint: str
    fields: dict[str, FieldKind]
    store: list[str]
    shards: list[ShardEntry] = Field(min_length=1, max_length=MOST_SHARDS)

    @property
    def num_documents(self) -> int:
        return sum(shard.documents for shard in self.shards)


def shard_of(document_id: str, num_shards: int) -> int:
    """The shard of a document: its id's 64-bit BLAKE2b digest, read little-endian, modulo the number of shards."""
    digest = blake2b(document_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % num_shards


def shard_name(shard: int) -> str:
    return f"shard-{shard:03d}"


def check_num_shards(num_shards: int) -> int:
    """The number as it is; UsageError if no index can have so many shards."""
    if not 1 <= num_shards <= MOST_SHARDS:
        raise UsageError(f"the number of shards is {num_shards}, but must be from 1 to {MOST_SHARDS}")
    return num_shards


def is_sharded(path: Path) -> bool:
    """Whether a folder holds a sharded index."""
    return (path / SHARDS_FILE).is_file()


def write_shards_manifest(path: Path, manifest: ShardsManifest) -> None:
    """Make a folder of complete shards a sharded index, atomically and durably."""
    write_checked_json(path / SHARDS_FILE, manifest.model_dump())


def read_shards_manifest(path: Path) -> ShardsManifest:
    """Read and check the manifest of a sharded index.

    Raises:
        NotFoundError: there is none in the folder.
        FormatError: an unknown version, or any byte that differs from what was written.
    """
    file = path / SHARDS_FILE
    try:
        data = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(
            f"{path} holds no sharded index (no {SHARDS_FILE}); make one with: "
            f"lexpert index shard INDEX --shards 4 --out {path}"
        ) from None
    damaged = f"{file} is damaged; restore it from a copy or split the index again"
    try:
        content = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise FormatError(damaged) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FormatError(f"{file} is not the manifest of a sharded index")
    if content.get("version") != VERSION:
        raise FormatError(
            f"{path} has version {content.get('version')} of the format of sharded indexes, but this lexpert reads "
            f"version {VERSION}; split the index again"
        )
    bare = without_checksum(content, data)
    if bare is None:
        raise FormatError(damaged)
    try:
        return ShardsManifest.model_validate(bare)
    except ValidationError as error:
        raise FormatError(f"{file} is not understood ({error.errors()[0]['msg']})") from error
