"""The process that searches a Lucene index for `search_lucene`: ``FOLDER K QUERIES HITS``.

QUERIES holds one ``{token: weight}`` a line, HITS takes one ``[ids, scores]`` a line. What Java prints goes where
it likes; results go to a file of their own.
"""

from __future__ import annotations

import sys
from pathlib import Path

import orjson

from retrieval.interop.lucene import LuceneSearcher
from runtime.errors import LexpertError


def answer(folder: Path, k: int, queries: Path, hits: Path) -> None:
    """Search for every query of a file."""
    searcher = LuceneSearcher(folder)
    with queries.open("rb") as given, hits.open("wb") as taken:
        for line in given:
            ids, scores = searcher.unpack(searcher.search(searcher.prepare(orjson.loads(line)), k))
            taken.write(orjson.dumps([ids, scores.tolist()], option=orjson.OPT_APPEND_NEWLINE))


if __name__ == "__main__":
    try:
        answer(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
    except LexpertError as error:
        sys.exit(str(error))
