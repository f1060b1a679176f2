"""Weights in 8 bits: what rounding may do, what damage must say, and encoders that are kept so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import AutoTokenizer

from retrieval.encoders.eight_bit_weights import (
    EIGHT_BIT_WEIGHTS,
    load_eight_bit,
    quantise_rows,
    save_eight_bit,
)
from retrieval.encoders.encoder import SparseEncoder
from retrieval.encoders.inference_free import inference_free_from
from retrieval.encoders.sentence_transformers_folder import SpladeRoute, TableRoute
from retrieval.encoders.shrink import shrink
from runtime.errors import ConflictError, FormatError, UsageError

MakeModel = Callable[..., Path]


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(0, 4), st.integers(0, 6)),
        elements=st.floats(-(2.0**60), 2.0**60, width=32),
    )
)
@settings(deadline=None, max_examples=60)
def test_a_value_is_off_by_half_a_scale_at_most(matrix: np.ndarray) -> None:
    codes, scales = quantise_rows(torch.from_numpy(matrix))
    assert codes.dtype == torch.int8
    assert scales.dtype == torch.float32
    back = codes.numpy().astype(np.float64) * scales.numpy().astype(np.float64)[:, None]
    # Scales near the smallest float32 are rounded themselves.
    bound = scales.numpy().astype(np.float64)[:, None] * 0.5001 + 127 * 2.0**-149
    assert (np.abs(back - matrix) <= bound).all()


def test_weights_come_back_under_their_names(tmp_path: Path) -> None:
    weights = {
        "layer.weight": torch.tensor([[1.0, -127.0], [0.0, 0.0]]),
        "layer.bias": torch.tensor([0.5, -2.0]),
        "positions": torch.arange(3),
    }
    save_eight_bit(weights, tmp_path)
    back = load_eight_bit(tmp_path)
    assert set(back) == set(weights)
    for name, weight in weights.items():
        assert torch.equal(back[name], weight)
        assert back[name].dtype == weight.dtype


@pytest.mark.parametrize(
    "bad", [torch.tensor([[1.0, torch.nan]]), torch.tensor([1e9]), torch.tensor([torch.inf])]
)
def test_values_that_do_not_fit_are_refused(bad: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the weight w has values"):
        save_eight_bit({"w": bad}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_damage_and_other_versions_are_told(tmp_path: Path) -> None:
    path = save_eight_bit({"w": torch.ones(4, 4)}, tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(FormatError, match="checksum does not fit"):
        load_eight_bit(tmp_path)
    path.write_bytes(whole[:-3])
    with pytest.raises(FormatError, match="cannot be read"):
        load_eight_bit(tmp_path)
    save_file({"w": torch.ones(1)}, path, {"version": "7"})
    with pytest.raises(FormatError, match="version '7'"):
        load_eight_bit(tmp_path)


@pytest.fixture(scope="module")
def encoder_folder(make_language_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An inference-free encoder in float32."""
    model, table = make_language_model(), tmp_path_factory.mktemp("table")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.save_pretrained(table)
    save_file({"weight": torch.linspace(0.5, 4, len(tokenizer))}, table / "model.safetensors")
    folder = tmp_path_factory.mktemp("whole")
    inference_free_from(SpladeRoute(model), TableRoute(table, table / "model.safetensors")).save(folder)
    return folder


def dense(encoder: SparseEncoder, texts: list[str]) -> np.ndarray:
    return np.asarray(encoder.encode_documents(texts).to_dense())


def test_a_shrunk_encoder_encodes_nearly_the_same(
    encoder_folder: Path, texts: list[str], tmp_path: Path
) -> None:
    size = shrink(encoder_folder, tmp_path / "small")
    files = sorted(path.name for path in (tmp_path / "small").rglob("*.safetensors"))
    assert files == [EIGHT_BIT_WEIGHTS, "model.safetensors"]  # the model, and the table of queries
    assert size == sum(path.stat().st_size for path in (tmp_path / "small").rglob("*") if path.is_file())
    whole, small = SparseEncoder.load(encoder_folder), SparseEncoder.load(tmp_path / "small")
    expected, got = dense(whole, texts), dense(small, texts)
    assert 0 < np.abs(got - expected).mean() < 0.02 * expected.max()  # the tiny model has large weights
    assert small.fingerprint != whole.fingerprint
    assert np.array_equal(
        np.asarray(small.encode_queries(texts).to_dense()), np.asarray(whole.encode_queries(texts).to_dense())
    )


def test_saved_again_it_is_written_for_every_library(
    encoder_folder: Path, texts: list[str], tmp_path: Path
) -> None:
    from sentence_transformers import SparseEncoder as Peer

    shrink(encoder_folder, tmp_path / "small")
    small = SparseEncoder.load(tmp_path / "small")
    small.save(tmp_path / "again")
    assert not list((tmp_path / "again").rglob(EIGHT_BIT_WEIGHTS))
    peer = Peer(str(tmp_path / "again")).encode_document(texts, convert_to_sparse_tensor=False)
    np.testing.assert_allclose(dense(small, texts), peer.cpu().numpy(), rtol=1e-5, atol=1e-5)


def test_missing_weights_are_told(encoder_folder: Path, tmp_path: Path) -> None:
    shrink(encoder_folder, tmp_path / "small")
    [path] = (tmp_path / "small").rglob(EIGHT_BIT_WEIGHTS)
    weights = load_eight_bit(path.parent)
    save_eight_bit({name: w for name, w in weights.items() if "layer.0" not in name}, path.parent)
    with pytest.raises(FormatError, match=r"lacks \d+ of the weights"):
        SparseEncoder.load(tmp_path / "small").encode_documents(["the virus"])


def test_an_existing_folder_is_left_alone(encoder_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    with pytest.raises(ConflictError, match="exists already"):
        shrink(encoder_folder, tmp_path / "kept")
    assert list(tmp_path.iterdir()) == [tmp_path / "kept"]
