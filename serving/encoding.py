"""Encoders as a server uses them: those that cannot be shared by threads, by one request at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from runtime.activations import SparseActivations
from serving.deadline import Deadline

if TYPE_CHECKING:
    from retrieval import SparseEncoder
    from retrieval.encoders.encoder import Vocabulary

Encoded = TypeVar("Encoded")

SHARED_FAMILIES = frozenset({"bm25"})
"""Encoders that threads may share. The others compute on all cores, so two at once would be in each other's way."""

VECTORS_ONLY_FAMILIES = frozenset({"precomputed"})

BATCH = 32
"""Texts encoded, and queries searched, between two looks at the deadline."""


class ServedEncoder:
    """An encoder, with a turn to wait for if threads cannot share it."""

    def __init__(self, encoder: SparseEncoder) -> None:
        self.encoder = encoder
        # Asked for on the event loop; some encoders read all their weights to compute it.
        self.fingerprint = encoder.fingerprint
        self.turn = None if encoder.family in SHARED_FAMILIES else asyncio.Lock()
        """Waited for on the event loop, so that those who wait do not take threads from other indexes."""
        # A request that ran out of time gives its turn back while its thread still works on the last batch.
        self._alone: AbstractContextManager[object] = nullcontext() if self.turn is None else Lock()

    @property
    def name(self) -> str:
        return self.encoder.family

    @property
    def can_encode(self) -> bool:
        """Whether it turns texts into vectors; some only stand for what made the vectors elsewhere."""
        return self.encoder.family not in VECTORS_ONLY_FAMILIES

    @property
    def vocabulary(self) -> Vocabulary:
        return self.encoder.vocabulary

    def encode(self, texts: Sequence[str], role: str, deadline: Deadline) -> SparseActivations:
        """Vectors of texts as `role`, ``"query"`` or ``"document"``, batch by batch while there is time."""
        encode = self.encoder.encode_queries if role == "query" else self.encoder.encode_documents
        batches = []
        for first in range(0, len(texts), BATCH):
            deadline.check()
            with self._alone, deadline.stage("encode"):
                batches.append(encode(texts[first : first + BATCH]))
        return batches[0] if len(batches) == 1 else SparseActivations.concat(batches)

    def count_tokens(self, texts: Sequence[str]) -> int:
        with self._alone:
            return self.encoder.count_tokens(texts)

    def unknown_terms(self, texts: Sequence[str]) -> list[list[str]]:
        """For each text, the terms that the vocabulary cannot express."""
        with self._alone:
            return [self.encoder.unknown_terms(text) for text in texts]

    def apart(
        self, encode: Callable[[], Encoded], finish: Callable[[Encoded], bytes | EncodingTurn[Any]]
    ) -> bytes | EncodingTurn[Any]:
        """``finish(encode())``, now if threads may share the encoder, else when it is the request's turn."""
        return finish(encode()) if self.turn is None else EncodingTurn(self.turn, encode, finish)


@dataclass(frozen=True)
class EncodingTurn(Generic[Encoded]):
    """Work in two parts, of which only the first needs the encoder: searching is for many threads at once.

    What remains after the second may be such work again, at another encoder.
    """

    turn: asyncio.Lock
    encode: Callable[[], Encoded]
    finish: Callable[[Encoded], bytes | EncodingTurn[Any]]
