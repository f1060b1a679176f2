"""The one process that writes: all indexes that may be written to, made, opened and deleted here."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from retrieval import IndexWriter, SparseEncoder
from retrieval.encoders.precomputed import PrecomputedEncoder
from retrieval.index.lock import WriterLock
from retrieval.index.manifest import read_manifest
from runtime.errors import ConflictError, LexpertError
from serving.catalogue import GIVEN
from serving.configuration import ServerConfiguration
from serving.errors import ApiError
from serving.indexes.data_folder import DataFolder, Made, read_made, write_made
from serving.indexes.live_index import LOG_FOLDER, LiveIndex, not_writable

logger = logging.getLogger("serving")

BM25, PRECOMPUTED = "bm25", "precomputed"
"""Encoders that need no folder: BM25 learns from the documents, and the other takes vectors only."""

TRY_AGAIN_S = 1.0
"""An index that failed is opened again so long after, with the next request."""


class NewIndex(BaseModel):
    """What to make an index with.

    Attributes:
        encoder: "bm25", "precomputed", or a name of the configuration.
        units: of "precomputed", the length of its vectors.
        fields: name and kind ("int", "float", "keyword") of what filters may ask for.
        shards: 1, for an index that is written to is in one piece.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    encoder: str
    units: int | None = Field(default=None, ge=1, le=1 << 22)
    fields: dict[str, str] = {}
    shards: int = Field(default=1, ge=1)


class Writers:
    """Every writer of a server; `open` it before use, and `close` it."""

    def __init__(self, configuration: ServerConfiguration) -> None:
        self._configuration = configuration
        self._data = DataFolder(configuration.data.absolute()) if configuration.data is not None else None
        self._data_lock: WriterLock | None = None
        self._live: dict[str, LiveIndex] = {}
        self._failed_at: dict[str, float] = {}
        self._changing = threading.RLock()
        self._is_closed = False

    def open(self) -> None:
        """Finish what an earlier process left: apply its logs, remove its leftovers. Logs why, where it cannot."""
        names = sorted(self._configuration.writable)
        if self._data is not None:
            try:
                self._lock_data()
            except ApiError as error:
                logger.warning("%s", error)
                return
            names += self._data.names()
        for name in names:
            folder = self._folder(name)
            if folder is not None and any((folder / LOG_FOLDER).glob("*.log")):
                try:
                    self.live(name, None)
                except ApiError as error:
                    logger.warning("the log of the index %s waits to be applied: %s", name, error)

    def close(self) -> None:
        """Commit everything and let other writers in."""
        with self._changing:
            self._is_closed = True
            for live in self._live.values():
                live.close()
            self._live = {}
            if self._data_lock is not None:
                self._data_lock.release()
                self._data_lock = None

    def opened(self, name: str, uid: str | None) -> LiveIndex | None:
        """The writer of an index if it is open and well; takes no time."""
        live = self._live.get(name)
        return live if live is not None and live.failure is None and uid in (None, live.uid) else None

    def live(self, name: str, uid: str | None) -> LiveIndex:
        """The writer of an index, opened if it is not.

        Args:
            uid: which index of that name; None for whichever there is.

        Raises:
            ApiError: 404 if it is gone or another now, 409 if it is read-only or another process writes to it, 503 if
                its log cannot be applied.
        """
        with self._changing:
            return self.opened(name, uid) or self._open_live(name, uid)

    def _open_live(self, name: str, uid: str | None) -> LiveIndex:
        if self._is_closed:
            raise not_writable(None)
        folder = self._folder(name)
        made = read_made(folder) if folder is not None else None
        if folder is None or (uid is not None and uid != uid_of(made)):
            raise index_not_found(name)
        if name not in self._configuration.indexes:
            self._lock_data()
        elif name not in self._configuration.writable:
            raise read_only(name)
        live = self._live.get(name)
        if live is not None and live.failure is not None:
            self._live.pop(name).close()
            self._failed_at[name] = time.monotonic()
            live = None
        if live is None:
            if time.monotonic() - self._failed_at.get(name, -TRY_AGAIN_S) < TRY_AGAIN_S:
                raise not_writable(LexpertError("it failed just now"))
            try:
                learns = made is not None and made.encoder == BM25
                live = LiveIndex(folder, uid_of(made), self._configuration.commits, learns)
            except ConflictError:
                raise index_locked(name) from None
            except Exception as error:
                self._failed_at[name] = time.monotonic()
                logger.error("the index %s cannot be written to: %s", name, error, exc_info=True)
                raise not_writable(error) from error
            self._live[name] = live
        return live

    def create(self, name: str, new: NewIndex) -> bool:
        """Make an index; False if it is there already, made with the same.

        Raises:
            ApiError: 409 if there is one made with something else, or an alias of the name; 422 if it cannot be made
                so.
        """
        with self._changing:
            data = self._lock_data()
            there = data.made(name) if name not in self._configuration.indexes else None
            if there is not None:
                if (there.encoder, there.units, there.fields) == (new.encoder, new.units, new.fields):
                    return False
                raise ApiError(
                    409,
                    "index_exists",
                    f"there is an index {name} that was made with another encoder or other fields; delete it first, "
                    "or take another name",
                    "name",
                )
            if name in self._configuration.indexes or data.index(name).exists():
                raise ApiError(
                    409, "index_exists", f"there is an index {name} that was not made here", "name"
                )
            if name in self._aliases(data):
                raise ApiError(
                    409, "alias_exists", f"{name} is an alias; remove it, or take another name", "name"
                )
            folder = data.new_folder()
            try:
                with IndexWriter.create(
                    folder, encoder=self._encoder(new), fields=new.fields, workers=1, merge_policy=None
                ) as writer:
                    writer.commit()
                write_made(folder, Made(uid=uuid4().hex, **new.model_dump(exclude={"shards"})))
                data.publish(folder, data.index(name))
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            self._failed_at.pop(name, None)
            return True

    def _encoder(self, new: NewIndex) -> SparseEncoder:
        if (new.encoder == PRECOMPUTED) != (new.units is not None):
            raise ApiError(
                422, "invalid_value", "units belongs to the encoder precomputed, and to no other", "units"
            )
        if new.units is not None:
            return PrecomputedEncoder(num_units=new.units)
        if new.encoder == BM25:
            return SparseEncoder.load(BM25)
        place = self._configuration.encoders.get(new.encoder)
        if place is None:
            names = ", ".join([BM25, PRECOMPUTED, *sorted(self._configuration.encoders)])
            raise ApiError(
                422, "unknown_encoder", f"there is no encoder {new.encoder!r}; there is {names}", "encoder"
            )
        return SparseEncoder.load(place)

    def delete(self, name: str) -> None:
        """Delete an index; what was answered but not committed goes with it.

        Raises:
            ApiError: 404 if there is none, 409 if it was not made here or an alias stands for it.
        """
        with self._changing:
            data = self._lock_data()
            if name in self._configuration.indexes:
                raise read_only(name)
            if not data.index(name).exists():
                raise index_not_found(name)
            if aliases := sorted(alias for alias, index in self._aliases(data).items() if index == name):
                raise ApiError(
                    409,
                    "index_has_alias",
                    f"the alias {aliases[0]} stands for the index {name}; set it to another index or remove it first",
                    "name",
                )
            live = self._live.pop(name, None)
            if live is not None:
                live.abandon()
            withdrawn = data.withdraw(name)
        shutil.rmtree(withdrawn, ignore_errors=True)

    def set_aliases(self, changes: dict[str, str | None]) -> dict[str, str]:
        """Set (or, with None, remove) aliases, all at once; returns all that there are then.

        Raises:
            ApiError: 404 for an index that there is not, 409 for an alias with the name of an index, or of the
                configuration.
        """
        with self._changing:
            data = self._lock_data()
            aliases = data.aliases()
            for alias, name in changes.items():
                if alias in self._configuration.aliases:
                    raise ApiError(
                        409,
                        "alias_exists",
                        f"the alias {alias} stands in the configuration of the server, and can be changed there only",
                        f"aliases.{alias}",
                    )
                if alias in self._configuration.indexes or data.index(alias).exists():
                    raise ApiError(409, "index_exists", f"{alias} is an index already", f"aliases.{alias}")
                if name is None:
                    aliases.pop(alias, None)
                elif self._folder(name) is None:
                    raise ApiError(404, "index_not_found", f"there is no index {name!r}", f"aliases.{alias}")
                else:
                    aliases[alias] = name
            data.set_aliases(aliases)
            return self._aliases(data)

    def snapshot(self, name: str, uid: str) -> dict[str, Any]:
        """Copy the last commit of an index into the data folder."""
        live = self.live(name, uid)
        data = self._lock_data()
        copy = data.new_folder()
        try:
            copy.mkdir()
            version, size = live.snapshot(copy)
            made = read_made(live.folder)
            if made is not None:
                write_made(copy, made.model_copy(update={"uid": uuid4().hex}))
            documents = read_manifest(copy).num_documents
            snapshot = f"{version:06d}-{uuid4().hex[:8]}"
            data.publish(copy, data.snapshots(name) / snapshot)
        except BaseException:
            shutil.rmtree(copy, ignore_errors=True)
            raise
        return {"snapshot": snapshot, "version": version, "documents": documents, "bytes": size}

    def _aliases(self, data: DataFolder) -> dict[str, str]:
        """All aliases; those of the configuration come before others of their name."""
        return data.aliases() | self._configuration.aliases

    def _folder(self, name: str) -> Path | None:
        """The folder of an index; None if there is none of that name."""
        configured = self._configuration.indexes.get(name)
        if configured is not None:
            return configured
        if self._data is None or not self._data.index(name).is_dir():
            return None
        return self._data.index(name)

    def _lock_data(self) -> DataFolder:
        """The data folder, for this process to write to."""
        if self._is_closed:
            raise not_writable(None)
        if self._data is None:
            raise ApiError(
                409, "no_data_folder", "this server has no folder for indexes; start it with --data DIR"
            )
        if self._data_lock is None:
            try:
                self._data_lock = WriterLock(self._data.path)
            except ConflictError:
                raise ApiError(
                    409,
                    "data_locked",
                    "another server writes to the data folder; send this there, or try again when it has stopped",
                ) from None
            self._data.prepare()
        return self._data


def uid_of(made: Made | None) -> str:
    """What tells an index from another of its name; those that were not made over HTTP share one."""
    return made.uid if made is not None else GIVEN


def index_not_found(name: str) -> ApiError:
    return ApiError(404, "index_not_found", f"there is no index {name!r} on this server", "name")


def read_only(name: str) -> ApiError:
    return ApiError(
        409,
        "index_read_only",
        f"the index {name} is read-only here; only its own folder can change it",
        "name",
    )


def index_locked(name: str) -> ApiError:
    return ApiError(
        409, "index_locked", f"another process writes to the index {name}; try again when it is done", "name"
    )
