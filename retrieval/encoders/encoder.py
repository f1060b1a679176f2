"""The one interface of all sparse encoders, and the function that finds the right one for a folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from runtime.activations import SparseActivations

Advance = Callable[[int], None]


class Vocabulary(ABC):
    """The terms that an encoder's units stand for."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of units."""

    @abstractmethod
    def term(self, unit: int) -> str:
        """The term of one unit, for people to read."""

    @abstractmethod
    def find(self, terms: Sequence[str]) -> list[int]:
        """The unit of each term; -1 for a term that is not in the vocabulary."""


class SparseEncoder(ABC):
    """Turns texts into sparse activations over a vocabulary.

    Two encoders with the same `fingerprint` give the same vectors for the same texts; an index keeps the
    fingerprint of the encoder that filled it and refuses another.
    """

    family: ClassVar[str]
    """Name of the family: ``"bm25"``, ``"splade"``, ``"inference_free"``, ``"expanded_queries"``, …; also kept in saved
    folders."""

    source: str | None = None
    """The absolute folder, packaged name or hub name that the encoder was loaded from; None for one made in memory."""

    @property
    @abstractmethod
    def vocabulary(self) -> Vocabulary: ...

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 over everything that changes the vectors."""

    @abstractmethod
    def encode_documents(self, texts: Sequence[str], advance: Advance | None = None) -> SparseActivations:
        """Encode documents: float32 weights > 0, units ascending and distinct within a row, rows in input order.

        `advance` is called with the number of texts done since the last call.
        """

    @abstractmethod
    def encode_queries(self, texts: Sequence[str]) -> SparseActivations:
        """Encode queries, in the same form as documents."""

    @abstractmethod
    def token_lengths(self, texts: Sequence[str]) -> list[int]:
        """How many tokens the encoder reads in each text: what batches and usage are counted by."""

    def count_tokens(self, texts: Sequence[str]) -> int:
        """How many tokens the encoder reads in these texts together."""
        return sum(self.token_lengths(texts))

    def unknown_terms(self, text: str) -> list[str]:  # noqa: ARG002 - families with whole words use it
        """Terms of a query that the vocabulary cannot express; none where it is made of subwords."""
        return []

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what `load` needs to restore this encoder into `folder` (created if missing)."""

    def save_for_search(self, folder: Path) -> None:
        """Write what encoding queries needs into `folder`, for an index to carry.

        Here that is a reference to where the encoder came from, since most models are far larger than what an
        index should copy; families that can do better override it.
        """
        from retrieval.encoders.catalogue import write_reference

        if self.source is None:
            self.save(folder)
        else:
            write_reference(folder, self)

    @classmethod
    @abstractmethod
    def from_folder(cls, folder: Path, **options: Any) -> Self:
        """Restore what `save` wrote, or read the family's public folder formats."""

    @staticmethod
    def load(name: str | Path, **options: Any) -> SparseEncoder:
        """Load an encoder: ``"bm25"`` (untrained), ``"lexpert-mini"`` (which comes with the package), a folder, or a
        name on the Hugging Face hub.

        Raises:
            NotFoundError: no such folder, and the hub has no such name or cannot be reached; or a package that the
                encoder needs is missing.
            FormatError: the folder is not an encoder of a known family.
            UsageError: an option that the family does not have.
        """
        from retrieval.encoders.catalogue import load_encoder

        return load_encoder(name, **options)


class CountingEncoder(SparseEncoder):
    """An encoder whose document weights depend on statistics of the whole collection.

    Documents are counted first, then `fit_statistics` is called once with what the counts add up to, then
    `weigh` turns counts into weights; so a collection is read and analysed only once.
    """

    @property
    @abstractmethod
    def is_fitted(self) -> bool: ...

    @abstractmethod
    def fit(self, texts: Iterable[str], workers: int = 1) -> Self:
        """Learn the statistics of a collection, read once; returns the encoder."""

    @abstractmethod
    def count_batches(
        self, batches: Iterable[Sequence[str]], workers: int = 1
    ) -> Iterator[tuple[SparseActivations, NDArray[np.int64]]]:
        """Yield counts and document lengths of each batch; terms not met before join the vocabulary."""

    @abstractmethod
    def fit_statistics(
        self, document_frequency: NDArray[np.int64], num_documents: int, total_length: int
    ) -> None:
        """Take the collection's statistics; `document_frequency` is int64 ``[len(vocabulary)]``."""

    @abstractmethod
    def weigh(
        self, units: NDArray[Any], counts: NDArray[np.float32], lengths: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Weights of counts: all float32 ``[nnz]``; `lengths` is that of the document of each count."""
