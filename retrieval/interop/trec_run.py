"""TREC run files: ``qid Q0 docid rank score tag``, one line for each document of each ranking."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.text_lines import read_lines
from runtime.errors import InputError, UsageError

Ranking = list[tuple[str, float]]
"""``(document id, score)``, best first."""

Run = dict[str, Ranking]
"""Query id → its ranking."""


def write_run(run: Mapping[str, Sequence[tuple[str, float]]], path: Path, tag: str = "lexpert") -> None:
    """Write a run file; whatever lay at `path` stays whole until the new file is complete.

    The order of each ranking is what counts. Other tools sort by score alone and break ties their own way, so
    the scores written are the float32 neighbours of the true ones that make each strictly smaller than the
    one before it: only ties change, and by single units in the last place.

    Raises:
        InputError: an id with white space in it or without a character, which the format cannot hold; a
            document twice in a ranking; a score that is not finite.
        UsageError: `path` is a folder.
    """
    if not path.name or path.is_dir():
        raise UsageError(f"{path} is a folder; give a file for the run")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    label = "_".join(tag.split()) or "untagged"
    try:
        with unfinished.open("w", encoding="utf-8", newline="\n") as file:
            for query, ranking in run.items():
                documents = [document for document, _ in ranking]
                _check_words([query, *documents], path)
                if len(set(documents)) != len(documents):
                    raise InputError(f"the ranking of query {query!r} holds a document twice")
                scores = strictly_decreasing([score for _, score in ranking], f"query {query!r}")
                file.writelines(
                    f"{query} Q0 {document} {rank} {score} {label}\n"
                    for rank, (document, score) in enumerate(
                        zip(documents, scores.astype(str).tolist(), strict=True), start=1
                    )
                )
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_run(path: Path) -> Run:
    """Read a run file (plain or .gz); rankings in the order of their scores, equal scores in that of their ranks.

    Raises:
        NotFoundError: no such file.
        InputError: a line that has not six columns, a rank or score that is no number, or a document twice
            in a ranking; names file and line.
    """
    return read_tagged_run(path)[0]


def read_tagged_run(path: Path) -> tuple[Run, str | None]:
    """Read a run file as `read_run` does, with the tag of its lines; None where they have several or are none."""
    rows: dict[str, dict[str, tuple[float, int]]] = {}
    tags = set()
    for number, values in _rows(path):
        query, _, document, rank, score, tag = values
        tags.add(tag)
        try:
            place, value = int(rank), float(score)
        except ValueError:
            raise InputError(
                f"{path}, line {number}: rank and score must be numbers, got {rank!r} and {score!r}"
            ) from None
        if not math.isfinite(value):
            raise InputError(f"{path}, line {number}: the score must be finite, got {score}")
        ranking = rows.setdefault(query, {})
        if document in ranking:
            raise InputError(f"{path}, line {number}: document {document!r} is twice in query {query!r}")
        ranking[document] = (value, place)
    run = {
        query: [
            (document, score)
            for document, (score, _) in sorted(ranking.items(), key=lambda row: (-row[1][0], row[1][1]))
        ]
        for query, ranking in rows.items()
    }
    return run, tags.pop() if len(tags) == 1 else None


def strictly_decreasing(scores: Sequence[float], where: str) -> NDArray[np.float32]:
    """float32 ``[n]``: the largest scores below the given ones of which each is smaller than the one before.

    Raises:
        InputError: a score that is not finite as a float32; names `where`.
    """
    with np.errstate(over="ignore"):
        given = np.asarray(scores, dtype=np.float32)
    # The bits of a float32, with the sign taken as a sign, count the numbers in between: y[i] is to be the
    # smaller of x[i] and y[i - 1] - 1, so y[i] + i is the running minimum of x[i] + i.
    bits = given.view(np.int32).astype(np.int64)
    ordinals = np.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))
    places = np.arange(len(ordinals))
    ordinals = np.minimum.accumulate(ordinals + places) - places
    bits = np.where(ordinals >= 0, ordinals, -ordinals | 0x80000000)
    decreasing = bits.astype(np.uint32).view(np.float32)
    if not (np.isfinite(given).all() and np.isfinite(decreasing).all()):
        raise InputError(f"{where} has a score that is not a finite number")
    return decreasing


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    for number, line in read_lines(path, "a TREC run file"):
        values = line.split()
        if len(values) != 6:
            raise InputError(
                f"{path}, line {number}: expected the six columns qid Q0 docid rank score tag, "
                f"got {len(values)}"
            )
        yield number, values


def _check_words(identifiers: list[str], path: Path) -> None:
    if " ".join(identifiers).split() != identifiers:
        wrong = next(identifier for identifier in identifiers if identifier.split() != [identifier])
        raise InputError(f"{path} cannot hold the id {wrong!r}: its columns are separated by white space")
