"""Anserini's JsonVectorCollection: one JSON object a line, ``{"id", "contents", "vector": {token: int}}``.

Anserini takes a vector for a bag of words whose term frequencies are the weights, so they are whole numbers:
``round(100 · w)`` by its own convention, and a weight that rounds to 0 is left out.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import orjson
from numpy.typing import NDArray

from retrieval.documents import read_jsonl
from retrieval.encoders.bm25 import TermVocabulary
from retrieval.encoders.encoder import Vocabulary
from retrieval.index.arrays import disk_errors
from retrieval.interop.whole_file import whole_file
from retrieval.interop.whole_numbers import SCALE, whole_numbers
from runtime.activations import SparseActivations
from runtime.errors import InputError, NotFoundError

BATCH_ROWS = 1024


class AnseriniWriter:
    """Writes a JSONL file of vectors (compressed if it ends in .gz), batch by batch; a context manager.

    The file appears under its name when it is complete; leaving by an exception leaves nothing.
    """

    def __init__(self, path: Path, vocabulary: Vocabulary, scale: float = SCALE) -> None:
        """Start writing.

        Raises:
            ConflictError: `path` exists.
            LexpertError: no space is left.
        """
        self.path = path
        self.dropped = 0
        """Weights that rounded to 0 so far."""
        self.written = 0
        """Weights written so far."""
        self.empty = 0
        """Rows without a weight so far."""
        self._vocabulary = vocabulary
        self._scale = scale
        with ExitStack() as leaving:
            partial = leaving.enter_context(whole_file(path))
            # level 1: vectors compress well at any level, and higher ones cost more than the encoding
            with disk_errors(path):
                self._file: Any = (
                    gzip.open(partial, "wb", 1)  # noqa: SIM115  # closed by __exit__
                    if path.suffix == ".gz"
                    else partial.open("wb")
                )
            leaving.push(self._close)
            self._leaving = leaving.pop_all()

    def append(
        self, ids: Sequence[str], vectors: SparseActivations, contents: Sequence[str] | None = None
    ) -> None:
        """Append rows.

        Args:
            contents: text of each row, kept beside its vector; empty strings by default.

        Raises:
            InputError: ids, rows and texts differ in number, or a weight does not fit 32 bits.
        """
        if not len(ids) == vectors.num_rows == len(contents if contents is not None else ids):
            raise InputError(
                f"{len(ids)} ids were given for {vectors.num_rows} vectors; give one, and one text, for each"
            )
        texts = contents if contents is not None else [""] * len(ids)
        for identifier, text, (units, weights) in zip(ids, texts, vectors, strict=True):
            impacts = whole_numbers(weights, self._scale)
            kept = impacts > 0
            num_kept = int(np.count_nonzero(kept))
            self.dropped += len(kept) - num_kept
            self.written += num_kept
            self.empty += num_kept == 0
            terms = [self._vocabulary.term(unit) for unit in np.asarray(units)[kept].tolist()]
            vector = dict(zip(terms, impacts[kept].tolist(), strict=True))
            line = {"id": identifier, "contents": text, "vector": vector}
            try:
                encoded = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
            except TypeError:
                raise InputError(
                    f"{identifier!r:.60}, its text or one of its terms holds half of a surrogate pair, "
                    "which JSON cannot hold"
                ) from None
            with disk_errors(self.path):
                self._file.write(encoded)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leaving.__exit__(kind, error, trace)

    def _close(self, kind: type[BaseException] | None, *_: Any) -> None:
        # after a failure, what is left in its buffer need not fit any more
        with suppress(OSError) if kind else disk_errors(self.path):
            self._file.close()


class AnseriniBatch(NamedTuple):
    """Some rows of a collection: ids, texts, and vectors with ascending units."""

    ids: list[str]
    contents: list[str]
    vectors: SparseActivations


def read_anserini(
    path: Path,
    vocabulary: Vocabulary,
    scale: float = SCALE,
    num_rows: int = BATCH_ROWS,
    learn: bool = False,
) -> Iterator[AnseriniBatch]:
    """Read a JSONL file of vectors, or a folder of them in the order of their names, as a stream.

    Weights are divided by `scale`; a weight of 0 is left out.

    Args:
        learn: tokens that the vocabulary (a `TermVocabulary`) lacks join it instead of being refused.

    Raises:
        NotFoundError: no such file, or a folder without JSONL files.
        InputError: a line is no such vector, or has a token that is not in the vocabulary; names file and line.
    """
    ids: list[str] = []
    contents: list[str] = []
    rows: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
    for file in _files(path):
        for where, value in read_jsonl(file):
            identifier, text, vector = _checked(value, where)
            ids.append(identifier)
            contents.append(text)
            if learn:
                assert isinstance(vocabulary, TermVocabulary)
                vocabulary.learn(list(vector))
            rows.append(_row(vector, vocabulary, scale, where))
            if len(rows) == num_rows:
                yield _batch(ids, contents, rows, len(vocabulary))
                ids, contents, rows = [], [], []
    if rows:
        yield _batch(ids, contents, rows, len(vocabulary))


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    endings = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
    files = sorted(file for file in path.iterdir() if file.name.endswith(endings) and file.name[0] != ".")
    if not files:
        raise NotFoundError(f"{path} holds no JSONL files of vectors")
    return files


def _checked(value: Any, where: str) -> tuple[str, str, dict[str, Any]]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object with id and vector, got {type(value).__name__}")
    identifier, vector, text = value.get("id"), value.get("vector"), value.get("contents")
    if not isinstance(identifier, str) or not identifier:
        raise InputError(f'{where}: the vector has no "id"; give it a non-empty string')
    if not isinstance(vector, dict):
        raise InputError(f'{where}: "vector" of {identifier!r} must be an object of tokens and weights')
    return identifier, text if isinstance(text, str) else "", vector


def _row(
    vector: dict[str, Any], vocabulary: Vocabulary, scale: float, where: str
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    for token, weight in vector.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not math.isfinite(weight) or weight < 0:
            raise InputError(
                f"{where}: the weight of {token!r} must be a number of 0 or more, not {weight!r:.40}"
            )
    units = np.array(vocabulary.find(list(vector)), np.int64)
    if (units < 0).any():
        token = list(vector)[int(np.argmin(units))]
        raise InputError(
            f"{where}: the token {token!r} is not in the vocabulary; read with the encoder that wrote it"
        )
    weights = np.array(list(vector.values()), np.float64) / scale
    order = np.argsort(units)
    order = order[weights[order] > 0]
    return units[order], weights[order]


def _batch(
    ids: list[str],
    contents: list[str],
    rows: list[tuple[NDArray[np.int64], NDArray[np.float64]]],
    num_units: int,
) -> AnseriniBatch:
    indptr = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(units) for units, _ in rows], out=indptr[1:])
    units = np.concatenate([units for units, _ in rows]).astype(np.int32)
    weights = np.concatenate([weights for _, weights in rows]).astype(np.float32)
    return AnseriniBatch(ids, contents, SparseActivations(indptr, units, weights, num_units))
