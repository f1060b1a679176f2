"""``lexpert train csr``: from texts to an encoder that an index takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from evals.train_cli import app
from retrieval.encoders.encoder import SparseEncoder
from runtime.errors import ConflictError, UsageError
from tests.retrieval.conftest import TEXTS, make_language_model  # noqa: F401

MakeModel = Callable[..., Path]


def run(*arguments: object) -> dict[str, object]:
    result = CliRunner().invoke(app, ["csr", *map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    printed: dict[str, object] = json.loads(result.stdout)
    return printed


def test_a_corpus_becomes_an_encoder_and_its_vectors_are_kept(
    make_language_model: MakeModel,  # noqa: F811
    tmp_path: Path,
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(
        "".join(json.dumps({"_id": str(i), "text": text}) + "\n" for i, text in enumerate(TEXTS))
    )
    common = ["--corpus", corpus, "--cache", tmp_path / "cache", "--k", 3, "--steps", 4]
    made = run(make_language_model(), "--out", tmp_path / "a", *common)
    assert made["cache"] == {"found": 0, "made": 5, "damaged": 0}
    assert made["latents"] == 64
    codes = SparseEncoder.load(tmp_path / "a").encode_documents(TEXTS)
    assert np.diff(codes.indptr).max() == 3
    again = run(make_language_model(), "--out", tmp_path / "b", *common, "--allocation", "mutual_choice")
    assert again["cache"] == {"found": 5, "made": 0, "damaged": 0}
    for wrong, kind in (
        (["--out", tmp_path / "a", *common], ConflictError),
        (["--out", tmp_path / "c"], UsageError),
        (["--out", tmp_path / "c", *common, "--allocation", "some"], UsageError),
    ):
        with pytest.raises(kind):
            run(make_language_model(), *wrong)
