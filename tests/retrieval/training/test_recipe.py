"""Recipes are read, checked, and changed by the path of a setting."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrieval.training.recipe import load_recipe, parse_option, recipe_names
from runtime.errors import FormatError, LexpertError, NotFoundError, UsageError


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid_and_says_what_it_reproduces(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert len(recipe.reproduces) > 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "is not valid YAML"),
        ("- 1", "must hold the settings"),
        (
            "name: a\nreproduces: b\nlosses: [{kind: kl}]\nbatch: {querys: 3}",
            "batch.querys: there is no such setting",
        ),
        ("name: a\nreproduces: b\nlosses: []", "losses: List should have at least 1 item"),
        ("name: a\nreproduces: b\nlosses: [{kind: cosine}]", "losses.0.kind: Input should be 'contrastive'"),
        (
            "name: a\nreproduces: b\nlosses: [{kind: kl}]\npenalties: {passages: {kind: idf_flops, strength: 1}}",
            "say queries: table",
        ),
        (
            "name: a\nreproduces: b\nlosses: [{kind: margin_mse}]\nbatch: {negatives: 0}",
            "give batch.negatives",
        ),
        (
            "name: a\nreproduces: b\nlosses: [{kind: contrastive}]\nbatch: {queries: 1, negatives: 0}",
            "nothing to compare its positive with",
        ),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(FormatError) as refused:
        load_recipe(path)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_settings_change_by_their_path() -> None:
    options = dict(
        map(parse_option, ["batch.queries=8", "losses.0.weight=2", "optimiser.learning_rate=2e-5"])
    )
    recipe = load_recipe("splade-max").changed(options)
    assert (recipe.batch.queries, recipe.losses[0].weight, recipe.optimiser.learning_rate) == (8, 2.0, 2e-5)
    for wrong in ("batch.querys=8", "batch.queries=0", "losses.7.weight=1", "name.first=x", "steps"):
        with pytest.raises(UsageError):
            load_recipe("splade-max").changed(dict([parse_option(wrong)]))


def test_names_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(FormatError, match="is a folder"):
        load_recipe(tmp_path / "folder.yaml")
    with pytest.raises(NotFoundError, match="choose from deepimpact"):
        load_recipe("splade-min")
    with pytest.raises(LexpertError, match="no recipe file"):
        load_recipe("missing.yaml")
