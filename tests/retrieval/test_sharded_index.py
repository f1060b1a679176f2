"""A sharded index against the index that it was split from."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import retrieval.index.merge
import retrieval.search.batch
from retrieval import IndexWriter, SparseIndex
from retrieval.encoders.bm25 import Bm25Encoder
from retrieval.encoders.precomputed import PrecomputedEncoder
from retrieval.index.sharded_index import ShardedIndex, open_index, open_shard
from retrieval.index.shards_manifest import read_shards_manifest, shard_of
from retrieval.index.split import split_index
from retrieval.search.hits import Hits
from runtime.activations import SparseActivations
from runtime.errors import ConflictError, FormatError, InputError, LexpertError, NotFoundError, UsageError

WORDS = ["wind", "tunnel", "earth", "rain", "sun", "sea", "ice", "rock", "tree", "moss"]
NUM_UNITS = 12


def same(found: Hits, wanted: Hits) -> bool:
    return (
        found.ids == wanted.ids
        and found.unknown_terms == wanted.unknown_terms
        and [scores.tolist() for scores in found.scores] == [scores.tolist() for scores in wanted.scores]
    )


def few_words(generator: np.random.Generator) -> str:
    """Of few words and few lengths: ties everywhere."""
    return " ".join(generator.choice(WORDS, int(generator.integers(0, 4))))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    commits=st.lists(st.integers(0, 40), min_size=1, max_size=3),
    num_shards=st.integers(1, 6),
    k=st.sampled_from([1, 3, 10, 200]),
    is_tiered=st.booleans(),
    is_filtered=st.booleans(),
    merged=st.booleans(),
)
def test_shards_of_bm25_give_what_the_index_gives(
    seed: int, commits: list[int], num_shards: int, k: int, is_tiered: bool, is_filtered: bool, merged: bool
) -> None:
    """Its weights are of the whole collection; documents are replaced and deleted, and some are learned later."""
    generator = np.random.default_rng(seed)
    ids = [f"d{number}" for number in range(60)]

    def documents(count: int) -> list[dict[str, Any]]:
        return [
            {
                "_id": str(generator.choice(ids)),
                "text": few_words(generator),
                "year": int(generator.integers(5)),
            }
            for _ in range(count)
        ]

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder)
        if is_tiered:
            patch.setattr(retrieval.index.merge, "TIERED_DOCUMENTS", 1)
            patch.setattr(retrieval.search.batch, "DOCUMENTS_PER_RESULT", 0)
        fields = {"year": "int"}
        with IndexWriter.create(
            path / "one", encoder=Bm25Encoder(), fields=fields, merge_policy=None
        ) as writer:
            writer.add([{"_id": "first", "text": "wind and rain"}])
            for count in commits:
                writer.add(documents(count))
                writer.commit()
            writer.delete([str(identifier) for identifier in generator.choice(ids, 10)])
        if merged:
            with IndexWriter.open(path / "one") as writer:
                writer.merge()
        with SparseIndex.open(path / "one") as one:
            split_index(one, path / "many", num_shards)
            with ShardedIndex.open(path / "many") as many:
                assert (many.num_documents, many.fields) == (one.num_documents, one.fields)
                assert many.encoder.fingerprint == one.encoder.fingerprint
                many.verify()
                queries = [few_words(generator) + " unseen" * (row % 2) for row in range(5)]
                condition = {"field": "year", "gte": 2} if is_filtered else None
                for mode in ("exact", "exhaustive"):
                    wanted = one.search(queries, k, filter=condition, mode=mode)
                    assert same(many.search(queries, k, filter=condition, mode=mode), wanted)
                vectors = one.encoder.encode_queries(queries)
                wanted = one.search(vectors, k, filter=condition)
                assert same(many.search(vectors, k, filter=condition), wanted)
                for query, found in zip(queries, wanted.ids, strict=True):
                    for identifier in found[:3]:
                        assert many.document(identifier) == one.document(identifier)
                        shown, told = many.explain(query, identifier), one.explain(query, identifier)
                        assert (shown.score, shown.shares) == (told.score, told.shares)
                        assert shown.document_terms == told.document_terms
                assert many.document("none") is None
                assert all(
                    shard_of(identifier, num_shards) == number
                    for number, shard in enumerate(many.shards)
                    for segment in shard.segments
                    for identifier in segment.ids
                )


def random_vectors(generator: np.random.Generator, rows: int) -> SparseActivations:
    made = []
    for _ in range(rows):
        units = generator.choice(NUM_UNITS, int(generator.integers(1, 8)), replace=False)
        made.append((sorted(units.tolist()), generator.choice([0.25, 0.5, 1.0, 2.0], len(units)).tolist()))
    return SparseActivations.from_rows(made, NUM_UNITS)


@pytest.fixture
def tiered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index of vectors in tiers, with all the ways of searching."""
    monkeypatch.setattr(retrieval.index.merge, "TIERED_DOCUMENTS", 1)
    monkeypatch.setattr(retrieval.search.batch, "DOCUMENTS_PER_RESULT", 0)
    ids = [f"d{number}" for number in range(600)]
    vectors = random_vectors(np.random.default_rng(0), len(ids))
    with IndexWriter.create(tmp_path / "one", encoder=PrecomputedEncoder(num_units=NUM_UNITS)) as writer:
        writer.add_vectors(ids, vectors)
        writer.merge()
    return tmp_path / "one"


def test_an_approximate_search_is_one_of_each_shard(tiered: Path, tmp_path: Path) -> None:
    queries = random_vectors(np.random.default_rng(1), 20)
    with SparseIndex.open(tiered) as one:
        split_index(one, tmp_path / "many", 3)
        with ShardedIndex.open(tmp_path / "many") as many:
            for options in ({"effort": 0.3}, {"mode": "approximate"}, {"target_recall": 0.7}):
                found = many.search(queries, 10, **options)  # type: ignore[arg-type]
                each = [shard.search(queries, 10, **options) for shard in many.shards]  # type: ignore[arg-type]
                for query in range(len(queries)):
                    candidates = {
                        identifier: score
                        for hits in each
                        for identifier, score in zip(
                            hits.ids[query], hits.scores[query].tolist(), strict=True
                        )
                    }
                    best = sorted(candidates, key=lambda one: (-candidates[one], int(one[1:])))[:10]
                    assert found.ids[query] == best
            everything = many.search(queries, 10, target_recall=1.0)
            assert same(everything, one.search(queries, 10))


def test_shards_of_8_bit_impacts_give_what_the_index_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval.index.merge, "TIERED_DOCUMENTS", 1)
    generator = np.random.default_rng(2)
    vectors = random_vectors(generator, 300)
    vectors = SparseActivations(
        vectors.indptr,
        vectors.units,
        generator.gamma(2.0, 1.0, vectors.nnz).astype(np.float32),
        NUM_UNITS,
    )
    encoder = PrecomputedEncoder(num_units=NUM_UNITS)
    with IndexWriter.create(tmp_path / "one", encoder=encoder, impacts="uint8") as writer:
        writer.add_vectors([f"d{number}" for number in range(300)], vectors)
        writer.merge()
    queries = random_vectors(generator, 20)
    with SparseIndex.open(tmp_path / "one") as one:
        split_index(one, tmp_path / "many", 3)
        with ShardedIndex.open(tmp_path / "many") as many:
            assert many.stats()["impacts"] == "uint8"
            assert same(many.search(queries, 10), one.search(queries, 10))


@pytest.fixture
def one(tmp_path: Path) -> Path:
    with IndexWriter.create(tmp_path / "one", encoder=Bm25Encoder()) as writer:
        writer.add({"_id": f"d{number}", "text": f"wind word{number}"} for number in range(20))
    return tmp_path / "one"


def split(one: Path, out: Path, num_shards: int = 3) -> Path:
    with SparseIndex.open(one) as opened:
        split_index(opened, out, num_shards)
    return out


def test_an_index_of_few_documents_has_empty_shards(one: Path, tmp_path: Path) -> None:
    with ShardedIndex.open(split(one, tmp_path / "many", 40)) as many:
        assert min(shard.num_documents for shard in many.shards) == 0
        assert many.search(["wind"], 100).ids == [[f"d{number}" for number in range(20)]]
        stats = many.stats()
    assert (stats["documents"], stats["shards"], sum(stats["documents_of_shards"])) == (20, 40, 20)


def test_an_empty_index_can_be_split(tmp_path: Path) -> None:
    with IndexWriter.create(tmp_path / "one", encoder=Bm25Encoder()):
        pass
    with ShardedIndex.open(split(tmp_path / "one", tmp_path / "many")) as many:
        assert many.search(["wind"]).ids == [[]]


def test_one_shard_can_be_opened_alone(one: Path, tmp_path: Path) -> None:
    many = split(one, tmp_path / "many")
    with open_shard(many, 1) as shard:
        assert shard.num_documents == read_shards_manifest(many).shards[1].documents
    with pytest.raises(NotFoundError, match="no shard 3; they are numbered from 0 to 2"):
        open_shard(many, 3)


@pytest.mark.parametrize("num_shards", [-1, 0, 257])
def test_a_bad_number_of_shards_is_refused(one: Path, tmp_path: Path, num_shards: int) -> None:
    with pytest.raises(UsageError, match=f"the number of shards is {num_shards}, but must be from 1 to 256"):
        split(one, tmp_path / "many", num_shards)
    assert not (tmp_path / "many").exists()


def test_what_else_is_in_the_folder_is_left_alone(one: Path, tmp_path: Path) -> None:
    with pytest.raises(ConflictError, match="holds a sharded index already"):
        split(one, split(one, tmp_path / "many"))
    with pytest.raises(ConflictError, match="is not empty"):
        split(one, one)
    (tmp_path / "file").touch()
    with pytest.raises(ConflictError, match="is a file"):
        split(one, tmp_path / "file")


def test_a_split_that_was_cut_short_is_no_index_and_starts_over(
    one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_short(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("retrieval.index.split.write_shards_manifest", cut_short)
        with pytest.raises(KeyboardInterrupt):
            split(one, tmp_path / "many", 5)
    with pytest.raises(NotFoundError, match="holds no sharded index"):
        ShardedIndex.open(tmp_path / "many")
    with ShardedIndex.open(split(one, tmp_path / "many", 2)) as many:
        assert many.num_documents == 20
    assert not (tmp_path / "many/shard-004").exists()


def test_any_flipped_byte_of_the_manifest_is_found(one: Path, tmp_path: Path) -> None:
    file = split(one, tmp_path / "many") / "shards.json"
    written = file.read_bytes()
    for place in range(0, len(written), 7):
        file.write_bytes(written[:place] + bytes([written[place] ^ 1]) + written[place + 1 :])
        with pytest.raises(FormatError):
            ShardedIndex.open(tmp_path / "many")
    content = json.loads(written)
    file.write_text(json.dumps({**content, "version": 2}))
    with pytest.raises(FormatError, match="has version 2"):
        ShardedIndex.open(tmp_path / "many")


def test_shards_that_are_not_what_they_were_are_found(one: Path, tmp_path: Path) -> None:
    many = split(one, tmp_path / "many")
    (many / "shard-001.rows").rename(many / "away")
    with pytest.raises(FormatError, match=r"shard-001\.rows is missing"):
        ShardedIndex.open(many)
    (many / "away").rename(many / "shard-001.rows")
    with IndexWriter.open(many / "shard-001") as writer:
        writer.add([{"_id": "new", "text": "wind"}])
    with pytest.raises(FormatError, match="was changed by itself"):
        ShardedIndex.open(many)
    (many / "shard-001").rename(many / "shard-009")
    with pytest.raises(FormatError, match="shard-001 is missing"):
        ShardedIndex.open(many)


def test_damaged_rows_are_found_when_they_are_verified(one: Path, tmp_path: Path) -> None:
    many = split(one, tmp_path / "many")
    rows = many / "shard-000.rows"
    rows.write_bytes(rows.read_bytes()[:-1] + b"\1")
    with ShardedIndex.open(many) as opened, pytest.raises(FormatError, match="checksum"):
        opened.verify()


def test_it_is_no_index_to_write_to(one: Path, tmp_path: Path) -> None:
    many = split(one, tmp_path / "many")
    for refused in (IndexWriter.open, SparseIndex.open):
        with pytest.raises(LexpertError, match="is a sharded index"):
            refused(many)
    with open_index(many) as opened:
        assert isinstance(opened, ShardedIndex)
    with open_index(one) as opened:
        assert isinstance(opened, SparseIndex)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"queries": "wind"}, UsageError),
        ({"k": 0}, UsageError),
        ({"filter": {"field": "none", "eq": 1}}, UsageError),
        ({"mode": "fast"}, UsageError),
        ({"effort": 2.0}, UsageError),
        ({"queries": SparseActivations.from_rows([([0], [-1.0])], 1)}, InputError),
    ],
)
def test_wrong_searches_are_refused(
    one: Path, tmp_path: Path, given: dict[str, Any], error: type[LexpertError]
) -> None:
    with ShardedIndex.open(split(one, tmp_path / "many")) as many, pytest.raises(error):
        many.search(**{"queries": ["wind"], **given})
