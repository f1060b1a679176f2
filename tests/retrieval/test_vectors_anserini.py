"""Anserini's JSON vectors, out and in."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.encoders.subword_vocabulary import SubwordVocabulary
from retrieval.interop.anserini import AnseriniWriter, read_anserini
from runtime.activations import SparseActivations
from runtime.errors import ConflictError, InputError, NotFoundError

TOKENS = ["[PAD]", "the", "##s", "é", '"', "virus"]
VOCABULARY = SubwordVocabulary({token: unit for unit, token in enumerate(TOKENS)}, len(TOKENS))
ROW = st.dictionaries(st.integers(0, len(TOKENS) - 1), st.integers(1, 500), max_size=5)


def activations(rows: list[dict[int, float]]) -> SparseActivations:
    pairs = [sorted(row.items()) for row in rows]
    return SparseActivations.from_rows(
        [([unit for unit, _ in row], [weight for _, weight in row]) for row in pairs], len(TOKENS)
    )


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.text(min_size=1), st.text(), ROW), max_size=7), st.integers(1, 3), st.booleans())
def test_what_is_written_is_read_back_in_hundredths(
    rows: list[tuple[str, str, dict[int, int]]], num_rows: int, compressed: bool
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / ("vectors.jsonl.gz" if compressed else "vectors.jsonl")
        with AnseriniWriter(path, VOCABULARY) as writer:
            for identifier, text, row in rows:
                vectors = activations([{unit: weight / 100 for unit, weight in row.items()}])
                writer.append([identifier], vectors, [text])
        read = [
            (identifier, text, {int(u): round(float(w) * 100) for u, w in zip(units, weights, strict=True)})
            for batch in read_anserini(path, VOCABULARY, num_rows=num_rows)
            for identifier, text, (units, weights) in zip(
                batch.ids, batch.contents, batch.vectors, strict=True
            )
        ]
    assert read == rows


def test_weights_become_rounded_hundredths_and_zeros_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "vectors.jsonl"
    with AnseriniWriter(path, VOCABULARY) as writer:
        writer.append(["d1", "d2"], activations([{1: 1.236, 2: 0.004, 5: 0.006}, {}]), ["the virus", ""])
        assert writer.dropped == 1
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == [
        {"id": "d1", "contents": "the virus", "vector": {"the": 124, "virus": 1}},
        {"id": "d2", "contents": "", "vector": {}},
    ]
    with pytest.raises(ConflictError, match="exists"):
        AnseriniWriter(path, VOCABULARY)


def test_a_folder_of_files_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "part-1.jsonl").write_text(
        '{"id": "b", "contents": "", "vector": {"the": 100, "virus": 0}}\n\n'
    )
    with gzip.open(tmp_path / "part-0.jsonl.gz", "wt") as file:
        file.write('{"id": "a", "contents": "x", "vector": {"virus": 1.5, "the": 200}}\n')
    (batch,) = read_anserini(tmp_path, VOCABULARY)
    assert batch.ids == ["a", "b"]
    assert batch.contents == ["x", ""]
    assert batch.vectors.units.tolist() == [1, 5, 1]
    assert batch.vectors.weights.tolist() == pytest.approx([2.0, 0.015, 1.0])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected a JSON object"),
        ('{"vector": {}}', 'no "id"'),
        ('{"id": 7, "vector": {}}', 'no "id"'),
        ('{"id": "a"}', "must be an object of tokens"),
        ('{"id": "a", "vector": {"the": -1}}', "weight of 'the'"),
        ('{"id": "a", "vector": {"the": "1"}}', "weight of 'the'"),
        ('{"id": "a", "vector": {"the": true}}', "weight of 'the'"),
        ('{"id": "a", "vector": {"the": 1, "unheard": 1}}', "'unheard' is not in the vocabulary"),
    ],
)
def test_bad_lines_are_named_by_file_and_line(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "vectors.jsonl"
    path.write_text('{"id": "good", "contents": "", "vector": {"the": 1}}\n' + line + "\n")
    with pytest.raises(InputError, match=r"vectors\.jsonl, line 2: ") as raised:
        list(read_anserini(path, VOCABULARY))
    assert said in str(raised.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="missing"):
        list(read_anserini(tmp_path / "none.jsonl", VOCABULARY))
    with pytest.raises(NotFoundError, match="no JSONL"):
        list(read_anserini(tmp_path, VOCABULARY))


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match="1 ids were given for 2"),
        AnseriniWriter(tmp_path / "v.jsonl", VOCABULARY) as writer,
    ):
        writer.append(["a"], activations([{1: 1.0}, {2: 1.0}]))
    assert list(tmp_path.iterdir()) == []
