"""Weights in 8 bits: what rounding may do, and what damage must say."""

from __future__ import annotations

from pathlib import Path

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from retrieval.encoders.eight_bit_weights import (
    load_eight_bit,
    quantise_rows,
    save_eight_bit,
)
from runtime.errors import FormatError, UsageError


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


def test_equal_weights_make_equal_files(tmp_path: Path) -> None:
    weights = {"layer.weight": torch.ones(2, 3), "layer.bias": torch.ones(3)}
    assert len({save_eight_bit(weights, tmp_path).read_bytes() for _ in range(8)}) == 1


def test_damage_and_other_versions_are_told(tmp_path: Path) -> None:
    path = save_eight_bit({"w": torch.ones(4, 4)}, tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(FormatError, match="checksum does not fit"):
        load_eight_bit(tmp_path)
    path.write_bytes(whole[:-3])
    with pytest.raises(FormatError, match="cannot be read"):
        load_eight_bit(tmp_path)
    save_file({"w": torch.ones(1)}, path, {"eight_bit": "7 of another time"})
    with pytest.raises(FormatError, match="version '7'"):
        load_eight_bit(tmp_path)
