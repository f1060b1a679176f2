"""The encoder folder inside an index, loaded when texts are to be encoded and not before."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from threading import Lock

from retrieval.encoders.catalogue import load_encoder
from retrieval.encoders.encoder import SparseEncoder
from retrieval.index.arrays import describe_file, disk_errors, sync_folder, verify_file
from retrieval.index.manifest import EncoderEntry
from runtime.errors import ConflictError, FormatError

ENCODER_FOLDER = "encoder"

SMALL_BYTES = 1 << 20
"""Files of the encoder up to this size are compared with their checksums when the index is opened."""


def store_encoder(index: Path, generation: int, encoder: SparseEncoder) -> EncoderEntry:
    """Write what queries need of the encoder into the index, durably, under the generation's number."""
    name = f"{ENCODER_FOLDER}-{generation:06d}"
    folder = index / name
    with disk_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)  # what a commit left that failed half-way
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


class StoredEncoder:
    """The encoder of an index: the one that it carries, loaded on first use, or the same given by the caller.

    Counting, deleting, merging and searching with vectors go without it, also where its model is gone.
    """

    def __init__(self, index: Path, entry: EncoderEntry, given: SparseEncoder | None = None) -> None:
        """Check what can be checked without loading.

        Raises:
            ConflictError: `given` is another encoder than the one that filled the index.
            FormatError: a file of the stored encoder is missing or damaged.
        """
        if given is not None and given.fingerprint != entry.fingerprint:
            raise ConflictError(
                f"{index} was filled by another {entry.family} encoder (fingerprint {entry.fingerprint[:12]}…, "
                f"not {given.fingerprint[:12]}…); use that one, or build an index with this one"
            )
        self._folder = index / entry.folder
        self._encoder = given
        self._loading = Lock()
        for name, expected in entry.files.items():
            path = self._folder / name
            if expected.bytes <= SMALL_BYTES:
                verify_file(path, expected)
            elif not path.is_file() or path.stat().st_size != expected.bytes:
                raise FormatError(f"{path} is missing or truncated; restore it, or build the index again")

    @property
    def is_loaded(self) -> bool:
        return self._encoder is not None

    def load(self) -> SparseEncoder:
        """The encoder.

        Raises:
            NotFoundError: it is only referred to, and not there any more.
            FormatError: it is not the one that filled the index any more.
        """
        with self._loading:
            if self._encoder is None:
                self._encoder = load_encoder(self._folder)
            return self._encoder
