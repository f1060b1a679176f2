"""Queries by a table and by what they mean: the words of a query weigh what a table says, and the expansion of the
documents' model adds terms that its dense vector stands for.

A query costs one pass through the transformer, without its vocabulary head, in exchange for a part of what a dense
encoder finds: of the terms that queries are expanded by, documents have weights from the same vector (see
`QueryExpansion`), so that both sides meet where they mean the same in other words.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.encoders.catalogue import ENCODER_FILE, write_reference
from retrieval.encoders.encoder import Advance, SparseEncoder, Vocabulary
from retrieval.encoders.fingerprint import fingerprint
from retrieval.encoders.inference_free import InferenceFreeEncoder
from runtime.activations import SparseActivations
from runtime.errors import FormatError


class ExpandedQueriesEncoder(SparseEncoder):
    """An inference-free encoder whose queries are expanded by its documents' model.

    `max_active_dims` bounds what the table gives a query; the expansion has a limit of its own.
    """

    family = "expanded_queries"

    def __init__(self, whole: InferenceFreeEncoder) -> None:
        """Take an encoder with its documents' side.

        Raises:
            FormatError: its model has no expansion of queries, or another vocabulary than its table.
        """
        self._whole = whole
        model = whole.documents.model
        if model.expansion is None or model.expansion.of_queries is None:
            raise FormatError(
                f"{whole.documents.route.folder} has no term expansion of queries; it is an inference_free encoder"
            )
        if len(model.vocabulary) != len(whole.vocabulary):
            raise FormatError(
                f"the document model in {whole.documents.route.folder} has {len(model.vocabulary)} terms, but the "
                f"query table has {len(whole.vocabulary)}; both must share one vocabulary"
            )

    @classmethod
    def from_folder(cls, folder: Path, **options: Any) -> Self:
        """Read what `save` wrote; for the options see `SpladeOptions`.

        Raises:
            FormatError: the folder is not such an encoder, or is damaged.
            UsageError: an unknown option.
        """
        return cls(InferenceFreeEncoder.from_folder(folder, **options))

    @property
    def vocabulary(self) -> Vocabulary:
        return self._whole.vocabulary

    @cached_property
    def fingerprint(self) -> str:  # hashing the weights takes a second
        return fingerprint({"family": self.family, "whole": self._whole.fingerprint}, {})

    def encode_documents(self, texts: Sequence[str], advance: Advance | None = None) -> SparseActivations:
        return self._whole.encode_documents(texts, advance)

    def encode_queries(self, texts: Sequence[str]) -> SparseActivations:
        """The sum of the table's weights and the expansion's; an empty text lights up nothing.

        A word that a text repeats weighs more, by the logarithm of how often it is there: long questions, which need
        expansion least, say so what they are about.
        """
        words = self._whole.encode_queries(texts, counted=True)
        meanings = self._whole.documents.expansion_of_queries(texts)
        return sum_of(words, meanings)

    def token_lengths(self, texts: Sequence[str]) -> list[int]:
        """Special tokens included, cut at the longest that the model reads."""
        documents = self._whole.documents
        return documents.model.token_lengths(texts, documents.route.max_length)

    def save(self, folder: Path) -> None:
        """Write the folder of an inference-free encoder, which says that its queries are expanded.

        Raises:
            UsageError: `folder` is the one that the encoder was loaded from.
        """
        self._whole.save(folder)
        (folder / ENCODER_FILE).write_text(json.dumps({"family": self.family}) + "\n", "utf-8")

    def save_for_search(self, folder: Path) -> None:
        """Write a reference to where the encoder came from, with the options that change its vectors: queries need the
        model, too."""
        if self.source is None:
            self.save(folder)
        else:
            write_reference(folder, self, self._whole.documents.options.of_vectors())


def sum_of(a: SparseActivations, b: SparseActivations) -> SparseActivations:
    """Row by row the sum of two batches over the same units."""
    order = np.argsort(np.concatenate([_rows(a), _rows(b)]), kind="stable")
    units, weights = (np.concatenate(pair)[order] for pair in ((a.units, b.units), (a.weights, b.weights)))
    return SparseActivations(a.indptr + b.indptr, units, weights, a.num_units).coalesce()


def _rows(batch: SparseActivations) -> NDArray[np.int64]:
    """The row of each entry."""
    return np.repeat(np.arange(len(batch)), np.diff(batch.indptr))
