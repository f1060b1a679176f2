"""What a running server holds: its open indexes and their encoders, by name."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from runtime.errors import ConflictError, LexpertError
from serving.dense import ServedDense, is_dense
from serving.encoding import ServedEncoder
from serving.errors import ApiError
from serving.shards import LOCAL, FanOut, Sharding

if TYPE_CHECKING:
    from retrieval import SparseIndex
    from retrieval.index.sharded_index import ShardedIndex

GIVEN = "given"
"""Stands for the uid of indexes that were not made over HTTP."""

COUNTING_FAMILIES = frozenset({"bm25"})
"""Encoders whose weights of a document depend on the others, and are learned from texts."""


def check_indexes(folders: Mapping[str, Path]) -> None:
    """Open and close every index, so that a wrong folder is found before anything is started.

    Raises:
        NotFoundError, FormatError: a folder is missing, is no index, or is damaged.
    """
    Catalogue.open(folders).close()


@dataclass(frozen=True, eq=False)
class ServedIndex:
    """An open index, a snapshot at the version that it had when it was opened, and its encoder.

    It is closed when nobody refers to it any more: a search may go on with it while a later one takes its place.

    Attributes:
        uid: tells it from an index of the same name before or after it.
        takes_vectors: whether its documents may come with vectors.
        is_writable: whether this server may write to it.
        fan_out: to its shards, if it has any.
    """

    name: str
    index: SparseIndex | ShardedIndex
    encoder: ServedEncoder
    uid: str = GIVEN
    takes_vectors: bool = True
    is_writable: bool = False
    fan_out: FanOut | None = None

    @classmethod
    def open(
        cls,
        name: str,
        folder: Path,
        before: ServedIndex | None = None,
        is_writable: bool = False,
        sharding: Sharding = LOCAL,
    ) -> ServedIndex:
        """Open the last commit of an index.

        Args:
            before: an earlier commit, whose encoder is taken if it is still the same.
            sharding: of an index that has shards.

        Raises:
            NotFoundError, FormatError: there is none, or it is damaged.
            ConflictError: it has shards, and is to be written to.
        """
        from retrieval.index.shards_manifest import is_sharded
        from serving.indexes.data_folder import read_made

        if is_sharded(folder):
            return cls._open_sharded(name, folder, is_writable, sharding)
        made = read_made(folder)
        index = open_with(before, folder) if before is not None else None
        if before is not None and index is not None:
            encoder = before.encoder
        else:
            index, encoder = open_with_its_own(folder)
        served = cls(
            name,
            index,
            encoder,
            made.uid if made is not None else GIVEN,
            encoder.name not in COUNTING_FAMILIES,
            is_writable,
        )
        weakref.finalize(served, index.close)
        return served

    @classmethod
    def _open_sharded(cls, name: str, folder: Path, is_writable: bool, sharding: Sharding) -> ServedIndex:
        from retrieval.index.sharded_index import ShardedIndex

        if is_writable:
            raise ConflictError(
                f"{folder} is a sharded index, which cannot be written to; take {name} out of writable, or give the "
                "index that it was split from"
            )
        index = ShardedIndex.open(folder)
        try:
            encoder = ServedEncoder(index.encoder)
            fan_out = sharding.fan_out(name, index)
        except BaseException:
            index.close()
            raise
        served = cls(
            name, index, encoder, takes_vectors=encoder.name not in COUNTING_FAMILIES, fan_out=fan_out
        )
        weakref.finalize(served, close_sharded, index, fan_out)
        return served

    @property
    def version(self) -> int:
        return self.index.generation

    @property
    def num_shards(self) -> int:
        return len(self.fan_out.index.shards) if self.fan_out is not None else 1

    def warm_up(self) -> None:
        """Search once, so that no request waits for what is loaded on first use."""
        from runtime.activations import SparseActivations

        units = len(self.encoder.vocabulary)
        if units:
            self.index.search(SparseActivations.from_rows([([0], [1.0])], units), k=1)

    def describe(self) -> dict[str, Any]:
        """What `/v1/indexes` says of it."""
        return {
            "name": self.name,
            "documents": self.index.num_documents,
            "version": self.version,
            "encoder": {"name": self.encoder.name, "fingerprint": self.encoder.fingerprint},
            "fields": dict(self.index.fields),
            "shards": self.num_shards,
            "writable": self.is_writable,
        }


Searched: TypeAlias = ServedIndex | ServedDense
"""What can be searched by name."""


def close_sharded(index: ShardedIndex, fan_out: FanOut) -> None:
    fan_out.shards.close()
    index.close()


def open_with(before: ServedIndex, folder: Path) -> SparseIndex | None:
    """The last commit with the encoder of an earlier one; None if it has another, or that has learned new terms."""
    from retrieval import SparseIndex
    from retrieval.index.manifest import Manifest, read_manifest

    manifest = before.index.manifest
    if not isinstance(manifest, Manifest):
        return None
    kept = manifest.encoder
    if read_manifest(folder).encoder != kept:
        return None
    try:
        index = SparseIndex.open(folder, encoder=before.encoder.encoder)
    except ConflictError:  # a still later commit came in between
        return None
    if index.manifest.encoder != kept:
        index.close()
        return None
    return index


def open_with_its_own(folder: Path) -> tuple[SparseIndex, ServedEncoder]:
    """The last commit, and the encoder in it; a later commit may remove that before it is loaded."""
    from retrieval import SparseIndex
    from retrieval.index.manifest import read_manifest

    while True:
        index = SparseIndex.open(folder)
        try:
            return index, ServedEncoder(index.encoder)
        except BaseException as error:
            index.close()
            is_gone = isinstance(error, OSError | LexpertError)
            if not is_gone or read_manifest(folder).generation == index.generation:
                raise


@dataclass(frozen=True)
class Catalogue:
    """Open indexes by name; dense ones for themselves, for they can only be searched."""

    indexes: Mapping[str, ServedIndex]
    aliases: Mapping[str, str] = field(default_factory=dict)
    dense: Mapping[str, ServedDense] = field(default_factory=dict)

    @classmethod
    def open(cls, folders: Mapping[str, Path]) -> Catalogue:
        """Open all indexes, or none: what was opened before a failure is closed again."""
        opened: dict[str, ServedIndex] = {}
        dense: dict[str, ServedDense] = {}
        try:
            for name, folder in folders.items():
                if is_dense(folder):
                    dense[name] = ServedDense.open(name, folder)
                else:
                    opened[name] = ServedIndex.open(name, folder)
        except BaseException:
            cls(opened).close()
            raise
        return cls(opened, dense=dense)

    def warm_up(self) -> None:
        """Encode and search once in each index, so that no request waits for what is loaded on first use."""
        for served in self.indexes.values():
            served.encoder.warm_up()
            served.warm_up()
        for dense in self.dense.values():
            dense.warm_up()

    def index(self, name: str) -> ServedIndex:
        """The index of that name, or that an alias of the name stands for; 404 if there is none, 409 if it is dense."""
        found = self.searched(name)
        if not isinstance(found, ServedIndex):
            raise ApiError(
                409, "index_is_dense", f"{name} is a dense index, which can only be searched", "name"
            )
        return found

    def has(self, name: str) -> bool:
        """Whether there is an index of that name, or an alias."""
        return name in self.indexes or name in self.dense or name in self.aliases

    def searched(self, name: str, param: str = "name") -> Searched:
        """The index of that name, dense or not, or that an alias of the name stands for; 404 naming `param` if none."""
        meant = self.aliases.get(name, name)
        found = self.indexes.get(meant) or self.dense.get(meant)
        if found is None:
            raise ApiError(404, "index_not_found", f"there is no index {name!r} on this server", param)
        return found

    def all(self) -> list[Searched]:
        """Every index, by name."""
        return sorted([*self.indexes.values(), *self.dense.values()], key=lambda served: served.name)

    def encoder(self, model: str) -> ServedEncoder:
        """The encoder of the index of that name, or the only encoder of that name; 404 if there is none.

        An encoder's name is that of its family. Two encoders of one family are told apart by their indexes.
        """
        named = self.indexes.get(self.aliases.get(model, model))
        if named is not None:
            return named.encoder
        encoders = [served.encoder for served in self.indexes.values()]
        found = {encoder.fingerprint: encoder for encoder in encoders if encoder.name == model}
        if len(found) == 1:
            return next(iter(found.values()))
        names = ", ".join(sorted(self.indexes))
        if found:
            raise ApiError(
                422, "ambiguous_model", f"several encoders are named {model}; name an index: {names}", "model"
            )
        raise ApiError(
            404, "model_not_found", f"there is no model {model!r}; name an index: {names}", "model"
        )

    def encoders(self) -> dict[str, ServedEncoder]:
        """Every encoder that turns texts into vectors, by its fingerprint."""
        encoders = [served.encoder for served in self.indexes.values() if served.encoder.can_encode]
        return {encoder.fingerprint: encoder for encoder in encoders}

    def only_encoder(self) -> ServedEncoder:
        """The encoder of a request that names none: 404 if there is none, 422 if there are several."""
        encoders = self.encoders()
        if len(encoders) == 1:
            return next(iter(encoders.values()))
        names = ", ".join(sorted(self.indexes))
        if encoders:
            raise ApiError(
                422,
                "ambiguous_model",
                f"there are several encoders; name an index as model: {names}",
                "model",
            )
        raise ApiError(404, "model_not_found", "no index of this server has an encoder for texts", "model")

    def close(self) -> None:
        for served in self.indexes.values():
            if served.fan_out is not None:
                served.fan_out.shards.close()
            served.index.close()
