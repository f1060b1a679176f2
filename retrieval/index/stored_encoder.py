"""The encoder folder inside an index."""

from __future__ import annotations

import os
from pathlib import Path

from retrieval.encoders.catalogue import load_encoder
from retrieval.encoders.encoder import SparseEncoder
from retrieval.index.arrays import describe_file, disk_errors, sync_folder, verify_file
from retrieval.index.manifest import EncoderEntry
from runtime.errors import ConflictError, FormatError

ENCODER_FOLDER = "encoder"


def store_encoder(index: Path, generation: int, encoder: SparseEncoder) -> EncoderEntry:
    """Write what queries need of the encoder into the index, durably, under the generation's number."""
    name = f"{ENCODER_FOLDER}-{generation:06d}"
    folder = index / name
    with disk_errors(folder):
        encoder.save_for_search(folder)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        sync_folder(folder)
    return EncoderEntry(
        family=encoder.family,
        fingerprint=encoder.fingerprint,
        folder=name,
        files={str(path.relative_to(folder)): describe_file(path) for path in paths},
    )


def open_encoder(index: Path, entry: EncoderEntry, given: SparseEncoder | None = None) -> SparseEncoder:
    """The encoder of an index: the one it carries, or `given` if that is the same.

    Raises:
        ConflictError: `given` is another encoder than the one that filled the index.
        FormatError: a file of the stored encoder is damaged.
    """
    if given is not None:
        if given.fingerprint != entry.fingerprint:
            raise ConflictError(
                f"{index} was filled by another {entry.family} encoder (fingerprint {entry.fingerprint[:12]}…, "
                f"not {given.fingerprint[:12]}…); search it with that one, or build an index with this one"
            )
        return given
    folder = index / entry.folder
    for name, expected in entry.files.items():
        if expected.bytes < 1 << 20:
            verify_file(folder / name, expected)
        elif not (folder / name).is_file() or (folder / name).stat().st_size != expected.bytes:
            raise FormatError(
                f"{folder / name} is missing or truncated; restore it, or build the index again"
            )
    return load_encoder(folder)
