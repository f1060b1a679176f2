"""Copies of one commit that cost no space: the same immutable files under further names."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from retrieval.index.arrays import disk_errors, sync_folder
from retrieval.index.manifest import Manifest, write_manifest
from retrieval.index.segment import DELETES_FOLDER, SEGMENTS_FOLDER


def copy_commit(index: Path, manifest: Manifest, copy: Path) -> int:
    """Make a folder that is an index of its own: one commit, with its files linked where the disk allows it.

    Later commits, merges and the removal of either folder leave the other as it is. Call it while the writer of the
    index makes no commit, which might remove the files.

    Args:
        index: folder of the index.
        manifest: of the commit.
        copy: a new folder; what is in it before the call returns is no index yet.

    Returns:
        Bytes of the files, linked ones too.

    Raises:
        LexpertError: no space is left.
    """
    wanted = {Path(manifest.encoder.folder) / name: file for name, file in manifest.encoder.files.items()}
    for entry in manifest.segments:
        folder = Path(SEGMENTS_FOLDER) / entry.name
        wanted |= {folder / name: file for name, file in entry.files.items()}
        if entry.deletes:
            wanted[Path(DELETES_FOLDER) / entry.deletes.name] = entry.deletes.file
    with disk_errors(copy):
        for name in wanted:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(index / name, copy / name)
        for folder in {parent for name in wanted for parent in name.parents}:
            sync_folder(copy / folder)
    write_manifest(copy, manifest)
    return sum(file.bytes for file in wanted.values())


def link_or_copy(source: Path, target: Path) -> None:
    """A further name of an immutable file, or, where the disk cannot do that, a durable copy."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
