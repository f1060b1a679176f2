"""Inference-free SPLADE: documents through a masked language model, queries through a table.

Reads sentence-transformers' router folders and its own query-only folders, which hold the tokenizer and the
table alone: enough to search an index, without the document model, torch or transformers.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from retrieval.encoders import sentence_transformers_folder as st_folder
from retrieval.encoders.catalogue import ENCODER_FILE, load_encoder
from retrieval.encoders.encoder import Advance, SparseEncoder, Vocabulary
from retrieval.encoders.fingerprint import fingerprint, tokenizer_files
from retrieval.encoders.query_table import read_query_table
from retrieval.encoders.sentence_transformers_folder import SpladeRoute, TableRoute
from retrieval.encoders.splade import SpladeOptions, SpladeSide
from runtime.activations import SparseActivations
from runtime.errors import FormatError, LexpertError, UsageError

QUERY_SIDE_VERSION = 1
WEIGHTS = "model.safetensors"


class InferenceFreeEncoder(SparseEncoder):
    """Documents as SPLADE, queries by a table of token weights.

    Loading it reads the query side only; the document model follows when documents are first encoded.
    Weights of the table that are not above 0 light up nothing.
    """

    family = "inference_free"

    def __init__(
        self,
        queries: TableRoute,
        documents: SpladeSide | None,
        max_active_dims: int | None = None,
        fingerprint_of_both: str | None = None,
    ) -> None:
        """Read the query side.

        Args:
            documents: None in a query-only encoder.
            max_active_dims: keep only so many terms of a query.
            fingerprint_of_both: of the whole encoder, which a query-only one stands for.
        """
        self._route = queries
        self._table = read_query_table(queries.folder, queries.weights)
        self._documents = documents
        self._max_active_dims = max_active_dims
        self._fingerprint_of_both = fingerprint_of_both
        self._whole: str | None = None
        self._whole_options: dict[str, Any] = documents.options.of_vectors() if documents else {}

    @classmethod
    def from_folder(cls, folder: Path, **options: Any) -> Self:
        """Read a router folder or what `save_query_side` wrote; for the options see `SpladeOptions`.

        Raises:
            FormatError: the folder is not an inference-free encoder, or is damaged.
            UsageError: an unknown option.
        """
        parsed = SpladeOptions.parse(options)
        own = _read_own(folder)
        if own is not None and own.get("query_only"):
            return cls._from_query_side(folder, own)
        described = st_folder.read_folder(folder)
        if not isinstance(described.queries, TableRoute):
            raise FormatError(f"{folder} encodes queries by a model; it is a splade encoder")
        limit = parsed.max_active_dims or described.max_active_dims
        return cls(described.queries, SpladeSide(described.documents, parsed, limit), limit)

    @classmethod
    def _from_query_side(cls, folder: Path, own: dict[str, Any]) -> Self:
        if own.get("version") != QUERY_SIDE_VERSION:
            raise FormatError(
                f"{folder / ENCODER_FILE} has version {own.get('version')!r}, but only "
                f"{QUERY_SIDE_VERSION} is known here; update lexpert or save the encoder again"
            )
        route = TableRoute(folder, folder / WEIGHTS, str(own.get("prompt") or ""))
        limit = st_folder.length_in(own, "max_active_dims", folder / ENCODER_FILE)
        encoder = cls(route, None, limit, str(own.get("fingerprint")))
        encoder._whole = own.get("source")
        encoder._whole_options = st_folder.object_in(own, "options", folder / ENCODER_FILE)
        if encoder._query_fingerprint != own.get("query_fingerprint"):
            raise FormatError(f"the query side in {folder} is not what was saved; save the encoder again")
        return encoder

    @property
    def vocabulary(self) -> Vocabulary:
        return self._table.vocabulary

    @property
    def query_prompt(self) -> str:
        """What is put before each query."""
        return self._route.prompt

    @property
    def documents(self) -> SpladeSide:
        """The documents' side, which may not have loaded its model yet. Raises what `encode_documents` does."""
        if self._documents is None:
            self._documents = self._document_side_of_whole()
        return self._documents

    @cached_property
    def _query_fingerprint(self) -> str:
        settings = {
            "prompt": self._route.prompt,
            "max_active_dims": self._max_active_dims,
            "weights": hashlib.sha256(self._table.weights.astype("<f4").tobytes()).hexdigest(),
        }
        return fingerprint(settings, tokenizer_files(self._route.folder))

    @cached_property
    def fingerprint(self) -> str:  # hashing the weights takes a second
        if self._documents is None:
            return str(self._fingerprint_of_both)
        settings = {
            "family": self.family,
            "documents": self._documents.settings(),
            "queries": self._query_fingerprint,
        }
        return fingerprint(settings, self._documents.files())

    def token_lengths(self, texts: Sequence[str]) -> list[int]:
        """Without special tokens."""
        return self._table.token_lengths(texts)

    def encode_documents(self, texts: Sequence[str], advance: Advance | None = None) -> SparseActivations:
        """Encode with the document model, which is loaded at the first call.

        The query side alone looks for the whole encoder where it was when the query side was saved.

        Raises:
            UsageError: this is the query side alone, and the whole encoder is not there or has changed.
            FormatError: the model's vocabulary and the query table differ in size.
        """
        documents = self.documents
        width = len(documents.model.vocabulary)
        if width != len(self._table.weights):
            raise FormatError(
                f"the document model in {documents.route.folder} has {width} terms, but the query "
                f"table has {len(self._table.weights)}; both must share one vocabulary"
            )
        return documents.encode(texts, advance)

    def _document_side_of_whole(self) -> SpladeSide:
        alone = f"{self._route.folder} holds only the query side of an encoder"
        if self._whole is None:
            raise UsageError(f"{alone}; to encode documents, give the folder of the whole encoder")
        try:
            whole = load_encoder(self._whole, **self._whole_options)
        except LexpertError as error:
            raise UsageError(
                f"{alone}, and the whole one cannot be had: {error}; to encode documents, give its folder"
            ) from error
        documents = whole._documents if isinstance(whole, InferenceFreeEncoder) else None
        if documents is None or whole.fingerprint != self.fingerprint:
            raise UsageError(
                f"{alone}, and {self._whole} is not what it was made from any more; give the right folder"
            )
        return documents

    def encode_queries(self, texts: Sequence[str], *, counted: bool = False) -> SparseActivations:
        """Look tokens up; `counted` as `QueryTable.encode` has it, which sentence-transformers does not know."""
        return self._table.encode(texts, self._route.prompt, self._max_active_dims, counted=counted)

    def save(self, folder: Path) -> None:
        """Write a sentence-transformers router folder; a query-only encoder writes its query side again."""
        documents = self._documents
        if documents is None:
            self.save_query_side(folder)
            return
        query, modules = (
            "query_0_SparseStaticEmbedding",
            st_folder.splade_modules(documents.route, "document"),
        )
        self._write_table(folder / query)
        (folder / query / "config.json").write_text('{"frozen": false}\n', "utf-8")
        transformer, pooling, *expansion = (folder / module for module in modules)
        documents.write(transformer, pooling, len(self._table.weights), *expansion)
        st_folder.write_router(folder, {"query": [query], "document": modules})
        prompts = {"query": self._route.prompt, "document": documents.route.prompt}
        st_folder.write_config(folder, prompts, self._max_active_dims)
        _write_own(folder, {"family": self.family})

    def save_query_side(self, folder: Path) -> None:
        """Write tokenizer and table alone, under the fingerprint of the whole encoder.

        What is written loads with `SparseEncoder.load` and encodes the same queries; an index can carry it.
        """
        self._write_table(folder)
        _write_own(
            folder,
            {
                "family": self.family,
                "version": QUERY_SIDE_VERSION,
                "query_only": True,
                "prompt": self._route.prompt,
                "max_active_dims": self._max_active_dims,
                "fingerprint": self.fingerprint,
                "query_fingerprint": self._query_fingerprint,
                "source": self._whole or self.source,
                "options": self._whole_options,
            },
        )

    def save_for_search(self, folder: Path) -> None:
        """The query side is small, so an index carries it whole."""
        self.save_query_side(folder)

    def _write_table(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        if folder.samefile(self._route.folder):
            raise UsageError(f"the encoder was loaded from {folder}; save it into another folder")
        for name, path in tokenizer_files(self._route.folder).items():
            shutil.copyfile(path, folder / name)
        save_file({"weight": self._table.weights}, folder / WEIGHTS)


def inference_free_from(documents: SpladeRoute, queries: TableRoute, **options: Any) -> InferenceFreeEncoder:
    """Put an inference-free encoder together from a document model and a query table."""
    parsed = SpladeOptions.parse(options)
    limit = parsed.max_active_dims
    return InferenceFreeEncoder(queries, SpladeSide(documents, parsed, limit), limit)


def _read_own(folder: Path) -> dict[str, Any] | None:
    path = folder / ENCODER_FILE
    return st_folder.read_object(path) if path.is_file() else None


def _write_own(folder: Path, value: dict[str, Any]) -> None:
    (folder / ENCODER_FILE).write_text(json.dumps(value, indent=2) + "\n", "utf-8")
