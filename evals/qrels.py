"""Judgement files: BEIR's three columns with a header, TREC's and MS MARCO's four without."""

from __future__ import annotations

from pathlib import Path

from retrieval.text_lines import read_lines
from runtime.errors import InputError

BEIR_HEADER = ("query-id", "corpus-id", "score")

LARGEST_GRADE = 10_000
"""Grades go to this, and down to its negative: trec_eval keeps an array with a place for each grade."""


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Read a judgement file (plain or .gz), telling the two forms apart by its first line.

    The three columns of BEIR (``query-id corpus-id score`` in a header, tabs between) or the four of TREC
    (``qid 0 docid grade``, any white space between). Rows with grade 0 are kept: they say that the query was
    judged. A pair that is judged twice keeps its last grade.

    Raises:
        NotFoundError: no such file.
        InputError: a line of neither form, or a grade that is not a whole number within ±`LARGEST_GRADE`; names
            file and line.
    """
    qrels: dict[str, dict[str, int]] = {}
    columns = 0
    for number, line in read_lines(path, "a judgement file in BEIR's or TREC's form"):
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
            value = int(grade)
        except ValueError:
            raise InputError(
                f"{path}, line {number}: the grade must be a whole number, got {grade!r:.60}"
            ) from None
        if abs(value) > LARGEST_GRADE:
            raise InputError(
                f"{path}, line {number}: the grade must lie between {-LARGEST_GRADE} and {LARGEST_GRADE}, "
                f"got {grade:.60}"
            )
        qrels.setdefault(query, {})[document] = value
    return qrels
