"""Steps that compute some terms alone train as steps that compute all, and frozen layers stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from retrieval.encoders.encoder import SparseEncoder
from retrieval.training.penalties import active_terms, make_penalty
from retrieval.training.recipe import Recipe
from retrieval.training.sparse_model import TermModel
from retrieval.training.term_sample import sample_terms
from retrieval.training.training import train
from retrieval.training.training_set import TrainingSet
from runtime.errors import FormatError, UsageError

MakeRecipe = Callable[..., Recipe]
MakeModel = Callable[..., Path]
CPU = torch.device("cpu")
BATCH = {"queries": 4, "negatives": 1, "max_query_length": 16, "max_passage_length": 24}


@given(st.lists(st.lists(st.integers(0, 30), max_size=5), max_size=4), st.integers(1, 40), st.integers(0, 9))
@settings(deadline=None, max_examples=80)
def test_own_terms_are_always_there_and_counts_add_up(rows: list[list[int]], drawn: int, seed: int) -> None:
    sample = sample_terms([{"input_ids": rows}], 25, drawn, [seed], CPU)
    own = {unit for ids in rows for unit in ids if unit < 25}
    terms = sample.terms.tolist()
    assert terms == sorted(set(terms))
    assert own <= set(terms)
    assert len(terms) == min(25, len(own) + drawn)
    assert (sample.counts[sorted(own)] == 1).all()
    assert float(sample.counts.sum()) == pytest.approx(25)
    assert set(sample.counts.nonzero().flatten().tolist()) == set(terms)


def test_penalties_of_samples_are_right_on_average() -> None:
    weights = torch.rand(5, 40, generator=torch.Generator().manual_seed(0)) - 0.3
    weights = weights.relu()
    penalty = make_penalty("flops")
    found, active = [], []
    for seed in range(3000):
        sample = sample_terms([{"input_ids": [[3, 4]]}], 40, 6, [seed], CPU)
        only = torch.zeros_like(weights)
        only[:, sample.terms] = weights[:, sample.terms]
        found.append(float(penalty(only, sample.counts)))
        active.append(float(active_terms(only, sample.counts).mean()))
    assert np.mean(found) == pytest.approx(float(penalty(weights)), rel=0.02)
    assert np.mean(active) == pytest.approx(float((weights > 0).sum(1).float().mean()), rel=0.02)


def test_chosen_terms_weigh_what_they_weigh_among_all(make_language_model: MakeModel) -> None:
    model = TermModel(make_language_model(), "relu", CPU)
    tokens = model.tokens_of(["the virus", "how do vaccines work in the body"], 16)
    whole = model(tokens)
    terms = torch.tensor([3, 7, 20, 41])
    some = model(tokens, terms)
    torch.testing.assert_close(some[:, terms], whole[:, terms])
    others = torch.ones(whole.shape[1], dtype=torch.bool)
    others[terms] = False
    assert not some[:, others].any()


def test_a_sample_of_all_terms_trains_to_the_same_vectors(
    make_recipe: MakeRecipe, make_language_model: MakeModel, training_set: TrainingSet, tmp_path: Path
) -> None:
    vectors = []
    for drawn in (None, 10_000):
        recipe = make_recipe(batch={**BATCH, "sampled_terms": drawn}, dropout=0.0)
        train(recipe, make_language_model(), training_set, tmp_path / str(drawn), device="cpu")
        encoder = SparseEncoder.load(tmp_path / str(drawn) / "model", dtype="float32", device="cpu")
        vectors.append(encoder.encode_documents(training_set.passages).to_dense())
    np.testing.assert_allclose(*vectors, rtol=1e-3, atol=1e-4)


def test_few_sampled_terms_and_frozen_layers(
    make_recipe: MakeRecipe, make_language_model: MakeModel, training_set: TrainingSet, tmp_path: Path
) -> None:
    recipe = make_recipe(batch={**BATCH, "sampled_terms": 3}, frozen_layers=1)
    train(recipe, make_language_model(), training_set, tmp_path / "run", device="cpu")
    before = load_file(make_language_model() / "model.safetensors")
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    for name, weight in after.items():
        stays = "embeddings" in name or ".layer.0." in name
        assert torch.equal(weight, before[name]) == stays, name


def test_settings_that_do_not_fit_are_refused(
    make_recipe: MakeRecipe, make_language_model: MakeModel, training_set: TrainingSet, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"frozen_layers is 9, but the transformer has \d layers"):
        train(
            make_recipe(frozen_layers=9), make_language_model(), training_set, tmp_path / "run", device="cpu"
        )
    assert not (tmp_path / "run").exists()
    for changes in ({"family": "unicoil", "frozen_layers": 1}, {"batch": {"part": 2, "sampled_terms": 9}}):
        with pytest.raises((ValueError, FormatError, UsageError), match="of the family splade"):
            make_recipe(**changes)
