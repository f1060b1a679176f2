from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from retrieval.training.pairs import read_pair_files, read_pairs, read_training_set
from runtime.errors import InputError, NotFoundError


@pytest.fixture
def write_pairs(tmp_path: Path) -> Callable[..., Path]:
    """Write a file of pairs and return it."""

    def write(pairs: Sequence[tuple[str, str]], name: str = "pairs.jsonl") -> Path:
        lines = "".join(json.dumps({"query": query, "positive": text}) + "\n" for query, text in pairs)
        path = tmp_path / name
        path.write_bytes(gzip.compress(lines.encode()) if name.endswith(".gz") else lines.encode())
        return path

    return write


def test_passages_are_kept_once_and_pairs_too(write_pairs: Callable[..., Path]) -> None:
    first = write_pairs([("a?", "Alpha."), ("b?", "Beta."), ("A? ", "alpha.")], "one.jsonl")
    second = write_pairs([("c?", "Alpha."), ("b?", "Gamma.")], "two.jsonl.gz")
    made = read_training_set([first, second])
    assert made.queries == ["a?", "b?", "c?", "b?"]
    assert made.passages == ["Alpha.", "Beta.", "Gamma."]
    assert made.positives.tolist() == [0, 1, 0, 2]
    assert [len(negatives) for negatives in made.negatives] == [0, 0, 0, 0]
    assert [source.split()[0] for source in made.sources] == [
        f"{first.parent.name}/{name}" for name in ("one.jsonl", "two.jsonl.gz")
    ]


def test_what_became_of_each_file_is_counted(write_pairs: Callable[..., Path]) -> None:
    path = write_pairs([("a?", "Alpha."), ("b?", "Beta."), ("A? ", "alpha."), ("c?", "Alpha.")])
    (file,) = read_pair_files([path])[1]
    assert (file.pairs, file.drawn, file.repeated) == (4, 4, 1)
    (file,) = read_pair_files([path], max_pairs=2)[1]
    assert (file.pairs, file.drawn) == (4, 2)


def test_some_pairs_are_drawn_by_seed_in_file_order(write_pairs: Callable[..., Path]) -> None:
    path = write_pairs([(f"query {i}", f"text {i}") for i in range(50)])
    drawn = [read_training_set([path], max_pairs=10, seed=seed).queries for seed in (1, 1, 2)]
    assert len(drawn[0]) == 10
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] == sorted(drawn[0], key=lambda query: int(query.split()[1]))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"query": "a"}', 'line 2: the pair has no "positive"'),
        ('{"positive": "a"}', 'line 2: the pair has no "query"'),
        ('{"query": "a", "positive": " "}', 'line 2: "positive" must be a non-empty string'),
        ('{"query": 3, "positive": "b"}', 'line 2: "query" must be a non-empty string, got 3'),
        ('["a", "b"]', "line 2: expected a JSON object with query and positive, got list"),
        ('{"query": "a", ', "line 2: not valid JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"query": "q", "positive": "p"}\n' + line + "\n")
    with pytest.raises(InputError, match="^" + str(path)) as raised:
        list(read_pairs(path))
    assert said in str(raised.value)


def test_a_damaged_gz_an_empty_file_and_none_are_told_apart(
    tmp_path: Path, write_pairs: Callable[..., Path]
) -> None:
    whole = write_pairs([("q", "p")] * 50, "pairs.jsonl.gz")
    whole.write_bytes(whole.read_bytes()[:-9])
    with pytest.raises(InputError, match="not a whole gzip file"):
        read_training_set([whole])
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(InputError, match="holds no pairs"):
        read_training_set([empty])
    with pytest.raises(NotFoundError, match="is missing"):
        read_training_set([tmp_path / "none.jsonl"])


def test_real_pairs_are_read(shared: Path) -> None:
    made = read_training_set([shared / "data" / "pairs-medquad" / "pairs.jsonl.gz"], max_pairs=300)
    assert 250 < len(made) <= 300
    assert len(set(made.passages)) == len(made.passages)
