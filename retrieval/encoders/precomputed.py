"""The encoder of an index whose vectors were made elsewhere: a vocabulary, and nothing that reads texts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

import numpy as np

from retrieval.encoders.bm25 import TermVocabulary
from retrieval.encoders.catalogue import ENCODER_FILE
from retrieval.encoders.encoder import Advance, SparseEncoder, Vocabulary
from retrieval.index.arrays import ArrayFile, ArrayFolderWriter
from retrieval.index.string_table import StringTable
from runtime.activations import SparseActivations
from runtime.errors import FormatError, InputError, UsageError

FORMAT_VERSION = 1


class NumberedVocabulary(Vocabulary):
    """Units that have no names: their terms are their numbers, ``"0"`` to ``str(num_units - 1)``."""

    def __init__(self, num_units: int) -> None:
        self._num_units = num_units

    def __len__(self) -> int:
        return self._num_units

    def term(self, unit: int) -> str:
        if not 0 <= unit < self._num_units:
            raise IndexError(f"unit {unit} of {self._num_units}")
        return str(unit)

    def find(self, terms: Sequence[str]) -> list[int]:
        return [self._unit(term) for term in terms]

    def _unit(self, term: str) -> int:
        # 007 and ７ are numbers for int(), but no terms of this vocabulary.
        digits = term.isascii() and term.isdigit() and len(term) < 20
        return int(term) if digits and str(int(term)) == term and int(term) < self._num_units else -1


class PrecomputedEncoder(SparseEncoder):
    """Stands in an index for whatever made its vectors; knows their units and cannot encode.

    An index of it takes vectors (`IndexWriter.add_vectors`) and is searched with vectors. Encoders with the same
    vocabulary count as the same, since nothing else is known of them.

    Args:
        vocabulary: the term of every unit, distinct; more may join it by ``encoder.vocabulary.learn`` before the
            index is committed. None where units have no names but their numbers.
        num_units: how many units there are; needed without a vocabulary.

    Raises:
        UsageError: neither is given, they disagree, or a term stands twice in the vocabulary.
    """

    family: ClassVar[str] = "precomputed"

    def __init__(self, vocabulary: Sequence[str] | None = None, num_units: int | None = None) -> None:
        if vocabulary is None:
            if num_units is None or num_units < 0:
                raise UsageError("precomputed: give the vocabulary, or num_units where units have no names")
            self._vocabulary: TermVocabulary | NumberedVocabulary = NumberedVocabulary(int(num_units))
            return
        if num_units is not None and num_units != len(vocabulary):
            raise UsageError(
                f"precomputed: num_units is {num_units}, but the vocabulary has {len(vocabulary)} terms; leave it out"
            )
        if len(set(vocabulary)) != len(vocabulary):
            (twice, _), *_ = Counter(vocabulary).most_common(1)
            raise UsageError(f"precomputed: the vocabulary holds {twice!r:.60} twice; terms must be distinct")
        self._vocabulary = TermVocabulary(StringTable.from_strings(vocabulary))

    @property
    def vocabulary(self) -> TermVocabulary | NumberedVocabulary:
        return self._vocabulary

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps(self._settings(), sort_keys=True).encode())
        if isinstance(self._vocabulary, TermVocabulary):
            table = self._vocabulary.table()
            digest.update(np.ascontiguousarray(table.offsets, "<i8").data)
            digest.update(np.ascontiguousarray(table.data).data)
        return digest.hexdigest()

    def _settings(self) -> dict[str, Any]:
        named = isinstance(self._vocabulary, TermVocabulary)
        return {"family": self.family, "named": named, "num_units": len(self._vocabulary)}

    # Texts

    def encode_documents(self, texts: Sequence[str], advance: Advance | None = None) -> SparseActivations:  # noqa: ARG002
        """Refuse: InputError."""
        self._refuse("documents")

    def encode_queries(self, texts: Sequence[str]) -> SparseActivations:  # noqa: ARG002
        """Refuse: InputError."""
        self._refuse("queries")

    def token_lengths(self, texts: Sequence[str]) -> list[int]:  # noqa: ARG002
        """Refuse: InputError."""
        self._refuse("texts")

    def _refuse(self, what: str) -> NoReturn:
        raise InputError(
            f"the index holds vectors that were made elsewhere and cannot encode {what}; give vectors, or import "
            "them again with the encoder that made them"
        )

    # On disk

    def save(self, folder: Path) -> None:
        """Write the vocabulary as plain arrays with checksums."""
        with ArrayFolderWriter(folder) as arrays:
            if isinstance(self._vocabulary, TermVocabulary):
                self._vocabulary.table().write(arrays, "terms")
            files = arrays.close()
        described = {
            **self._settings(),
            "version": FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "files": {name: file.model_dump() for name, file in files.items()},
        }
        (folder / ENCODER_FILE).write_text(json.dumps(described, indent=1) + "\n", "utf-8")

    def save_for_search(self, folder: Path) -> None:
        self.save(folder)

    @classmethod
    def from_folder(cls, folder: Path, **options: Any) -> Self:
        """Open what `save` wrote; terms are mapped, not read.

        Raises:
            FormatError: an unknown version, or a file that is not as long as it was.
        """
        path = folder / ENCODER_FILE
        if options:
            raise UsageError(
                f"{folder} stands for vectors made elsewhere; it takes no options ({', '.join(options)})"
            )
        try:
            described = json.loads(path.read_text("utf-8"))
            if described["version"] != FORMAT_VERSION:
                raise FormatError(
                    f"{path} has version {described['version']}, but this lexpert reads version {FORMAT_VERSION}; "
                    "import the vectors again or install that lexpert"
                )
            encoder = cls(num_units=described["num_units"])
            if described["named"]:
                files = {name: ArrayFile(**file) for name, file in described["files"].items()}
                encoder._vocabulary = TermVocabulary(StringTable.open(folder, "terms", files))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"{path} is damaged ({error}); import the vectors again") from error
        return encoder
