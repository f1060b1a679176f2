"""Real passages as BM25 impacts over BERT WordPieces, and real learned-sparse queries in the same vocabulary.

Passages are cut from plain text and from collections in BEIR's layout, at the ends of sentences and never across
articles, at 60 to 120 words; repeated ones are taken once. A document weight is Lucene's BM25 of the WordPiece
(Robertson and Zaragoza 2009; k1 0.9, b 0.4): the inner product with a query of ones is the BM25 score.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evals.search_bench.csr_file import CsrFileWriter
from runtime.activations import SparseActivations
from runtime.errors import FormatError, NotFoundError
from runtime.progress import progress

LEAST_WORDS, MOST_WORDS, REMAINDER_WORDS = 60, 120, 20
K1, B = 0.9, 0.4
BATCH = 8192
VOCABULARY = "sparse-queries/bert-base-uncased.vocab.txt"
QUERIES = "sparse-queries/msmarco-passage.dev-subset.{}.jsonl.gz"
QUERY_MODELS = {"v3": "splade-v3", "ed": "splade-pp-ed", "unicoil": "unicoil"}
"""Short names of the models whose queries there are."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def passages(data: Path) -> Iterator[str]:
    """Every passage under a folder of texts and collections, each once, in the same order every time.

    Raises:
        NotFoundError: there is no text and no collection.
    """
    texts, corpora = sorted(data.glob("*/text.txt.gz")), sorted(data.glob("*/corpus.jsonl"))
    if not texts and not corpora:
        raise NotFoundError(f"{data} holds neither NAME/text.txt.gz nor NAME/corpus.jsonl; give their folder")
    seen: set[bytes] = set()
    for article in _articles(texts, corpora):
        for passage in cut(article):
            key = hashlib.blake2b(" ".join(passage.lower().split()).encode(), digest_size=12).digest()
            if key not in seen:
                seen.add(key)
                yield passage


def cut(article: Iterable[str]) -> Iterator[str]:
    """Cut paragraphs into passages of 60 to 120 words at the ends of sentences.

    A longer sentence is cut at 120 words; what is left over at the end is kept from 20 words on, or where it is
    all there is.
    """
    words: list[str] = []
    any_yet = False
    for paragraph in article:
        for sentence in _SENTENCE_END.split(paragraph):
            more = sentence.split()
            if words and len(words) + len(more) > MOST_WORDS:
                yield " ".join(words)
                any_yet, words = True, []
            words += more
            while len(words) >= LEAST_WORDS:
                yield " ".join(words[:MOST_WORDS])
                any_yet, words = True, words[MOST_WORDS:]
    if len(words) >= REMAINDER_WORDS or (words and not any_yet):
        yield " ".join(words)


def _articles(texts: list[Path], corpora: list[Path]) -> Iterator[list[str]]:
    for path in texts:
        article: list[str] = []
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                if line.strip():
                    article.append(line)
                elif article:
                    yield article
                    article = []
        if article:
            yield article
    for path in corpora:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                document = json.loads(line)
                yield [document.get("title", ""), document["text"]]


def write_real_passages(data: Path, out: Path) -> int:
    """Write the passages under `data` as BM25 impacts to the CSR file `out`; returns how many there are.

    Text is read once; term frequencies are kept as two small arrays a passage until all are counted.
    """
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer(str(_vocabulary_file(data)), lowercase=True)
    num_units = tokenizer.get_vocab_size()
    rows: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []
    frequency = np.zeros(num_units, np.int64)
    source = passages(data)
    with progress("reading passages", unit="passages") as advance:
        while batch := list(islice(source, BATCH)):
            for encoded in tokenizer.encode_batch(batch, add_special_tokens=False):
                units, counts = np.unique(np.array(encoded.ids, np.int32), return_counts=True)
                rows.append((units, counts.astype(np.int32)))
                frequency[units] += 1
            advance(len(batch))
    idf = np.log1p((len(rows) - frequency + 0.5) / (frequency + 0.5))
    lengths = np.array([counts.sum() for _, counts in rows], np.float64)
    norms = K1 * (1 - B + B * lengths / lengths.mean())
    with CsrFileWriter(out, num_units) as writer:
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            sizes = [len(units) for units, _ in part]
            units = np.concatenate([units for units, _ in part])
            counts = np.concatenate([counts for _, counts in part])
            weights = idf[units] * counts / (counts + np.repeat(norms[start : start + BATCH], sizes))
            indptr = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
            writer.append(SparseActivations(indptr, units, weights.astype(np.float32), num_units))
    return len(rows)


def real_queries(data: Path, model: str, count: int) -> SparseActivations:
    """`count` of the published queries for MS MARCO's dev set, spread evenly over them.

    Args:
        data: the folder with sparse-queries/.
        model: a short name of `QUERY_MODELS`.
        count: how many; all where there are fewer.

    Raises:
        NotFoundError: the file is missing.
        FormatError: it holds a token that the vocabulary has not.
    """
    path = data / QUERIES.format(QUERY_MODELS[model])
    if not path.is_file():
        raise NotFoundError(f"{path} is missing; give the folder that holds sparse-queries")
    with _vocabulary_file(data).open(encoding="utf-8") as lines:
        unit_of = {token.rstrip("\n"): unit for unit, token in enumerate(lines)}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        vectors = [json.loads(line)["vector"] for line in lines]
    chosen = [vectors[i] for i in np.linspace(0, len(vectors) - 1, min(count, len(vectors))).astype(int)]
    pairs = []
    for vector in chosen:
        unknown = next((token for token in vector if token not in unit_of), None)
        if unknown is not None:
            raise FormatError(f"{path} holds the token {unknown!r}, which {VOCABULARY} has not")
        pairs.append(sorted((unit_of[token], weight) for token, weight in vector.items()))
    indptr = np.concatenate(([0], np.cumsum([len(row) for row in pairs], dtype=np.int64)))
    flat = np.array([pair for row in pairs for pair in row], np.float64).reshape(-1, 2)
    return SparseActivations(indptr, flat[:, 0].astype(np.int32), flat[:, 1].astype(np.float32), len(unit_of))


def _vocabulary_file(data: Path) -> Path:
    path = data / VOCABULARY
    if not path.is_file():
        raise NotFoundError(f"{path} is missing; give the folder that holds sparse-queries")
    return path
