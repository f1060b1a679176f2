"""``lexpert train encoder | recipes | show | head``, from the command line to an encoder that loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch
import transformers

from evals.train_cli import app
from retrieval.encoders.encoder import SparseEncoder
from retrieval.training.head import add_head
from retrieval.training.recipe import Recipe
from retrieval.training.training_set import TrainingSet
from runtime.errors import UsageError
from tests.retrieval.conftest import TEXTS, TOKENS, make_language_model, save_tokenizer  # noqa: F401 - fixtures
from tests.retrieval.training.conftest import make_recipe, training_set  # noqa: F401

MakeModel = Callable[..., Path]


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_recipes_are_listed_and_what_is_shown_is_a_recipe(
    tmp_path: Path, make_language_model: MakeModel, training_set: TrainingSet  # noqa: F811
) -> None:  # fmt: skip
    assert "SPLADE-v3" in run("recipes")
    assert "splade-max" in json.loads(run("recipes", "--json"))
    (tmp_path / "mine.yaml").write_text(run("show", "splade-max"))
    assert (
        Recipe.model_validate(json.loads(run("show", tmp_path / "mine.yaml", "--json"))).name == "splade-max"
    )
    training_set.save(tmp_path / "set")
    collection = tmp_path / "small"
    (collection / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": str(i), "title": "", "text": t}) for i, t in enumerate(training_set.passages)]
    (collection / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    (collection / "queries.jsonl").write_text(
        json.dumps({"_id": "q", "text": training_set.queries[0]}) + "\n"
    )
    (collection / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\t0\t1\n")
    arguments = [
        "encoder", tmp_path / "mine.yaml", "--base", make_language_model(), "--set", tmp_path / "set",
        "--out", tmp_path / "run", "--device", "cpu", "--eval", collection, "--json",
    ]  # fmt: skip
    for option in ("batch.queries=4", "optimiser.warmup=0", "steps=2", "precision=float32"):
        arguments += ["--set-option", option]
    report = json.loads(run(*arguments))
    assert report["steps"] == 2
    assert 0 <= report["score"] <= 1
    assert json.loads(run(*arguments, "--resume")) == report
    assert SparseEncoder.load(tmp_path / "run" / "model").encode_queries(["the virus"]).nnz


def test_a_transformer_without_a_head_gets_one_and_learns(tmp_path: Path) -> None:
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = transformers.BertConfig(**shape, vocab_size=len(TOKENS), max_position_embeddings=40)
    transformers.BertModel(config).save_pretrained(tmp_path / "base")
    save_tokenizer(tmp_path / "base")
    (tmp_path / "text.txt").write_text("\n\n".join(TEXTS * 20) + "\n")
    arguments = (
        "head", tmp_path / "base", tmp_path / "out", "--text", tmp_path / "text.txt", "--steps", 20,
        "--batch-size", 4, "--block", 16, "--learning-rate", 0.01, "--device", "cpu", "--json",
    )  # fmt: skip
    report = json.loads(run(*arguments))
    assert report["last_perplexity"] < report["first_perplexity"]
    encoder = SparseEncoder.load(report["encoder"])
    assert encoder.encode_documents(["the virus"]).nnz
    model = transformers.AutoModelForMaskedLM.from_pretrained(report["encoder"])
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert json.loads(run(*arguments, "--resume"))["last_perplexity"] == report["last_perplexity"]
    other = ("head", tmp_path, *arguments[2:], "--resume")
    with pytest.raises(UsageError, match="was started with base"):
        run(*other)
    with pytest.raises(UsageError, match="has a head already"):
        add_head(Path(report["encoder"]), tmp_path / "another", TEXTS)
    assert not (tmp_path / "another").exists()
