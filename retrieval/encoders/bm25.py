"""BM25 as a sparse encoder: documents carry BM25 impacts, queries carry term counts.

With that split, one index and one scorer (a dot product) serve BM25 and learned sparse models alike.
Source: Robertson & Zaragoza (2009), in the variant of Lucene 8 and later: no factor (k1 + 1), and an idf that
stays positive.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.documents import text_batches
from retrieval.encoders.catalogue import ENCODER_FILE
from retrieval.encoders.counting_workers import count_batches
from retrieval.encoders.encoder import Advance, CountingEncoder, Vocabulary
from retrieval.encoders.english import EnglishAnalyzer
from retrieval.index.arrays import ArrayFile, ArrayFolderWriter, map_array
from retrieval.index.string_table import StringTable
from runtime.activations import SparseActivations
from runtime.errors import FormatError, UsageError

FORMAT_VERSION = 1
ANALYZER = "english-lucene-1"
"""Name and version of the analysis; part of the fingerprint, so it changes when `english` does."""


class TermVocabulary(Vocabulary):
    """Terms numbered in order of first appearance: a mapped table of saved ones, and those met since."""

    def __init__(self, saved: StringTable | None = None) -> None:
        self._saved = saved if saved is not None else StringTable.from_strings([])
        self._added: dict[str, int] = {}
        self._added_terms: list[str] = []

    def __len__(self) -> int:
        return len(self._saved) + len(self._added_terms)

    def term(self, unit: int) -> str:
        if unit < len(self._saved):
            return str(self._saved[unit])
        return self._added_terms[unit - len(self._saved)]

    def find(self, terms: Sequence[str]) -> list[int]:
        found = self._saved.find(terms).tolist() if len(self._saved) else [-1] * len(terms)
        added = self._added.get
        return [unit if unit >= 0 else added(term, -1) for term, unit in zip(terms, found, strict=True)]

    def learn(self, terms: Sequence[str]) -> NDArray[np.int32]:
        """The unit of each term; terms not met before are numbered on."""
        units = self.find(terms)
        for place, unit in enumerate(units):
            if unit < 0:
                units[place] = self._added[terms[place]] = len(self)
                self._added_terms.append(terms[place])
        return np.array(units, np.int32)

    def table(self) -> StringTable:
        """All terms as one table."""
        if not self._added_terms:
            return self._saved
        return StringTable.from_strings([*self._saved, *self._added_terms])


class Bm25Encoder(CountingEncoder):
    """BM25 impacts, ``idf(t) · tf / (tf + k1 · (1 − b + b · length / average length))``.

    Statistics are frozen when the encoder is fitted. Documents added later are weighed with them; a term that
    none of the fitted documents had is numbered on and weighed as if one document had it, so it can be found.

    Args:
        k1: saturation of the term count, ≥ 0.
        b: strength of the length normalisation, in [0, 1].
    """

    family: ClassVar[str] = "bm25"

    def __init__(self, k1: float = 0.9, b: float = 0.4) -> None:
        if not k1 >= 0 or not np.isfinite(k1):
            raise UsageError(f"bm25: k1 is {k1}, but must be 0 or more (0.9 is usual)")
        if not 0 <= b <= 1:
            raise UsageError(f"bm25: b is {b}, but must lie between 0 and 1 (0.4 is usual)")
        self.k1 = float(k1)
        self.b = float(b)
        self.num_documents = 0
        self.total_length = 0
        self.document_frequency: NDArray[np.int64] = np.zeros(0, np.int64)
        self._vocabulary = TermVocabulary()
        self._of_thread = threading.local()
        self._fingerprint: str | None = None

    @property
    def vocabulary(self) -> TermVocabulary:
        return self._vocabulary

    @property
    def is_fitted(self) -> bool:
        return self.num_documents > 0

    @property
    def average_length(self) -> float:
        """Mean number of terms in a document of the collection."""
        return self.total_length / max(self.num_documents, 1)

    @property
    def fingerprint(self) -> str:
        if self._fingerprint is None:
            digest = hashlib.sha256(json.dumps(self._settings(), sort_keys=True).encode())
            if self.is_fitted:
                # Terms learned later do not change the vectors of earlier documents, and so not the encoder.
                table = self._vocabulary.table()
                fitted = len(self.document_frequency)
                digest.update(np.ascontiguousarray(table.offsets[: fitted + 1], "<i8").data)
                digest.update(np.ascontiguousarray(table.data[: table.offsets[fitted]]).data)
                digest.update(np.ascontiguousarray(self.document_frequency, "<i8").data)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def _settings(self) -> dict[str, Any]:
        return {
            "family": self.family,
            "analyzer": ANALYZER,
            "k1": self.k1,
            "b": self.b,
            "num_documents": self.num_documents,
            "total_length": self.total_length,
        }

    # Documents

    def fit(self, texts: Iterable[str], workers: int = 1) -> Self:
        """Learn the statistics of a collection, read once, in batches."""
        frequency = np.zeros(0, np.int64)
        num_documents = total_length = 0
        for counts, lengths in self.count_batches(text_batches(texts), workers):
            frequency = np.pad(frequency, (0, len(self._vocabulary) - len(frequency)))
            frequency += np.bincount(counts.units, minlength=len(frequency))
            num_documents += len(lengths)
            total_length += int(lengths.sum())
        self.fit_statistics(frequency, num_documents, total_length)
        return self

    def fit_statistics(
        self, document_frequency: NDArray[np.int64], num_documents: int, total_length: int
    ) -> None:
        self.document_frequency = document_frequency
        self.num_documents = num_documents
        self.total_length = total_length
        self._fingerprint = None

    def count_batches(
        self, batches: Iterable[Sequence[str]], workers: int = 1
    ) -> Iterator[tuple[SparseActivations, NDArray[np.int64]]]:
        for counted in count_batches(batches, workers):
            units = self._vocabulary.learn(counted.terms)[counted.units]
            yield (
                SparseActivations(counted.indptr, units, counted.counts, len(self._vocabulary)),
                counted.lengths,
            )

    def idf(self, units: NDArray[Any]) -> NDArray[np.float64]:
        """``ln(1 + (N − df + ½) / (df + ½))`` of each unit; float64."""
        fitted = len(self.document_frequency)
        frequency = np.ones(len(units), np.float64)
        known = units < fitted
        frequency[known] = self.document_frequency[units[known]]
        # A term whose every document was deleted before the fit has frequency 0; it is as rare as a new one.
        frequency = np.maximum(frequency, 1.0)
        inverse: NDArray[np.float64] = np.log1p((self.num_documents - frequency + 0.5) / (frequency + 0.5))
        return inverse

    def weigh(
        self, units: NDArray[Any], counts: NDArray[np.float32], lengths: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        if not self.is_fitted:
            raise UsageError("bm25 has no statistics yet; build an index with it, or call fit(texts) first")
        saturation = self.k1 * (1 - self.b + self.b * lengths / max(self.average_length, 1e-9))
        impacts: NDArray[np.float64] = self.idf(units) * counts / (counts + saturation)
        return impacts.astype(np.float32)

    def encode_documents(self, texts: Sequence[str], advance: Advance | None = None) -> SparseActivations:
        """BM25 impacts of documents; needs a fitted encoder. Terms that the vocabulary lacks are left out."""
        batches = []
        for counts in count_batches(text_batches(texts), workers=1):
            units = np.array(self._vocabulary.find(counts.terms), np.int32)[counts.units]
            known = units >= 0
            lengths = np.repeat(counts.lengths, np.diff(counts.indptr))
            impacts = self.weigh(units[known], counts.counts[known], lengths[known])
            indptr = np.concatenate([[0], np.cumsum(known)])[counts.indptr]
            batches.append(SparseActivations(indptr, units[known], impacts, len(self._vocabulary)))
            if advance:
                advance(len(counts.lengths))
        if not batches:
            return SparseActivations.empty(0, len(self._vocabulary))
        return SparseActivations.concat(batches).coalesce()

    # Queries

    @property
    def _analyzer(self) -> EnglishAnalyzer:
        # One a thread: an analyzer remembers words as it meets them, and a server encodes in many threads.
        if not hasattr(self._of_thread, "analyzer"):
            self._of_thread.analyzer = EnglishAnalyzer()
        analyzer: EnglishAnalyzer = self._of_thread.analyzer
        return analyzer

    def encode_queries(self, texts: Sequence[str]) -> SparseActivations:
        """Term counts; terms that no document has are left out (`unknown_terms` names them)."""
        rows = []
        for text in texts:
            terms = Counter(self._analyzer.terms(text))
            units = self._vocabulary.find(list(terms))
            known = sorted(
                (unit, count) for unit, count in zip(units, terms.values(), strict=True) if unit >= 0
            )
            rows.append(([unit for unit, _ in known], [float(count) for _, count in known]))
        return SparseActivations.from_rows(rows, len(self._vocabulary))

    def token_lengths(self, texts: Sequence[str]) -> list[int]:
        return [len(self._analyzer.terms(text)) for text in texts]

    def unknown_terms(self, text: str) -> list[str]:
        terms = list(dict.fromkeys(self._analyzer.terms(text)))
        return [term for term, unit in zip(terms, self._vocabulary.find(terms), strict=True) if unit < 0]

    # On disk

    def save(self, folder: Path) -> None:
        """Write settings, statistics and vocabulary as plain arrays with checksums."""
        with ArrayFolderWriter(folder) as arrays:
            self._vocabulary.table().write(arrays, "terms")
            arrays.array("document_frequency", np.int64).append(self.document_frequency)
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
        """Open what `save` wrote; arrays are mapped, not read.

        Raises:
            FormatError: an unknown version, or a file that is not as long as it was.
        """
        path = folder / ENCODER_FILE
        if options:
            raise UsageError(f"{folder} is a fitted bm25 encoder; it takes no options ({', '.join(options)})")
        try:
            described = json.loads(path.read_text("utf-8"))
            version = described["version"]
            if version != FORMAT_VERSION or described["analyzer"] != ANALYZER:
                raise FormatError(
                    f"{path} has version {version} and analyzer {described.get('analyzer')!r}, but this lexpert "
                    f"reads version {FORMAT_VERSION} and {ANALYZER!r}; build it again or install that lexpert"
                )
            encoder = cls(k1=described["k1"], b=described["b"])
            files = {name: ArrayFile(**file) for name, file in described["files"].items()}
            encoder.num_documents = described["num_documents"]
            encoder.total_length = described["total_length"]
            encoder._fingerprint = described["fingerprint"]
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"{path} is damaged ({error}); build the encoder or the index again") from error
        encoder.document_frequency = map_array(
            folder / "document_frequency", np.int64, files["document_frequency"]
        )
        encoder._vocabulary = TermVocabulary(StringTable.open(folder, "terms", files))
        return encoder
