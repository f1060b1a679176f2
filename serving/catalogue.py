"""What a running server holds: its open indexes and their encoders, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.deadline import Deadline
from serving.encoding import ServedEncoder
from serving.errors import ApiError

if TYPE_CHECKING:
    from retrieval import SparseIndex

WARM_UP_S = 3600.0
"""A large model may take its time to load."""


def check_indexes(folders: Mapping[str, Path]) -> None:
    """Open and close every index, so that a wrong folder is found before anything is started.

    Raises:
        NotFoundError, FormatError: a folder is missing, is no index, or is damaged.
    """
    Catalogue.open(folders).close()


@dataclass(frozen=True)
class ServedIndex:
    """An open index, a snapshot at the version that it had when it was opened, and its encoder."""

    name: str
    index: SparseIndex
    encoder: ServedEncoder

    def describe(self) -> dict[str, Any]:
        """What `/v1/indexes` says of it."""
        return {
            "name": self.name,
            "documents": self.index.num_documents,
            "version": self.index.generation,
            "encoder": {"name": self.encoder.name, "fingerprint": self.encoder.fingerprint},
            "fields": dict(self.index.fields),
        }


@dataclass(frozen=True)
class Catalogue:
    """Open indexes by name."""

    indexes: Mapping[str, ServedIndex]

    @classmethod
    def open(cls, folders: Mapping[str, Path]) -> Catalogue:
        """Open all indexes, or none: what was opened before a failure is closed again."""
        from retrieval import SparseIndex

        opened: dict[str, ServedIndex] = {}
        try:
            for name, folder in folders.items():
                index = SparseIndex.open(folder)
                opened[name] = ServedIndex(name, index, ServedEncoder(index.encoder))
        except BaseException:
            cls(opened).close()
            raise
        return cls(opened)

    def warm_up(self) -> None:
        """Encode and search once in each index, so that no request waits for what is loaded on first use."""
        from runtime.activations import SparseActivations

        for served in self.indexes.values():
            served.encoder.encode(["warm up"], "query", Deadline(WARM_UP_S))
            units = len(served.encoder.vocabulary)
            if units:
                served.index.search(SparseActivations.from_rows([([0], [1.0])], units), k=1)

    def index(self, name: str) -> ServedIndex:
        """The index of that name; 404 if there is none."""
        found = self.indexes.get(name)
        if found is None:
            raise ApiError(404, "index_not_found", f"there is no index {name!r} on this server", "name")
        return found

    def encoder(self, model: str) -> ServedEncoder:
        """The encoder of the index of that name, or the only encoder of that name; 404 if there is none.

        An encoder's name is that of its family. Two encoders of one family are told apart by their indexes.
        """
        if model in self.indexes:
            return self.indexes[model].encoder
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

    def close(self) -> None:
        for served in self.indexes.values():
            served.index.close()
