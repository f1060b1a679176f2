"""A dense bi-encoder as a teacher: any sentence-transformers folder or plain encoder folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from retrieval.training.row_cache import CacheUse, DenseRows, text_keys
from retrieval.training.teachers.vectors import DenseTeacher
from runtime.progress import Advance, progress

if TYPE_CHECKING:
    from retrieval.encoders.dense import DenseEncoder


def encode_dense(
    encoder: DenseEncoder,
    name: str,
    queries: Sequence[str],
    passages: Sequence[str],
    cache: Path,
    use: CacheUse,
) -> DenseTeacher:
    """Vectors of all texts, from the cache where they are there.

    They are kept in float16, for half the disk and memory: a dot product of unit vectors is off by less than 0.001.
    """
    sides = []
    for role, texts, encode in (
        ("queries", queries, encoder.encode_queries),
        ("passages", passages, encoder.encode_documents),
    ):
        rows = DenseRows(cache, use, "dense", encoder.fingerprint, role, "float16")
        with progress(f"{name}: vectors of {role}", len(texts), role) as advance:
            sides.append(rows.rows(text_keys(texts), _maker(texts, encode), advance))
    return DenseTeacher(name, encoder.fingerprint, queries=sides[0], passages=sides[1])


def _maker(
    texts: Sequence[str], encode: Callable[[Sequence[str], Advance | None], NDArray[np.float32]]
) -> Callable[[NDArray[np.int64], Advance], NDArray[np.float16]]:
    def make(places: NDArray[np.int64], advance: Advance) -> NDArray[np.float16]:
        return encode([texts[place] for place in places.tolist()], advance).astype(np.float16)

    return make
