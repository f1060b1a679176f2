"""What a writer is told: fields, stored text, and how much memory and how many processes it may use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from retrieval.index.fields import check_fields
from retrieval.index.impact_codec import ImpactCodec, checked_codec
from retrieval.index.lock import LOCK_FILE
from retrieval.index.manifest import MANIFEST_FILE, FieldKind
from retrieval.index.merge_policy import MergePolicy
from runtime.cores import available_cores
from runtime.errors import ConflictError, UsageError

STORABLE = ("title", "text")

MERGE_POLICY = MergePolicy()
DEFAULT_MEMORY = 1 << 30
MINIMUM_MEMORY = 512 << 20
OVERHEAD_BYTES = 384 << 20
"""What is needed beside the buffer: interpreter, libraries, and the temporaries of inverting one window."""
COPIES = 1.5
"""Buffers alive for one that is being inverted: itself, and what is copied on the way."""
MERGE_BYTES = 192 << 20
"""What a merge in the background takes."""
MAX_BUILDERS = 4
"""Threads that invert buffers. One keeps up with a writer that takes some 300,000 vectors a second."""
WORKER_BYTES = 192 << 20
"""What a process that analyses text takes, with the words that it remembers."""


@dataclass(frozen=True, slots=True)
class WriterSettings:
    """Checked settings of a writer.

    Attributes:
        fields: kind of each document key that is kept for filters.
        store: which of title and text are kept for answers.
        impacts: how impacts are stored; see `impact_codec`.
        memory: bytes to stay within.
        workers: processes that analyse text; 1 is the writer's own.
        merge_policy: when segments are merged in the background; None for never.
    """

    fields: Mapping[str, FieldKind]
    store: Sequence[str]
    impacts: ImpactCodec
    memory: int
    workers: int
    merge_policy: MergePolicy | None

    @classmethod
    def checked(
        cls,
        fields: Mapping[str, str],
        store: Sequence[str],
        impacts: str,
        memory: int,
        workers: int | None,
        merge_policy: MergePolicy | None,
    ) -> Self:
        """Check what a caller gave.

        Raises:
            UsageError: says which setting is wrong, and what would be right.
        """
        if isinstance(store, str) or any(name not in STORABLE for name in store):
            raise UsageError(
                f"cannot store {store!r}; what can be stored is a list of {' and '.join(STORABLE)}"
            )
        if memory < MINIMUM_MEMORY:
            raise UsageError(
                f"memory is {memory >> 20} MiB, but at least {MINIMUM_MEMORY >> 20} MiB are needed"
            )
        if workers is not None and workers < 1:
            raise UsageError(f"workers is {workers}, but must be at least 1")
        return cls(
            check_fields(fields),
            list(store),
            checked_codec(impacts),
            memory,
            workers or _fitting_workers(memory),
            merge_policy,
        )

    @property
    def merges_alone(self) -> bool:
        """Whether memory is too short for a merge while a buffer is inverted."""
        return self.memory < MINIMUM_MEMORY + MERGE_BYTES

    @property
    def builders(self) -> int:
        """Threads that invert buffers."""
        return max(1, min(MAX_BUILDERS, available_cores() // 4))

    def buffer_bytes(self, counts_text: bool) -> int:
        """Size that the buffer of encoded documents may reach before it is written.

        Args:
            counts_text: whether the workers are used.
        """
        left = self.memory - OVERHEAD_BYTES
        left -= self.workers * WORKER_BYTES if counts_text and self.workers > 1 else 0
        left -= MERGE_BYTES if self.merge_policy is not None and not self.merges_alone else 0
        return int(max(left, MINIMUM_MEMORY - OVERHEAD_BYTES) / (1 + COPIES * self.builders))


def _fitting_workers(memory: int) -> int:
    """One a core, but no more than leave half of the memory to the writer."""
    return max(1, min(available_cores(), memory // 2 // WORKER_BYTES))


def check_folder(path: Path, overwrite: bool) -> None:
    """Raise ConflictError unless a new index may be made in the folder `path`."""
    if path.exists() and not path.is_dir():
        raise ConflictError(f"{path} is a file; give a folder for the index")
    if (path / MANIFEST_FILE).exists():
        if not overwrite:
            raise ConflictError(f"{path} holds an index already; open it to add to it, or say overwrite")
        return
    foreign = [entry.name for entry in path.iterdir()] if path.is_dir() else []
    if foreign and LOCK_FILE not in foreign:
        raise ConflictError(
            f"{path} is not empty and is not an index (it holds {foreign[0]}); give another folder"
        )
