"""A term expansion is trained over a model that stays as it is, and the encoder gives what the training saw."""

from __future__ import annotations

import json
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
from retrieval.encoders.masked_language_model import MaskedLanguageModel, TermWeighting
from retrieval.encoders.vector_difference import vector_difference
from retrieval.training import expanded_terms
from retrieval.training.expanded_terms import ExpandedTerms
from retrieval.training.recipe import ExpansionSettings, Recipe
from retrieval.training.sparse_model import QueryWeights, SparseModel
from retrieval.training.term_vectors import term_vectors
from retrieval.training.training import train
from retrieval.training.training_set import TrainingSet
from runtime.errors import LexpertError, UsageError

MakeRecipe = Callable[..., Recipe]
MakeModel = Callable[..., Path]

SETTINGS = ExpansionSettings(threshold=0.5, gain=0.7)
CHANGES: dict[str, Any] = {
    "queries": "table",
    "expansion": {"threshold": 0.5},
    "losses": [{"kind": "kl", "over": "batch", "scale": 5.0}],
    "optimiser": {"learning_rate": 1e-2, "table_learning_rate": 1e-2},
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def expanded(model: Path, texts: list[str], cache: Path) -> ExpandedTerms:
    return ExpandedTerms(model, SETTINGS, "relu", texts, 30, cache, torch.device("cpu"))


def changed(made: ExpandedTerms) -> ExpandedTerms:
    """With other values than at the start, for those are all 0."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (made.rows, made.shared):
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.5)
    return made


def test_an_encoder_gives_what_was_trained(
    make_language_model: MakeModel, texts: list[str], tmp_path: Path
) -> None:
    made = changed(expanded(make_language_model(), texts, tmp_path / "cache"))
    weights = made(made.tokens_of(texts, 30)).detach().numpy()
    table = QueryWeights(made.tokenizer, torch.ones(made.num_terms), learned=False)
    SparseModel(made, table, 30, 30).save(tmp_path / "encoder")
    found = SparseEncoder.load(tmp_path / "encoder", dtype="float32").encode_documents(texts)
    dense = np.zeros_like(weights)
    for row, (units, values) in enumerate(found):
        dense[row, units] = values
    np.testing.assert_allclose(dense, weights, rtol=1e-4, atol=1e-4)
    assert ((dense > 0).sum(1) > 5).all()
    tokenizers = {path.read_bytes() for path in (tmp_path / "encoder").rglob("tokenizer.json")}
    assert len(tokenizers) == 1  # so that shrinking keeps one for both sides


def test_some_terms_are_those_of_all(
    make_language_model: MakeModel, texts: list[str], tmp_path: Path
) -> None:
    made = changed(expanded(make_language_model(), texts, tmp_path))
    tokens = made.tokens_of(texts, 30)
    terms = torch.tensor([0, 5, 9, made.num_terms - 1])
    some, everything = made(tokens, terms), made(tokens)
    torch.testing.assert_close(some[:, terms], everything[:, terms])
    left = torch.ones(made.num_terms, dtype=torch.bool)
    left[terms] = False
    assert not some[:, left].any()


def test_an_expansion_starts_with_terms_that_are_near_in_standard_deviations(
    make_language_model: MakeModel, texts: list[str], tmp_path: Path
) -> None:
    model = MaskedLanguageModel(make_language_model(), device="cpu", dtype="float32")
    _, vectors = model.encode_with_pooled(texts, TermWeighting(max_length=30))
    terms = term_vectors(model.model, model.tokenizer, torch.arange(len(model.vocabulary))).numpy()
    directions = terms - terms.mean(0)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    similarity = vectors @ directions.T
    z = (similarity - similarity.mean(0)) / similarity.std(0)
    made = expanded(make_language_model(), texts, tmp_path)
    found = made.expansion().terms(torch.from_numpy(vectors)).numpy()
    np.testing.assert_allclose(found, 0.7 * np.maximum(z - 0.5, 0), rtol=1e-3, atol=1e-3)


def test_the_vector_of_a_term_is_that_of_a_text_of_it(make_language_model: MakeModel) -> None:
    model = MaskedLanguageModel(make_language_model(), device="cpu", dtype="float32")
    words = ["virus", "immune", "cell"]
    _, vectors = model.encode_with_pooled(words, TermWeighting())
    units = torch.tensor(model.tokenizer.convert_tokens_to_ids(words))
    np.testing.assert_allclose(
        term_vectors(model.model, model.tokenizer, units).numpy(), vectors, rtol=1e-4, atol=1e-5
    )


def test_texts_are_encoded_once(
    make_language_model: MakeModel, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_language_model()
    first = expanded(model, texts, tmp_path)

    class Refuses(MaskedLanguageModel):
        def encode_with_pooled(self, *given: Any, **named: Any) -> Any:
            assert not given[0], "a text was encoded again"
            return super().encode_with_pooled(*given, **named)

    monkeypatch.setattr(expanded_terms, "MaskedLanguageModel", Refuses)
    again = expanded(model, texts[::-1], tmp_path)
    tokens = first.tokens_of(texts, 30)
    assert torch.equal(first(tokens) > 0, again(tokens) > 0)
    assert again.state_dict().keys() == {"rows", "shared", "bias", "log_gain"}  # and nothing that is frozen


def test_a_training_learns_the_expansion_and_nothing_of_the_model(
    make_recipe: MakeRecipe, make_language_model: MakeModel, training_set: TrainingSet, tmp_path: Path
) -> None:
    model, recipe, cache = make_language_model(), make_recipe(**CHANGES), tmp_path / "cache"
    report = train(recipe, model, training_set, tmp_path / "run", device="cpu", cache=cache)
    assert (report.family, report.steps) == ("inference_free", 6)
    [document] = (tmp_path / "run" / "model").glob("document_0_*")
    assert (document / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    start = make_recipe(**CHANGES, steps=1, evaluate_every=1)
    train(start, model, training_set, tmp_path / "short", device="cpu", cache=cache)
    short, long = (SparseEncoder.load(tmp_path / name / "model") for name in ("short", "run"))
    assert vector_difference(short, long, training_set.passages).mean_cosine < 1 - 1e-5
    assert long.encode_queries(training_set.queries).nnz


def test_a_stopped_training_ends_with_the_same_weights(
    make_recipe: MakeRecipe, make_language_model: MakeModel, training_set: TrainingSet, tmp_path: Path
) -> None:
    recipe, model = make_recipe(**CHANGES, evaluate_every=2), make_language_model()
    kept: dict[str, dict[str, bytes]] = {}
    for name, fails in (("whole", 99), ("stopped", 2)):
        calls = 0

        def evaluate(_encoder: SparseEncoder, fails: int = fails) -> dict[str, float]:
            nonlocal calls
            calls += 1
            if calls == fails:
                raise LexpertError("stopped")
            return {"one": float(calls)}

        options: dict[str, Any] = {"device": "cpu", "cache": tmp_path / "cache", "evaluate": evaluate}
        out = tmp_path / name
        if fails == 2:
            with pytest.raises(LexpertError, match="stopped"):
                train(recipe, model, training_set, out, **options)
        train(recipe, model, training_set, out, resume=True, **options)
        kept[name] = {path.name: path.read_bytes() for path in (out / "model").rglob("*.safetensors")}
    assert kept["whole"] == kept["stopped"]
    assert "expansion.safetensors" in kept["whole"]


def test_a_recipe_says_what_an_expansion_needs(make_recipe: MakeRecipe) -> None:
    for wrong in ({"queries": "shared", "optimiser": {}}, {"frozen_layers": 1}, {"batch": {"part": 2}}):
        with pytest.raises(ValueError, match="an expansion is of queries: table"):
            make_recipe(**{**CHANGES, **wrong})


def test_no_texts_are_refused(make_language_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs texts"):
        expanded(make_language_model(), [], tmp_path)


def test_settings_are_part_of_what_a_training_was_started_with(
    make_recipe: MakeRecipe, make_language_model: MakeModel, training_set: TrainingSet, tmp_path: Path
) -> None:
    model, out = make_language_model(), tmp_path / "run"
    train(make_recipe(**CHANGES), model, training_set, out, device="cpu", cache=tmp_path / "cache")
    other = make_recipe(**{**CHANGES, "expansion": {"threshold": 0.6}})
    with pytest.raises(UsageError, match=r"recipe\.expansion\.threshold"):
        train(other, model, training_set, out, resume=True, device="cpu", cache=tmp_path / "cache")
    assert json.loads((out / "training.json").read_text())
