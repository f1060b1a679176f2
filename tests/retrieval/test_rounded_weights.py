"""Weights in 8 and 4 bits: what rounding may do, and what damage must say."""

from __future__ import annotations

from pathlib import Path

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from retrieval.encoders.checked_tensors import save_checked
from retrieval.encoders.rounded_weights import (
    CUTS,
    FORM,
    VERSION,
    Bits,
    load_rounded,
    restored,
    round_to_bytes,
    round_to_nibbles,
    rounded,
    save_rounded,
)
from runtime.errors import FormatError, UsageError

SHAPES = st.tuples(st.integers(0, 4), st.integers(0, 7))


@given(arrays.arrays(np.float32, SHAPES, elements=st.floats(-(2.0**60), 2.0**60, width=32)))
@settings(deadline=None, max_examples=60)
def test_in_8_bits_a_value_is_off_by_half_a_scale_at_most(matrix: np.ndarray) -> None:
    codes, scales = round_to_bytes(torch.from_numpy(matrix))
    assert codes.dtype == torch.int8
    assert scales.dtype == torch.float32
    back = codes.numpy().astype(np.float64) * scales.numpy().astype(np.float64)[:, None]
    # Scales near the smallest float32 are rounded themselves.
    bound = scales.numpy().astype(np.float64)[:, None] * 0.5001 + 127 * 2.0**-149
    assert (np.abs(back - matrix) <= bound).all()


@given(arrays.arrays(np.float32, SHAPES, elements=st.floats(-65504, 65504, width=32)))
@settings(deadline=None, max_examples=100)
def test_in_4_bits_the_best_of_the_scales_is_taken(matrix: np.ndarray) -> None:
    codes, scales = round_to_nibbles(torch.from_numpy(matrix))
    assert (codes.dtype, scales.dtype) == (torch.int8, torch.float16)
    assert (codes.abs() <= 7).all()
    back = codes.numpy().astype(np.float64) * scales.numpy().astype(np.float64)[:, None]
    for row, found in zip(matrix, back, strict=True):
        largest = np.float32(np.abs(row).max(initial=0.0)) / np.float32(7)
        errors = []
        for cut in CUTS:
            scale = np.float64(np.float16(largest * np.float32(cut)))
            steps = np.clip(np.rint(row / scale), -7, 7) if scale > 0 else np.zeros(len(row))
            errors.append(((steps * scale - row) ** 2).sum())
        error = ((found - row) ** 2).sum()
        assert error <= min(errors) * (1 + 1e-5) + 1e-30
        # without a cut a value is off by half a step, and by what float16 makes of the step
        assert error <= len(row) * (largest * 0.504 + 7 * 2.0**-24) ** 2


@given(arrays.arrays(np.float32, SHAPES, elements=st.floats(-100, 100, width=32)), st.sampled_from([8, 4]))
def test_codes_are_packed_and_unpacked(matrix: np.ndarray, bits: Bits) -> None:
    weight = torch.from_numpy(matrix)
    kept = rounded({"layer.weight": weight}, {"layer.weight": bits})
    codes, scales = (round_to_bytes if bits == 8 else round_to_nibbles)(weight)
    back = restored(kept, Path("file"))["layer.weight"]
    assert back.dtype == torch.float32
    assert torch.equal(back, codes.float() * scales.float()[:, None])
    held = kept["layer.weight.codes" if bits == 8 else "layer.weight.nibbles"]
    assert held.nbytes == len(matrix) * (matrix.shape[1] if bits == 8 else (matrix.shape[1] + 1) // 2)
    # what was rounded stays as it is
    again = restored(rounded({"w": back}, {"w": bits}), Path("file"))["w"]
    assert torch.allclose(again, back, rtol=2e-3 if bits == 4 else 1e-6, atol=1e-6)


def test_weights_come_back_under_their_names(tmp_path: Path) -> None:
    weights = {
        "layer.weight": torch.tensor([[1.0, -127.0], [0.0, 0.0]]),
        "words.weight": torch.tensor([[7.0, -3.0, 0.0], [0.0, 0.0, 0.0], [-3.5, 0.5, 3.0]]),
        "layer.bias": torch.tensor([0.5, -2.0]),
        "positions": torch.arange(3),
    }
    save_rounded(weights, tmp_path / "file", {"words.weight": 4})
    back = load_rounded(tmp_path / "file")
    assert set(back) == set(weights)
    for name, weight in weights.items():
        assert torch.equal(back[name], weight)
        assert back[name].dtype == weight.dtype
    kept = load_file(tmp_path / "file")
    assert kept["words.weight.nibbles"].dtype == torch.uint8
    assert "layer.weight.codes" in kept


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    "bad", [torch.tensor([[1.0, torch.nan]]), torch.tensor([1e9]), torch.tensor([torch.inf])]
)
def test_values_that_do_not_fit_are_refused(bad: torch.Tensor, bits: Bits, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the weight w has values"):
        save_rounded({"w": bad}, tmp_path / "file", {"w": bits})
    assert not list(tmp_path.iterdir())


def test_a_row_too_large_for_its_scale_is_refused() -> None:
    assert "w.codes" in rounded({"w": torch.full((1, 2), 1e9)})
    with pytest.raises(UsageError, match="the weight w has values"):
        rounded({"w": torch.full((1, 2), 1e9)}, {"w": 4})


def test_equal_weights_make_equal_files(tmp_path: Path) -> None:
    weights = {
        "layer.weight": torch.ones(2, 3),
        "words.weight": torch.ones(2, 3),
        "layer.bias": torch.ones(3),
    }
    contents = set()
    for _ in range(8):
        save_rounded(weights, tmp_path / "file", {"words.weight": 4})
        contents.add((tmp_path / "file").read_bytes())
    assert len(contents) == 1


def test_damage_and_other_versions_are_told(tmp_path: Path) -> None:
    path = tmp_path / "file"
    save_rounded({"w": torch.ones(4, 4)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(FormatError, match="checksum does not fit"):
        load_rounded(path)
    path.write_bytes(whole[:-3])
    with pytest.raises(FormatError, match="cannot be read"):
        load_rounded(path)
    save_file({"w": torch.ones(1)}, path, {FORM: "7 of another time"})
    with pytest.raises(FormatError, match="version '7'"):
        load_rounded(path)


@pytest.mark.parametrize("missing", ["scales", "columns"])
def test_parts_of_a_matrix_are_not_taken_for_it(tmp_path: Path, missing: str) -> None:
    tensors = rounded({"w": torch.ones(4, 4)}, {"w": 4})
    del tensors[f"w.{missing}"]
    save_checked(tensors, tmp_path / "file", FORM, VERSION)
    with pytest.raises(FormatError, match="has no whole matrix w"):
        load_rounded(tmp_path / "file")
