"""Encoders as a server uses them: at once where threads may share them, else together with what others ask for."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from runtime.activations import SparseActivations
from serving.deadline import Deadline
from serving.errors import overloaded
from serving.text_batcher import Encoded, TextBatcher

if TYPE_CHECKING:
    from retrieval import SparseEncoder
    from retrieval.encoders.encoder import Vocabulary
    from serving.shards import ToShards

Rest: TypeAlias = "bytes | ToEncode[Any] | ToShards"
"""The body of an answer, or what remains to be done for it."""

Rows = TypeVar("Rows")

SHARED = frozenset({("bm25", "query"), ("bm25", "document"), ("inference_free", "query")})
"""Families, and roles of texts, that are looked up in tables: threads may share them. The others compute on all cores,
so two at once would be in each other's way."""

VECTORS_ONLY_FAMILIES = frozenset({"precomputed"})

BATCH = 32
"""Texts that are looked up, and queries searched, between two looks at the deadline."""

LONGEST_RETRY_S = 60


class ServedEncoder:
    """An encoder, with a queue if threads cannot share it."""

    def __init__(self, encoder: SparseEncoder) -> None:
        self.encoder = encoder
        # Asked for on the event loop; some encoders read all their weights to compute it.
        self.fingerprint = encoder.fingerprint
        # Not with a method of this object: a cycle would keep the files of exchanged indexes open for a while.
        self._encode_as = partial(encode_as, encoder)
        self.batcher = TextBatcher(self._encode_as, encoder.token_lengths, SparseActivations.concat)

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

    def encode(
        self,
        texts: Sequence[str],
        role: str,
        deadline: Deadline,
        finish: Callable[[SparseActivations, int | None], Rest],
    ) -> Rest:
        """Go on with the vectors of texts as `role`, ``"query"`` or ``"document"``: now, or when they are encoded.

        Args:
            finish: takes the vectors, and how many tokens the texts have if they have been counted.
        """
        if (self.encoder.family, role) not in SHARED:
            return ToEncode(self.batcher, texts, role, finish)
        batches = []
        for first in range(0, len(texts), BATCH):
            deadline.check()
            with deadline.stage("encode"):
                batches.append(self._encode_as(texts[first : first + BATCH], role))
        return finish(batches[0] if len(batches) == 1 else SparseActivations.concat(batches), None)

    def warm_up(self) -> None:
        """Encode once, in the thread that encodes, so that no request waits for what is loaded on first use."""
        if (self.encoder.family, "query") in SHARED:
            self._encode_as(["warm up"], "query")
        elif self.can_encode:
            self.batcher.submit(["warm up"], "query").result()

    def unknown_terms(self, texts: Sequence[str]) -> list[list[str]]:
        """For each text, the terms that the vocabulary cannot express."""
        return [self.encoder.unknown_terms(text) for text in texts]


def encode_as(encoder: SparseEncoder, texts: Sequence[str], role: str) -> SparseActivations:
    return encoder.encode_queries(texts) if role == "query" else encoder.encode_documents(texts)


@dataclass(frozen=True)
class ToEncode(Generic[Rows]):
    """Texts to encode together with those of other requests, and what is done with the vectors.

    What `finish` leaves may be such work again, at another encoder. It takes the vectors and the number of tokens.
    """

    batcher: TextBatcher[Rows]
    texts: Sequence[str]
    role: str
    finish: Callable[[Rows, int | None], Rest]

    async def encoded(self, deadline: Deadline) -> Encoded[Rows]:
        """The vectors, when it is their turn.

        Cancelling it takes the texts out of the queue.

        Raises:
            ApiError: 429 if more waits than will be encoded before the request's time is over.
        """
        expected_s = self.batcher.expected_s(self.texts)
        if expected_s > deadline.remaining_s:
            raise overloaded(min(math.ceil(expected_s), LONGEST_RETRY_S))
        asked = time.perf_counter()
        encoded = await asyncio.wrap_future(self.batcher.submit(self.texts, self.role))
        deadline.mark("queue", asked, encoded.began)
        deadline.mark("encode", encoded.began, encoded.ended)
        deadline.note("encode", encoded.seconds)
        return encoded
