"""Encoders whose queries are expanded from the first step of their training on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch

from retrieval.encoders.encoder import SparseEncoder
from retrieval.encoders.expanded_queries import ExpandedQueriesEncoder
from retrieval.encoders.masked_language_model import MaskedLanguageModel, TermWeighting
from retrieval.training.expanded_terms import ExpandedTerms
from retrieval.training.query_expansion import principal_directions
from retrieval.training.recipe import ExpansionSettings, QueryExpansionSettings, Recipe
from retrieval.training.sparse_model import ExpandedQueries, SparseModel
from retrieval.training.training import train
from retrieval.training.training_set import TrainingSet
from runtime.errors import LexpertError, UsageError
from tests.retrieval.training.conftest import UNUSED, dark

MakeRecipe = Callable[..., Recipe]
MakeModel = Callable[..., Path]

WIDTH = 16
CHANGES: dict[str, Any] = {
    "queries": "table",
    "expansion": {"threshold": 0.5, "queries": {"scale": 4.0, "gain": 0.5, "limit": 5}},
    "batch": {
        "queries": 4,
        "negatives": 1,
        "sampled_terms": 30,
        "max_query_length": 16,
        "max_passage_length": 24,
    },
    "losses": [{"kind": "kl", "over": "batch", "scale": 5.0}],
    "optimiser": {"learning_rate": 1e-2, "table_learning_rate": 1e-2},
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def model(make_language_model: MakeModel, tmp_path: Path) -> Path:
    return dark(make_language_model(), tmp_path / "language-model", UNUSED)


def start(model: Path, data: TrainingSet, cache: Path, limit: int) -> SparseModel:
    """A model as a training starts it, with other values than those."""
    settings = ExpansionSettings(
        threshold=0.5, gain=0.7, queries=QueryExpansionSettings(scale=4.0, gain=0.5, limit=limit)
    )
    made = ExpandedTerms(
        model, settings, "relu", data.passages, 30, cache, torch.device("cpu"), queries=data.queries
    )
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        made.rows.copy_(torch.randn(made.rows.shape, generator=draw) * 0.5)
    weights = torch.linspace(0.5, 4, made.num_terms)
    queries = ExpandedQueries(made.tokenizer, weights, True, data.queries, 30, made.query_meanings)
    return SparseModel(made, queries, 30, 30)


def test_an_encoder_gives_what_was_trained(model: Path, training_set: TrainingSet, tmp_path: Path) -> None:
    # A limit that cuts nothing: in training passages have it, too.
    made = start(model, training_set, tmp_path / "cache", limit=2 * WIDTH)
    made.save(tmp_path / "encoder")
    encoder = SparseEncoder.load(tmp_path / "encoder", dtype="float32")
    assert isinstance(encoder, ExpandedQueriesEncoder)
    passages, queries = training_set.passages[::3], training_set.queries[::2]
    expected = made.encode_passages(made.tokenize_passages(passages)).detach().numpy()
    found = np.asarray(encoder.encode_documents(passages).to_dense())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    expected = made.encode_queries(made.tokenize_queries(queries)).detach().numpy()
    found = np.asarray(encoder.encode_queries(queries).to_dense())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert (found[:, UNUSED[: 2 * WIDTH]] > 0).any(1).all()


def test_passages_and_queries_keep_the_heaviest_directions(
    model: Path, training_set: TrainingSet, tmp_path: Path
) -> None:
    made = start(model, training_set, tmp_path / "cache", limit=3)
    frozen = MaskedLanguageModel(model, dtype="float32")
    (_, passages), (_, queries) = (
        frozen.encode_with_pooled(texts, TermWeighting(max_length=30))
        for texts in (training_set.passages, training_set.queries)
    )
    centre, rows, _ = principal_directions(passages, WIDTH)
    terms = np.array(UNUSED[: 2 * WIDTH])
    assert made.fixed_terms is not None
    assert made.fixed_terms.tolist() == terms.tolist()
    for vectors, found, factor in (
        (passages, made.encode_passages(made.tokenize_passages(training_set.passages)), 4.0),
        (queries, made.encode_queries(made.tokenize_queries(training_set.queries)), 2.0),
    ):
        along = (vectors.astype(np.float64) - centre) @ rows.T * factor
        expected = np.zeros((len(vectors), 2 * WIDTH))
        expected[:, ::2], expected[:, 1::2] = np.maximum(along, 0), np.maximum(-along, 0)
        for row in expected:
            row[np.argsort(-row, kind="stable")[3:]] = 0
        np.testing.assert_allclose(found.detach().numpy()[:, terms], expected, rtol=1e-3, atol=1e-3)


def test_some_terms_are_those_of_all(model: Path, training_set: TrainingSet, tmp_path: Path) -> None:
    made = start(model, training_set, tmp_path, limit=4)
    tokens = made.tokenize_passages(training_set.passages)
    terms = torch.tensor(sorted({0, 9, *UNUSED[:3], *UNUSED[-2:]}))
    some, everything = made.encode_passages(tokens, terms), made.encode_passages(tokens)
    torch.testing.assert_close(some[:, terms], everything[:, terms])


def test_a_stopped_training_ends_with_the_same_weights(
    make_recipe: MakeRecipe, model: Path, training_set: TrainingSet, tmp_path: Path
) -> None:
    recipe = make_recipe(**CHANGES, evaluate_every=2)
    kept: dict[str, dict[str, bytes]] = {}
    for name, fails in (("whole", 99), ("stopped", 2)):
        calls = 0

        def evaluate(encoder: SparseEncoder, fails: int = fails) -> dict[str, float]:
            nonlocal calls
            calls += 1
            if calls == fails:
                raise LexpertError("stopped")
            return {"terms": float(encoder.encode_queries(training_set.queries).nnz)}

        options: dict[str, Any] = {"device": "cpu", "cache": tmp_path / "cache", "evaluate": evaluate}
        out = tmp_path / name
        if fails == 2:
            with pytest.raises(LexpertError, match="stopped"):
                train(recipe, model, training_set, out, **options)
        report = train(recipe, model, training_set, out, resume=True, **options)
        assert report.family == "expanded_queries"
        kept[name] = {path.name: path.read_bytes() for path in (out / "model").rglob("*.safetensors")}
    assert kept["whole"] == kept["stopped"]
    encoder = SparseEncoder.load(tmp_path / "whole" / "model")
    assert isinstance(encoder, ExpandedQueriesEncoder)


def test_a_vocabulary_without_free_terms_is_refused(
    make_recipe: MakeRecipe, make_language_model: MakeModel, training_set: TrainingSet, tmp_path: Path
) -> None:
    full = dark(make_language_model(), tmp_path / "full", [])
    with pytest.raises(UsageError, match="has no two terms that are in no text"):
        train(
            make_recipe(**CHANGES),
            full,
            training_set,
            tmp_path / "run",
            device="cpu",
            cache=tmp_path / "cache",
        )
