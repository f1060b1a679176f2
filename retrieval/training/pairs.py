"""Files of training pairs: one JSON object a line, ``{"query": …, "positive": …}``, plain or .gz.

Other keys are allowed and left alone. Positives only: negatives are mined (see `retrieval.training.mining`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval.corpus import file_checksum
from retrieval.documents import read_jsonl
from retrieval.training.training_set import TrainingSet, same_text
from runtime.errors import InputError

FIELDS = ("query", "positive")


def read_pairs(path: Path) -> Iterator[tuple[str, str]]:
    """Yield ``(query, positive)`` of every line.

    Raises:
        NotFoundError: no such file.
        InputError: a .gz that is damaged, or a line that is not JSON or lacks a field; names file and line.
    """
    for where, value in read_jsonl(path):
        if not isinstance(value, dict):
            raise InputError(
                f"{where}: expected a JSON object with query and positive, got {type(value).__name__}"
            )
        for field in FIELDS:
            if field not in value:
                raise InputError(f'{where}: the pair has no "{field}"; give it as a non-empty string')
            if not isinstance(value[field], str) or not value[field].strip():
                raise InputError(f'{where}: "{field}" must be a non-empty string, got {value[field]!r:.60}')
        yield value["query"], value["positive"]


@dataclass(frozen=True)
class PairFile:
    """What became of one file.

    Attributes:
        pairs: lines with a pair.
        drawn: of them, those that were drawn, where not all were wanted.
        repeated: of those, the ones left out because query and passage had come before.
    """

    name: str
    pairs: int
    drawn: int
    repeated: int


def read_training_set(paths: Sequence[Path], max_pairs: int | None = None, seed: int = 0) -> TrainingSet:
    """The training set of `read_pair_files`, without the counts."""
    return read_pair_files(paths, max_pairs, seed)[0]


def read_pair_files(
    paths: Sequence[Path], max_pairs: int | None = None, seed: int = 0
) -> tuple[TrainingSet, list[PairFile]]:
    """The pairs of some files as one training set: queries in file order, each distinct passage once.

    A pair that was there already (the same query and passage, up to case and white space) is left out.

    Args:
        paths: files of pairs.
        max_pairs: of each file, drawn by `seed`, kept in file order; None for all.

    Raises:
        InputError: a file has no pairs, or as in `read_pairs`.
    """
    queries: list[str] = []
    passages: list[str] = []
    positives: list[int] = []
    sources: list[str] = []
    files: list[PairFile] = []
    number_of: dict[str, int] = {}
    seen: set[tuple[str, int]] = set()
    for place, path in enumerate(paths):
        pairs = list(read_pairs(path))
        if not pairs:
            raise InputError(f"{path} holds no pairs; give a file with one query and positive a line")
        num_pairs, before = len(pairs), len(queries)
        if max_pairs is not None and len(pairs) > max_pairs:
            drawn = np.random.default_rng([seed, place]).choice(len(pairs), max_pairs, replace=False)
            pairs = [pairs[chosen] for chosen in np.sort(drawn).tolist()]
        for query, positive in pairs:
            number = number_of.setdefault(same_text(positive), len(passages))
            if number == len(passages):
                passages.append(positive)
            key = same_text(query), number
            if key not in seen:
                seen.add(key)
                queries.append(query)
                positives.append(number)
        # Files of many collections are called the same, so the folder belongs to the name.
        name = "/".join(path.resolve().parts[-2:])
        sources.append(f"{name} {file_checksum(path)}")
        files.append(PairFile(name, num_pairs, len(pairs), len(pairs) - (len(queries) - before)))
    made = TrainingSet(
        queries=queries,
        passages=passages,
        positives=np.array(positives, np.int32),
        negatives=[np.zeros(0, np.int32) for _ in queries],
        sources=sources,
    )
    return made, files
