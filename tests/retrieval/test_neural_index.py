"""Indexes filled by models: searched by text, referring to the model, refusing another or a changed one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from retrieval import IndexWriter, SparseEncoder, SparseIndex
from retrieval.encoders.inference_free import inference_free_from
from retrieval.encoders.sentence_transformers_folder import SpladeRoute, TableRoute
from runtime.errors import ConflictError, FormatError, NotFoundError, UsageError

MakeModel = Callable[..., Path]


@pytest.fixture
def model(make_language_model: MakeModel, tmp_path: Path) -> Path:
    """A copy that a test may change or remove."""
    return Path(shutil.copytree(make_language_model(), tmp_path / "model"))


def fill(path: Path, encoder: SparseEncoder, texts: list[str]) -> None:
    with IndexWriter.create(path, encoder=encoder) as writer:
        writer.add({"_id": str(number), "text": text} for number, text in enumerate(texts))


def assert_equals_dense_products(path: Path, encoder: SparseEncoder, texts: list[str]) -> None:
    expected = encoder.encode_queries(texts).to_dense() @ encoder.encode_documents(texts).to_dense().T
    with SparseIndex.open(path) as index:
        index.verify()
        hits = index.search(texts, k=len(texts))
        for row, text in enumerate(texts):
            found = dict(zip(map(int, hits.ids[row]), hits.scores[row].tolist(), strict=True))
            assert found == pytest.approx(
                {place: score for place, score in enumerate(expected[row].tolist()) if score > 0}, rel=1e-5
            )
            explanation = index.explain(text, hits.ids[row][0])
            assert sum(share.share for share in explanation.shares) == explanation.score
            # Not bit by bit: a model's vectors differ in the last place with the batch that they are computed in.
            assert explanation.score == pytest.approx(float(hits.scores[row][0]), rel=1e-5)


def test_a_splade_index_is_searched_by_text_alone(model: Path, tmp_path: Path, texts: list[str]) -> None:
    encoder = SparseEncoder.load(model, max_active_dims=20)
    fill(tmp_path / "index", encoder, texts)
    assert_equals_dense_products(tmp_path / "index", encoder, texts)  # opened with the same limit
    size = sum(path.stat().st_size for path in (tmp_path / "index").glob("encoder-*/*"))
    assert size < 2000  # a reference, not a copy of the model


def test_a_model_that_moved_or_changed_is_refused(model: Path, tmp_path: Path, texts: list[str]) -> None:
    fill(tmp_path / "index", SparseEncoder.load(model), texts)
    moved = model.rename(tmp_path / "moved")
    with SparseIndex.open(tmp_path / "index") as index:  # what needs no model goes on
        assert index.verify() > 0
        assert index.stats()["documents"] == len(texts)
        with pytest.raises(NotFoundError, match="is not there any more"):
            index.search(texts[:1])
    with IndexWriter.open(tmp_path / "index") as writer:
        assert writer.delete(["0"]) == 1
        writer.merge()
    with SparseIndex.open(tmp_path / "index", encoder=SparseEncoder.load(moved)) as index:
        assert index.search(texts[:1]).ids[0]
    with IndexWriter.open(tmp_path / "index", encoder=SparseEncoder.load(moved)) as writer:
        assert writer.has_changes  # the new place
    with SparseIndex.open(tmp_path / "index") as index:
        assert index.search(texts[:1]).ids[0]
    model = moved
    weights = load_file(model / "model.safetensors")
    name = next(iter(sorted(weights)))
    weights[name] = weights[name] + 1
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with (
        pytest.raises(FormatError, match="it has changed since"),
        SparseIndex.open(tmp_path / "index") as index,
    ):
        index.search(texts[:1])
    with pytest.raises(ConflictError, match="another splade encoder"):
        SparseIndex.open(tmp_path / "index", encoder=SparseEncoder.load(model))


def test_an_inference_free_index_needs_no_model_to_search(
    model: Path, tmp_path: Path, texts: list[str]
) -> None:
    tokens = SparseEncoder.load(model).vocabulary
    (tmp_path / "idf").mkdir()
    for path in model.glob("tokenizer*"):
        shutil.copy(path, tmp_path / "idf")
    idf = {tokens.term(unit): 1 + unit / len(tokens) for unit in range(len(tokens))}
    (tmp_path / "idf" / "idf.json").write_text(json.dumps(idf))
    encoder = inference_free_from(
        SpladeRoute(model), TableRoute(tmp_path / "idf", tmp_path / "idf" / "idf.json")
    )
    fill(tmp_path / "index", encoder, texts)
    assert_equals_dense_products(tmp_path / "index", encoder, texts)
    with SparseIndex.open(tmp_path / "index") as index:
        before = index.search(texts)
    shutil.rmtree(model)
    shutil.rmtree(tmp_path / "idf")
    with SparseIndex.open(tmp_path / "index") as index:
        after = index.search(texts)
        assert after.ids == before.ids
        assert all(np.array_equal(*pair) for pair in zip(after.scores, before.scores, strict=True))
        with pytest.raises(UsageError):
            index.encoder.encode_documents(texts)
