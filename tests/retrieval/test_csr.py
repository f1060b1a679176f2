"""Sparse codes of dense vectors: the choice of latents, folders, and what training reaches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SparseEncoder as Peer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder

from retrieval.encoders.csr import CsrEncoder
from retrieval.encoders.dense import DenseEncoder
from retrieval.encoders.encoder import SparseEncoder
from retrieval.encoders.sparse_autoencoder import SparseAutoencoder
from retrieval.index.sparse_index import SparseIndex
from retrieval.index.writer import IndexWriter
from retrieval.training.csr_autoencoder import (
    CsrSettings,
    CsrStep,
    allocate,
    thresholds_of,
    train_autoencoder,
)
from runtime.errors import FormatError, InputError, LexpertError, UsageError
from tests.retrieval.conftest import TEXTS

MakeModel = Callable[..., Path]


def some_autoencoder(width: int = 16, latents: int = 40, k: int = 5, **settings: object) -> SparseAutoencoder:
    generator = np.random.default_rng(1)
    arrays = [
        generator.standard_normal(shape).astype(np.float32) for shape in ((latents, width), latents, width)
    ]
    return SparseAutoencoder(*arrays, k=k, **settings)  # type: ignore[arg-type]


def their_folder(folder: Path, model: Path, normalize: bool) -> Peer:
    torch.manual_seed(2)
    transformer = Transformer(str(model))
    autoencoder = SparseAutoEncoder(16, hidden_dim=48, k=6, normalize=normalize)
    with torch.no_grad():
        autoencoder.pre_bias.normal_(0, 0.1)
        autoencoder.latent_bias.normal_(0, 0.1)
    modules = [transformer, Pooling(16, pooling_mode=("mean")), Normalize(), autoencoder]
    peer = Peer(modules=modules, device="cpu", prompts={"query": "how ", "document": ""})
    peer.save(str(folder), create_model_card=False)
    return peer


@pytest.mark.parametrize("normalize", [False, True])
def test_their_folder_gives_equal_codes_here_and_ours_there(
    make_language_model: MakeModel, tmp_path: Path, normalize: bool
) -> None:
    peer = their_folder(tmp_path / "theirs", make_language_model(), normalize)
    ours = SparseEncoder.load(tmp_path / "theirs")
    assert isinstance(ours, CsrEncoder)
    ours.save(tmp_path / "ours")
    for there in (peer, Peer(str(tmp_path / "ours"), device="cpu")):
        for mine, theirs in (
            (ours.encode_queries(TEXTS), there.encode_query(TEXTS, convert_to_sparse_tensor=False)),
            (ours.encode_documents(TEXTS), there.encode_document(TEXTS, convert_to_sparse_tensor=False)),
        ):
            np.testing.assert_allclose(mine.to_dense(), theirs.cpu().numpy(), rtol=0, atol=2e-5)
            assert 0 < np.diff(mine.indptr).max() <= 6
    listed = json.loads((tmp_path / "ours" / "modules.json").read_text())
    assert [module["type"] for module in listed] == [
        "sentence_transformers.models.Transformer",
        "sentence_transformers.models.Pooling",
        "sentence_transformers.models.Normalize",
        "sentence_transformers.sparse_encoder.models.SparseAutoEncoder",
    ]
    again = SparseEncoder.load(tmp_path / "ours")
    assert again.fingerprint == ours.fingerprint
    assert SparseEncoder.load(tmp_path / "ours", max_active_dims=2).fingerprint != ours.fingerprint


LEVELS = st.sampled_from([0.0, 1.0, 2.0, 3.0])
LATENTS = st.integers(1, 5).flatmap(
    lambda width: st.lists(st.lists(LEVELS, min_size=width, max_size=width), min_size=1, max_size=5)
)


@given(LATENTS, st.integers(1, 4))
def test_every_allocation_keeps_the_highest_of_what_it_looks_at(rows: list[list[float]], k: int) -> None:
    latents = np.array(rows, np.float32)
    whole = torch.from_numpy(latents)

    def highest(values: np.ndarray, count: int) -> list[float]:
        return sorted(values.tolist(), reverse=True)[:count]

    kept = allocate(whole, k, "top_k").numpy()
    for row, left in zip(latents, kept, strict=True):
        assert sum(left) == sum(highest(row, k))
    kept = allocate(whole, k, "mutual_choice").numpy()
    assert kept.sum() == sum(highest(latents.ravel(), k * len(rows)))
    share = max(round(k * len(rows) / latents.shape[1]), 1)
    kept = allocate(whole, k, "feature_choice").numpy()
    for column, left in zip(latents.T, kept.T, strict=True):
        assert sum(left) == sum(highest(column, share))
    for allocation in ("mutual_choice", "feature_choice"):
        chosen = allocate(whole, k, allocation).numpy()  # type: ignore[arg-type]
        levels = thresholds_of(latents.copy(), k, allocation)  # type: ignore[arg-type]
        assert levels is not None
        # Equal activations stay together, which no choice within a budget could do.
        by_level = np.where(latents >= levels, latents, 0)
        assert (by_level >= chosen).all()
        assert {*by_level[by_level > chosen]} <= {*levels.tolist()}


def test_codes_keep_k_or_what_reaches_its_threshold() -> None:
    vectors = np.random.default_rng(0).standard_normal((30, 16)).astype(np.float32)
    plain = some_autoencoder()
    latents = plain.activations(vectors)
    codes = plain.codes(vectors)
    for (units, weights), row in zip(codes, latents, strict=True):
        best = np.sort(np.argsort(-row, kind="stable")[:5])
        assert units.tolist() == [unit for unit in best.tolist() if row[unit] > 0]
        np.testing.assert_array_equal(weights, row[units])
    assert np.diff(plain.codes(vectors, 3).indptr).max() == 3
    for allocation in ("mutual_choice", "feature_choice"):
        levels = thresholds_of(latents.copy(), 5, allocation)  # type: ignore[arg-type]
        other = some_autoencoder(allocation=allocation, thresholds=levels)
        codes = other.codes(vectors)
        np.testing.assert_array_equal(codes.to_dense(), np.where(latents >= levels, latents, 0))
        assert len(np.unique(np.diff(codes.indptr))) > 1
        assert np.diff(codes.indptr).mean() == pytest.approx(5, abs=1)
        assert np.diff(other.codes(vectors, 2).indptr).max() == 2
    assert plain.codes(vectors[:0]).num_rows == 0
    with pytest.raises(InputError, match="vectors of 16 values"):
        plain.codes(vectors[:, :3])


def hidden_codes(rows: int = 400, width: int = 12) -> np.ndarray:
    """Vectors that are sums of few of many directions, which an autoencoder can find."""
    generator = np.random.default_rng(3)
    directions = generator.standard_normal((24, width))
    chosen = np.array([generator.choice(24, 2, replace=False) for _ in range(rows)])
    return (directions[chosen].sum(1) + 0.01 * generator.standard_normal((rows, width))).astype(np.float32)


@pytest.mark.parametrize("allocation", ["top_k", "mutual_choice", "feature_choice"])
def test_training_restores_vectors_and_repeats(allocation: str) -> None:
    vectors = hidden_codes()
    settings = CsrSettings(k=4, allocation=allocation, steps=150, batch=64, learning_rate=5e-3)  # type: ignore[arg-type]
    steps: list[CsrStep] = []
    trained = train_autoencoder(vectors, settings, report=steps.append)
    assert [step.step for step in steps] == [1, 100, 150]
    assert steps[-1].restored < 0.3 < steps[0].restored
    codes = trained.codes(vectors)
    restored = codes.to_dense() @ trained.weight + trained.bias
    assert np.square(restored - vectors).mean() / vectors.var(0).mean() < 0.45
    assert np.diff(codes.indptr).mean() == pytest.approx(4, abs=0.5)
    repeated = train_autoencoder(vectors, settings)
    np.testing.assert_array_equal(repeated.weight, trained.weight)
    other = train_autoencoder(vectors, CsrSettings(k=4, steps=3, batch=64, seed=1))
    assert not np.array_equal(
        other.weight, train_autoencoder(vectors, CsrSettings(k=4, steps=3, batch=64)).weight
    )


def test_pairs_come_closer_together() -> None:
    vectors = hidden_codes()
    noise = np.random.default_rng(5).standard_normal(vectors.shape).astype(np.float32)
    both = np.concatenate([vectors, vectors + noise])
    pairs = np.stack([np.arange(400), np.arange(400, 800)], 1)
    losses = []
    for weight in (0.0, 1.0):
        steps: list[CsrStep] = []
        settings = CsrSettings(k=4, steps=150, batch=128, learning_rate=5e-3, contrastive=weight)
        trained = train_autoencoder(both, settings, pairs, steps.append)
        codes = trained.codes(both).to_dense()
        codes /= np.maximum(np.linalg.norm(codes, axis=1, keepdims=True), 1e-9)
        losses.append((codes[:400] @ codes[400:].T).argmax(1) == np.arange(400))
    assert losses[1].mean() > losses[0].mean()


def test_an_index_of_codes_ranks_by_their_cosine(make_language_model: MakeModel, tmp_path: Path) -> None:
    dense = DenseEncoder.load(make_language_model(), normalize=True)
    trained = train_autoencoder(dense.encode_documents(TEXTS), CsrSettings(k=4, steps=5, batch=5))
    CsrEncoder(dense, trained).save(tmp_path / "encoder")
    encoder = SparseEncoder.load(tmp_path / "encoder")
    with IndexWriter.create(tmp_path / "index", encoder=encoder) as writer:
        writer.add([{"_id": str(i), "text": text} for i, text in enumerate([*TEXTS, " "])])
        writer.commit()
    with SparseIndex.open(tmp_path / "index") as index:
        hits = index.search(["the immune zebra"], k=10)
    query, documents = (
        trained.codes(dense.encode_documents(t)).to_dense() for t in (["the immune zebra"], TEXTS)
    )
    cosines = documents @ query[0] / np.linalg.norm(documents, axis=1) / np.linalg.norm(query)
    found = dict(zip(hits.ids[0], hits.scores[0].tolist(), strict=True))
    assert found == pytest.approx({str(i): c for i, c in enumerate(cosines) if c > 0}, abs=0.01)


def test_what_cannot_be_trained_or_read_is_said(make_language_model: MakeModel, tmp_path: Path) -> None:
    vectors = hidden_codes(20)
    with pytest.raises(UsageError, match="k must be 1 or more"):
        CsrSettings(k=0)
    with pytest.raises(UsageError, match="top_k, mutual_choice, feature_choice"):
        CsrSettings(allocation="some")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="two vectors or pairs or more, not 1"):
        train_autoencoder(vectors[:1], CsrSettings())
    with pytest.raises(InputError, match="not finite"):
        train_autoencoder(np.full_like(vectors, np.nan), CsrSettings())
    with pytest.raises(LexpertError, match="try a lower learning_rate"):
        train_autoencoder(vectors, CsrSettings(k=4, steps=20, learning_rate=1e30))
    dense = DenseEncoder.load(make_language_model())
    with pytest.raises(FormatError, match="vectors of 8 values"):
        CsrEncoder(dense, some_autoencoder(8))
    with pytest.raises(UsageError, match="cosine or dot"):
        CsrEncoder(dense, some_autoencoder(), "euclid")
    CsrEncoder(dense, some_autoencoder()).save(tmp_path)
    with pytest.raises(UsageError, match="no option 'pooling'"):
        SparseEncoder.load(tmp_path, pooling="max")
    (tmp_path / "2_SparseAutoEncoder" / "model.safetensors").write_bytes(b"no")
    with pytest.raises(FormatError, match=r"autoencoder in .* cannot be read"):
        SparseEncoder.load(tmp_path)
