"""Folders go both ways between this package and sentence-transformers, with equal vectors."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SparseEncoder as Peer
from sentence_transformers.sparse_encoder.modules import Router, SpladePooling, Transformer

from retrieval.encoders.encoder import SparseEncoder
from retrieval.encoders.sentence_transformers_folder import read_folder
from retrieval.encoders.splade import SpladeEncoder
from runtime.activations import SparseActivations
from runtime.errors import FormatError

MakeModel = Callable[..., Path]


def dense(rows: SparseActivations) -> np.ndarray:
    table = np.zeros((rows.num_rows, rows.num_units), np.float32)
    for row, (units, weights) in enumerate(rows):
        table[row, units] = weights
    return table


def assert_equal_vectors(ours: SparseEncoder, peer: Peer, texts: list[str]) -> None:
    for mine, theirs in (
        (ours.encode_queries(texts), peer.encode_query(texts, convert_to_sparse_tensor=False)),
        (ours.encode_documents(texts), peer.encode_document(texts, convert_to_sparse_tensor=False)),
    ):
        assert mine.nnz > 0
        np.testing.assert_allclose(dense(mine), theirs.cpu().numpy(), rtol=1e-5, atol=1e-5)


def modules(folder: Path, pooling: str, activation: str) -> list[Any]:
    return [
        Transformer(str(folder), transformer_task="fill-mask"),
        SpladePooling(pooling_strategy=pooling, activation_function=activation),
    ]


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "modernbert"])
def test_a_plain_model_folder_is_splade_max_for_both(
    make_language_model: MakeModel, texts: list[str], architecture: str
) -> None:
    folder = make_language_model(architecture)
    assert_equal_vectors(SparseEncoder.load(folder), Peer(str(folder), device="cpu"), texts)


@pytest.mark.parametrize("pooling", ["max", "sum"])
@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
def test_their_folder_gives_equal_vectors_here_and_ours_there(
    make_language_model: MakeModel, texts: list[str], tmp_path: Path, pooling: str, activation: str
) -> None:
    peer = Peer(
        modules=modules(make_language_model(), pooling, activation),
        prompts={"query": "how do ", "document": "the "},
        device="cpu",
    )
    peer.max_seq_length = 20
    peer.save(str(tmp_path / "theirs"), create_model_card=False)
    ours = SparseEncoder.load(tmp_path / "theirs")
    assert_equal_vectors(ours, peer, texts)
    ours.save(tmp_path / "ours")
    assert SparseEncoder.load(tmp_path / "ours").fingerprint == ours.fingerprint
    assert_equal_vectors(ours, Peer(str(tmp_path / "ours"), device="cpu"), texts)
    listed = json.loads((tmp_path / "ours" / "modules.json").read_text())
    assert [module["type"] for module in listed] == [
        "sentence_transformers.sparse_encoder.models.MLMTransformer",
        "sentence_transformers.sparse_encoder.models.SpladePooling",
    ]


def test_their_limit_of_active_dimensions_is_kept(
    make_language_model: MakeModel, texts: list[str], tmp_path: Path
) -> None:
    peer = Peer(modules=modules(make_language_model(), "max", "relu"), max_active_dims=5, device="cpu")
    peer.save(str(tmp_path / "theirs"), create_model_card=False)
    ours = SparseEncoder.load(tmp_path / "theirs")
    assert_equal_vectors(ours, peer, texts)
    assert np.diff(ours.encode_documents(texts).indptr).max() == 5
    ours.save(tmp_path / "ours")
    assert Peer(str(tmp_path / "ours"), device="cpu").max_active_dims == 5


def test_a_separate_query_model_is_used_in_both_directions(
    make_language_model: MakeModel, texts: list[str], tmp_path: Path
) -> None:
    router = Router.for_query_document(
        query_modules=modules(make_language_model(seed=1), "max", "relu"),
        document_modules=modules(make_language_model(), "sum", "log1p_relu"),
    )
    peer = Peer(modules=[router], device="cpu")
    peer.save(str(tmp_path / "theirs"), create_model_card=False)
    ours = SparseEncoder.load(tmp_path / "theirs")
    assert isinstance(ours, SpladeEncoder)
    assert ours.family == "splade"
    assert_equal_vectors(ours, peer, texts)
    ours.save(tmp_path / "ours")
    assert SparseEncoder.load(tmp_path / "ours").fingerprint == ours.fingerprint
    assert_equal_vectors(ours, Peer(str(tmp_path / "ours"), device="cpu"), texts)


def test_a_router_around_one_shared_model_loads_it_once(
    make_language_model: MakeModel, texts: list[str], tmp_path: Path
) -> None:
    transformer, pooling = modules(make_language_model(), "max", "relu")
    router = Router(
        {"text": [transformer]},
        route_mappings={(None, "text"): "text"},
    )
    peer = Peer(modules=[router, pooling], device="cpu")
    peer.save(str(tmp_path / "theirs"), create_model_card=False)
    ours = SparseEncoder.load(tmp_path / "theirs")
    assert isinstance(ours, SpladeEncoder)
    assert ours.queries.model is ours.documents.model
    assert_equal_vectors(ours, peer, texts)


def test_lower_casing_asked_for_by_the_folder_is_done(
    make_language_model: MakeModel, texts: list[str], tmp_path: Path
) -> None:
    SparseEncoder.load(make_language_model()).save(tmp_path / "ours")
    tokenizer = tmp_path / "ours" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"lowercase": true', '"lowercase": false'))
    settings = tmp_path / "ours" / "sentence_bert_config.json"
    for lower_case in (True, False):
        settings.write_text(json.dumps({"max_seq_length": None, "do_lower_case": lower_case}))
        peer, ours = Peer(str(tmp_path / "ours"), device="cpu"), SparseEncoder.load(tmp_path / "ours")
        assert_equal_vectors(ours, peer, ["Vaccines WORK", *texts])


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (["base.modules.transformer.Transformer", "sentence_transformer.modules.pooling.Pooling"], "Pooling"),
        (["models.WordEmbeddings"], "WordEmbeddings"),
        ([], "nothing"),
    ],
)
def test_other_encoders_are_refused_by_name(tmp_path: Path, kinds: list[str], said: str) -> None:
    listed = [
        {"idx": i, "name": str(i), "path": f"{i}_module", "type": f"sentence_transformers.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(FormatError, match=said):
        SparseEncoder.load(tmp_path)


def test_unknown_pooling_is_refused(make_language_model: MakeModel, tmp_path: Path) -> None:
    SparseEncoder.load(make_language_model()).save(tmp_path)
    (tmp_path / "1_SpladePooling" / "config.json").write_text('{"pooling_strategy": "mean"}')
    with pytest.raises(FormatError, match="pooling_strategy is 'mean'"):
        SparseEncoder.load(tmp_path)
    (tmp_path / "1_SpladePooling" / "config.json").write_text("{")
    with pytest.raises(FormatError, match="not valid JSON"):
        SparseEncoder.load(tmp_path)


def test_the_limit_of_tokens_comes_from_the_most_specific_place(tmp_path: Path) -> None:
    listed = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.MLMTransformer"},
        {"idx": 1, "name": "1", "path": "1", "type": "sentence_transformers.models.SpladePooling"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    config = {"max_seq_length": 128, "query_length": 16}
    (tmp_path / "sentence_distilbert_config.json").write_text(json.dumps(config))
    described = read_folder(tmp_path)
    assert described.documents.max_length == 128
    assert described.queries.max_length == 16  # type: ignore[union-attr]


def test_what_cannot_be_fused_is_said(
    make_language_model: MakeModel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        SparseEncoder.load(make_language_model("mobilebert"))
    assert "does not end in a plain linear decoder" in caplog.text
