"""Files that no commit refers to: leftovers of a killed writer, and what was merged or replaced."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from retrieval.index.manifest import MANIFEST_FILE, Manifest
from retrieval.index.segment import DELETES_FOLDER, SEGMENTS_FOLDER
from retrieval.index.stored_encoder import ENCODER_FOLDER

PARTS_FOLDER = "parts"
"""Prefix of folders where parts of a build wait for its commit; a build that was killed goes on with them."""


def collect_garbage(index: Path, manifest: Manifest | None, unfinished: Collection[str] = ()) -> None:
    """Remove what `manifest` does not refer to; only for who holds the writer's lock.

    `unfinished` names segments that are being written, to be kept.
    """
    entries = manifest.segments if manifest else []
    wanted = {*unfinished, *(entry.name for entry in entries)}
    wanted |= {entry.deletes.name for entry in entries if entry.deletes}
    for folder in (index / SEGMENTS_FOLDER, index / DELETES_FOLDER):
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name not in wanted:
                _remove(path)
    for path in index.glob(f"{ENCODER_FOLDER}-*"):
        if manifest is None or path.name != manifest.encoder.folder:
            _remove(path)
    (index / f"{MANIFEST_FILE}.tmp").unlink(missing_ok=True)


def collect_parts(index: Path, wanted: Path | None = None) -> None:
    """Remove the parts of all builds but the one that goes on in the folder `wanted`."""
    for path in index.glob(f"{PARTS_FOLDER}-*"):
        if path != wanted:
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
