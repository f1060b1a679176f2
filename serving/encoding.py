"""Encoders as a server uses them: by one thread at a time."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retrieval import SparseEncoder
    from retrieval.encoders.encoder import Vocabulary
    from runtime.activations import SparseActivations


class ServedEncoder:
    """An encoder behind a lock.

    Encoders keep caches and may compute on all cores, so two threads in one of them would at best be in each
    other's way. Searching needs no lock, and takes place outside of it.
    """

    def __init__(self, encoder: SparseEncoder) -> None:
        self._encoder = encoder
        # Asked for on the event loop; some encoders read all their weights to compute it.
        self.fingerprint = encoder.fingerprint
        self._lock = Lock()

    @property
    def name(self) -> str:
        return self._encoder.family

    @property
    def vocabulary(self) -> Vocabulary:
        return self._encoder.vocabulary

    def encode_documents(self, texts: Sequence[str]) -> SparseActivations:
        with self._lock:
            return self._encoder.encode_documents(texts)

    def encode_queries(self, texts: Sequence[str]) -> SparseActivations:
        with self._lock:
            return self._encoder.encode_queries(texts)

    def count_tokens(self, texts: Sequence[str]) -> int:
        with self._lock:
            return self._encoder.count_tokens(texts)

    def unknown_terms(self, texts: Sequence[str]) -> list[list[str]]:
        """For each text, the terms that the vocabulary cannot express."""
        with self._lock:
            return [self._encoder.unknown_terms(text) for text in texts]
