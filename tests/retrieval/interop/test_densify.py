"""Densified vectors keep the largest of each slice, and Faiss finds what scoring everything finds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from retrieval.cli.index import index_app
from retrieval.encoders.precomputed import PrecomputedEncoder
from retrieval.index.sparse_index import SparseIndex
from retrieval.index.writer import IndexWriter
from retrieval.interop.densify import Densified, Slices, gated_scores
from retrieval.interop.live_rows import live_rows
from runtime.activations import SparseActivations
from runtime.errors import ConflictError, FormatError, InputError, NotFoundError, UsageError

pytest.importorskip("faiss")

from retrieval.interop.faiss_densified import DensifiedIndex, densify_index

ROWS = st.lists(
    st.dictionaries(st.integers(0, 19), st.sampled_from([0.5, 1.0, 2.0]), max_size=12), max_size=4
)


def activations(rows: list[dict[int, float]], num_units: int = 20) -> SparseActivations:
    return SparseActivations.from_rows(
        [(sorted(row), [row[unit] for unit in sorted(row)]) for row in rows], num_units
    )


@given(ROWS, st.sets(st.integers(0, 19)), st.integers(1, 7))
def test_each_slice_keeps_its_largest(rows: list[dict[int, float]], kept: set[int], count: int) -> None:
    units = sorted(kept)
    made = Slices(np.array(units, np.int64), count).densify(activations(rows))
    for row, values, which in zip(rows, made.values, made.units, strict=True):
        for number in range(count):
            lit = [(row[unit], -place) for place, unit in enumerate(units[number::count]) if unit in row]
            weight, place = max(lit, default=(0.0, 0))
            assert (values[number], which[number]) == (weight, -place)


@given(ROWS.filter(bool), st.integers(1, 7))
def test_the_score_is_a_dot_product_of_what_both_kept(rows: list[dict[int, float]], count: int) -> None:
    made = Slices(np.arange(20), count).densify(activations(rows))
    query = Densified(made.values[:1], made.units[:1])
    expected = [
        sum(
            float(v * w) if a == b else 0.0
            for v, w, a, b in zip(query.values[0], values, query.units[0], which, strict=True)
        )
        for values, which in zip(made.values, made.units, strict=True)
    ]
    np.testing.assert_allclose(gated_scores(query, made), expected, rtol=1e-6)
    dots = activations(rows).to_dense() @ activations(rows[:1]).to_dense()[0]
    assert (np.array(expected) <= dots + 1e-6).all()
    alone = Slices(np.arange(20), 20).densify(activations(rows))
    exact = gated_scores(Densified(alone.values[:1], alone.units[:1]), alone)
    np.testing.assert_allclose(exact, dots, rtol=1e-6)  # a slice for each unit loses nothing


def test_too_few_slices_are_refused() -> None:
    assert Slices(np.arange(512), 2).depth == 256
    with pytest.raises(UsageError, match="take 3 slices or more"):
        Slices(np.arange(513), 2)


class DenseNumbers:
    """Dense vectors of texts that are their own: stands for an encoder where none is loaded."""

    width = 3
    source = "/none"
    fingerprint = "f"

    def encode_documents(self, texts: list[str]) -> np.ndarray:
        return np.array([[float(number) for number in text.split()] for text in texts], np.float32)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("densify") / "index"
    generator = np.random.default_rng(0)
    rows = [
        dict(
            zip(
                generator.choice(60, 8, replace=False).tolist(),
                generator.choice([0.5, 1, 2, 3], 8),
                strict=True,
            )
        )
        for _ in range(300)
    ]
    dense = generator.standard_normal((300, 3)).round(2)
    with IndexWriter.create(folder, encoder=PrecomputedEncoder(num_units=64)) as writer:
        documents = [
            {"_id": f"d{i}", "text": " ".join(map(str, values))} for i, values in enumerate(dense.tolist())
        ]
        writer.add_vectors([d["_id"] for d in documents], activations(rows, 64), documents)
        writer.commit()
        writer.delete(["d7", "d8"])
        writer.commit()
    return folder


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("joined", [False, True])
def test_faiss_finds_what_scoring_everything_finds(
    index: Path, tmp_path: Path, half: bool, joined: bool
) -> None:
    with SparseIndex.open(index) as opened:
        dense = DenseNumbers() if joined else None
        report = densify_index(
            opened, tmp_path / "out", slices=16, half=half, dense=dense, dense_weight=2.0  # type: ignore[arg-type]
        )  # fmt: skip
        assert (report.documents, report.units, report.depth) == (298, 60, 4)
        assert 0.5 < report.kept < 1
        rows = SparseActivations.concat([batch.vectors for batch in live_rows(opened)])
        texts = [opened.document(f"d{i}")["text"] for i in range(300) if i not in (7, 8)]  # type: ignore[index]
    made = Slices(np.arange(60), 16).densify(rows)
    vectors = DenseNumbers().encode_documents(texts)
    if half:
        vectors = vectors.astype(np.float16).astype(np.float32)
    names = [f"d{i}" for i in range(300) if i not in (7, 8)]
    generator = np.random.default_rng(1)
    queries = activations(
        [{int(u): 1.5 for u in generator.choice(64, 5, replace=False)} for _ in range(20)], 64
    )
    sides = generator.standard_normal((20, 3)).astype(np.float32) if joined else None
    found = DensifiedIndex.open(tmp_path / "out").search_vectors(queries, sides, 7)
    few = DensifiedIndex.open(tmp_path / "out").search_vectors(queries, sides, 7, candidates=3)
    assert [len(ids) for ids in few.ids] == [min(3, len(ids)) for ids in few.ids]
    asked = Slices(np.arange(60), 16).densify(queries)
    for row in range(20):
        scores = gated_scores(Densified(asked.values[row : row + 1], asked.units[row : row + 1]), made)
        if sides is not None:
            scores = scores + 2 * vectors @ sides[row]
        order = np.argsort(-scores, kind="stable")[:7]
        order = order if joined else order[scores[order] > 0]
        np.testing.assert_allclose(found.scores[row], scores[order], rtol=1e-4, atol=1e-4)
        if not joined:  # with equal scores exactly equal, ids are as well
            assert found.ids[row] == [names[i] for i in order]


def test_what_cannot_be_opened_is_said(index: Path, tmp_path: Path) -> None:
    with SparseIndex.open(index) as opened:
        with pytest.raises(UsageError, match="0 or more"):
            densify_index(opened, tmp_path / "out", dense_weight=-1)
        densify_index(opened, tmp_path / "out", slices=16)
        with pytest.raises(ConflictError, match="exists already"):
            densify_index(opened, tmp_path / "out", slices=16)
    densified = DensifiedIndex.open(tmp_path / "out")
    query = activations([{1: 1.0}], 64)
    with pytest.raises(InputError, match=r"\[1, 0\]"):
        densified.search_vectors(query, np.zeros((1, 3), np.float32))
    with pytest.raises(UsageError, match="1 or more"):
        densified.search_vectors(query, k=0)
    with pytest.raises(NotFoundError, match="lexpert index densify"):
        DensifiedIndex.open(tmp_path)
    vectors = tmp_path / "out" / "vectors.faiss"
    vectors.write_bytes(vectors.read_bytes()[:100])
    with pytest.raises(FormatError, match="truncated"):
        DensifiedIndex.open(tmp_path / "out")
    (tmp_path / "out" / "densified.json").write_text("{}")
    with pytest.raises(FormatError, match="is damaged"):
        DensifiedIndex.open(tmp_path / "out")


def test_the_commands_write_and_search(tmp_path: Path) -> None:
    from retrieval.encoders.bm25 import Bm25Encoder

    documents = [
        {"_id": "a", "text": "vaccines train the immune system"},
        {"_id": "b", "text": "a train of thought"},
        {"_id": "c", "text": "zebras"},
    ]
    with IndexWriter.create(tmp_path / "index", encoder=Bm25Encoder()) as writer:
        writer.add(documents)
        writer.commit()
    runner = CliRunner()
    made = runner.invoke(
        index_app,
        ["densify", str(tmp_path / "index"), str(tmp_path / "out"), "--slices", "64"],
        catch_exceptions=False,
    )
    assert "3 documents, 6 units in 64 slices of at most 1; 100.0% of all weight is kept" in made.stdout
    found = runner.invoke(
        index_app,
        ["search-densified", str(tmp_path / "out"), "immune train", "cows", "--json"],
        catch_exceptions=False,
    )
    answers = json.loads(found.stdout)
    assert [[hit["id"] for hit in answer["hits"]] for answer in answers] == [["a", "b"], []]
    with SparseIndex.open(tmp_path / "index") as opened:
        scores = opened.search(["immune train"]).scores[0]
    np.testing.assert_allclose([hit["score"] for hit in answers[0]["hits"]], scores, rtol=1e-5)
