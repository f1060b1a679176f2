"""Splitting an index into shards that together give what it gives."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.index.arrays import ArrayFile, ArrayWriter, describe_file, disk_errors, sync_folder
from retrieval.index.lock import LOCK_FILE, WriterLock
from retrieval.index.manifest import MANIFEST_FILE, Manifest, write_manifest
from retrieval.index.merge import merge_segments
from retrieval.index.segment import Segment
from retrieval.index.shards_manifest import (
    ShardEntry,
    ShardsManifest,
    check_num_shards,
    is_sharded,
    shard_name,
    shard_of,
    write_shards_manifest,
)
from retrieval.index.snapshot import link_or_copy
from retrieval.index.sparse_index import SparseIndex
from retrieval.search.calibrate import calibrate
from runtime.errors import ConflictError
from runtime.progress import Advance

IDS_AT_ONCE = 1 << 16

SEGMENT = "000001-0001"


def split_index(
    index: SparseIndex, out: Path, num_shards: int, advance: Advance | None = None
) -> ShardsManifest:
    """Write the live documents of an index as a sharded index.

    Impacts are copied as they are, so the statistics that they come from are those of the whole collection. (8-bit
    impacts are rounded again where all of a shard are less than a quarter of the largest of the index.) Shards that
    are large enough are calibrated for approximate search with queries made from their documents.

    Each shard takes a pass over the index, in the memory of a merge.

    Args:
        out: a new folder, or that of a split that was cut short, which starts over.
        advance: called with the number of documents done since the last call.

    Raises:
        UsageError: a number of shards that no index can have.
        ConflictError: `out` holds something else, or is being written.
        LexpertError: no space is left.
    """
    check_num_shards(num_shards)
    check_out(out)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    lock = WriterLock(out)
    try:
        for left in out.glob("shard-*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        of_segment = [placement(segment, num_shards) for segment in index.segments]
        starts = list(accumulate((len(shards) for shards in of_segment), initial=0))[:-1]
        entries = []
        for shard in range(num_shards):
            chosen = [
                segment.without(shards != shard)
                for segment, shards in zip(index.segments, of_segment, strict=True)
            ]
            rows = [
                start + np.flatnonzero(~segment.deleted)
                for start, segment in zip(starts, chosen, strict=True)
            ]
            entries.append(_write_shard(index, out / shard_name(shard), chosen, rows, advance))
        manifest = ShardsManifest(
            num_units=index.manifest.num_units,
            family=index.manifest.encoder.family,
            fingerprint=index.manifest.encoder.fingerprint,
            fields=index.manifest.fields,
            store=index.manifest.store,
            shards=entries,
        )
        write_shards_manifest(out, manifest)
    finally:
        lock.release()
    return manifest


def check_out(out: Path) -> None:
    """Raise ConflictError unless a sharded index may be written to the folder `out`."""
    if out.exists() and not out.is_dir():
        raise ConflictError(f"{out} is a file; give a folder for the shards")
    if is_sharded(out):
        raise ConflictError(f"{out} holds a sharded index already; give another folder, or remove it")
    names = sorted(entry.name for entry in out.iterdir()) if out.is_dir() else []
    foreign = [name for name in names if name != LOCK_FILE and not name.startswith("shard-")]
    if foreign or (names and LOCK_FILE not in names):
        raise ConflictError(
            f"{out} is not empty and is no split that was cut short (it holds {(foreign or names)[0]}); give another "
            "folder"
        )


def placement(segment: Segment, num_shards: int) -> NDArray[np.int16]:
    """The shard of each document of a segment, -1 for those that are deleted."""
    shards = np.full(segment.num_documents, -1, np.int16)
    live = np.flatnonzero(~segment.deleted)
    for start in range(0, len(live), IDS_AT_ONCE):
        rows = live[start : start + IDS_AT_ONCE]
        shards[rows] = [shard_of(identifier, num_shards) for identifier in segment.ids.take(rows)]
    return shards


def _write_shard(
    index: SparseIndex,
    folder: Path,
    segments: Sequence[Segment],
    rows: Sequence[NDArray[np.int64]],
    advance: Advance | None,
) -> ShardEntry:
    whole = index.manifest
    places = np.concatenate([np.zeros(0, np.int64), *rows])
    with disk_errors(folder):
        folder.mkdir()
        _copy_encoder(index.path, whole, folder)
    written = []
    if len(places):
        written.append(
            merge_segments(
                folder,
                SEGMENT,
                segments,
                whole.fields,
                max(whole.num_units, 1),
                advance,
                impacts=whole.impacts,
            )
        )
        sync_folder(folder)
    manifest = Manifest(
        generation=1,
        num_units=whole.num_units,
        encoder=whole.encoder,
        fields=whole.fields,
        store=whole.store,
        impacts=whole.impacts,
        segments=written,
    )
    write_manifest(folder, manifest)
    with SparseIndex.open(folder) as shard:
        calibration = calibrate(shard) if shard.is_tiered else None
    if calibration is not None:
        write_manifest(folder, manifest.model_copy(update={"calibration": calibration}))
    return ShardEntry(
        documents=len(places),
        manifest=describe_file(folder / MANIFEST_FILE),
        rows=_write_rows(folder.with_name(f"{folder.name}.rows"), places),
    )


def _write_rows(path: Path, places: NDArray[np.int64]) -> ArrayFile:
    rows = ArrayWriter(path, np.int64)
    try:
        rows.append(places)
        return rows.close()
    except BaseException:
        rows.abandon()
        raise


def _copy_encoder(index: Path, whole: Manifest, folder: Path) -> None:
    for name in whole.encoder.files:
        target = folder / whole.encoder.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(index / whole.encoder.folder / name, target)
        sync_folder(target.parent)
