"""CSR: sparse codes over a dense encoder (Wen et al. 2025), searched like any sparse vectors; see
`retrieval.encoders.sparse_autoencoder`. Folders are sentence-transformers', with equal codes where the allocation is
top-k; other allocations are known here alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.encoders import sentence_transformers_folder as st_folder
from retrieval.encoders.catalogue import ENCODER_FILE, write_reference
from retrieval.encoders.dense import DenseEncoder
from retrieval.encoders.dense_folder import dense_modules, modules_of_both, write_dense_folder
from retrieval.encoders.encoder import Advance, SparseEncoder, Vocabulary
from retrieval.encoders.precomputed import NumberedVocabulary
from retrieval.encoders.sparse_autoencoder import SparseAutoencoder
from runtime.activations import SparseActivations
from runtime.errors import FormatError, UsageError

KIND = "SparseAutoEncoder"
OPTIONS = ("device", "dtype", "token_budget", "max_length", "max_active_dims")


class CsrEncoder(SparseEncoder):
    """A dense encoder and an autoencoder; units are latents, which have numbers and no names.

    Where the similarity is the cosine, as is usual for vectors of length 1, codes are brought to length 1, so that a
    dot product of two is their cosine.
    """

    family = "csr"

    def __init__(
        self,
        dense: DenseEncoder,
        autoencoder: SparseAutoencoder,
        similarity: str = "cosine",
        max_active_dims: int | None = None,
    ) -> None:
        """Put them together.

        Args:
            similarity: ``"cosine"`` or ``"dot"``.
            max_active_dims: k of the codes, in place of the autoencoder's.

        Raises:
            UsageError: `similarity` is neither.
            FormatError: the autoencoder takes vectors of another width.
        """
        if similarity not in ("cosine", "dot"):
            raise UsageError(f"the similarity of codes is cosine or dot, not {similarity!r}")
        if autoencoder.weight.shape[1] != dense.width:
            raise FormatError(
                f"the autoencoder takes vectors of {autoencoder.weight.shape[1]} values, but those of {dense.source} "
                f"have {dense.width}"
            )
        self.dense = dense
        self.autoencoder = autoencoder
        self.similarity = similarity
        self._limit = max_active_dims
        self._options: dict[str, Any] = {}
        self._vocabulary = NumberedVocabulary(len(autoencoder.weight))

    @classmethod
    def from_folder(cls, folder: Path, **options: Any) -> Self:
        """Read a folder of sentence-transformers that ends in a SparseAutoEncoder; for the options see `DenseEncoder`.

        Raises:
            FormatError: not such a folder, or a damaged one.
            UsageError: an unknown option.
        """
        for name in options:
            if name not in OPTIONS:
                raise UsageError(f"a csr encoder has no option {name!r}; it has {', '.join(OPTIONS)}")
        limit = options.pop("max_active_dims", None)
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
            raise UsageError(f"max_active_dims must be a whole number of 1 or more, not {limit!r}")
        modules = modules_of_both(folder)
        if not modules or modules[-1][0] != KIND:
            raise FormatError(f"{folder} does not end in a {KIND}; it is no csr encoder")
        path = folder / "config_sentence_transformers.json"
        config = st_folder.read_object(path)
        dense = DenseEncoder.from_description(dense_modules(folder, *modules[:-1]), **options)
        encoder = cls(
            dense,
            SparseAutoencoder.load(modules[-1][1]),
            str(config.get("similarity_fn_name") or "dot"),  # the default of sentence-transformers
            limit or st_folder.length_in(config, "max_active_dims", path),
        )
        encoder._options = {"max_length": options.get("max_length"), "max_active_dims": limit}
        return encoder

    @property
    def vocabulary(self) -> Vocabulary:
        return self._vocabulary

    @cached_property
    def fingerprint(self) -> str:  # hashing the weights takes a second
        import hashlib

        coder = self.autoencoder
        settings = [coder.k, coder.allocation, coder.layer_norm, self.similarity, self._limit]
        digest = hashlib.sha256(json.dumps([self.family, self.dense.fingerprint, settings]).encode())
        for array in (coder.weight, coder.latent_bias, coder.bias, coder.thresholds):
            if array is not None:
                digest.update(np.ascontiguousarray(array, "<f4").tobytes())
        return digest.hexdigest()

    def encode_documents(self, texts: Sequence[str], advance: Advance | None = None) -> SparseActivations:
        """Codes of documents. A text without content lights up nothing."""
        return self._codes(texts, self.dense.encode_documents(texts, advance))

    def encode_queries(self, texts: Sequence[str]) -> SparseActivations:
        return self._codes(texts, self.dense.encode_queries(texts))

    def codes(self, vectors: NDArray[np.float32]) -> SparseActivations:
        """Codes of the dense encoder's vectors, float32 ``[rows, dense.width]``."""
        codes = self.autoencoder.codes(vectors, self._limit)
        if self.similarity == "dot" or not codes.nnz:
            return codes
        rows = np.repeat(np.arange(codes.num_rows), np.diff(codes.indptr))
        norms = np.sqrt(np.bincount(rows, np.square(codes.weights, dtype=np.float64), codes.num_rows))
        return replace(codes, weights=(codes.weights / norms[rows]).astype(np.float32))

    def _codes(self, texts: Sequence[str], vectors: NDArray[np.float32]) -> SparseActivations:
        given = np.array([bool(text.strip()) for text in texts], bool)
        codes = self.codes(vectors)
        lit = np.repeat(given, np.diff(codes.indptr))
        indptr = np.concatenate([[0], np.cumsum(np.diff(codes.indptr) * given)])
        return SparseActivations(indptr, codes.units[lit], codes.weights[lit], codes.num_units)

    def token_lengths(self, texts: Sequence[str]) -> list[int]:
        return self.dense.token_lengths(texts)

    def save(self, folder: Path) -> None:
        """Write a folder of sentence-transformers, modules named as in its version 5.

        Raises:
            UsageError: `folder` is the one that the encoder was loaded from.
        """
        folder.mkdir(parents=True, exist_ok=True)
        described = self.dense.described
        if folder.samefile(described.transformer) or folder.samefile(described.folder):
            raise UsageError(f"the encoder was loaded from {folder}; save it into another folder")
        modules = write_dense_folder(described, folder)
        name = f"{len(modules)}_{KIND}"
        self.autoencoder.save(folder / name)
        modules.append(st_folder.module_entry(len(modules), name, f"{st_folder.V5_MODULES}.{KIND}"))
        prompts = {"query": described.query_prompt, "document": described.document_prompt}
        st_folder.write_config(folder, prompts, self._limit, self.similarity)
        st_folder.write_json(folder / "modules.json", modules)
        st_folder.write_json(folder / ENCODER_FILE, {"family": self.family})

    def save_for_search(self, folder: Path) -> None:
        """Write a reference to where the encoder came from, with the options that change its vectors."""
        if self.source is None:
            self.save(folder)
        else:
            options = {name: value for name, value in self._options.items() if value is not None}
            write_reference(folder, self, options)
