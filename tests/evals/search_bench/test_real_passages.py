"""Passages are cut at sentences and never across articles; their weights are those of BM25."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from evals.search_bench.csr_file import map_csr_file
from evals.search_bench.real_passages import cut, passages, write_real_passages
from runtime.errors import NotFoundError


def sentence(words: int, name: str = "word") -> str:
    return " ".join([name] * (words - 1)) + " end."


def test_passages_end_with_sentences_between_60_and_120_words() -> None:
    found = list(cut([sentence(25) + " " + sentence(25), sentence(25) + " " + sentence(70)]))
    assert [len(passage.split()) for passage in found] == [75, 70]
    assert all(passage.endswith("end.") for passage in found)


def test_a_sentence_longer_than_a_passage_is_cut() -> None:
    assert [len(passage.split()) for passage in cut([sentence(250)])] == [120, 120]
    assert [len(passage.split()) for passage in cut([sentence(270)])] == [120, 120, 30]


def test_what_is_short_is_kept_where_it_is_all_there_is() -> None:
    assert list(cut(["Two words."])) == ["Two words."]
    assert list(cut([])) == []


def written(folder: Path) -> None:
    (folder / "text-a").mkdir()
    with gzip.open(folder / "text-a" / "text.txt.gz", "wt") as out:
        out.write("The cat sat.\n\nA dog ran. The dog sat.\n")
    (folder / "beir").mkdir()
    rows = [{"_id": "1", "title": "Cats", "text": "sat."}, {"_id": "2", "text": "the  cat SAT."}]
    (folder / "beir" / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_texts_and_collections_are_read_and_repeats_left_out(tmp_path: Path) -> None:
    written(tmp_path)
    assert list(passages(tmp_path)) == ["The cat sat.", "A dog ran. The dog sat.", "Cats sat."]


def test_weights_are_bm25(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    written(tmp_path)
    (tmp_path / "sparse-queries").mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "a", "dog", "ran", "##s", "."]
    (tmp_path / "sparse-queries/bert-base-uncased.vocab.txt").write_text("\n".join(words))
    assert write_real_passages(tmp_path, tmp_path / "out.csr") == 3
    texts = [
        ["the", "cat", "sat", "."],
        ["a", "dog", "ran", ".", "the", "dog", "sat", "."],
        ["cat", "##s", "sat", "."],
    ]
    mean = np.mean([len(text) for text in texts])
    for text, (units, weights) in zip(texts, map_csr_file(tmp_path / "out.csr"), strict=True):
        assert sorted(words[unit] for unit in units) == sorted(set(text))
        for unit, weight in zip(units, weights, strict=True):
            count = Counter(text)[words[unit]]
            holding = sum(words[unit] in other for other in texts)
            idf = math.log(1 + (3 - holding + 0.5) / (holding + 0.5))
            norm = 0.9 * (0.6 + 0.4 * len(text) / mean)
            assert weight == pytest.approx(idf * count / (count + norm), rel=1e-6)


def test_a_folder_without_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="holds neither"):
        list(passages(tmp_path))
