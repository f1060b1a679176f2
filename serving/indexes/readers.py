"""The indexes as one process reads them: open readers, exchanged while searches go on."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from retrieval.index.manifest import MANIFEST_FILE
from runtime.errors import LexpertError
from serving.catalogue import Catalogue, ServedIndex
from serving.configuration import ServerConfiguration
from serving.dense import ServedDense, is_dense
from serving.indexes.data_folder import DataFolder
from serving.shards import LOCAL, Sharding

logger = logging.getLogger("serving")

LOOK_S = 0.05
"""How often the folders are looked at: one call of `stat` for each index."""

Signature = tuple[int, int, int] | None


class Readers:
    """Keeps a catalogue up to date with what is on the disk.

    A commit replaces the manifest of an index; then its reader is opened anew, searched once, and exchanged. A search
    goes on with the catalogue that it began with, and a reader is closed when the last of them lets go of it. Dense
    and sharded indexes never change, and are opened once.
    """

    def __init__(self, configuration: ServerConfiguration, sharding: Sharding = LOCAL) -> None:
        self._sharding = sharding
        self._dense = {name: path for name, path in configuration.indexes.items() if is_dense(path)}
        self._given = {n: path for n, path in configuration.indexes.items() if n not in self._dense}
        self._writable = configuration.writable
        self._given_aliases = configuration.aliases
        self._data = DataFolder(configuration.data.absolute()) if configuration.data is not None else None
        self._looking = threading.Lock()
        self._seen: dict[str, Signature] = {}
        self._waiting: list[tuple[Callable[[Catalogue], bool], Future[None]]] = []
        self._waiting_lock = threading.Lock()
        self._seen_aliases: Signature = None
        self._woken = threading.Event()
        self._is_closing = False
        self._thread: threading.Thread | None = None
        self.catalogue = Catalogue({})

    def open(self) -> None:
        """Open everything and begin to look for changes.

        Raises:
            NotFoundError, FormatError: an index of the configuration is missing or damaged.
        """
        try:
            dense = {name: ServedDense.open(name, folder) for name, folder in self._dense.items()}
            self.catalogue = Catalogue({}, self._given_aliases, dense)
            self.look(is_first=True)
            self.catalogue.warm_up()
        except BaseException:
            self.catalogue.close()
            raise
        self._thread = threading.Thread(target=self._watch, name="readers", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close all readers; nobody may search any more."""
        self._is_closing = True
        self._woken.set()
        if self._thread is not None:
            self._thread.join()
        catalogue, self.catalogue = self.catalogue, Catalogue({})
        catalogue.close()

    def look(self, is_first: bool = False) -> None:
        """Take in what has changed on the disk (blocking)."""
        with self._looking:
            folders = self._folders()
            before = self.catalogue
            indexes: dict[str, ServedIndex] = {}
            for name, folder in folders.items():
                signature = signature_of(folder / MANIFEST_FILE)
                served = before.indexes.get(name)
                if served is None or signature != self._seen.get(name):
                    served = self._open(name, folder, served, is_first)
                    self._seen[name] = signature
                if served is not None:
                    indexes[name] = served
            aliases = self._aliases(before)
            if indexes != before.indexes or aliases != before.aliases:
                self.catalogue = Catalogue(indexes, aliases, before.dense)
            for name in self._seen.keys() - folders.keys():
                del self._seen[name]
            catalogue = self.catalogue
        with self._waiting_lock:
            come = [entry for entry in self._waiting if entry[0](catalogue)]
            self._waiting = [entry for entry in self._waiting if entry not in come]
        for _, future in come:
            future.set_result(None)

    async def wait_for(self, has_come: Callable[[Catalogue], bool], timeout_s: float) -> bool:
        """Wait for a catalogue that fulfils a condition; whether it came in time."""
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()
        entry = (has_come, future)
        with self._waiting_lock:
            self._waiting.append(entry)
        try:
            if has_come(self.catalogue):
                return True
            self._woken.set()
            async with asyncio.timeout(timeout_s):
                await asyncio.wrap_future(future)
            return True
        except TimeoutError:
            return False
        finally:
            with self._waiting_lock:
                if entry in self._waiting:
                    self._waiting.remove(entry)

    def _watch(self) -> None:
        while not self._is_closing:
            self._woken.wait(LOOK_S)
            self._woken.clear()
            try:
                if self._has_changed():
                    self.look()
            except Exception:
                logger.error("looking for changes of the indexes failed", exc_info=True)
                time.sleep(1.0)

    def _has_changed(self) -> bool:
        folders = self._folders()
        if folders.keys() != self._seen.keys():
            return True
        if self._data is not None and signature_of(self._data.aliases_file) != self._seen_aliases:
            return True
        return any(
            signature_of(folder / MANIFEST_FILE) != self._seen[name] for name, folder in folders.items()
        )

    def _folders(self) -> dict[str, Path]:
        folders = dict(self._given)
        if self._data is not None:
            names = (name for name in self._data.names() if name not in self._dense)
            folders = {name: self._data.index(name) for name in names} | folders
        return folders

    def _aliases(self, before: Catalogue) -> dict[str, str]:
        if self._data is None:
            return dict(self._given_aliases)
        signature = signature_of(self._data.aliases_file)
        if signature == self._seen_aliases:
            return dict(before.aliases)
        aliases = self._data.aliases() | self._given_aliases
        self._seen_aliases = signature
        return aliases

    def _open(
        self, name: str, folder: Path, before: ServedIndex | None, is_first: bool
    ) -> ServedIndex | None:
        """A reader of the last commit; the one before if it cannot be opened, which is logged."""
        is_writable = name not in self._given or name in self._writable
        try:
            served = ServedIndex.open(name, folder, before, is_writable, self._sharding)
            if not is_first:
                served.warm_up()
            return served
        except LexpertError as error:
            if is_first and name in self._given:
                raise
            if not folder.exists() and name not in self._given:
                return None  # deleted meanwhile
            logger.error("the index %s cannot be opened: %s", name, error)
            return before


def signature_of(path: Path) -> Signature:
    """What changes when a file is replaced; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def reaches(name: str, uid: str, version: int) -> Callable[[Catalogue], bool]:
    """Whether an index is gone, or at that version or a later one."""

    def has_come(catalogue: Catalogue) -> bool:
        served = catalogue.indexes.get(name)
        return served is None or served.uid != uid or served.index.generation >= version

    return has_come
