"""Judgement files: BEIR's three columns with a header, TREC's and MS MARCO's four without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from runtime.errors import InputError, NotFoundError

BEIR_HEADER = ("query-id", "corpus-id", "score")


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Read a judgement file, telling the two forms apart by its first line.

    The three columns of BEIR (``query-id corpus-id score`` in a header, tabs between) or the four of TREC
    (``qid 0 docid grade``, any white space between). Rows with grade 0 are kept: they say that the query was
    judged. A pair that is judged twice keeps its last grade.

    Raises:
        NotFoundError: no such file.
        InputError: a line of neither form, or a grade that is not a whole number; names file and line.
    """
    qrels: dict[str, dict[str, int]] = {}
    columns = 0
    for number, line in _lines(path):
        if columns == 0:
            columns = 3 if tuple(line.lower().split()) == BEIR_HEADER or line.count("\t") == 2 else 4
            if tuple(line.lower().split()) == BEIR_HEADER:
                continue
        values = line.split("\t") if columns == 3 else line.split()
        if len(values) != columns:
            form = "query-id, corpus-id, score" if columns == 3 else "qid 0 docid grade"
            raise InputError(
                f"{path}, line {number}: expected {columns} columns ({form}), got {len(values)}: {line:.60}"
            )
        query, document, grade = (values[0], values[-2], values[-1])
        try:
            qrels.setdefault(query, {})[document] = int(grade)
        except ValueError:
            raise InputError(
                f"{path}, line {number}: the grade must be a whole number, got {grade!r}"
            ) from None
    return qrels


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    if not path.is_file():
        raise NotFoundError(f"{path} is missing; give a judgement file in BEIR's or TREC's form")
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as damage:
                raise InputError(f"{path}, line {number}: byte {damage.start + 1} is not UTF-8") from None
            if line.strip():
                yield number, line
